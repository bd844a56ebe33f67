"""Feature views: windows over a table, the latest row of a table, and expressions over the request itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tidemill.base.clock import parse_duration
from tidemill.spec import argument
from tidemill.spec.expression import Expression
from tidemill.spec.source import Source, Table

if TYPE_CHECKING:
    import polars as pl

Function = Literal[
    "count", "sum", "mean", "share", "std", "min", "max", "quantile", "first", "last", "n_unique", "since_last"
]


@dataclass(frozen=True, slots=True)
class Window:
    """A window ``[t - micros, t)`` on event time; ``text`` is its spelling and its suffix in column names."""

    text: str
    micros: int


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One function of one expression over some windows.

    ``value`` is None for ``count`` and ``since_last``, which are about rows. ``q`` is that of a quantile, else None.
    """

    function: Function
    value: Expression | None
    over: tuple[Window, ...]
    q: float | None = None


def _windows(over: str | Iterable[str]) -> tuple[Window, ...]:
    texts = tuple(over) if isinstance(over, Iterable) and not isinstance(over, str) else (over,)
    return tuple(Window(text, parse_duration(text)) for text in texts)


def count(*, over: str | Iterable[str]) -> Aggregate:
    """Count rows (nulls too) in each window; 0 when it is empty."""
    return Aggregate("count", None, _windows(over))


