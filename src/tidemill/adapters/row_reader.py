"""Rows from a Python callable, and how rows that are dictionaries become columns."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from tidemill.base.errors import SourceError
from tidemill.base.hashing import canonical
from tidemill.ports.reader import Batch

#: Dictionaries are gathered into batches of this many rows.
BATCH_ROWS = 50_000


def columns_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return ``rows`` as a table with every key met, in order of first appearance; a key that a row lacks is null.

    A column whose values have no common type (whole numbers and floats have one) becomes text: numbers by their
    shortest digits, times in ISO 8601, anything else as JSON.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    try:
        # Arrow would read a truth value among numbers as 0 or 1.
        column = pa.array(values) if bool not in kinds or len(kinds) == 1 else None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        column = None
    if column is not None and pa.types.is_timestamp(column.type):  # Arrow would move times without an offset
        zones = {value.tzinfo is None for value in values if isinstance(value, dt.datetime)}
        column = column if len(zones) < 2 else None
    if column is None:
        return pa.array([None if value is None else _text(value) for value in values], pa.string())
    return column


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    return json.dumps(value, default=str, ensure_ascii=False)


class RowReader:
    """Reads what ``function(taken)`` returns: the rows after the first ``taken``. The cursor is the number taken.

    Each item is a dictionary (a row) or a table: anything with Arrow's stream interface, such as Polars and pandas
    frames and Arrow tables, or an Arrow record batch. What the function returns for a number must not change later.
    """

    def __init__(self, function: Callable[[int], Iterable[Any]]) -> None:
        self._function = function

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        """Yield the rows after ``cursor``. Raises SourceError when the function fails or yields something else."""
        taken = json.loads(cursor) if cursor else 0
        for rows in self._tables(taken):
            taken += rows.num_rows
            if rows.num_rows:
                yield Batch(rows, canonical(taken).decode())

    def _tables(self, taken: int) -> Iterator[pa.Table]:
        name = getattr(self._function, "__qualname__", repr(self._function))
        waiting: list[Mapping[str, Any]] = []
        try:
            for item in self._function(taken):
                if isinstance(item, Mapping):
                    waiting.append(item)
                    if len(waiting) == BATCH_ROWS:
                        yield columns_of(waiting)
                        waiting = []
                    continue
                if waiting:
                    yield columns_of(waiting)
                    waiting = []
                if isinstance(item, pa.RecordBatch):
                    item = pa.Table.from_batches([item])
                yield _table(item, f"{name}({taken})")
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"rows function {name}({taken}) failed: {type(error).__name__}: {error}") from error
        if waiting:
            yield columns_of(waiting)


def _table(item: Any, call: str) -> pa.Table:
    if not hasattr(item, "__arrow_c_stream__"):
        raise SourceError(
            f"rows function {call} yielded a {type(item).__name__}. "
            "Yield dictionaries, Polars or pandas frames, or Arrow tables and batches."
        )
    return pa.table(item)
