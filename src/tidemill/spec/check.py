"""Checks: conditions that each row of a source must meet. A row that fails goes to quarantine with the reason.

A check on a null value passes, except ``not_null``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidemill.spec import argument
from tidemill.spec.expression import Expression

if TYPE_CHECKING:
    import polars as pl

#: What a column may be compared with.
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class NotNull:
    """No listed column is null."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """``low <= column <= high``; a bound that is None is open."""

    column: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class OneOf:
    """The column holds one of ``values``."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Holds:
    """The expression is not false. ``name`` is the reason written into quarantine."""

    name: str
    expression: Expression


Check = NotNull | Between | OneOf | Holds


def not_null(*columns: str | Sequence[str]) -> NotNull:
    """Require that none of ``columns`` is null."""
    return NotNull(tuple(_column(each, "not_null") for each in argument.spread(columns)))


def between(column: str, low: float | None, high: float | None) -> Between:
    """Require ``low <= column <= high``, both ends included; None leaves an end open."""
    for bound in (low, high):
        argument.require(bound, int | float | None, f"a bound of between({column!r})", "Write a number, or None.")
    return Between(_column(column, "between"), low, high)


def one_of(column: str, *values: Value | Sequence[Value]) -> OneOf:
    """Require that ``column`` holds one of ``values``, written one after the other or as a list."""
    listed = argument.spread(values)
    for value in listed:
        do = "Write plain values, one after the other: tm.one_of('origin', 'EWR', 'JFK')."
        argument.require(value, Value, f"a value of one_of({column!r})", do)
    return OneOf(_column(column, "one_of"), listed)


def holds(name: str, expression: str | pl.Expr) -> Holds:
    """Require that a boolean ``expression`` over the row is not false; ``name`` is the reason given when it is."""
    argument.require(name, str, "the name of holds()", "Write the reason first: tm.holds('lands', pl.col('x') > 0).")
    return Holds(name, Expression.of(expression))


def _column(given: str, check: str) -> str:
    argument.require(given, str, f"the column of {check}()", "Name a column.")
    return given
