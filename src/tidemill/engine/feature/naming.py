"""Which group a request asks about: its key columns as the name under which the group lies in online state.

What ``feature.keys`` makes of a column, made of one plain value without Polars where the types allow it; where only
Polars can tell (a text asked for as a number, say), a frame of the request goes through ``feature.keys`` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from tidemill.engine.feature.feature import keys
from tidemill.engine.feature.layout import groups, short, shorts

_TIME = pl.Datetime("us", "UTC")

#: Turns a value of a request, which is not null, into a part of a key; None matches nothing.
_Make = Callable[[Any], Any]

#: Names the group of a request.
Name = Callable[[Mapping[str, Any]], bytes | None]


def name_of(columns: tuple[str, ...], types: Sequence[pl.DataType], schema: Mapping[str, pl.DataType]) -> Name:
    """Return what names the group of a request of ``schema`` by ``columns``, which the table has as ``types``.

    Requests are plain: times are whole microseconds. None is no group at all. Raises KeyError when ``schema`` lacks a
    column.
    """
    makers = _makers(columns, types, [schema[column] for column in columns])
    if not types:  # the table has shown none yet
        return lambda _: None
    if makers is None:
        return lambda request: groups(
            keys(
                pl.DataFrame([_series(column, request[column], schema[column]) for column in columns]),
                columns,
                list(types),
            ).iter_rows()
        )[0]
    if len(makers) == 1:
        ((only, make),) = makers

        def name_one(request: Mapping[str, Any]) -> bytes | None:
            value = request[only]
            if value is None or (make is not _same and (value := make(value)) is None):
                return None
            return short((value,))

        return name_one

    def name(request: Mapping[str, Any]) -> bytes | None:
        key = tuple([None if (value := request[column]) is None else make(value) for column, make in makers])
        return None if None in key else short(key)

    return name


def names_of(requests: pl.DataFrame, columns: tuple[str, ...], types: Sequence[pl.DataType]) -> list[bytes]:
    """Return the name of the group of each of many requests by ``columns``, which the table has as ``types``.

    b"" is no group at all.
    """
    if not types:
        return [b""] * requests.height
    asked = [requests[column] for column in columns]
    makers = _makers(columns, types, [series.dtype for series in asked])
    if makers is None:
        return [name or b"" for name in groups(keys(requests, columns, list(types)).iter_rows())]
    parts, whole = [], True
    for series, (_, make) in zip(asked, makers, strict=True):
        values = (series.to_physical() if series.dtype.is_temporal() else series).to_list()
        parts.append(values if make is _same else [None if value is None else make(value) for value in values])
        whole = whole and make is _same and not series.null_count()
    rows = zip(*parts, strict=True)
    return shorts(rows) if whole else [b"" if None in row else short(row) for row in rows]


def _makers(
    columns: Sequence[str], types: Sequence[pl.DataType], asked: Sequence[pl.DataType]
) -> list[tuple[str, _Make]] | None:
    """Return how each column of a request, of type ``asked``, becomes a part of the key; None: only Polars can tell."""
    made = [(column, _maker(*pair)) for column, *pair in zip(columns, asked, types, strict=False)]
    known = [(column, make) for column, make in made if make is not None]
    return known if len(known) == len(made) else None


def _maker(asked: pl.DataType, dtype: pl.DataType) -> _Make | None:
    """Return what makes a part of a key of type ``dtype`` of a value of type ``asked``."""
    if asked == dtype:
        if dtype == pl.Float64:
            return _number
        if dtype.is_integer() or dtype in (pl.String, pl.Boolean, pl.Categorical) or isinstance(dtype, pl.Enum):
            return _same
        return _same if isinstance(dtype, pl.Datetime) and dtype.time_unit == "us" else None
    if asked.is_integer() and dtype.is_integer() and dtype != pl.Int128:
        bounds = np.iinfo(str(dtype).lower())
        low, high = int(bounds.min), int(bounds.max)
        return lambda value: value if low <= value <= high else None
    if asked == pl.String and isinstance(dtype, pl.Enum):
        known = frozenset(dtype.categories.to_list())
        return lambda value: value if value in known else None
    return _same if asked == pl.String and dtype == pl.Categorical else None


def _same(value: Any) -> Any:
    return value


def _number(value: float) -> float | None:
    """Return a float as a part of a key: NaN matches nothing, and zero has no sign."""
    return None if value != value else value + 0.0


def _series(name: str, value: Any, dtype: pl.DataType) -> pl.Series:
    """Return a column of one value of a request."""
    if isinstance(dtype, pl.Datetime):
        return pl.Series(name, [value], dtype=pl.Int64).cast(_TIME).cast(dtype)
    return pl.Series(name, [value]).cast(dtype) if dtype == pl.Float32 else pl.Series(name, [value], dtype=dtype)
