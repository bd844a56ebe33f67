"""Splits: which rows learn, which judge, and what is doubtful about that.

A row is mature ``within + settle`` after it was asked. By time, each part of the test period is predicted by a model
that could have been fitted before it: on rows mature before the part begins, less the gap (rolling origin, Tashman
2000). By key, a row's side depends on a hash of its key alone, so that growth does not reshuffle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import format_duration, format_time
from tidemill.base.errors import TidemillError
from tidemill.base.hashing import bucket, canonical
from tidemill.base.schema import nearest
from tidemill.engine.evaluate.metric import Ints
from tidemill.engine.evaluate.profile import Profile, shifts
from tidemill.spec.split import ByTime, Split

#: Column of a training frame with the time of the question: timestamp[us, UTC].
ASKED_AT = "_asked_at"

MIN_ROWS = 100  # fewer in a part are warned about
UNEVEN = 0.1  # PSI of labels between parts from which they are called uneven: the customary "moderate" shift
_CLASSES = 20  # integers with at most so many values are classes

Kind = Literal["few_rows", "uneven", "overlap", "same_key", "giveaway", "label_used"]


@dataclass(frozen=True, slots=True)
class DataWarning:
    """Something doubtful about the data of a model: ``what``, ``where``, and what to ``do`` about it."""

    kind: Kind
    where: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} {self.do}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"kind": self.kind, "where": self.where, "what": self.what, "do": self.do}


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows that learn and rows that judge, as positions in the frame, ascending.

    ``origin``: only rows mature before it (microseconds) learn; None when the split is not by time.
    """

    train: Ints
    test: Ints
    origin: int | None


@dataclass(frozen=True, slots=True)
class Segregation:
    """A frame in parts: ``parts`` maps each name to positions of rows, ascending; ``left_out`` counts rows in gaps."""

    parts: Mapping[str, Ints]
    left_out: int
    warnings: tuple[DataWarning, ...]


