"""Cleaning steps that look at one row alone: types, units, codes, blanks, bounds, invalid rows.

The type of a column that a step makes hangs on what is declared, never on the values that happen to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from tidemill.engine.expression.expression import evaluate
from tidemill.engine.table.contract import cast as exact_cast
from tidemill.engine.table.contract import normal
from tidemill.engine.table.quality import failures
from tidemill.engine.table.table import TIME
from tidemill.spec.clean import Cast, Convert, Invalid, Recode, Trim
from tidemill.spec.expression import Expression

_TYPES: Mapping[str, pl.DataType] = {
    "whole": pl.Int64(),
    "number": pl.Float64(),
    "truth": pl.Boolean(),
    "text": pl.String(),
    "time": TIME,
}
#: Numbers with a decimal comma. Points stand before three digits each: "1.5" may be meant either way, and is none.
_COMMA = r"^[+-]?((\d+|\d{1,3}(\.\d{3})+)(,\d*)?|,\d+)([eE][+-]?\d+)?$"


@dataclass(slots=True)
class Effect:
    """What a step makes of a frame: columns replaced or added, more that are not counted, the rows that stay."""

    columns: list[pl.Series] = field(default_factory=list)
    stay: pl.Series | None = None  # None: all
    beside: list[pl.Series] = field(default_factory=list)


def cast(values: pl.Series, step: Cast) -> tuple[pl.Series, pl.Series]:
    """Return the values as asked, and which of them could not be read."""
    name, read = values.name, values
    if is_text(read.dtype):
        read = read.cast(pl.String)
    if read.dtype == pl.String:
        text = read.str.strip_chars()
        absent = _absent(text, step)
        read = read.set(absent, None) if step.to == "text" else text.set(absent | (text == ""), None)
        given = read.is_not_null()
        if step.to in ("whole", "number"):
            read = _pointed(read, step.decimal)
        if step.to == "time":
            read = _times(read, step)
    else:
        read = read.fill_nan(None) if read.dtype.is_float() else read
        read = read.set(_absent(read, step), None) if step.missing else read
        given = read.is_not_null()
        if step.to == "time" and step.zone and isinstance(read.dtype, pl.Datetime) and not read.dtype.time_zone:
            read = read.dt.replace_time_zone(step.zone, ambiguous="null", non_existent="null")
    made = exact_cast(read, _TYPES[step.to]).alias(name)
    return made, given & made.is_null()


def _absent(values: pl.Series, step: Cast) -> pl.Series:
    """Tell which values the step declares missing: texts by their letters, all else by what the members read as."""
    texts = [each for each in step.missing if isinstance(each, str)]
    numbers = [repr(each) for each in step.missing if not isinstance(each, str)]
    if values.dtype == pl.String:
        absent = values.is_in(texts)
        if numbers:
            absent |= _among(exact_cast(_pointed(values, step.decimal), pl.Float64()), numbers)
    else:
        pointed = _pointed(pl.Series(texts, dtype=pl.String), step.decimal) if values.dtype.is_numeric() else texts
        absent = _among(exact_cast(values, normal(values.dtype)), [*pointed, *numbers])
    return absent.fill_null(value=False)


def _among(values: pl.Series, members: Iterable[str]) -> pl.Series:
    """Tell which of ``values`` (in a lake's type) one of ``members`` reads as."""
    read = exact_cast(pl.Series(list(members), dtype=pl.String), values.dtype).drop_nulls()
    return values.is_in(read.to_list()) if len(read) else values.is_null() & values.is_not_null()


def _pointed(text: pl.Series, decimal: str) -> pl.Series:
    """Return numbers in text with a decimal point; null for what is no number with a decimal comma."""
    if decimal != ",":
        return text
    text = text.str.strip_chars()
    read = text.set(~text.str.contains(_COMMA), None)
    return read.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)


def is_text(dtype: pl.DataType) -> bool:
    """Tell whether a column of ``dtype`` holds text."""
    return dtype in (pl.String, pl.Categorical, pl.Enum)


def numbers(values: pl.Series) -> pl.Series:
    """Return the values as numbers, null for text that reads as none: one odd value must not stop all that come."""
    return exact_cast(values, pl.Float64()) if is_text(values.dtype) else values.cast(pl.Float64)


