"""The reference profile of a training frame, and how far recent rows have moved from it.

Bin edges are stored with the profile: the population stability index (PSI) differs by a fifth between binnings, so
reports are comparable only on the same edges. The profile is small plain data and is kept with the model version.

PSI = Σ (q − p) ln(q / p) over bins, p the reference's shares and q the recent ones; nulls are a bin of their own. So
that empty bins stay finite, half a row is added to each bin of the reference (Krichevsky & Trofimov 1981) and the
recent counts are mixed with as many rows of the reference's distribution. Without any drift, PSI / (1/n + 1/m) follows
a chi-squared distribution with (bins − 1) degrees of freedom for n recent and m reference rows (Yurdakul & Naranjo
2020): its mean is subtracted, and its upper 0.1 % point is reported as the noise that an alarm must exceed. Rows of a
day resemble each other, so the true noise is larger; alarms therefore go by effect size first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.special import chdtri

from tidemill.base.errors import TidemillError
from tidemill.base.schema import nearest
from tidemill.engine.evaluate.metric import Floats, Ints

BINS = 10
CATEGORIES = 50  # kept by name; the rest count as "other", with values never seen in training
#: Name under which predictions are profiled; with several classes followed by ``_0``, ``_1``, …
PREDICTION = "_prediction"

_NOISE = 0.001  # share of undrifted features whose PSI exceeds the noise
_SLICE = 65_536  # rows compared with the edges at once, so that they stay in the cache


@dataclass(frozen=True, slots=True)
class Numbers:
    """A numeric feature: ``counts`` of rows in (-inf, e0], (e0, e1], …, (last, inf), and of nulls.

    The first edge lies just below the smallest value and the last edge is the largest, so that the outer bins catch
    what training never saw; between them are deciles, equal ones taken together.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    nulls: int


