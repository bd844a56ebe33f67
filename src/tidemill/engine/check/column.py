"""What `check` asks of columns: do they exist, of what kind are they, and does an expression over them work."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from tidemill.base.errors import Fault
from tidemill.base.schema import nearest
from tidemill.engine.expression.expression import evaluate
from tidemill.engine.table.contract import normal
from tidemill.spec.expression import Expression
from tidemill.spec.source import Source, Table

Schema = Mapping[str, pl.DataType]
#: Schemas of tables by name; a table that is not in it has no data yet, and what needs its columns is not checked.
Schemas = Mapping[str, Schema]

Kind = Literal["integer", "decimal number", "string", "boolean", "time", "date", "other"]


def title(table: Source | Table) -> str:
    """Return how messages name a table: "source 'arrivals'", "table 'landed'"."""
    return f"{'source' if isinstance(table, Source) else 'table'} '{table.name}'"


def kept(schema: Schema) -> Schema:
    """Return ``schema`` in the types that the lake keeps."""
    return {name: normal(dtype) for name, dtype in schema.items()}


def kind(dtype: pl.DataType) -> Kind:
    """Return what sort of values a column holds; columns are compared only with columns of the same kind."""
    if dtype.is_integer():
        return "integer"
    if dtype.is_numeric():
        return "decimal number"
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "string"
    if dtype == pl.Boolean:
        return "boolean"
    if dtype == pl.Datetime:
        return "time"
    return "date" if dtype == pl.Date else "other"


def missing(where: str, columns: Iterable[str | None], table: Source | Table, schemas: Schemas) -> Iterator[Fault]:
    """Yield a fault for each of ``columns`` that ``table`` lacks, with the nearest name; none while it is unknown."""
    schema = schemas.get(table.name)
    if schema is None:
        return
    for column in dict.fromkeys(columns):
        if column is not None and column not in schema:
            hint = nearest(column, schema).strip()
            whose = "" if where == title(table) else f"{title(table)} "
            yield Fault(where, f"{whose}has no column '{column}'.", hint or f"It has {listed(schema)}.")


def listed(names: Iterable[str]) -> str:
    """Return names for a message, at most a dozen of them."""
    each = list(names)
    return ", ".join(each[:12]) + (f" and {len(each) - 12} more" if len(each) > 12 else "")


def mismatch(
    where: str, pairs: Sequence[tuple[str, str]], left: Source | Table, right: Source | Table, schemas: Schemas
) -> Iterator[Fault]:
    """Yield a fault for each pair (column of ``left``, column of ``right``) whose kinds cannot be compared."""
    for one, other in pairs:
        first, second = schemas.get(left.name, {}).get(one), schemas.get(right.name, {}).get(other)
        if first is not None and second is not None and kind(first) != kind(second):
            yield Fault(
                where,
                f"'{one}' of {title(left)} is {first} and '{other}' of {title(right)} is {second}: they never match.",
                "Cast one of them to the other's type in a derived table.",
            )


def expression(
    where: str, what: str, value: Expression, table: Source | Table, schemas: Schemas
) -> tuple[pl.DataType | None, list[Fault]]:
    """Try ``value`` on empty and on made-up rows of ``table``: return its type, if it has one, and what is wrong.

    ``what`` names the expression in messages. Without a schema nothing is tried.
    """
    schema = schemas.get(table.name)
    if schema is None:
        return None, []
    if faults := list(missing(where, value.columns, table, schemas)):
        return None, faults
    try:
        result = pl.DataFrame(schema=dict(schema)).lazy().select(value.polars).collect()
    except Exception as error:
        return None, [Fault(where, f"{what} does not work on {title(table)}: {first_line(error)}.", "")]
    if result.width != 1:
        return None, [Fault(where, f"{what} yields {result.width} columns.", "Write one expression a column.")]
    if value.columns and reads_other_rows(value, schema):
        do = "Use only functions of the row itself; tm.Aggregation looks at other rows without a leak."
        return None, [Fault(where, f"{what} depends on other rows of the batch it is computed in.", do)]
    return result.dtypes[0], []


def typed(value: Expression, schema: Schema) -> str:
    """Return the columns that an expression reads, each with its type, for a message."""
    return listed(f"'{name}' ({schema[name]})" for name in value.columns)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text without its full stop, or the error's type when it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


_SAMPLES: dict[Kind, list[Any]] = {
    "integer": [3, 1, None, 2, 2, 1],
    "decimal number": [3.5, 1.0, None, 2.25, 2.25, 1.0],
    "string": ["b", "a", None, "c", "c", "a"],
    "boolean": [True, False, None, True, True, False],
    "time": [dt.datetime(2013, month, 1, 5, tzinfo=dt.UTC) if month else None for month in (3, 1, 0, 2, 2, 1)],
    "date": [dt.date(2013, month, 1) if month else None for month in (3, 1, 0, 2, 2, 1)],
    "other": [None] * 6,
}


def _sample(schema: Schema) -> pl.DataFrame:
    """Return twelve rows with repeats and nulls; a category or type that cannot hold a value gets null.

    Each column has an order of its own: were all alike, rows of one group would hold the same values, and what reads
    its group (``pl.col("x").mean().over("y")``) could not be told from what reads itself.
    """
    columns = []
    for place, (name, dtype) in enumerate(schema.items()):
        drawn = [each for _ in range(2) for each in _SAMPLES[kind(dtype)]]
        values = pl.Series(name, [drawn[each] for each in np.random.default_rng(place).permutation(len(drawn))])
        if dtype == pl.Datetime and getattr(dtype, "time_zone", None) is None:
            values = values.dt.replace_time_zone(None)
        columns.append(values.cast(dtype, strict=False))
    return pl.DataFrame(columns)


def reads_other_rows(value: Expression, schema: Schema) -> bool:
    """Tell whether the expression gives made-up rows other values together than one by one."""
    rows = _sample(schema)
    try:
        plain = [part.select(value.polars).height for part in (rows, rows[:1])]
        together = evaluate(rows, {"value": value}).to_series()
        alone = [evaluate(rows.slice(place, 1), {"value": value}).to_series() for place in range(rows.height)]
    except Exception:
        return False  # it does not take made-up values (parsing, say), so nothing can be told
    if plain != [rows.height, 1]:
        return True
    return not together.equals(pl.concat(alone), check_dtypes=True, null_equal=True)
