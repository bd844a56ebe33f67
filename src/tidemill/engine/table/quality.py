"""From raw rows to rows of the lake: each row meets the contract and the declared checks, or has a reason why not.

Known-at, by the declaration:

- **a column**: its value; null waits until a later version fills it.
- **derived** (an offset from a column; undeclared in files, the event time): the first version of a key takes the
  derived time. Later versions and tombstones take their ``corrected_at``, else the tick; history cannot know the tick
  at which they would have come, so there they need ``corrected_at`` and are refused without.
- **ingest** (undeclared, for pushes, iterables and static tables): the tick.

Live, a known-at earlier than the tick becomes the tick. A row may lack its event time when its known-at does not hang
on it: it is in no window until a later version brings one, and a correction without one takes its predecessor out of
every window. A first version whose known-at cannot be derived is refused. A tombstone needs its key only, and no check.
The first version of a key is the first row of it that is accepted, whatever batches the rows came in.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import polars as pl

from tidemill.base.clock import to_datetime
from tidemill.base.errors import SourceError
from tidemill.base.schema import HISTORY, KNOWN_AT, TICK, TOMBSTONE
from tidemill.engine.table.contract import Contract, conform, frame_of
from tidemill.engine.table.table import TIME
from tidemill.ports.reader import Batch
from tidemill.spec.check import Between, Check, Holds, NotNull, OneOf
from tidemill.spec.source import Files, Source
from tidemill.spec.time import Offset

Key = tuple[Any, ...]

_REASON = ".reason"  # no column of a contract has a dot, so scratch columns with one cannot collide


@dataclass(frozen=True, slots=True)
class Accepted:
    """A batch, judged.

    ``rows``: the contract's columns and the system's, less ``_seq``, in order of arrival. ``quarantine``: columns
    ``reason`` and ``row`` (JSON, nulls left out). ``keys``: keys of ``rows`` when known-at is derived, else empty.
    """

    rows: pl.DataFrame
    quarantine: pl.DataFrame
    keys: frozenset[Key]


def derived_known_at(source: Source) -> Offset | None:
    """Return the offset that known-at is derived by, or None when it is a column or the time of ingest."""
    if isinstance(source.known_at, Offset):
        return source.known_at
    if source.known_at is None and source.event_time is not None and isinstance(source.reader, Files):
        return Offset(source.event_time, 0)
    return None


def accept(
    source: Source, batch: Batch, contract: Contract, *, tick: int, history: bool, seen: AbstractSet[Key]
) -> Accepted:
    """Judge the rows of ``batch`` at ``tick`` (microseconds) and give the good ones their times.

    ``history``: they keep the declared known-at. ``seen``: keys that the table has versions of, read only when known-at
    is derived. Raises SourceError when the columns of a file are not the contract's, or a check cannot be evaluated.
    """
    frame = frame_of(batch)
    if batch.file is not None:
        _same_columns(source, frame, contract, batch.file)
    typed, broken = conform(frame, contract)
    now = pl.lit(to_datetime(tick), dtype=TIME)
    tombstone = pl.col(source.tombstone).fill_null(value=False) if source.tombstone else pl.lit(value=False)
    try:
        reasons = judge(typed, source.checks, key=source.key, exempt=tombstone if source.tombstone else None)
    except pl.exceptions.PolarsError as error:
        raise SourceError(
            f"source {source.name!r}: its checks cannot be evaluated: {error}. Mend the checks."
        ) from error
    reasons = reasons if broken.null_count() == len(broken) else broken.zip_with(broken.is_not_null(), reasons)
    known = typed.with_columns(reasons.alias(_REASON), tombstone.alias(TOMBSTONE))

    keys: frozenset[Key] = frozenset()
    if (offset := derived_known_at(source)) is not None:
        known = _derive(source, offset, known, now, history=history, seen=seen)
    elif isinstance(source.known_at, str):
        known = known.with_columns(pl.col(source.known_at).alias(KNOWN_AT))
    else:
        known = known.with_columns(now.alias(KNOWN_AT))
    if not history:
        late = pl.col(KNOWN_AT) < now
        known = known.with_columns(pl.when(late).then(now).otherwise(pl.col(KNOWN_AT)).alias(KNOWN_AT))

    bad = known.filter(pl.col(_REASON).is_not_null()) if known[_REASON].null_count() < known.height else known.clear()
    good = known.filter(pl.col(_REASON).is_null()) if bad.height else known
    rows = good.select(KNOWN_AT, TOMBSTONE, now.alias(TICK), pl.lit(history).alias(HISTORY), *contract)
    if offset is not None:
        keys = frozenset(rows.select(source.key).rows())
    reasons_given = [reason for _, reason in batch.broken] + bad[_REASON].to_list()
    texts = [text for text, _ in batch.broken]
    if bad.height:
        refused = known[_REASON].is_not_null()
        texts += _as_json(frame.filter(refused), typed.filter(refused))
    quarantine = pl.DataFrame({"reason": reasons_given, "row": texts}, schema={"reason": pl.String, "row": pl.String})
    return Accepted(rows, quarantine, keys)


def _same_columns(source: Source, frame: pl.DataFrame, contract: Contract, file: str) -> None:
    missing = [name for name in contract if name not in frame.columns]
    unknown = [name for name in frame.columns if name not in contract]
    if missing or unknown:
        what = [f"{word} {', '.join(names)}" for word, names in (("lacks", missing), ("adds", unknown)) if names]
        raise SourceError(
            f"source {source.name!r}: the columns of {file} are not the contract's: it {' and '.join(what)}. "
            "Nothing of it was loaded. Give it the columns of the first load, or take it away."
        )


def judge(
    frame: pl.DataFrame, checks: Iterable[Check], *, key: Iterable[str] = (), exempt: pl.Expr | None = None
) -> pl.Series:
    """Return for each row of ``frame`` the reason of the first check that it fails, or null.

    ``key``: columns that must not be null, asked first. ``exempt``: rows that no check is asked of. All checks are one
    Polars select of truth values; reasons are written for the rows that fail, and only then. Raises what Polars raises
    when a check cannot be evaluated.
    """
    failing = [(pl.col(name).is_null(), pl.lit(f"{name!r} is null, and it is part of the key")) for name in key]
    for check in checks:
        failing += [
            (fails if exempt is None else fails & ~exempt, reason) for fails, reason in failures(check, frame.schema)
        ]
    reasons = pl.Series("", [None], dtype=pl.String).new_from_index(0, frame.height)
    if not failing or frame.is_empty():
        return reasons
    # with_columns, not select: a condition without columns has a value for each row, too.
    verdicts = frame.with_columns(fails.alias(f".{place}") for place, (fails, _) in enumerate(failing))
    open = pl.Series("", [True]).new_from_index(0, frame.height)
    for place, (_, reason) in enumerate(failing):
        fails = verdicts[f".{place}"]
        if fails.any():
            rows = (fails.fill_null(value=False) & open).arg_true()
            texts = frame[rows].with_columns(reason.alias(_REASON))[_REASON]
            reasons = reasons.scatter(rows, texts)
            open &= ~fails.fill_null(value=False)
    return reasons


def kind_of_reason(reason: pl.Expr) -> pl.Expr:
    """Return reasons without the value that was found, so that rows refused for the same thing can be counted."""
    return (
        reason.str.replace(r"^('.*?' is ).*(, (?:outside|below|above|not one of) )", "${1}…${2}")
        .str.replace(r"^('.*?': ).*( is not )", "${1}…${2}")
        .str.replace(r"^(not a [^:]*): .*", "${1}")
    )


def failures(check: Check, schema: Mapping[str, pl.DataType]) -> list[tuple[pl.Expr, pl.Expr]]:
    """Return pairs of expressions: true where the check fails (null and false: it holds), and the reason then.

    ``schema``: that of the rows.
    """
    match check:
        case NotNull(columns):
            return [(pl.col(name).is_null(), pl.lit(f"{name!r} is null")) for name in columns]
        case Between(name, low, high):
            column, outside = pl.col(name), pl.lit(value=False)
            outside = outside if low is None else outside | (column < low)
            outside = outside if high is None else outside | (column > high)
            bounds = f"below {low}" if high is None else f"above {high}" if low is None else f"outside {low} to {high}"
            return [(outside, pl.format("'{}' is {}, {}", pl.lit(name), column, pl.lit(bounds)))]
        case OneOf(name, values):
            column = pl.col(name)
            allowed = ", ".join(map(str, values))
            reason = pl.format("'{}' is {}, not one of {}", pl.lit(name), column, pl.lit(allowed))
            return [(_none_of(column, schema.get(name), values), reason)]
        case Holds(name, expression):
            return [(~expression.polars, pl.lit(f"{name} does not hold"))]


def _none_of(column: pl.Expr, dtype: pl.DataType | None, values: Sequence[str | int | float | bool]) -> pl.Expr:
    """Return whether ``column`` holds none of ``values``. Texts are found twice as fast as categories, and a run of
    whole numbers five times as fast by its ends, as by looking up.
    """
    kinds = {type(value) for value in values}
    if kinds == {str} and dtype == pl.String:
        return (
            column.is_not_null() & column.cast(pl.Enum(list(dict.fromkeys(map(str, values)))), strict=False).is_null()
        )
    if kinds == {int} and dtype is not None and dtype.is_integer():
        low, high = int(min(values)), int(max(values))
        if high - low + 1 == len(set(values)):
            return (column < low) | (column > high)
    return ~column.is_in(list(values))


def _derive(
    source: Source, offset: Offset, frame: pl.DataFrame, now: pl.Expr, *, history: bool, seen: AbstractSet[Key]
) -> pl.DataFrame:
    """Give each row its derived known-at, or the reason why it can have none."""
    nothing = pl.lit(None, dtype=TIME)
    corrected = pl.col(source.corrected_at) if source.corrected_at else nothing
    later = corrected if history else pl.coalesce(corrected, now)
    derived = pl.col(offset.column) + pl.duration(microseconds=offset.micros)
    own = pl.when(TOMBSTONE).then(later).otherwise(derived)  # the known-at of the row, were it the first of its key
    index = pl.int_range(pl.len(), dtype=pl.Int64)
    known = frame.with_columns(
        index.alias(".index"),
        pl.Series(".seen", [key in seen for key in frame.select(source.key).iter_rows()], dtype=pl.Boolean),
        own.alias(".own"),
        later.alias(".later"),
    )
    opens = pl.col(_REASON).is_null() & pl.col(".own").is_not_null()
    known = known.with_columns(pl.when(opens).then(".index").min().over(source.key).alias(".first"))
    is_later = pl.col(".seen") | (pl.col(".index") > pl.col(".first")).fill_null(value=False)
    known = known.with_columns(pl.when(is_later).then(".later").otherwise(".own").alias(KNOWN_AT))
    undated = pl.lit(
        "a later version or tombstone in history needs its own known-at: "
        + (f"{source.corrected_at!r} is null" if source.corrected_at else "declare corrected_at=, or a known_at column")
    )
    why = (
        pl.when(is_later | pl.col(TOMBSTONE))
        .then(undated)
        .otherwise(pl.lit(f"{offset.column!r} is null, and the known-at derives from it"))
    )
    lacking = pl.col(_REASON).is_null() & pl.col(KNOWN_AT).is_null()
    return known.with_columns(pl.when(lacking).then(why).otherwise(_REASON).alias(_REASON))


def _as_json(raw: pl.DataFrame, typed: pl.DataFrame) -> list[str]:
    """Return each row as JSON: typed values where they fit the contract, else the raw ones; nulls are left out."""

    def plain(value: object) -> str:
        return value.isoformat() if isinstance(value, dt.date | dt.time) else str(value)

    names = list(dict.fromkeys([*typed.columns, *raw.columns]))
    texts = []
    for found, fitting in zip(raw.iter_rows(named=True), typed.iter_rows(named=True), strict=True):
        row = {name: value if (value := fitting.get(name)) is not None else found.get(name) for name in names}
        present = {name: value for name, value in row.items() if value is not None}
        texts.append(json.dumps(present, default=plain, ensure_ascii=False))
    return texts
