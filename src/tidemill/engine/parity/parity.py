"""Parity: logged predictions derived again from the lake and compared bit for bit (time rule 9).

A prediction was answered at t from the rows that had been applied by then. Derivation reads exactly those. Rows that
came later are known later than t, so that they cannot show and all predictions are derived in one pass; where that does
not hold (history loaded afterwards, tables without times) rows are cut by sequence number, a pass for each cut.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import betaincinv

from tidemill.base.clock import FOREVER
from tidemill.base.schema import KNOWN_AT, SEQ
from tidemill.engine.example.ledger import request_frame
from tidemill.engine.example.outcome import predictions
from tidemill.engine.feature.feature import features
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.table.plain import storable_rows
from tidemill.engine.table.table import timeless
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table

Ints = npt.NDArray[np.int64]

#: The name under which a prediction itself is compared.
PREDICTION = "prediction"
#: How far, relatively, a prediction by linear algebra may lie from that of another batch size.
ROUNDING = 1e-12
#: What a comparison proves when nothing else is asked for: the rate of mismatches is below this, at 95 % confidence.
BOUND = 0.001

_SHOWN = 5

#: What can lie behind a difference, and what that means. ``mismatch`` tells them apart.
CAUSES: Mapping[str, str] = {
    "late row": "a row that was known in time by its own account was committed after the prediction (no fault)",
    "stale state": "the view had not been brought up to what had been applied",
    "ahead": "the view held rows that had not been applied by its own account",
    "lost row": "a row was missing, or rows that follow on each other",
    "doubled row": "a row was counted twice, or rows that follow on each other",
    "window edge": "a row at the edge of a window was on its wrong side",
    "transform": "a value that comes from the request alone is computed otherwise now",
    "library version": "the version was trained with other versions of the libraries that compute",
    "float": "the last digits of a number differ",
    "model": "from equal features the model predicts otherwise",
    "unexplained": "nothing that was tried gives what was logged",
}
#: Causes that do not fail a comparison: nothing was done wrong when it was answered. Last digits do fail it, for trees
#: decide by them.
HARMLESS = frozenset({"late row", "library version"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that came out otherwise: ``what`` is a feature's name or ``PREDICTION``; both values as in JSON."""

    id: str
    what: str
    logged: Any
    derived: Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause of differences: ``kind`` is one of ``CAUSES``, ``where`` a view, column or model.

    ``detail`` says what exactly: which rows, since when. ``predictions`` it accounts for, ``columns`` with the number
    of times each is affected, and ``examples``: the largest differences. ``against``: how many predictions agree that
    it would have changed, had it lasted (of rows that were lost or not applied, in tables with times; else 0).
    """

    kind: str
    where: str
    detail: str
    predictions: int
    columns: Mapping[str, int]
    examples: tuple[Difference, ...]
    against: int = 0

    @property
    def fails(self) -> bool:
        """True when something was done wrong, or may have been."""
        return self.kind not in HARMLESS

    def __add__(self, other: Finding) -> Finding:
        return Finding(
            self.kind,
            self.where,
            self.detail,
            self.predictions + other.predictions,
            _summed(self.columns, other.columns),
            largest((*self.examples, *other.examples)),
            self.against + other.against,
        )


@dataclass(frozen=True, slots=True)
class Parity:
    """What a comparison found.

    ``rows`` compared; ``mismatched`` of them, in any value; ``by_value`` counts them by feature or prediction.
    ``rounded``: predictions whose last digits hang on the size of the batch, within ``ROUNDING``, and which agree
    otherwise. ``examples``: the first differences. ``findings``: what lies behind them, where that was looked into.
    """

    rows: int = 0
    mismatched: int = 0
    rounded: int = 0
    by_value: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[Difference, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __add__(self, other: Parity) -> Parity:
        found: dict[tuple[str, str, str], Finding] = {}
        for each in (*self.findings, *other.findings):
            place = (each.kind, each.where, each.detail)
            found[place] = found[place] + each if place in found else each
        return Parity(
            self.rows + other.rows,
            self.mismatched + other.mismatched,
            self.rounded + other.rounded,
            _summed(self.by_value, other.by_value),
            (*self.examples, *other.examples)[:_SHOWN],
            tuple(found.values()),
        )

    @property
    def rate(self) -> float | None:
        """The share of rows that differ; None without rows."""
        return self.mismatched / self.rows if self.rows else None

    @property
    def bound(self) -> float | None:
        """The upper end, at 95 % confidence, of the rate (Clopper and Pearson 1934); None without rows."""
        return upper_bound(self.mismatched, self.rows) if self.rows else None


def _summed(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in dict.fromkeys([*one, *other])}


def largest(found: Iterable[Difference]) -> tuple[Difference, ...]:
    """Return a few of the differences: those that are largest, relative to the larger of the two values."""
    return tuple(sorted(found, key=lambda each: (-_size(each.logged, each.derived), each.id, each.what))[:_SHOWN])


def _size(one: Any, other: Any) -> float:
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) / max(abs(one), abs(other), 1e-300) if numbers else float("inf")


def upper_bound(hits: int, rows: int, confidence: float = 0.95) -> float:
    """Return the one-sided exact upper bound of a binomial rate (Clopper and Pearson 1934). ``rows`` at least 1."""
    return 1.0 if hits >= rows else float(betaincinv(hits + 1, rows - hits, confidence))


def derive(
    model: Model, types: Mapping[str, pl.DataType], tables: Mapping[str, pl.DataFrame], logged: pl.DataFrame
) -> pl.DataFrame:
    """Return ``model.columns`` for each of ``logged``, from the rows that each had seen.

    ``types``: of the request's columns. ``tables``: all versions of each table that the model's views read, in order of
    sequence; without columns where there has been no row. ``logged``: rows of the ledger.
    """
    requests = request_frame(logged["request"], types)
    asked = logged["asked"].dt.epoch("us").to_numpy().astype(np.int64)
    read = {view.table.name: view.table for view in model.views if not isinstance(view, OnDemand)}
    applied = [msgspec.json.decode(text) for text in logged["applied"]]
    seen = np.array([[each.get(name, 0) for name in read] for each in applied], dtype=np.int64)
    cut = np.zeros(len(asked), dtype=np.bool_)
    for place, (name, table) in enumerate(read.items()):
        if tables[name].width == 0:
            continue  # no row yet, then as now
        cut |= _shows_later_rows(table, tables[name], seen[:, place], asked)
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in np.flatnonzero(cut).tolist():
        groups.setdefault(tuple(seen[row].tolist()), []).append(row)
    parts, places = [], []
    if not cut.all() or not len(cut):
        whole = np.flatnonzero(~cut)
        parts.append(features(model, tables, requests[whole], asked[whole]))
        places.append(whole)
    for limits, members in groups.items():
        rows = np.array(members)
        own = {
            name: tables[name].filter(pl.col(SEQ) < limit) if limit else pl.DataFrame()
            for name, limit in zip(read, limits, strict=True)
        }
        parts.append(features(model, own, requests[rows], asked[rows]))
        places.append(rows)
    return pl.concat(parts, how="vertical_relaxed")[np.argsort(np.concatenate(places), kind="stable")]


def _shows_later_rows(table: Source | Table, rows: pl.DataFrame, seen: Ints, asked: Ints) -> npt.NDArray[np.bool_]:
    """Tell, for each question, whether a row numbered ``seen`` or more would show at ``asked``."""
    if timeless(table):
        return seen < rows.height
    known = rows[KNOWN_AT].dt.epoch("us").fill_null(FOREVER).to_numpy()
    earliest = np.append(np.minimum.accumulate(known[::-1])[::-1], FOREVER)
    return np.asarray(earliest[np.minimum(seen, rows.height)] < asked)


def compare(logged: pl.DataFrame, derived: pl.DataFrame, predictor: Predictor) -> Parity:
    """Compare ``logged`` (rows of the ledger) with the features ``derived`` for them, and predict from those again."""
    return summary(logged.height, *differences(logged, derived, predictor))


def summary(rows: int, found: Sequence[Difference], rounded: int) -> Parity:
    """Return the report on ``rows`` predictions with the given ``differences``."""
    by_value: dict[str, int] = {}
    for each in found:
        by_value[each.what] = by_value.get(each.what, 0) + 1
    return Parity(rows, len({each.id for each in found}), rounded, by_value, tuple(found[:_SHOWN]))


def differences(
    logged: pl.DataFrame, derived: pl.DataFrame, predictor: Predictor
) -> tuple[tuple[Difference, ...], int]:
    """Return every value that came out otherwise, by row, and how many predictions are rounded only.

    Of the columns of ``derived`` the predictor's own must have been logged; others may not have been declared then.
    """
    needed = frozenset(predictor.encoding.columns)
    differing: dict[int, list[Difference]] = {}
    ids = logged["id"].to_list()
    for row, (text, values) in enumerate(zip(logged["features"], storable_rows(derived), strict=True)):
        encoded = msgspec.json.encode(values)
        if encoded == text.encode():
            continue
        was, now = msgspec.json.decode(text), msgspec.json.decode(encoded)
        wrong = [
            Difference(ids[row], name, was.get(name), now[name])
            for name in now
            if (name not in was and name in needed) or (name in was and not same(was[name], now[name]))
        ]
        if wrong:
            differing[row] = wrong
    rounded = 0
    for row, was, now in _predicted_otherwise(logged, derived, predictor):
        if np.allclose(now, was, rtol=ROUNDING, atol=0.0):
            rounded += row not in differing
        else:
            found = Difference(ids[row], PREDICTION, np.asarray(was).tolist(), np.asarray(now).tolist())
            differing.setdefault(row, []).append(found)
    return tuple(each for row in sorted(differing) for each in differing[row]), rounded


def _predicted_otherwise(
    logged: pl.DataFrame, derived: pl.DataFrame, predictor: Predictor
) -> Iterable[tuple[int, Any, Any]]:
    """Yield (row, logged, derived) where a prediction differs in a bit, also when its row is predicted alone."""
    if not len(logged):
        return
    was, now = predictions(logged["prediction"]), predictor.predict(derived)
    unequal = was.view(np.int64) != now.view(np.int64)
    for row in np.flatnonzero(unequal if unequal.ndim == 1 else unequal.any(axis=1)).tolist():
        alone = predictor.predict(derived[row])[0]
        if np.asarray(alone).tobytes() != np.asarray(was[row]).tobytes():
            yield row, was[row], alone


def same(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are equal in type and, for numbers, in every bit."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return type(one) is type(other) and bool(one == other)


def sample(ids: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Choose a ``share`` (0 to 1) of predictions by their ids, which are hashes: the same ones every time."""
    return np.array([int(each[:12], 16) < share * 16**12 for each in ids], dtype=np.bool_)


def enough(ids: Sequence[str], bound: float = BOUND) -> npt.NDArray[np.bool_]:
    """Choose as many predictions by their ids as put the rate below ``bound`` when none of them differs."""
    order = np.argsort(np.array([int(each[:12], 16) for each in ids], dtype=np.int64), kind="stable")
    chosen = np.zeros(len(ids), dtype=np.bool_)
    # Without a hit, the bound of n rows is 1 - 0.05 ** (1 / n).
    chosen[order[: math.ceil(math.log(0.05) / math.log1p(-bound))]] = True
    return chosen