def sum(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Sum the non-null values in each window, correctly rounded; null when there are none."""
    return Aggregate("sum", Expression.of(value), _windows(over))


def mean(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Average the non-null values in each window, correctly rounded; null when there are none.

    Of a condition (a boolean expression), the share of rows for which it holds; see ``share``.
    """
    return Aggregate("mean", Expression.of(value), _windows(over))


def share(condition: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Return the share of rows for which ``condition`` holds, of those for which it is not null; null without any."""
    return Aggregate("share", Expression.of(condition), _windows(over))


def std(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Return the sample standard deviation (n - 1) in each window; null for fewer than two non-null values."""
    return Aggregate("std", Expression.of(value), _windows(over))


def min(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Return the smallest non-null value in each window; null when there are none."""
    return Aggregate("min", Expression.of(value), _windows(over))


def max(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Return the largest non-null value in each window; null when there are none."""
    return Aggregate("max", Expression.of(value), _windows(over))


def quantile(value: str | pl.Expr, q: float, *, over: str | Iterable[str]) -> Aggregate:
    """Return the ``q`` quantile (0 to 1) of the non-null values in each window; null when there are none.

    Between two values as ``numpy.quantile`` does by default: of n values in order, at the place (n - 1) * q.
    """
    return Aggregate("quantile", Expression.of(value), _windows(over), float(q))


def first(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Return the first non-null value in each window, by event time, then known-at, then sequence."""
    return Aggregate("first", Expression.of(value), _windows(over))


def last(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Return the last non-null value in each window, by event time, then known-at, then sequence."""
    return Aggregate("last", Expression.of(value), _windows(over))


def n_unique(value: str | pl.Expr, *, over: str | Iterable[str]) -> Aggregate:
    """Count the distinct non-null values in each window; null when there are none."""
    return Aggregate("n_unique", Expression.of(value), _windows(over))


def since_last(*, over: str | Iterable[str]) -> Aggregate:
    """Return the seconds from the event time of the last row in each window to t; null when it is empty."""
    return Aggregate("since_last", None, _windows(over))


def _looked_up(name: str, table: Source | Table) -> str:
    """Return what messages call the view. Raises TypeError when it has no name or no table."""
    argument.name(name, "a feature view")
    what = f"feature view {name!r}"
    do = "Pass the declaration itself: a tm.Source, or what @tm.table or tm.clean made."
    argument.require(table, Source | Table, f"the table of {what}", do)
    return what


@dataclass(frozen=True, slots=True, init=False)
class Aggregation:
    """Windows over the rows of ``table`` that share the columns ``by`` with the request.

    Columns: ``<view>__<feature>_<window>``. ``on={"origin": "dest"}`` compares the table's ``origin`` with the
    request's ``dest``.
    """

    name: str
    table: Source | Table
    by: tuple[str, ...]
    features: tuple[tuple[str, Aggregate], ...]
    on: tuple[tuple[str, str], ...]

    def __init__(
        self,
        name: str,
        table: Source | Table,
        *,
        by: str | Iterable[str],
        features: Mapping[str, Aggregate],
        on: Mapping[str, str] | None = None,
    ) -> None:
        what = _looked_up(name, table)
        do = "Write names and windows: features={'delay': tm.mean('arr_delay', over='6h')}."
        aggregates = argument.named(features, f"features= of {what}", do)
        for feature, aggregate in aggregates.items():
            argument.require(aggregate, Aggregate, f"{feature!r} of {what}", do)
        for attribute, value in (
            ("name", name),
            ("table", table),
            ("by", argument.names(by, f"by= of {what}")),
            ("features", tuple(aggregates.items())),
            ("on", argument.renaming(on, f"on= of {what}")),
        ):
            object.__setattr__(self, attribute, value)

    @property
    def request_columns(self) -> tuple[str, ...]:
        """The request's columns that are compared with ``by``, in its order."""
        renamed = dict(self.on)
        return tuple(renamed.get(column, column) for column in self.by)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns it yields, in order."""
        return tuple(
            f"{self.name}__{feature}_{window.text}" for feature, aggregate in self.features for window in aggregate.over
        )


@dataclass(frozen=True, slots=True, init=False)
class Latest:
    """The last visible row of ``table`` that shares the columns ``by`` with the request.

    By event time before t (and at most ``within`` before it, edge included), then known-at, then sequence. Of a static
    table, the last version visible. With ``ahead=True`` (forecasts), the last known row whose event time is the
    request's column named like the table's event time. Columns: ``<view>__<column>``.
    """

    name: str
    table: Source | Table
    by: tuple[str, ...]
    values: tuple[str, ...]
    within: int | None
    ahead: bool
    on: tuple[tuple[str, str], ...]

    def __init__(
        self,
        name: str,
        table: Source | Table,
        *,
        by: str | Iterable[str],
        columns: str | Iterable[str],
        within: str | None = None,
        ahead: bool = False,
        on: Mapping[str, str] | None = None,
    ) -> None:
        what = _looked_up(name, table)
        for attribute, value in (
            ("name", name),
            ("table", table),
            ("by", argument.names(by, f"by= of {what}")),
            ("values", argument.names(columns, f"columns= of {what}")),
            ("within", None if within is None else parse_duration(within)),
            ("ahead", ahead),
            ("on", argument.renaming(on, f"on= of {what}")),
        ):
            object.__setattr__(self, attribute, value)

    @property
    def request_columns(self) -> tuple[str, ...]:
        """The request's columns that are compared with ``by``, in its order; with ``ahead``, the stated time last."""
        renamed = dict(self.on)
        columns = (*self.by, self.table.event_time) if self.ahead and self.table.event_time else self.by
        return tuple(renamed.get(column, column) for column in columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns it yields, in order."""
        return tuple(f"{self.name}__{column}" for column in self.values)


@dataclass(frozen=True, slots=True, init=False)
class OnDemand:
    """Features computed from the request's own columns when it is asked. Columns: ``<view>__<feature>``."""

    name: str
    features: tuple[tuple[str, Expression], ...]

    def __init__(self, name: str, features: Mapping[str, str | pl.Expr]) -> None:
        argument.name(name, "a feature view")
        do = "Write names and expressions: {'hour': pl.col('scheduled').dt.hour()}."
        given = argument.named(features, f"the features of feature view {name!r}", do)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "features", tuple((key, Expression.of(value)) for key, value in given.items()))

    @property
    def request_columns(self) -> tuple[str, ...]:
        """The request's columns that the expressions read, in alphabetical order."""
        return tuple(sorted({column for _, expression in self.features for column in expression.columns}))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns it yields, in order."""
        return tuple(f"{self.name}__{feature}" for feature, _ in self.features)


View = Aggregation | Latest | OnDemand
