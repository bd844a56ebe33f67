"""Cleaning steps: missing and wrong values, duplicates, outliers, units and types, samples.

A step is a frozen value, used in a cleaned table (``tm.clean``) or inside a derived one (``tm.apply``). The rows as
they came stay in the table that the steps read.

Most steps look at one row alone. Those that look at others (``outliers``, ``duplicates``, ``balance``, a trailing
``fill``) see, for each row, only what was known before that row was: what comes later changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tidemill.base.clock import parse_duration
from tidemill.spec import argument
from tidemill.spec.check import Between, Check, NotNull, OneOf
from tidemill.spec.expression import Expression

if TYPE_CHECKING:
    import polars as pl

#: A plain value of a column.
Plain = str | int | float | bool
Statistic = Literal["mean", "median", "min", "max", "last"]
Kind = Literal["whole", "number", "truth", "text", "time"]

#: Raised when a step comes to mean something else, so that tables made by the old meaning are made again.
MEANING = 2


@dataclass(frozen=True, slots=True)
class Past:
    """For each row, the rows known within ``over`` microseconds before it was, alike in ``by``: at least ``least``."""

    over: int
    by: tuple[str, ...]
    least: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Missing values of ``column`` become ``value``, or a ``statistic`` of the ``past``."""

    column: str
    value: Plain | Expression | None
    statistic: Statistic | None
    past: Past | None


@dataclass(frozen=True, slots=True)
class Cast:
    """``column`` becomes of type ``to``; what cannot be read is ``otherwise`` null or drops its row."""

    column: str
    to: Kind
    missing: tuple[str | float, ...]
    format: str | None
    zone: str | None
    decimal: str
    otherwise: Literal["null", "drop"]


@dataclass(frozen=True, slots=True)
class Convert:
    """``column`` is given in ``to``, where the column ``unit`` names another of ``units``."""

    column: str
    unit: str
    to: str
    units: tuple[tuple[str, float | Expression], ...]
    otherwise: Literal["null", "drop"]


@dataclass(frozen=True, slots=True)
class Recode:
    """Values of ``column`` are replaced as ``codes`` say."""

    column: str
    codes: tuple[tuple[Plain, Plain | None], ...]
    otherwise: Literal["keep", "null", "drop"]


@dataclass(frozen=True, slots=True)
class Trim:
    """Text without blanks around it; blank text is null."""

    columns: tuple[str, ...]
    case: Literal["lower", "upper"] | None


@dataclass(frozen=True, slots=True)
class Clip:
    """Values beyond the bounds become the bounds."""

    column: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Invalid:
    """Rows that fail ``check`` are dropped, lose the checked values, or are marked in the column ``flag``."""

    check: Check
    then: Literal["drop", "null", "keep"]
    flag: str | None


@dataclass(frozen=True, slots=True)
class Outliers:
    """Values of ``column`` far from those of the ``past``."""

    column: str
    method: Literal["iqr", "z"]
    k: float
    past: Past
    then: Literal["drop", "null", "clip", "keep"]
    flag: str | None


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows alike in ``columns`` to one known at most ``within`` microseconds before (None: ever before) are dropped.

    A row with a null among them is like no other.
    """

    columns: tuple[str, ...]
    within: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A share of the rows, by a hash of ``key`` and ``seed`` alone; by value of ``by`` with ``shares``."""

    by: str | None
    shares: tuple[tuple[Plain, float], ...]
    otherwise: float
    key: tuple[str, ...]
    seed: int
    weight: str | None


@dataclass(frozen=True, slots=True)
class Balance:
    """Rows of values of ``by`` that were frequent in the past are thinned out to the number of the rarest."""

    by: str
    over: int
    least: int
    key: tuple[str, ...]
    seed: int
    weight: str | None


Step = Fill | Cast | Convert | Recode | Trim | Clip | Invalid | Outliers | Duplicates | Sample | Balance


def looks_back(step: Step) -> bool:
    """Tell whether ``step`` looks at rows known before the one it treats; the others look at that row alone."""
    return isinstance(step, Outliers | Duplicates | Balance) or (isinstance(step, Fill) and step.past is not None)


def label(step: Step) -> str:
    """Return what reports call ``step``: its name and its columns."""
    name = type(step).__name__.lower()
    match step:
        case Invalid(check=check):
            match check:
                case NotNull(columns):
                    return f"{name} {', '.join(columns)} missing"
                case Between(column) | OneOf(column):
                    return f"{name} {column}"
                case _:
                    return f"{name} {check.name}"
        case Trim(columns=columns) | Duplicates(columns=columns):
            return f"{name} {', '.join(columns)}".rstrip()
        case Sample(by=by) | Balance(by=by):
            return name if by is None else f"{name} by {by}"
        case _:
            return f"{name} {step.column}"