@dataclass(frozen=True, slots=True)
class Categories:
    """A categorical feature: ``counts`` of the most frequent ``values`` and, last, of all others; and of nulls."""

    values: tuple[str, ...]
    counts: tuple[int, ...]
    nulls: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What training rows looked like: ``rows`` of them, and each feature's distribution."""

    rows: int
    features: Mapping[str, Numbers | Categories]

    @staticmethod
    def of(frame: pl.DataFrame, prediction: Floats | None = None) -> Profile:
        """Profile every column of ``frame`` and the ``prediction`` of its rows (n numbers, or n × classes).

        Numbers and times go by deciles; strings, categories and booleans by value; NaN counts as null. Raises
        TidemillError on a column of another type.
        """
        columns = _with_prediction(frame, prediction)
        return Profile(frame.height, {column.name: _describe(column) for column in columns})

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        features: dict[str, Any] = {}
        for name, each in self.features.items():
            counted: dict[str, Any] = {"counts": list(each.counts), "nulls": each.nulls}
            if isinstance(each, Numbers):
                features[name] = {"edges": list(each.edges), **counted}
            else:
                features[name] = {"values": list(each.values), **counted}
        return {"rows": self.rows, "features": features}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Profile:
        """Return the profile that ``as_json`` wrote."""
        return Profile(
            data["rows"],
            {
                name: Numbers(tuple(each["edges"]), tuple(each["counts"]), each["nulls"])
                if "edges" in each
                else Categories(tuple(each["values"]), tuple(each["counts"]), each["nulls"])
                for name, each in data["features"].items()
            },
        )


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one feature has moved: its PSI less what chance alone gives on average, never below 0.

    ``noise``: the same figure that one undrifted feature in a thousand exceeds. ``nulls_before`` and ``nulls_now`` are
    the shares of nulls.
    """

    feature: str
    psi: float
    noise: float
    nulls_before: float
    nulls_now: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "feature": self.feature,
            "psi": self.psi,
            "noise": self.noise,
            "nulls_before": self.nulls_before,
            "nulls_now": self.nulls_now,
        }


def shifts(reference: Profile, frame: pl.DataFrame, prediction: Floats | None = None) -> tuple[Shift, ...]:
    """Return how far each profiled feature has moved in the rows of ``frame``, the furthest first.

    Columns that were not profiled are ignored. Raises TidemillError when a profiled column is missing or has changed
    from numbers to text.
    """
    columns = {column.name: column for column in _with_prediction(frame, prediction)}
    found = []
    for name, feature in reference.features.items():
        if name.startswith(PREDICTION) and prediction is None and name not in columns:
            continue
        if name not in columns:
            raise TidemillError(
                f"column {name!r} is in the training profile but not in the recent rows.{nearest(name, columns)} "
                "Compare rows of the same features as the model was trained on."
            )
        before = np.array([*feature.counts, feature.nulls], dtype=np.int64)
        now = _count(feature, columns[name])
        psi, noise = stability(before, now)
        found.append(Shift(name, psi, noise, _share(feature.nulls, before), _share(int(now[-1]), now)))
    return tuple(sorted(found, key=lambda shift: (-shift.psi, shift.feature)))


def stability(before: Ints, now: Ints) -> tuple[float, float]:
    """Return the PSI of counts ``now`` against counts ``before`` in the same bins, and its noise.

    Both less the mean that chance gives, and not below 0; (0, 0) when either has no rows.
    """
    m, n, bins = int(before.sum()), int(now.sum()), len(before)
    occupied = int(((before + now) > 0).sum())
    if not m or not n or occupied < 2:
        return 0.0, 0.0
    expected = (before + 0.5) / (m + 0.5 * bins)
    recent = (now + 0.5 * bins * expected) / (n + 0.5 * bins)
    raw = float(np.add.reduce((recent - expected) * np.log(recent / expected)))
    scale, freedom = 1 / n + 1 / m, occupied - 1
    limit = float(chdtri(freedom, _NOISE)) * scale
    return max(0.0, raw - freedom * scale), limit - freedom * scale


def _share(part: int, counts: Ints) -> float:
    return part / max(int(counts.sum()), 1)


def _with_prediction(frame: pl.DataFrame, prediction: Floats | None) -> Sequence[pl.Series]:
    columns = list(frame.get_columns())
    if prediction is None:
        return columns
    if prediction.ndim == 1:
        return [*columns, pl.Series(PREDICTION, prediction)]
    return [*columns, *(pl.Series(f"{PREDICTION}_{each}", prediction[:, each]) for each in range(prediction.shape[1]))]


def _is_number(column: pl.Series) -> bool:
    return column.dtype.is_numeric() or column.dtype.is_temporal() or column.dtype == pl.Null


def _numbers(column: pl.Series) -> Floats:
    """Return the column as float64 with NaN for null; times as their number of units."""
    physical = column.to_physical() if column.dtype.is_temporal() else column
    numbers: Floats = physical.cast(pl.Float64).to_numpy()
    return numbers


def _texts(column: pl.Series) -> pl.Series:
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null):
        raise TidemillError(
            f"column {column.name!r} of type {column.dtype} can be profiled neither by number nor by value. "
            "Leave it out, or make it a number or a text."
        )
    return column.cast(pl.String)


def _describe(column: pl.Series) -> Numbers | Categories:
    if _is_number(column):
        numbers = _numbers(column)
        finite = numbers[np.isfinite(numbers)]
        edges: tuple[float, ...] = ()
        if len(finite):
            # values that occur, so that a value shared by many rows has its bin to itself
            deciles = np.quantile(finite, np.arange(1, BINS) / BINS, method="inverted_cdf")
            low, high = np.nextafter(finite.min(), -np.inf), finite.max()
            edges = tuple(float(edge) for edge in np.unique(np.concatenate(([low], deciles, [high]))))
        counts = _count_numbers(edges, numbers)
        return Numbers(edges, tuple(int(each) for each in counts[:-1]), int(counts[-1]))
    texts = _texts(column)
    counted = texts.drop_nulls().alias("value").value_counts(name="count")
    frequent = counted.sort(["count", "value"], descending=[True, False]).head(CATEGORIES)
    values = tuple(frequent["value"].to_list())
    counts = _count_texts(values, texts)
    return Categories(values, tuple(int(each) for each in counts[:-1]), int(counts[-1]))


def _count(feature: Numbers | Categories, column: pl.Series) -> Ints:
    """Return the counts of ``column`` in the feature's bins, nulls last."""
    if isinstance(feature, Categories):
        return _count_texts(feature.values, _texts(column))
    if not _is_number(column):
        raise TidemillError(
            f"column {column.name!r} was a number in training and is now {column.dtype}. Mend the source, or retrain."
        )
    return _count_numbers(feature.edges, _numbers(column))


def _count_numbers(edges: tuple[float, ...], numbers: Floats) -> Ints:
    """Count by comparing with each edge: for a dozen edges, several times faster than a search for each value."""
    up_to = np.zeros(len(edges) + 1, dtype=np.int64)
    for at in range(0, len(numbers), _SLICE):
        some = numbers[at : at + _SLICE]
        for number, edge in enumerate(edges):
            up_to[number] += np.count_nonzero(some <= edge)
        up_to[-1] += len(some) - np.count_nonzero(np.isnan(some))
    return np.concatenate((np.diff(up_to, prepend=0), [len(numbers) - up_to[-1]]))


def _count_texts(values: tuple[str, ...], texts: pl.Series) -> Ints:
    counted = texts.drop_nulls().alias("value").value_counts(name="count")
    found = dict(zip(counted["value"].to_list(), counted["count"].to_list(), strict=True))
    known = [found.get(value, 0) for value in values]
    nulls = texts.null_count()
    return np.array([*known, len(texts) - nulls - sum(known), nulls], dtype=np.int64)
