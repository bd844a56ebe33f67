"""Feature views computed at a time (time rules 2, 3 and 4): the same functions for many rows and for one.

``compute`` prepares the versions of a table and answers with them. Online, the worker prepares the same versions as
they come, and the server answers with those that can still matter. Sums, means and deviations are correctly rounded,
so which other rows lie around does not change a bit of an answer.

Aggregates skip nulls, and numbers that are not finite are nulls to them. Integers and booleans are summed exactly,
other numbers as float64. ``first``, ``last`` and ``Latest`` copy values as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.errors import DeclarationError, Fault, NotFoundError, RequestError
from tidemill.base.schema import KNOWN_AT, SEQ, nearest
from tidemill.engine.expression import evaluate
from tidemill.engine.table import FROM, TIME, TO, spans, timeless
from tidemill.kernels.exact import Exact, deviation, exact, quotient, squares
from tidemill.kernels.latest import Line
from tidemill.kernels.windows import Windows
from tidemill.spec.expression import Expression
from tidemill.spec.feature import Aggregation, Latest, OnDemand, View
from tidemill.spec.model import Model

Array = npt.NDArray[Any]
TableView = Aggregation | Latest

_TICKED = 1 << 24  # bytes up to which distinct values are ticked off in a table, and not sorted
_NUMERIC = ("sum", "mean", "std", "min", "max")


@dataclass(frozen=True, slots=True)
class Versions:
    """What a view keeps of each version of its table: times in int64 microseconds, and the values it reads.

    ``time`` is the event time, or ``start`` where the last version wins whatever its event time (static tables, and
    ``ahead``). Visible for ``start < t <= end``. ``values`` has a column for each of ``slots(view)``, in order.
    """

    time: Array
    known: Array
    seq: Array
    start: Array
    end: Array
    values: pl.DataFrame

    def __len__(self) -> int:
        return len(self.seq)


@dataclass(frozen=True, slots=True)
class Slot:
    """A value that a view reads from each row: a number for sums and the like (``numeric``), or as it is."""

    expression: Expression
    numeric: bool


def compute(view: View, rows: pl.DataFrame | None, requests: pl.DataFrame, asked: Array) -> pl.DataFrame:
    """Return the columns of ``view`` for each of ``requests``, in their order.

    ``rows``: all versions of the view's table, system columns too (None for OnDemand). ``asked``: when each request is
    asked, int64 microseconds; a request sees what was known before. Raises RequestError when a request column is
    missing.
    """
    if isinstance(view, OnDemand):
        return demand(view, requests)
    if rows is None:
        raise NotFoundError(f"view {view.name!r} reads table {view.table.name!r}, which was not given")
    return _compute(view, spans(rows, view.table), requests, asked)


def features(model: Model, tables: Mapping[str, pl.DataFrame], requests: pl.DataFrame, asked: Array) -> pl.DataFrame:
    """Return ``model.columns`` for each of ``requests``, in their order.

    ``tables``: all versions of each table that the model's views read, by name; a frame without columns stands for a
    table that has had no row yet. ``asked`` as in ``compute``. Raises NotFoundError when a table is missing,
    RequestError when a request column is.
    """
    spanned: dict[str, pl.DataFrame] = {}

    def answer(view: TableView) -> pl.DataFrame:
        name = view.table.name
        if name in tables and tables[name].width == 0:
            return unanswered(view, requests)
        if name not in spanned:
            if name not in tables:
                raise NotFoundError(f"view {view.name!r} reads table {name!r}, which was not given")
            spanned[name] = spans(tables[name], view.table)
        return _compute(view, spanned[name], requests, asked)

    return assemble(model, requests, answer)


def assemble(model: Model, requests: pl.DataFrame, answer: Callable[[TableView], pl.DataFrame]) -> pl.DataFrame:
    """Return ``model.columns`` for ``requests``; ``answer`` gives the columns of a view that reads a table."""
    require(requests, model.plain)
    columns: list[pl.Series] = []
    for feature in model.features:
        if isinstance(feature, str):
            columns.append(requests[feature])
        elif isinstance(feature, OnDemand):
            columns.extend(demand(feature, requests).get_columns())
        else:
            columns.extend(answer(feature).get_columns())
    return pl.DataFrame(columns)


def unanswered(view: TableView, requests: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of a view whose table has had no row yet: counts are 0, all else is null."""
    require(requests, view.request_columns)
    if isinstance(view, Latest):
        return pl.DataFrame([pl.Series(name, [None] * requests.height, dtype=pl.Null) for name in view.columns])
    functions = (aggregate.function for _, aggregate in view.features for _ in aggregate.over)
    return pl.DataFrame(
        [
            pl.Series(name, [0] * requests.height, dtype=pl.Int64)
            if function == "count"
            else pl.Series(name, [None] * requests.height, dtype=pl.Int64 if function == "n_unique" else pl.Float64)
            for name, function in zip(view.columns, functions, strict=True)
        ]
    )


