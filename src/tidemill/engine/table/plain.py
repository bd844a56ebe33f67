"""Values of frames as JSON carries them."""

from __future__ import annotations

import polars as pl


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with times as microseconds since the epoch and categories as text: what JSON can carry."""
    return frame.with_columns(
        pl.col(name).dt.epoch("us") if isinstance(dtype, pl.Datetime) else pl.col(name).cast(pl.String)
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.Datetime | pl.Enum) or dtype == pl.Categorical
    )