def _times(text: pl.Series, step: Cast) -> pl.Series:
    """Return text as times, by the declared format and zone; null where it cannot be read."""
    if step.format is None and step.zone is None:
        return text
    if step.format is not None:
        offset = any(mark in step.format for mark in ("%z", "%:z", "%#z", "%+"))
        times = text.str.to_datetime(step.format, time_unit="us", strict=False, ambiguous="null",
                                     time_zone="UTC" if offset else None)  # fmt: skip
        if offset:
            return times
    else:
        own = text.str.contains(r"([Zz]|[T ]\d.*[+-]\d{2}:?(\d{2})?)$")  # an offset of its own
        times = exact_cast(text, TIME)
        local = times.dt.replace_time_zone(None).dt.replace_time_zone(
            step.zone, ambiguous="null", non_existent="null"
        ).dt.convert_time_zone("UTC")  # fmt: skip
        return times.zip_with(own.fill_null(value=True), local)
    return times.dt.replace_time_zone(step.zone or "UTC", ambiguous="null", non_existent="null")


def convert(frame: pl.DataFrame, step: Convert) -> Effect:
    """Give the column in one unit. A division by a number is as on one row (see ``engine.expression``)."""
    values, units = frame[step.column], frame[step.unit].cast(pl.String)
    made = numbers(values)
    if is_text(values.dtype):
        frame = frame.with_columns(made)  # for the expressions
    known = (units == step.to).fill_null(value=False)
    result = made.set(~known, None)
    for name, how in step.units:
        of = (units == name).fill_null(value=False)
        if isinstance(how, Expression):
            turned = numbers(evaluate(frame, {"value": how})["value"])
        else:
            turned = made * pl.Series([how]).new_from_index(0, frame.height)
        result, known = turned.zip_with(of, result), known | of
    told = units.set(known, step.to)
    result = result.alias(step.column)
    if step.otherwise == "drop":
        return Effect([result], known | values.is_null(), [told.alias(step.unit)])
    return Effect([result], beside=[told.set(~known & values.is_not_null(), None).alias(step.unit)])


def recode(values: pl.Series, step: Recode) -> Effect:
    """Replace values. Raises what Polars raises when a code is not of the type of the values."""
    old = pl.Series([code for code, _ in step.codes]).cast(values.dtype)
    new = pl.Series([code for _, code in step.codes])
    if step.otherwise == "keep" or new.dtype == pl.Null:
        new = new.cast(values.dtype)
    if step.otherwise == "keep":
        return Effect([values.replace(old, new)])
    made = values.replace_strict(old, new, default=None, return_dtype=new.dtype)
    unknown = (~values.is_in(old)).fill_null(value=False)
    return Effect([made], ~unknown if step.otherwise == "drop" else None)


def clip(values: pl.Series, low: float | None, high: float | None) -> pl.Series:
    """Return the values within the bounds; whole numbers stay so when the bounds are whole."""
    whole = all(bound is None or float(bound).is_integer() for bound in (low, high))
    if not values.dtype.is_integer() or not whole:
        return numbers(values).clip(low, high)
    return values.clip(None if low is None else int(low), None if high is None else int(high))


def trim(values: pl.Series, step: Trim) -> pl.Series:
    """Return text without blanks around it, null where nothing is left."""
    text = values.cast(pl.String).str.strip_chars()
    if step.case is not None:
        text = text.str.to_lowercase() if step.case == "lower" else text.str.to_uppercase()
    return text.set((text == "").fill_null(value=False), None)


def invalid(frame: pl.DataFrame, step: Invalid) -> Effect:
    """Drop, empty or mark the rows that fail the step's check."""
    fails = frame.with_columns(
        failed.fill_null(value=False).alias(f".{place}")
        for place, (failed, _) in enumerate(failures(step.check, frame.schema))
    )
    bad = fails.select(pl.any_horizontal(pl.col(name) for name in fails.columns[frame.width :]).alias("bad"))["bad"]
    column = getattr(step.check, "column", None)
    changed = []
    if step.then == "null" and column is not None:
        changed.append(frame[column].set(bad, None))
    if step.flag is not None:
        changed.append(bad.alias(step.flag))
    return Effect(changed, ~bad if step.then == "drop" else None)
