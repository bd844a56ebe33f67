"""Documented functions for on-demand features: Polars expressions, composed or with a definition of our own.

They work wherever Polars expressions do. Two have no counterpart in Polars and carry a Python function along
(``bucket``, and ``local`` by a column of zones); ``own_function`` tells them from anybody else's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from tidemill.kernels.xxh64 import bucket as bucket_of
from tidemill.spec import argument

if TYPE_CHECKING:
    import polars as pl

EARTH_KM = 6371.0088
"""The mean radius of the Earth (IUGG)."""


def local(column: str | pl.Expr, zone: str | pl.Expr) -> pl.Expr:
    """Return the UTC time ``column`` on the clocks of ``zone``, as a Polars expression.

    Calendar features belong on local time: ``tm.local("scheduled", "America/New_York").dt.hour()``. ``zone`` is the
    IANA name of a time zone, or an expression for a column of such names: ``tm.local("scheduled", pl.col("zone"))``.
    By a column the result is the time on the clock, without a zone; where the name is unknown, it is null.
    """
    import polars as pl

    time = _column(column)
    if isinstance(zone, str):
        return time.dt.convert_time_zone(zone)
    return pl.map_batches([time, zone], local_by, return_dtype=pl.Datetime("us"), is_elementwise=True)


def cyclic(name: str, value: str | pl.Expr, period: float) -> dict[str, pl.Expr]:
    """Return two features, ``<name>_sin`` and ``<name>_cos``: where ``value`` stands in a cycle of ``period``.

    So the hours 23 and 0 are neighbours: ``tm.OnDemand("calendar", {**tm.cyclic("hour", hour, 24)})``. They are the
    sine and cosine of ``value * (2 * pi / period)``. Raises ValueError when ``period`` is not a positive number.
    """
    import polars as pl

    argument.require(name, str, "the name of cyclic()", "Write tm.cyclic('hour', hour, 24).")
    argument.number(period, "the period of cyclic()")
    if not (math.isfinite(period) and period > 0):
        raise ValueError(f"a period is a positive number, not {period}")
    angle = _column(value).cast(pl.Float64) * (2 * math.pi / period)
    return {f"{name}_sin": angle.sin(), f"{name}_cos": angle.cos()}


def distance(lat1: str | pl.Expr, lon1: str | pl.Expr, lat2: str | pl.Expr, lon2: str | pl.Expr) -> pl.Expr:
    """Return the great-circle distance of two places in kilometres; latitudes and longitudes are in degrees.

    The haversine formula (R. W. Sinnott, "Virtues of the Haversine", Sky and Telescope 68, 1984) on a sphere of the
    Earth's mean radius, 6371.0088 km: within 0.6 % of the ellipsoid.
    """
    import polars as pl

    degrees = (_column(each).cast(pl.Float64) for each in (lat1, lon1, lat2, lon2))
    north1, east1, north2, east2 = (each * (math.pi / 180) for each in degrees)
    across, along = ((north2 - north1) * 0.5).sin(), ((east2 - east1) * 0.5).sin()
    chord = across * across + north1.cos() * north2.cos() * along * along
    return chord.clip(0.0, 1.0).sqrt().arcsin() * (2 * EARTH_KM)


def text_length(column: str | pl.Expr) -> pl.Expr:
    """Return the number of characters (Unicode code points) of a text."""
    return _column(column).str.len_chars()


def bucket(column: str | pl.Expr, n: int) -> pl.Expr:
    """Return the bucket in [0, ``n``) that a text or whole number falls into, the same everywhere and for ever.

    It is the 64-bit xxHash (seed 0) modulo ``n``, of the text's UTF-8 bytes or of the number as 8 bytes, little-endian,
    in two's complement. Raises ValueError unless ``n`` is a whole number from 1 to 2**31 - 1.
    """
    import polars as pl

    if isinstance(n, bool) or not isinstance(n, int) or not 0 < n < 2**31:
        raise ValueError(f"buckets are counted from 1 to 2**31 - 1, not {n!r}")
    count = pl.lit(n, dtype=pl.Int64)
    return pl.map_batches([_column(column), count], bucket_by, return_dtype=pl.Int64, is_elementwise=True)


def bucket_by(columns: Sequence[pl.Series]) -> pl.Series:
    """Return the buckets of a column's values; the second column holds their number. What Polars calls."""
    import polars as pl

    values, count = columns
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    elif values.dtype.is_integer():
        values = values.cast(pl.Int64)
    elif values.dtype != pl.String:
        raise TypeError(f"tm.bucket takes texts or whole numbers, not {values.dtype}")
    found = {value: bucket_of(value, count[0]) for value in values.unique().drop_nulls()} if len(values) else {}
    return pl.Series(values.name, [None if value is None else found[value] for value in values], dtype=pl.Int64)


def local_by(columns: Sequence[pl.Series]) -> pl.Series:
    """Return times on the clocks of the zones that the second column names. What Polars calls."""
    import polars as pl

    times, zones = columns[0].cast(pl.Datetime("us", "UTC")).alias("time"), columns[1].cast(pl.String).alias("zone")
    if len(times) != len(zones):  # a constant comes as one value
        times = times if len(times) > 1 else times.new_from_index(0, len(zones))
        zones = zones if len(zones) > 1 else zones.new_from_index(0, len(times))
    frame = pl.DataFrame([times, zones]).with_row_index("place")
    parts = [
        part.select("place", on_clocks(part["time"], str(zone)).alias("time"))
        for (zone,), part in frame.drop_nulls().group_by("zone")
        if known(str(zone))
    ]
    empty = frame.clear().select("place", pl.col("time").dt.replace_time_zone(None))
    return frame.select("place").join(pl.concat([empty, *parts]), on="place", how="left", maintain_order="left")["time"]


def on_clocks(times: pl.Series, zone: str) -> pl.Series:
    """Return UTC times on the clocks of ``zone``, without a zone. Raises Polars' error when there is no such zone."""
    return times.dt.convert_time_zone(zone).dt.replace_time_zone(None)


def known(zone: str) -> bool:
    """Tell whether Polars knows a time zone of that name; offsets such as "+01:00" are no names."""
    import polars as pl

    if not zone[:1].isalpha():
        return False
    try:
        pl.select(pl.lit(0).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(zone))
    except pl.exceptions.ComputeError:
        return False
    return True


def own_function(carried: Sequence[int]) -> str | None:
    """Return the name of our function that an expression carries, given the bytes Polars writes; None for others."""
    return _own().get(_pickled(carried))


@lru_cache(maxsize=1)
def _own() -> dict[bytes, str]:
    import polars as pl

    examples = {"bucket": bucket("x", 1), "local": local("x", pl.col("y"))}
    trees = {name: json.loads(each.meta.serialize(format="json")) for name, each in examples.items()}
    return {_pickled(tree["AnonymousFunction"]["function"]): name for name, tree in trees.items()}


def _pickled(carried: Sequence[int]) -> bytes:
    """Return the function itself, which for ours is its module and name; before it stand types that come and go."""
    content = bytes(carried)
    return content[content.find(b"\x80\x04\x95") :]


def _column(value: str | pl.Expr) -> pl.Expr:
    import polars as pl

    argument.require(value, str | pl.Expr, "a column", "Name one, or write a Polars expression.")
    return pl.col(value) if isinstance(value, str) else value