def demand(view: OnDemand, requests: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of an on-demand view. Raises RequestError when a request column is missing."""
    require(requests, view.request_columns)
    return evaluate(requests, {f"{view.name}__{feature}": expression for feature, expression in view.features})


def require(requests: pl.DataFrame, columns: tuple[str, ...]) -> None:
    """Raise RequestError unless ``requests`` has all ``columns``."""
    for column in columns:
        if column not in requests.columns:
            raise RequestError(
                f"column {column!r} is missing from the request.{nearest(column, requests.columns)}", field=column
            )


def dtypes(view: View, schema: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """Return the types of the columns of ``view``; ``schema``: that of its table's rows, or of OnDemand's requests."""
    empty = pl.DataFrame(schema=dict(schema))
    if isinstance(view, OnDemand):
        return dict(demand(view, empty).schema)
    if isinstance(view, Latest):
        return {f"{view.name}__{column}": empty.schema[column] for column in view.values}
    types: dict[str, pl.DataType] = {}
    for feature, aggregate in view.features:
        for window in aggregate.over:
            dtype: pl.DataType = pl.Float64()
            if aggregate.function in ("count", "n_unique"):
                dtype = pl.Int64()
            elif aggregate.function in ("first", "last") and aggregate.value is not None:
                dtype = evaluate(empty, {"value": aggregate.value}).schema["value"]
            types[f"{view.name}__{feature}_{window.text}"] = dtype
    return types


def slots(view: TableView) -> tuple[Slot, ...]:
    """Return the distinct values that ``view`` reads from each row."""
    if isinstance(view, Latest):
        return tuple(Slot(Expression.of(column), numeric=False) for column in view.values)
    return tuple(
        dict.fromkeys(
            Slot(aggregate.value, aggregate.function in _NUMERIC)
            for _, aggregate in view.features
            if aggregate.value is not None
        )
    )


def by_columns(view: TableView) -> tuple[str, ...]:
    """Return the table's columns that are compared with ``view.request_columns``, in that order."""
    ahead = isinstance(view, Latest) and view.ahead and view.table.event_time
    return (*view.by, view.table.event_time) if ahead and view.table.event_time else view.by


def by_version(view: TableView) -> bool:
    """Tell whether the last version wins whatever its event time: static tables, and ``ahead``."""
    return view.table.static or (isinstance(view, Latest) and view.ahead)


def reach(view: TableView) -> int | None:
    """Return how long after its event time a row can matter (microseconds), or None when there is no end to it."""
    if isinstance(view, Aggregation):
        return max(window.micros for _, aggregate in view.features for window in aggregate.over)
    return None if by_version(view) else view.within


def prepare(view: TableView, spanned: pl.DataFrame) -> tuple[Versions, pl.DataFrame]:
    """Return what ``view`` keeps of rows with FROM and TO, and the ``keys`` of those rows.

    Rows without an event time are left out where it matters. Raises DeclarationError for windows over a static table.
    """
    table = view.table
    if isinstance(view, Aggregation) and table.event_time is None:
        raise DeclarationError(
            [Fault(f"view {view.name!r}", f"{table.name!r} has no event time to make windows of.", "Use tm.Latest.")]
        )
    if by_version(view):
        time = spanned[FROM]
    else:
        if spanned[str(table.event_time)].null_count():
            spanned = spanned.filter(pl.col(str(table.event_time)).is_not_null())
        time = spanned[str(table.event_time)].cast(TIME).to_physical()
    versions = Versions(
        time.to_numpy(),
        # Rule 4: the versions of a timeless table are ordered by sequence alone.
        np.zeros(spanned.height, dtype=np.int64) if timeless(table) else _micros(spanned[KNOWN_AT]),
        spanned[SEQ].to_numpy(),
        spanned[FROM].to_numpy(),
        spanned[TO].to_numpy(),
        _values(view, spanned),
    )
    columns = by_columns(view)
    return versions, keys(spanned, columns, [spanned.schema[column] for column in columns])


def keys(frame: pl.DataFrame, columns: tuple[str, ...], types: list[pl.DataType]) -> pl.DataFrame:
    """Return ``columns`` of ``frame`` as ``types``, in the form in which keys are compared: plain values or null.

    What cannot be cast to the type, and NaN, is null: it matches nothing.
    """
    return frame.select(
        _key(column, dtype, f"k{place}") for place, (column, dtype) in enumerate(zip(columns, types, strict=True))
    )


def answer(view: TableView, versions: Versions, group: Array, groups: int, asked: Array, t: Array) -> pl.DataFrame:
    """Return the columns of ``view`` for queries.

    ``group``: of each version, 0 to ``groups`` - 1. ``asked``: the group of each query, -1 for none. ``t``: when each
    is asked. All int64.
    """
    if isinstance(view, Latest):
        line = _line(versions, np.arange(len(versions)), group, groups, asked, t)
        width = None if by_version(view) else view.within
        rows = pl.lit(_indices(line.last(width)))
        return versions.values.select(pl.nth(place).gather(rows).alias(name) for place, name in enumerate(view.columns))
    return _Aggregates(view, versions, group, groups, asked, t).columns()


def _compute(view: TableView, spanned: pl.DataFrame, requests: pl.DataFrame, asked: Array) -> pl.DataFrame:
    require(requests, view.request_columns)
    versions, theirs = prepare(view, spanned)
    columns = by_columns(view)
    ours = keys(requests, view.request_columns, [spanned.schema[column] for column in columns])
    distinct = theirs.unique(maintain_order=True).drop_nulls().with_row_index("group")
    names = theirs.columns
    group = _matched(theirs, distinct, names)
    # Rows with a null key match nothing: they get a group of their own that no query asks about.
    group = np.where(group < 0, distinct.height, group)
    return answer(view, versions, group, distinct.height + 1, _matched(ours, distinct, names), asked.astype(np.int64))


def _micros(times: pl.Series) -> Array:
    return times.cast(TIME).to_physical().to_numpy()


def _matched(frame: pl.DataFrame, distinct: pl.DataFrame, names: list[str]) -> Array:
    joined = frame.join(distinct, on=names, how="left", maintain_order="left")
    return joined["group"].cast(pl.Int64).fill_null(-1).to_numpy()


def _key(column: str, dtype: pl.DataType, name: str) -> pl.Expr:
    cast = pl.col(column).cast(dtype, strict=False)
    if dtype.is_float():
        # NaN is null, and zero has no sign.
        cast = pl.when(cast == 0).then(0.0).when(cast.is_not_nan()).then(cast.cast(pl.Float64))
    elif isinstance(dtype, pl.Categorical | pl.Enum):
        cast = cast.cast(pl.String)
    elif dtype.is_temporal():
        cast = cast.to_physical().cast(pl.Int64)
    return cast.alias(name)


def _values(view: TableView, frame: pl.DataFrame) -> pl.DataFrame:
    wanted = slots(view)
    raw = evaluate(frame, {f"v{place}": slot.expression for place, slot in enumerate(wanted)})
    if isinstance(view, Latest):
        return raw
    return raw.select(_finite(raw[f"v{place}"], numeric=slot.numeric) for place, slot in enumerate(wanted))


def _finite(value: pl.Series, *, numeric: bool) -> pl.Series:
    """Return a value as aggregates read it: what is not finite is null; numbers are Int64 or Float64."""
    if numeric:
        whole = value.dtype == pl.Boolean or (value.dtype.is_integer() and value.dtype != pl.UInt64)
        value = value.cast(pl.Int64 if whole else pl.Float64)
    if not value.dtype.is_float() or np.isfinite(value.to_numpy()).all():
        return value
    return value.set(~value.is_finite(), None)


def _line(versions: Versions, rows: Array, group: Array, groups: int, asked: Array, t: Array) -> Line:
    return Line(
        group[rows],
        groups,
        versions.time[rows],
        versions.known[rows],
        versions.seq[rows],
        versions.start[rows],
        versions.end[rows],
        asked=asked,
        t=t,
    )


def _indices(rows: Array) -> pl.Series:
    indices = pl.Series(rows, dtype=pl.Int64)
    return indices.set(pl.Series(rows < 0), None) if (rows < 0).any() else indices


def _present(value: pl.Series) -> Array:
    """Return which values are not null (bool)."""
    return value.is_not_null().to_numpy() if value.null_count() else np.ones(len(value), dtype=bool)


class _Aggregates:
    """The windows of one view for one set of queries; what several features need is made once."""

    def __init__(
        self, view: Aggregation, versions: Versions, group: Array, groups: int, asked: Array, t: Array
    ) -> None:
        self._view, self._versions, self._query = view, versions, (group, groups, asked, t)
        self._places = {slot: place for place, slot in enumerate(slots(view))}
        self._windows = Windows(group, groups, versions.time, versions.start, versions.end, asked=asked, t=t)
        self._numbers: dict[int, tuple[Array, Array, Exact]] = {}
        self._lines: dict[int, tuple[Line, Array]] = {}

    def columns(self) -> pl.DataFrame:
        """Return the columns of the view."""
        return pl.DataFrame(
            [
                self._column(aggregate.function, aggregate.value, window.micros).alias(
                    f"{self._view.name}__{feature}_{window.text}"
                )
                for feature, aggregate in self._view.features
                for window in aggregate.over
            ]
        )

    def _column(self, function: str, value: Expression | None, width: int) -> pl.Series:
        if value is None:
            return pl.Series(self._windows.count(width), dtype=pl.Int64)
        place = self._places[Slot(value, function in _NUMERIC)]
        match function:
            case "sum" | "mean" | "std":
                return pl.Series(self._moment(function, place, width), dtype=pl.Float64, nan_to_null=True)
            case "min" | "max":
                return pl.Series(self._extreme(function, place, width), dtype=pl.Float64, nan_to_null=True)
            case "n_unique":
                return self._distinct(place, width)
            case _:
                line, rows = self._line(place)
                found = line.first(width) if function == "first" else line.last(width)
                chosen = np.where(found < 0, -1, rows[found] if len(rows) else -1)
                return self._versions.values.to_series(place).gather(_indices(chosen))

    def _moment(self, function: str, place: int, width: int) -> Array:
        present, _, numbers = self._number(place)
        counts = self._windows.count(width) if present.all() else self._windows.total(present.astype(np.int64), width)
        sums = self._windows.total(numbers.integers, width)
        if function == "std":
            squared = self._windows.total(squares(numbers).integers, width)
            return deviation(counts, sums, squared, numbers.exponent)
        divisors = np.maximum(counts, 1) if function == "mean" else np.ones_like(counts)
        return np.where(counts > 0, quotient(sums, divisors, numbers.exponent), np.nan)

    def _extreme(self, function: str, place: int, width: int) -> Array:
        _, values, _ = self._number(place)
        sign = 1.0 if function == "min" else -1.0
        smallest = np.full(len(self._query[3]), np.inf)
        line, rows = self._line(place)
        for query, row in line.visible(width):
            np.minimum.at(smallest, query, sign * values[rows[row]])
        return np.where(np.isinf(smallest), np.nan, sign * smallest + 0.0)  # + 0.0: zero has no sign

    def _distinct(self, place: int, width: int) -> pl.Series:
        value = self._versions.values.to_series(place)
        if value.dtype.is_float():
            value = value.set(value == 0, 0.0)
        codes = value.rank("dense").cast(pl.Int64).fill_null(0).to_numpy()
        counts = np.zeros(len(self._query[3]), dtype=np.int64)
        base = int(codes.max(initial=0)) + 1
        line, rows = self._line(place)
        for query, row in line.visible(width):
            if not len(query):
                continue
            first, size = int(query[0]), int(query[-1] - query[0] + 1)
            pairs = (query - first) * base + codes[rows[row]]
            if size * base <= _TICKED:
                ticked = np.zeros(size * base, dtype=bool)
                ticked[pairs] = True
                counts[first : first + size] += ticked.reshape(size, base).sum(axis=1)
            else:
                counts += np.bincount(np.unique(pairs) // base + first, minlength=len(counts))
        return pl.Series(counts, dtype=pl.Int64).set(pl.Series(counts == 0), None)

    def _number(self, place: int) -> tuple[Array, Array, Exact]:
        """Return which values are there, the values as float64 (NaN for null), and the values exactly."""
        if place not in self._numbers:
            value = self._versions.values.to_series(place)
            present = _present(value)
            filled = (value.fill_null(0) if value.null_count() else value).to_numpy()
            floats = np.where(present, filled.astype(np.float64), np.nan)
            self._numbers[place] = present, floats, exact(filled, present)
        return self._numbers[place]

    def _line(self, place: int) -> tuple[Line, Array]:
        """Return the rows whose value is there, in order of time, and their places among all rows."""
        if place not in self._lines:
            rows = np.flatnonzero(_present(self._versions.values.to_series(place)))
            self._lines[place] = _line(self._versions, rows, *self._query), rows
        return self._lines[place]