# How they are written ---------------------------------------------------------------------------------------------


def fill(
    column: str,
    value: Plain | pl.Expr | None = None,
    *,
    trailing: Statistic | None = None,
    over: str | None = None,
    by: str | Iterable[str] = (),
    least: int = 1,
) -> Fill:
    """Give missing values (null, NaN) of ``column`` a ``value``: a constant, or an expression over the same row.

    Or a ``trailing`` statistic ("mean", "median", "min", "max", "last") of the values known within ``over`` before the
    row was, among rows alike in ``by``; with fewer than ``least`` of them, they stay missing. Raises TypeError unless
    it is one of the two.
    """
    if (value is None) == (trailing is None) or (trailing is None) != (over is None):
        raise TypeError(f"fill({column!r}) takes a value, or trailing='median' and over='30d'.")
    past = None if over is None else Past(parse_duration(over), argument.names(by, "by="), least)
    given = value if value is None or isinstance(value, str | int | float) else Expression.of(value)
    return Fill(column, given, trailing, past)


def cast(
    column: str,
    to: Kind,
    *,
    missing: Plain | Iterable[Plain] = (),
    format: str | None = None,
    zone: str | None = None,
    decimal: str = ".",
    otherwise: Literal["null", "drop"] = "null",
) -> Cast:
    """Make ``column`` "whole" numbers, "number", "truth", "text" or "time"; nothing is rounded or cut to fit.

    ``missing``: what stands for no value, such as "n/a" or -999: texts as they are written, numbers by what they are
    worth. In a column that is no text, a text stands for the value that it reads as, and for none if it reads as none.
    ``format``: of times, as in ``strftime``; without one, ISO 8601. ``zone``: the clocks that times without an offset
    are of (an IANA name; UTC unless given); a time that those clocks do not have, or have twice, cannot be read.
    ``decimal``: "," reads "1.234,5" as 1234.5; points stand between groups of three digits or nowhere. ``otherwise``:
    a value that cannot be read becomes null, or drops its row. Raises TypeError when ``missing`` names what no column
    holds.
    """
    members = (missing,) if isinstance(missing, str | int | float) else missing
    return Cast(column, to, tuple(_absent(column, each) for each in members), format, zone, decimal, otherwise)


def _absent(column: str, member: Plain) -> str | float:
    """Return a member of ``missing`` as text or a number; truth values by their name."""
    if isinstance(member, bool):
        return "true" if member else "false"
    if isinstance(member, str | int) or (isinstance(member, float) and math.isfinite(member)):
        return member
    hint = " NaN is missing as it is." if isinstance(member, float) and math.isnan(member) else ""
    raise TypeError(f"cast({column!r}) has missing=[{member!r}], which is no text and no finite number.{hint}"
                    " Write missing=['n/a', -999].")  # fmt: skip


def convert(
    column: str,
    *,
    unit: str,
    to: str,
    units: Mapping[str, float | pl.Expr],
    otherwise: Literal["null", "drop"] = "null",
) -> Convert:
    """Give ``column`` in the unit ``to``: the column ``unit`` says in which it is.

    ``units``: for each other unit what one of it is in ``to``, or an expression over the row:
    ``{"g": 0.001, "F": (pl.col("temp") - 32) / 1.8}``. Afterwards ``unit`` is ``to`` throughout. ``otherwise``: what
    becomes of a value whose unit is missing or none of these.
    """
    known = tuple((name, float(each) if isinstance(each, int | float) else Expression.of(each))
                  for name, each in units.items())  # fmt: skip
    return Convert(column, unit, to, known, otherwise)


def recode(
    column: str, codes: Mapping[Plain, Plain | None], *, otherwise: Literal["keep", "null", "drop"] = "keep"
) -> Recode:
    """Replace values of ``column`` as ``codes`` say: ``{"N.Y.": "NY", "?": None}``.

    ``otherwise``: what becomes of other values: kept, null, or their rows dropped. A null stays one.
    """
    for value in (*codes, *codes.values()):
        argument.require(value, Plain | None, f"a code of recode({column!r})", "Write plain values: {'?': None}.")
    return Recode(column, tuple(codes.items()), otherwise)