def folds(
    split: Split, frame: pl.DataFrame, *, key: Sequence[str], within: int, settle: int = 0, window: int | None = None
) -> tuple[Fold, ...]:
    """Return the folds of ``split`` over a frame of mature examples, oldest first; none without test rows.

    By time: the test period is the newest ``split.test`` microseconds of questions, ending with the newest. A row
    learns if ``asked_at + within + settle`` lies before the part's begin less the gap, and, with a ``window``
    (microseconds), if it was asked no longer than that before. By key: one fold. A fold may have no rows to learn from;
    ``doubts`` says so. Raises TidemillError when a column is missing.
    """
    if frame.is_empty():
        return ()
    if not isinstance(split, ByTime):
        tested = _buckets(frame, key, split.seed) < split.test
        return tuple(fold for fold in (Fold(np.flatnonzero(~tested), np.flatnonzero(tested), None),) if len(fold.test))
    asked = times(frame)
    end = int(asked.max()) + 1
    begin = end - split.test
    made = []
    for part in range(split.blocks):
        start, stop = (begin + split.test * each // split.blocks for each in (part, part + 1))
        origin = start - split.gap
        learns = asked + (within + settle) < origin
        if window is not None:
            learns &= asked >= origin - window
        test = np.flatnonzero((asked >= start) & (asked < stop))
        if len(test):
            made.append(Fold(np.flatnonzero(learns), test, origin))
    return tuple(made)


def segregate(
    frame: pl.DataFrame,
    ratio: Mapping[str, float],
    *,
    by: Literal["time", "key"],
    key: Sequence[str] = (),
    seed: int = 0,
    label: str | None = None,
    time: str | None = ASKED_AT,
    gap: int = 0,
) -> Segregation:
    """Divide ``frame`` into named parts, such as ``{"train": 0.7, "validation": 0.1, "test": 0.2}``.

    ``by="time"``: from old to new in the order named, rows of the same time together, and rows less than ``gap``
    microseconds before the next part left out. ``by="key"``: by a hash of ``key`` and ``seed``; a key keeps its part
    when rows are added, and also when parts after it in the order named are divided further. ``label`` and ``time``
    name columns to be warned about, None for none. Raises TidemillError when the ratio is not one or columns are
    missing.
    """
    shares = np.array(list(ratio.values()), dtype=np.float64)
    if len(shares) < 2 or (shares <= 0).any() or abs(float(shares.sum()) - 1) > 1e-9:
        raise TidemillError(
            f"ratio {dict(ratio)!r} must name at least two parts with positive shares that add up to 1."
        )
    ends = np.cumsum(shares)
    ends[-1] = 1.0
    if by == "key":
        part = np.searchsorted(ends, _buckets(frame, key, seed), side="right")
    else:
        if time is None:
            raise TidemillError("a split by time needs the name of the time column.")
        part = _parts_in_time(times(frame, time), ends, gap)
    parts = {name: np.flatnonzero(part == number) for number, name in enumerate(ratio)}
    doubtful = doubts(frame, parts, key=key, label=label, time=time)
    return Segregation(parts, int((part < 0).sum()), doubtful)


def _parts_in_time(asked: Ints, ends: npt.NDArray[np.float64], gap: int) -> Ints:
    """Return each row's part, -1 for a row in the gap before the next part."""
    if not len(asked):
        return np.zeros(0, dtype=np.int64)
    ordered = np.sort(asked)
    begins = ordered[np.minimum(np.round(ends[:-1] * len(ordered)).astype(np.int64), len(ordered) - 1)]
    part = np.searchsorted(begins, asked, side="right")
    if gap:
        following = np.append(begins, np.iinfo(np.int64).max)[part]
        part = np.where(asked > following - gap, -1, part)
    return part.astype(np.int64)


def times(frame: pl.DataFrame, column: str = ASKED_AT) -> Ints:
    """Return a time column as int64 microseconds. Raises TidemillError when it is missing, null or not a time."""
    if column not in frame.columns:
        raise TidemillError(f"the frame has no time column {column!r}.{nearest(column, frame.columns)}")
    series = frame[column]
    if not isinstance(series.dtype, pl.Datetime) or series.null_count():
        raise TidemillError(f"time column {column!r} must hold times without nulls, not {series.dtype}.")
    micros: Ints = series.dt.cast_time_unit("us").to_physical().to_numpy()
    return micros


def _buckets(frame: pl.DataFrame, key: Sequence[str], seed: int) -> npt.NDArray[np.float64]:
    """Return each row's place in [0, 1), by its key and ``seed`` alone."""
    for column in key:
        if column not in frame.columns:
            raise TidemillError(f"the frame has no key column {column!r}.{nearest(column, frame.columns)}")
    if not key:
        raise TidemillError("a split by key needs the names of the key's columns.")
    # times as microseconds and categories as text, whatever the frame holds them in
    plain = frame.select(
        pl.col(column).dt.cast_time_unit("us").to_physical()
        if isinstance(dtype := frame.schema[column], pl.Datetime | pl.Duration)
        else pl.col(column).cast(pl.String if dtype in (pl.Categorical, pl.Enum, pl.Date, pl.Time) else dtype)
        for column in key
    )
    salt = str(seed)
    return np.array([bucket(canonical(row).decode(), salt=salt) for row in plain.iter_rows()], dtype=np.float64)


def doubts(
    frame: pl.DataFrame,
    parts: Mapping[str, Ints],
    *,
    key: Sequence[str] = (),
    label: str | None = None,
    time: str | None = ASKED_AT,
    where: str = "split",
) -> tuple[DataWarning, ...]:
    """Return what is doubtful about ``parts`` of ``frame``; the first part is the one that learns.

    Too few rows; a label whose distribution differs between parts (PSI above 0.1 and above noise) or with classes that
    the first part lacks; a part that holds rows asked before the newest of the first; the same ``key`` on both sides.
    """
    (first, learns), *others = parts.items()
    found = [
        DataWarning(
            "few_rows",
            where,
            f"{name!r} has {len(rows)} rows.",
            f"Give it at least {MIN_ROWS}: load more history, or change the split.",
        )
        for name, rows in parts.items()
        if len(rows) < MIN_ROWS
    ]
    for name, rows in others:
        if not len(learns) or not len(rows):
            continue
        if label is not None:
            found.extend(_uneven(frame[label].gather(learns), frame[label].gather(rows), first, name, where))
        if time is not None and time in frame.columns:
            asked = times(frame, time)
            newest, oldest = int(asked[learns].max()), int(asked[rows].min())
            if newest >= oldest:
                late = int((asked[learns] >= oldest).sum())
                found.append(
                    DataWarning(
                        "overlap",
                        where,
                        f"{late} rows of {first!r} were asked at or after {format_time(oldest)}, when {name!r} begins "
                        f"(up to {format_duration(newest - oldest)} after): the future explains the past.",
                        "Figures will be too good for anything that changes with time; use tm.by_time(...).",
                    )
                )
        if key:
            columns = frame.select(key)
            shared = columns[learns].unique().join(columns[rows].unique(), on=list(key), how="semi").height
            if shared:
                found.append(
                    DataWarning(
                        "same_key",
                        where,
                        f"{shared} keys ({', '.join(key)}) have rows in both {first!r} and {name!r}: what was learnt "
                        "by heart counts as skill.",
                        "Use tm.by_key(...) if the model must serve keys that it has never seen.",
                    )
                )
    return tuple(found)


def _uneven(before: pl.Series, now: pl.Series, first: str, name: str, where: str) -> list[DataWarning]:
    discrete = not before.dtype.is_float() and before.n_unique() <= _CLASSES
    if discrete:
        before, now = before.cast(pl.String), now.cast(pl.String)
        unseen = sorted(set(now.drop_nulls().unique().to_list()) - set(before.drop_nulls().unique().to_list()))
        if unseen:
            return [
                DataWarning(
                    "uneven",
                    where,
                    f"classes {', '.join(repr(each) for each in unseen)} occur in {name!r} but not in {first!r}.",
                    "They cannot be predicted: load more history, or change the split.",
                )
            ]
    (shift,) = shifts(Profile.of(before.to_frame()), now.to_frame())
    if shift.psi <= max(UNEVEN, shift.noise):
        return []
    if discrete:
        shares = [each.value_counts(normalize=True, name="share") for each in (before, now)]
        of = [dict(each.iter_rows()) for each in shares]
        apart = {str(each): (share, of[1].get(each, 0.0)) for each, share in of[0].items()}
        most, (then, later) = max(sorted(apart.items()), key=lambda each: abs(each[1][0] - each[1][1]))
        what = f"class {most!r} is {then:.1%} of {first!r} and {later:.1%} of {name!r}"
    else:
        median = [float(np.median(each.cast(pl.Float64).drop_nulls().to_numpy())) for each in (before, now)]
        what = f"the label's median is {median[0]:.4g} in {first!r} and {median[1]:.4g} in {name!r}"
    return [
        DataWarning(
            "uneven",
            where,
            f"labels are uneven: {what} (PSI {shift.psi:.2f}).",
            "Probabilities may be off there: judge over a longer period, or retrain more often.",
        )
    ]
