"""Values of frames as JSON carries them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

_INFINITE = (float("inf"), float("-inf"))


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with times as microseconds since the epoch and categories as text: what JSON can carry."""
    return frame.with_columns(
        pl.col(name).dt.epoch("us") if isinstance(dtype, pl.Datetime) else pl.col(name).cast(pl.String)
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.Datetime | pl.Enum) or dtype == pl.Categorical
    )


def storable(value: Any) -> Any:
    """Return a plain value as JSON can hold it, which has no infinities: one is ``{"float": "inf"}``."""
    return {"float": str(value)} if value in _INFINITE else value


def stored(value: Any) -> Any:
    """Return what ``storable`` made a value of."""
    return float(value["float"]) if isinstance(value, dict) else value


def storable_rows(frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``frame``, plain and storable."""
    values = plain(frame)
    infinite = [each.name for each in values if each.dtype.is_float() and each.is_infinite().any()]
    for row in values.iter_rows(named=True):
        yield row | {name: storable(row[name]) for name in infinite}