def trim(*columns: str | Sequence[str], case: Literal["lower", "upper"] | None = None) -> Trim:
    """Take blanks off both ends of text, and bring it to one ``case``; text of blanks alone becomes null."""
    return Trim(argument.names(argument.spread(columns), "trim()"), case)


def clip(column: str, low: float | None, high: float | None) -> Clip:
    """Bring values below ``low`` up to it and those above ``high`` down to it; None leaves an end open."""
    return Clip(column, low, high)


def invalid(check: Check, *, then: Literal["drop", "null", "keep"] | None = None, flag: str | None = None) -> Invalid:
    """Treat rows that fail ``check``: any of ``tm.not_null``, ``tm.between``, ``tm.one_of``, ``tm.holds``.

    ``then``: drop the row (unless a flag is given), make the column of ``between`` or ``one_of`` null, or keep it.
    ``flag``: a new column of truth values, true for these rows.
    """
    return Invalid(check, then or ("keep" if flag else "drop"), flag)


def outliers(
    column: str,
    *,
    over: str,
    by: str | Iterable[str] = (),
    method: Literal["iqr", "z"] = "iqr",
    k: float | None = None,
    least: int = 20,
    then: Literal["drop", "null", "clip", "keep"] | None = None,
    flag: str | None = None,
) -> Outliers:
    """Treat values far from those known within ``over`` before the row was, among rows alike in ``by``.

    ``method`` "iqr": more than ``k`` (1.5) times the distance of the quartiles outside them (Tukey 1977). "z": more
    than ``k`` (3) standard deviations from the mean. Nothing is judged by fewer than ``least`` values, or by values
    without spread. ``then``: drop the row (unless a flag is given), make the value null, bring it to the nearest bound,
    or keep it. ``flag``: a new column of truth values, true for outliers.
    """
    past = Past(parse_duration(over), argument.names(by, "by="), least)
    k = (1.5 if method == "iqr" else 3.0) if k is None else k
    return Outliers(column, method, k, past, then or ("keep" if flag else "drop"), flag)


def duplicates(*columns: str | Sequence[str], within: str | None = None) -> Duplicates:
    """Drop rows that are alike in ``columns`` to one known before them, at most ``within`` before (else ever).

    The first known stays. Of rows known at one time, the first by event time and key stays. Nulls match nothing: a row
    with a null (or NaN) in one of the columns stays.
    """
    return Duplicates(
        argument.names(argument.spread(columns), "duplicates()"), None if within is None else parse_duration(within)
    )


def sample(
    share: float | Mapping[Plain, float],
    *,
    by: str | None = None,
    otherwise: float = 0.0,
    key: str | Iterable[str] = (),
    seed: int = 0,
    weight: str | None = None,
) -> Sample:
    """Keep a ``share`` of the rows, or of each value of the column ``by`` its own (stratified): ``{"fraud": 1, …}``.

    A row stays by a hash of its ``key`` (the table's, unless given) and ``seed``, so that a sample does not change when
    rows are added, and is not that of a split. ``otherwise``: the share of values not named. ``weight``: a new column,
    one over the share, by which figures of the sample stand for all rows. Raises TypeError for shares without ``by``.
    """
    if isinstance(share, Mapping) != (by is not None):
        raise TypeError("sample() takes one share, or by='column' with a share for each of its values.")
    names = argument.names(key, "key=")
    if isinstance(share, Mapping):
        shares = tuple((value, float(each)) for value, each in share.items())
        return Sample(by, shares, otherwise, names, seed, weight)
    return Sample(None, (), float(share), names, seed, weight)


def balance(
    by: str,
    *,
    over: str,
    least: int = 100,
    key: str | Iterable[str] = (),
    seed: int = 0,
    weight: str | None = None,
) -> Balance:
    """Thin out the frequent values of ``by`` to the number of the rarest, both counted over the past of each row.

    The counts are those of rows known within ``over`` before the row was; while they are fewer than ``least`` in all,
    or the row's value was not among them, the row stays. ``key``, ``seed`` and ``weight`` as in ``tm.sample``.
    """
    return Balance(by, parse_duration(over), least, argument.names(key, "key="), seed, weight)


def steps_of(steps: Step | Iterable[Any]) -> tuple[Step, ...]:
    """Return ``steps`` as a tuple. Raises TypeError when one is no step; a check is one by ``tm.invalid(check)``."""
    made = (steps,) if isinstance(steps, Step) else tuple(steps)
    for step in made:
        if not isinstance(step, Step):
            hint = " Write tm.invalid(check)." if isinstance(step, Check) else ""
            raise TypeError(f"{type(step).__name__} is no cleaning step.{hint}")
    return made
