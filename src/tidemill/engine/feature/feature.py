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
from tidemill.engine.expression.expression import evaluate
from tidemill.engine.expression.program import compiled
from tidemill.engine.table.table import FROM, TIME, TO, spans, timeless
from tidemill.kernels import aggregate as kernel
from tidemill.kernels import asof
from tidemill.kernels.aggregate import Feature, Rows, Value, aggregate
from tidemill.kernels.index import Index, index
from tidemill.kernels.keys import Keys, match
from tidemill.spec.expression import Expression
from tidemill.spec.feature import Aggregate, Aggregation, Function, Latest, OnDemand, View
from tidemill.spec.model import Model

Array = npt.NDArray[Any]
TableView = Aggregation | Latest

_NUMERIC = ("sum", "mean", "share", "std", "min", "max", "quantile")
_WHOLE = ("count", "n_unique")


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
    return _compute(view, spans(rows, view.table), requests, asked, {})


def features(model: Model, tables: Mapping[str, pl.DataFrame], requests: pl.DataFrame, asked: Array) -> pl.DataFrame:
    """Return ``model.columns`` for each of ``requests``, in their order.

    ``tables``: all versions of each table that the model's views read, by name; a frame without columns stands for a
    table that has had no row yet. ``asked`` as in ``compute``. Raises NotFoundError when a table is missing,
    RequestError when a request column is.
    """
    spanned: dict[str, pl.DataFrame] = {}
    shared: Shared = {}

    def answer(view: TableView) -> pl.DataFrame:
        name = view.table.name
        if name in tables and tables[name].width == 0:
            return unanswered(view, requests)
        if name not in spanned:
            if name not in tables:
                raise NotFoundError(f"view {view.name!r} reads table {name!r}, which was not given")
            spanned[name] = spans(tables[name], view.table)
        return _compute(view, spanned[name], requests, asked, shared)

    return assemble(model, requests, answer)


def assemble(model: Model, requests: pl.DataFrame, answer: Callable[[TableView], pl.DataFrame]) -> pl.DataFrame:
    """Return ``model.columns`` for ``requests``; ``answer`` gives the columns of a view that reads a table."""
    require(requests, model.plain)
    frames: list[pl.DataFrame] = []
    for feature in model.features:
        if isinstance(feature, str):
            frames.append(requests[feature].to_frame())
        else:
            frames.append(demand(feature, requests) if isinstance(feature, OnDemand) else answer(feature))
    return pl.concat(frames, how="horizontal")


