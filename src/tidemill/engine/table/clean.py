"""Cleaning steps over frames, and what each of them did.

Every step is a function of the rows it is given. For a row, the steps that look back read only rows with an earlier
known-at, so what they make of a row holds once it is known (time rule 8), whatever comes later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import polars as pl

from tidemill.base.errors import RequestError
from tidemill.base.schema import nearest
from tidemill.engine.expression.expression import evaluate
from tidemill.engine.table import mend
from tidemill.engine.table.contract import columns_read
from tidemill.engine.table.mend import Effect
from tidemill.engine.table.past import Rows, earlier, frequencies, last_before, moments, quantiles
from tidemill.engine.table.table import TIME
from tidemill.engine.table.tally import NUMBERS, Count, tell
from tidemill.spec.clean import (
    Balance,
    Cast,
    Clip,
    Convert,
    Duplicates,
    Fill,
    Invalid,
    Outliers,
    Past,
    Recode,
    Sample,
    Step,
    Trim,
    label,
    looks_back,
    steps_of,
)
from tidemill.spec.expression import Expression

_PLACES = 1 << 64
_TRIAL: ContextVar[bool] = ContextVar("trial", default=False)


@dataclass(frozen=True, slots=True)
class _Around:
    """What steps know of the rows beside them: when each was known (None: not said), its key, and what breaks ties."""

    known: str | None
    key: tuple[str, ...]
    ties: tuple[str, ...]


@contextmanager
def trial() -> Iterator[None]:
    """Refuse meanwhile what is only wrong by the types of columns: numbers wanted of a column of text.

    For ``check``. Where rows come in, such a step makes do with what reads as a number, so that none stops the others.
    """
    token = _TRIAL.set(True)
    try:
        yield
    finally:
        _TRIAL.reset(token)


# In derived tables ------------------------------------------------------------------------------------------------


def apply(
    frame: pl.LazyFrame | pl.DataFrame,
    steps: Iterable[Step],
    *,
    known_at: str | None = None,
    key: str | Iterable[str] = (),
) -> pl.LazyFrame:
    """Return ``frame`` cleaned by ``steps``, one after the other: for use in the function of a derived table.

    ``known_at``: the column of when each row was known, which the steps that look back need. ``key``: the columns that
    identify a row, by which samples are drawn and ties broken. What each step did is counted with the table's commit.
    Raises RequestError when a step lacks a column.
    """
    rows = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    names = (key,) if isinstance(key, str) else tuple(key)
    made, counts = clean(rows, steps_of(steps), known_at=known_at, key=names)
    for count in counts:
        tell(count)
    return made.lazy()


def clean(
    frame: pl.DataFrame,
    steps: Iterable[Step],
    *,
    known_at: str | None,
    key: Sequence[str] = (),
    ties: Sequence[str] = (),
) -> tuple[pl.DataFrame, list[Count]]:
    """Return ``frame`` cleaned by ``steps`` and what each did: rows seen and dropped, values filled, changed, emptied.

    Rows keep their order. ``ties``: columns that order rows known at one time before the key does. Raises RequestError
    when a step lacks a column.
    """
    around = _Around(known_at, tuple(key), (*ties, *key))
    counts = []
    for step in steps:
        where = label(step)
        if looks_back(step) and known_at is None:
            raise RequestError(f"the step {where!r} looks back: say when rows were known with known_at='column'.")
        needed = (*columns_of(step), *((known_at,) if known_at and looks_back(step) else ()))
        for name in needed:
            if name not in frame.columns:
                raise RequestError(f"the step {where!r} reads {name!r}, which is no column."
                                   f"{nearest(name, frame.columns)}", field=name)  # fmt: skip
        if known_at and looks_back(step) and not isinstance(frame.schema[known_at], pl.Datetime):
            raise RequestError(f"the step {where!r} looks back, and {known_at!r} holds no times. Cast it before.")
        if _TRIAL.get() and wants_numbers(step) and mend.is_text(frame.schema[needed[0]]):
            raise RequestError(f"the step {where!r} wants numbers, and {needed[0]!r} is text: cast it first, with "
                               f"tm.cast({needed[0]!r}, 'number').", field=needed[0])  # fmt: skip
        effect = _effect(frame, step, around)
        made = frame.with_columns(*effect.columns, *effect.beside)
        counts.append({"step": where, **_count(frame, made, effect)})
        frame = made if effect.stay is None else made.filter(effect.stay)
    return frame, counts


def _count(before: pl.DataFrame, after: pl.DataFrame, effect: Effect) -> Count:
    count = {name: 0 for name in NUMBERS if name != "matched"} | {"rows": before.height}
    if effect.stay is not None:
        count["dropped"] = before.height - int(effect.stay.sum() or 0)
        before, after = before.filter(effect.stay), after.filter(effect.stay)
    for column in effect.columns:
        new = after[column.name]
        if column.name not in before.columns:
            count["flagged"] += int(new.sum() or 0) if new.dtype == pl.Boolean else 0
            continue
        old = before[column.name]
        old = old.fill_nan(None) if old.dtype.is_float() else old
        count["filled"] += int((old.is_null() & new.is_not_null()).sum())
        count["emptied"] += int((old.is_not_null() & new.is_null()).sum())
        if old.dtype == new.dtype or (old.dtype.is_numeric() and new.dtype.is_numeric()):
            count["changed"] += int((old != new).sum() or 0)
    return count


# Steps ------------------------------------------------------------------------------------------------------------


def columns_of(step: Step) -> tuple[str, ...]:
    """Return the columns that ``step`` reads, without repetition."""
    match step:
        case Fill():
            read = [step.column, *(step.value.columns if isinstance(step.value, Expression) else ())]
            read += step.past.by if step.past else ()
        case Convert():
            expressions = [each.columns for _, each in step.units if isinstance(each, Expression)]
            read = [step.column, step.unit, *(name for each in expressions for name in each)]
        case Trim() | Duplicates():
            read = list(step.columns)
        case Invalid():
            read = list(columns_read(step.check))
        case Outliers():
            read = [step.column, *step.past.by]
        case Sample() | Balance():
            read = [*([step.by] if step.by else []), *step.key]
        case _:
            read = [step.column]
    return tuple(dict.fromkeys(read))


def wants_numbers(step: Step) -> bool:
    """Tell whether ``step`` reads its column as numbers, whatever the type of it."""
    return isinstance(step, Convert | Clip | Outliers) or (
        isinstance(step, Fill) and step.statistic not in (None, "last")
    )


def _effect(frame: pl.DataFrame, step: Step, around: _Around) -> Effect:
    match step:
        case Fill():
            return Effect([_fill(frame, step, around)])
        case Cast():
            made, lost = mend.cast(frame[step.column], step)
            return Effect([made], ~lost if step.otherwise == "drop" else None)
        case Convert():
            return mend.convert(frame, step)
        case Recode():
            return mend.recode(frame[step.column], step)
        case Trim():
            return Effect([mend.trim(frame[name], step) for name in step.columns])
        case Clip():
            return Effect([mend.clip(frame[step.column], step.low, step.high)])
        case Invalid():
            return mend.invalid(frame, step)
        case Outliers():
            return _outliers(frame, step, around)
        case Duplicates():
            return _duplicates(frame, step, around)
        case Sample():
            return _sample(frame, step, around)
        case Balance():
            return _balance(frame, step, around)


def _rows(frame: pl.DataFrame, past: Past, around: _Around) -> Rows:
    assert around.known is not None  # clean() has asked
    return Rows(frame, around.known, past.by, past.over, around.ties)


def _fill(frame: pl.DataFrame, step: Fill, around: _Around) -> pl.Series:
    values = frame[step.column]
    values = values.fill_nan(None) if values.dtype.is_float() else values
    if step.past is not None:
        filler = _trailing(values, step, _rows(frame, step.past, around))
    elif isinstance(step.value, Expression):
        filler = evaluate(frame, {step.column: step.value})[step.column]
    else:
        filler = pl.Series(step.column, [step.value])
    # The type hangs on what is declared, never on whether anything is missing.
    values = values.cast(pl.Float64) if values.dtype.is_integer() and filler.dtype.is_float() else values
    # Text that a row brings and that reads as no number fills nothing; a constant that does not fit is an error.
    odd = isinstance(step.value, Expression) and mend.is_text(filler.dtype)
    filler = filler.cast(values.dtype, strict=not odd)
    if step.past is None and not isinstance(step.value, Expression):
        return values.fill_null(filler[0])
    return values.zip_with(values.is_not_null(), filler)


def _trailing(values: pl.Series, step: Fill, rows: Rows) -> pl.Series:
    assert step.past is not None  # a trailing fill has one
    least = step.past.least
    if step.statistic == "last":
        return last_before(rows, values, least)
    values = mend.numbers(values)
    match step.statistic:
        case "mean":
            return moments(rows, values, least)[0]
        case statistic:
            at = {"median": 0.5, "min": 0.0, "max": 1.0}[str(statistic)]
            return quantiles(rows, values, least, (at,))[0]


def _outliers(frame: pl.DataFrame, step: Outliers, around: _Around) -> Effect:
    own = frame[step.column]
    values = mend.numbers(own)
    unread = own.is_not_null() & values.is_null()
    values = values.set(~values.is_finite().fill_null(value=True), None)
    rows = _rows(frame, step.past, around)
    if step.method == "z":
        mean, spread = moments(rows, values, step.past.least)
        low, high = mean - step.k * spread, mean + step.k * spread
    else:
        first, third = quantiles(rows, values, step.past.least, (0.25, 0.75))
        spread = third - first
        low, high = first - step.k * spread, third + step.k * spread
    judged = (spread > 0).fill_null(value=False)
    below, above = (judged & each.fill_null(value=False) for each in (values < low, values > high))
    far = below | above
    changed = []
    match step.then:
        case "null":
            changed.append(own.set(far | unread, None))
        case "clip":
            bounded = low.zip_with(below, high.zip_with(above, values))
            changed.append(bounded.alias(step.column))
    if step.flag is not None:
        changed.append(far.alias(step.flag))
    return Effect(changed, ~far if step.then == "drop" else None)


def _duplicates(frame: pl.DataFrame, step: Duplicates, around: _Around) -> Effect:
    assert around.known is not None  # clean() has asked
    before = earlier(frame, around.known, step.columns, around.ties)
    if step.within is None:
        return Effect(stay=before.is_null())
    gap = frame[around.known].cast(TIME).to_physical() - before
    return Effect(stay=before.is_null() | (gap > step.within).fill_null(value=True))


# Samples ----------------------------------------------------------------------------------------------------------


def _sample(frame: pl.DataFrame, step: Sample, around: _Around) -> Effect:
    if step.by is None:
        share = pl.Series("share", [step.otherwise], dtype=pl.Float64).new_from_index(0, frame.height)
    else:
        values = frame[step.by]
        named = pl.Series([value for value, _ in step.shares]).cast(values.dtype)
        shares = pl.Series([each for _, each in step.shares], dtype=pl.Float64)
        share = values.replace_strict(named, shares, default=step.otherwise, return_dtype=pl.Float64)
    return _drawn(frame, share, step, around)


def _balance(frame: pl.DataFrame, step: Balance, around: _Around) -> Effect:
    assert around.known is not None  # clean() has asked
    own, rarest, total = frequencies(frame, around.known, step.by, step.over)
    enough = (total >= step.least) & (own > 0)
    share = (rarest / own).set(~enough, 1.0)
    return _drawn(frame, share, step, around)


def _drawn(frame: pl.DataFrame, share: pl.Series, step: Sample | Balance, around: _Around) -> Effect:
    """Keep rows whose place by hash lies below their ``share``."""
    key = step.key or around.key
    if not key:
        raise RequestError(f"the step {label(step)!r} draws rows by their key: name it with key='column'.")
    # Each step draws anew, and not as splits do: one sample of another, or a test set of a sample, has its share.
    stay = places(frame, key, f"{label(step)} {step.seed}") < share
    columns = [] if step.weight is None else [(1.0 / share.set(share <= 0, 1.0)).alias(step.weight)]
    return Effect(columns, stay)


def places(frame: pl.DataFrame, key: Sequence[str], salt: str) -> pl.Series:
    """Return each row's place in [0, 1), by its key and ``salt`` alone."""
    parts = []
    for name in key:
        if name not in frame.columns:
            raise RequestError(f"the key's column {name!r} is not there.{nearest(name, frame.columns)}", field=name)
        column = pl.col(name)
        if isinstance(frame.schema[name], pl.Datetime | pl.Duration):
            column = column.dt.cast_time_unit("us").to_physical()
        parts.append(column.cast(pl.String).fill_null("\0"))
    texts = frame.select(pl.concat_str(parts, separator="\x1f")).to_series()
    start = hashlib.blake2b(salt.encode() + b"\0", digest_size=8)

    def place(text: str) -> float:
        hashed = start.copy()
        hashed.update(text.encode())
        return (int.from_bytes(hashed.digest(), "big") >> 11) / (_PLACES >> 11)

    return pl.Series("place", [place(text) for text in texts], dtype=pl.Float64)
