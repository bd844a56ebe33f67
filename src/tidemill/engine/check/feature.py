"""Checks of feature views, by themselves and as a model uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import polars as pl

from tidemill.base.errors import Fault
from tidemill.base.schema import NAME
from tidemill.engine.check.column import Schemas, expression, first_line, kind, mismatch, missing, title, typed
from tidemill.engine.check.table import bad_name
from tidemill.engine.expression.program import compiled
from tidemill.spec.feature import Aggregate, Aggregation, Latest, OnDemand, View
from tidemill.spec.source import Source, Table

_ARITHMETIC = ("sum", "mean", "std", "quantile")


def view_title(view: View) -> str:
    """Return how messages name a feature view."""
    return f"feature view '{view.name}'"


def view_faults(view: View, schemas: Schemas) -> Iterator[Fault]:
    """Yield what is wrong with a feature view, whoever uses it."""
    where = view_title(view)
    yield from bad_name(where, view.name)
    if not view.columns:
        yield Fault(where, "yields no column.", "Give it features or columns.")
    for column, count in Counter(view.columns).items():
        if not NAME.match(column):
            do = "Write names with letters, digits and _, and windows in whole units: '90m', not '1.5h'."
            yield Fault(where, f"the column '{column}' would have a name that is not allowed.", do)
        if count > 1:
            yield Fault(where, f"yields the column '{column}' {count} times.", "Remove the repeated window or column.")
    if isinstance(view, OnDemand):
        return
    if not view.by:
        yield Fault(where, "has no column to look up by.", "Name it: by='carrier'.")
    yield from missing(where, view.by, view.table, schemas)
    allowed = (*view.by, view.table.event_time) if isinstance(view, Latest) and view.ahead else view.by
    for column, _ in view.on:
        if column not in allowed:
            yield Fault(
                where, f"on= renames '{column}', which is not among by=.", "Write on={'by column': 'request column'}."
            )
    if isinstance(view, Aggregation):
        yield from _aggregation(where, view, schemas)
    else:
        yield from _latest(where, view, schemas)


def _aggregation(where: str, view: Aggregation, schemas: Schemas) -> Iterator[Fault]:
    if view.table.static:
        what = f"has windows over {title(view.table)}, which has no event time."
        yield Fault(where, what, "Declare event_time= of the table, or use tm.Latest.")
    for name, aggregate in view.features:
        if not aggregate.over:
            yield Fault(where, f"'{name}' has no window.", "Write over='1d'.")
        for window in aggregate.over:
            if window.micros <= 0:
                yield Fault(where, f"the window '{window.text}' of '{name}' is empty.", "A window is longer than zero.")
        yield from _aggregate(where, name, aggregate, view.table, schemas)


def _aggregate(where: str, name: str, aggregate: Aggregate, table: Source | Table, schemas: Schemas) -> Iterator[Fault]:
    if aggregate.value is None:
        return
    dtype, faults = expression(where, f"'{name}'", aggregate.value, table, schemas)
    yield from faults
    if aggregate.q is not None and not 0 <= aggregate.q <= 1:
        yield Fault(where, f"'{name}' takes the {aggregate.q} quantile.", "It lies from 0 to 1: 0.5 for the median.")
    if dtype is None:
        return
    if aggregate.function == "share":
        if dtype != pl.Boolean:
            what = f"'{name}' takes the share of {dtype}."
            yield Fault(where, what, "It needs a condition: tm.share(pl.col('delay') > 15, over='1d').")
    elif aggregate.function in _ARITHMETIC:
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            what = f"'{name}' takes the {aggregate.function} of {dtype}."
            yield Fault(where, what, "It needs numbers or a condition; use tm.count, tm.last or tm.n_unique.")
    elif aggregate.function != "n_unique":
        yield from _not_a_feature(where, f"'{name}'", dtype)


def _latest(where: str, view: Latest, schemas: Schemas) -> Iterator[Fault]:
    if view.ahead and view.table.static:
        what = f"looks ahead in {title(view.table)}, which has no event time."
        yield Fault(where, what, "Declare event_time= of the table: the hour that a forecast is about.")
    if view.within is not None and view.table.static:
        what = f"has within= on {title(view.table)}, which has no event time."
        yield Fault(where, what, "Declare event_time= of the table, or leave within= out.")
    if view.within == 0:
        yield Fault(where, "within= is zero, so no row is ever found.", "Write within='3h', or leave it out.")
    yield from missing(where, view.values, view.table, schemas)
    schema = schemas.get(view.table.name, {})
    for column in view.values:
        if column in schema:
            yield from _not_a_feature(where, f"'{column}'", schema[column])


def _not_a_feature(where: str, what: str, dtype: pl.DataType) -> Iterator[Fault]:
    if kind(dtype) in ("time", "date", "other"):
        do = "Features are numbers, strings and booleans: take a part of it (.dt.hour()) or a difference in hours."
        yield Fault(where, f"{what} is {dtype}, which no estimator takes.", do)


def request_faults(where: str, view: View, examples: Source | Table, schemas: Schemas) -> Iterator[Fault]:
    """Yield what is wrong with asking ``view`` for rows of ``examples``; ``where`` names the model."""
    if isinstance(view, OnDemand):
        inside = f"{where}, {view_title(view)}"
        for name, value in view.features:
            dtype, faults = expression(inside, f"'{name}'", value, examples, schemas)
            yield from faults
            if dtype is not None:
                yield from _not_a_feature(inside, f"'{name}'", dtype)
        return
    lookup = view.request_columns
    yield from missing(f"{where}, {view_title(view)}", lookup, examples, schemas)
    ahead = (view.table.event_time,) if isinstance(view, Latest) and view.ahead and view.table.event_time else ()
    pairs = list(zip((*view.by, *ahead), lookup, strict=True))
    yield from mismatch(f"{where}, {view_title(view)}", pairs, view.table, examples, schemas)


def plain_faults(where: str, column: str, examples: Source | Table, schemas: Schemas) -> Iterator[Fault]:
    """Yield what is wrong with a column of the examples as a feature."""
    yield from missing(where, (column,), examples, schemas)
    schema = schemas.get(examples.name, {})
    if column in schema:
        yield from _not_a_feature(where, f"the feature '{column}'", schema[column])


def staying(view: OnDemand, examples: Source | Table, schemas: Schemas) -> Iterator[Fault]:
    """Yield a note for each expression of ``view`` that stays in Polars over rows of ``examples``: why, what it costs.

    The costs are measured, on one row. Nothing is known of examples whose columns are not.
    """
    if (schema := schemas.get(examples.name)) is None:
        return
    values = dict(view.features)
    program = compiled(values, schema)
    for stay in program.stays:
        try:
            what = f"'{stay.name}' is computed by Polars, in {program.cost(stay.name):.0f} µs a row: {stay.why}."
            do = "It is right as it is; docs/declare.md lists what is compiled and faster."
        except Exception as error:  # Polars', or that of a function of the user's
            what = f"'{stay.name}' fails on made-up rows of {typed(values[stay.name], schema)}: {first_line(error)}."
            do = "Make sure that it works on every row; cast(…, strict=False) gives null where a cast would fail."
        yield Fault(view_title(view), what, do)