def unanswered(view: TableView, requests: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of a view whose table has had no row yet: counts are 0, all else is null."""
    require(requests, view.request_columns)
    if isinstance(view, Latest):
        return pl.DataFrame([pl.Series(name, [None] * requests.height, dtype=pl.Null) for name in view.columns])
    functions = (each.function for _, each in view.features for _ in each.over)
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
    expressions = {f"{view.name}__{feature}": expression for feature, expression in view.features}
    return compiled(expressions, requests.schema).frame(requests)


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
    for feature, each in view.features:
        for window in each.over:
            dtype: pl.DataType = pl.Float64()
            if each.function in _WHOLE:
                dtype = pl.Int64()
            elif each.function in ("first", "last") and each.value is not None:
                dtype = evaluate(empty, {"value": each.value}).schema["value"]
            types[f"{view.name}__{feature}_{window.text}"] = dtype
    return types


def slots(view: TableView) -> tuple[Slot, ...]:
    """Return the distinct values that ``view`` reads from each row."""
    if isinstance(view, Latest):
        return tuple(Slot(Expression.of(column), numeric=False) for column in view.values)
    return tuple(dict.fromkeys(slot for _, each in view.features if (slot := slot_of(each)) is not None))


def slot_of(aggregate: Aggregate) -> Slot | None:
    """Return the value that ``aggregate`` reads; None for those that are about rows."""
    return None if aggregate.value is None else Slot(aggregate.value, aggregate.function in _NUMERIC)


def kernel_function(function: Function) -> kernel.Function:
    """Return what kernels call ``function``: to them the share of a condition is its mean."""
    return "mean" if function == "share" else function


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
        return max(window.micros for _, each in view.features for window in each.over)
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

    ``group``: of each version, 0 to ``groups`` - 1, -1 for none. ``asked``: the group of each query, -1 for none.
    ``t``: when each is asked. All int64.
    """
    return _answer(view, versions, Grouped(group, groups, asked), t)


@dataclass(slots=True)
class Grouped:
    """Which rows and requests share their keys: their groups as in ``answer``, and the rows' index once it is made."""

    group: Array
    groups: int
    asked: Array
    order: Index | None = None

    def index(self, versions: Versions) -> Index:
        """Return the index of the rows, made the first time that it is needed."""
        if self.order is None:
            self.order = index(self.group, self.groups, versions.time, versions.known, versions.seq)
        return self.order


#: What the views of one call share: those of one table by the same columns have the same groups and order. The caller
#: makes it for one set of requests and one version of the tables, and drops it with them.
Shared = dict[tuple[Any, ...], Grouped]


def _compute(
    view: TableView, spanned: pl.DataFrame, requests: pl.DataFrame, asked: Array, shared: Shared
) -> pl.DataFrame:
    require(requests, view.request_columns)
    versions, theirs = prepare(view, spanned)
    identity = (view.table.name, by_columns(view), view.request_columns, by_version(view))
    if identity not in shared:
        types = [spanned.schema[column] for column in by_columns(view)]
        shared[identity] = _grouped(theirs, keys(requests, view.request_columns, types))
    return _answer(view, versions, shared[identity], asked.astype(np.int64))


def _answer(view: TableView, versions: Versions, grouped: Grouped, t: Array) -> pl.DataFrame:
    if isinstance(view, Aggregation):
        return _aggregates(view, versions, grouped, t)
    width = None if by_version(view) else view.within
    found = asof.last(_rows(versions, grouped), grouped.asked, t, width)
    return _gathered(versions.values, found).rename(dict(zip(versions.values.columns, view.columns, strict=True)))


def _grouped(theirs: pl.DataFrame, ours: pl.DataFrame) -> Grouped:
    """Return groups for the keys that are asked about: rows of other keys are in none of them."""
    numbers = [_numbers(frame) for frame in (ours, theirs)]
    if numbers[0] is not None and numbers[1] is not None:
        asked, group, groups = match(numbers[0], numbers[1])
        return Grouped(group, groups, asked)
    distinct = ours.unique(maintain_order=True).drop_nulls()
    distinct = distinct.with_columns(pl.int_range(distinct.height, dtype=pl.Int64).alias("group"))
    return Grouped(_matched(theirs, distinct), distinct.height, _matched(ours, distinct))


def _numbers(keys: pl.DataFrame) -> Keys | None:
    """Return keys as whole numbers that are equal where the keys are, or None where there is another type in them."""
    columns = []
    for column in keys.get_columns():
        if not (column.dtype.is_integer() or column.dtype in (pl.Float64, pl.Boolean)) or column.dtype == pl.Int128:
            return None
        filled = (column.cast(pl.Int8) if column.dtype == pl.Boolean else column).fill_null(0).to_numpy()
        columns.append(filled.view(np.int64) if filled.dtype.itemsize == 8 else filled.astype(np.int64))
    null = (
        keys.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
        if any(column.null_count() for column in keys)
        else None
    )
    return Keys(tuple(columns), null)


def _micros(times: pl.Series) -> Array:
    return times.cast(TIME).to_physical().to_numpy()


def _matched(frame: pl.DataFrame, distinct: pl.DataFrame) -> Array:
    joined = frame.join(distinct, on=frame.columns, how="left", maintain_order="left")
    return joined["group"].fill_null(-1).to_numpy()


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


def _present(value: pl.Series) -> Array | None:
    """Return which values are not null (bool), None where none is."""
    return value.is_not_null().to_numpy() if value.null_count() else None


def _gathered(values: pl.DataFrame, rows: Array) -> pl.DataFrame:
    """Return the values of each row, null for row -1."""
    places = pl.Series(rows, dtype=pl.Int64)
    places = places.set(places < 0, None)
    return values.select(pl.all().gather(places))


def _aggregates(view: Aggregation, versions: Versions, grouped: Grouped, t: Array) -> pl.DataFrame:
    wanted = [(name, each, window) for name, each in view.features for window in each.over]
    values = [Value(None)]  # the rows themselves
    places: dict[tuple[Slot, bool], int] = {}
    columns = dict(zip(slots(view), versions.values.get_columns(), strict=True))
    features = []
    for _, each, window in wanted:
        slot = slot_of(each)
        place = 0
        if slot is not None:
            coded = each.function == "n_unique"
            if (slot, coded) not in places:
                places[slot, coded] = len(values)
                values.append(_codes(columns[slot]) if coded else _value(columns[slot], numeric=slot.numeric))
            place = places[slot, coded]
        features.append(Feature(kernel_function(each.function), place, window.micros, each.q or 0.0))
    answers = aggregate(_rows(versions, grouped), values, features, grouped.asked, t, order=grouped.index(versions))
    made = []
    for (name, each, window), answer in zip(wanted, answers, strict=True):
        slot = slot_of(each)
        if each.function in ("first", "last") and slot is not None:
            column = _gathered(columns[slot].to_frame(), answer).to_series()
        elif each.function in _WHOLE:
            column = pl.Series(answer, dtype=pl.Int64)
            if each.function == "n_unique" and not answer.all():
                column = column.set(column == 0, None)
        else:
            column = pl.Series(answer, dtype=pl.Float64, nan_to_null=True)
        made.append(column.alias(f"{view.name}__{name}_{window.text}"))
    return pl.DataFrame(made)


def _rows(versions: Versions, grouped: Grouped) -> Rows:
    return Rows(
        grouped.group, grouped.groups, versions.time, versions.known, versions.seq, versions.start, versions.end
    )


def _value(value: pl.Series, *, numeric: bool) -> Value:
    """Return a number as kernels read it; of another value, only where it is."""
    present = _present(value)
    if not numeric:
        return Value(None, present)
    return Value((value if present is None else value.fill_null(0)).to_numpy(), present)


def _codes(value: pl.Series) -> Value:
    """Return a number for each distinct value, from 0."""
    present = _present(value)
    if value.dtype.is_float():
        value = value.set(value == 0, 0.0)  # zero has no sign
    if isinstance(value.dtype, pl.String | pl.Categorical | pl.Enum):  # numbered as they are met: sorting is slow
        codes = value.cast(pl.Categorical).to_physical().cast(pl.UInt32)
    else:
        codes = value.rank("dense").cast(pl.UInt32) - 1
    array = codes.fill_null(0).to_numpy()
    return Value(array, present, int(array.max(initial=0)) + 1)
