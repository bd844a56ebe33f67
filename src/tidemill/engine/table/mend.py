"""Cleaning steps that look at one row alone: types, units, codes, blanks, bounds, invalid rows.

The type of a column that a step makes hangs on what is declared, never on the values that happen to be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from tidemill.engine.expression.expression import evaluate
from tidemill.engine.table.contract import cast as exact_cast
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


@dataclass(slots=True)
class Effect:
    """What a step makes of a frame: columns replaced or added, more that are not counted, the rows that stay."""

    columns: list[pl.Series] = field(default_factory=list)
    stay: pl.Series | None = None  # None: all
    beside: list[pl.Series] = field(default_factory=list)


def cast(values: pl.Series, step: Cast) -> tuple[pl.Series, pl.Series]:
    """Return the values as asked, and which of them could not be read."""
    name, read = values.name, values
    if read.dtype in (pl.Categorical, pl.Enum):
        read = read.cast(pl.String)
    if read.dtype == pl.String:
        text = read.str.strip_chars()
        read = text.set(text.is_in(["", *step.missing]).fill_null(value=False), None) if step.to != "text" else (
            read.set(text.is_in(list(step.missing)).fill_null(value=False), None)
        )  # fmt: skip
        given = read.is_not_null()
        if step.decimal == "," and step.to in ("whole", "number"):
            read = read.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        if step.to == "time":
            read = _times(read, step)
    else:
        read = read.fill_nan(None) if read.dtype.is_float() else read
        given = read.is_not_null()
        if step.to == "time" and step.zone and isinstance(read.dtype, pl.Datetime) and not read.dtype.time_zone:
            read = read.dt.replace_time_zone(step.zone, ambiguous="null", non_existent="null")
    made = exact_cast(read, _TYPES[step.to]).alias(name)
    return made, given & made.is_null()


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
    made = values.cast(pl.Float64)
    known = (units == step.to).fill_null(value=False)
    result = made.set(~known, None)
    for name, how in step.units:
        of = (units == name).fill_null(value=False)
        if isinstance(how, Expression):
            turned = evaluate(frame, {"value": how})["value"].cast(pl.Float64)
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
        return values.cast(pl.Float64).clip(low, high)
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
