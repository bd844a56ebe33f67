"""Our own functions work wherever Polars expressions do."""

from __future__ import annotations

import datetime as dt
import math
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.clock import parse_time, to_datetime
from tidemill.kernels.xxh64 import xxh64

UTC = pl.Datetime("us", "UTC")


def one(expression: pl.Expr, **values: object) -> object:
    return pl.DataFrame({name: [value] for name, value in values.items()}).select(expression).item()


def test_local_by_a_column_of_zones() -> None:
    noon = dt.datetime(2024, 7, 1, 12, tzinfo=dt.UTC)
    zones = ["America/New_York", "Asia/Kathmandu", None, "Nowhere/None", "", "+01:00", "UTC"]
    frame = pl.DataFrame({"t": [noon] * 7, "zone": zones}, schema_overrides={"t": UTC})
    found = frame.select(tm.local("t", pl.col("zone")))["t"]
    assert found.dtype == pl.Datetime("us")
    naive = noon.replace(tzinfo=None)
    assert found.to_list() == [
        naive - dt.timedelta(hours=4), naive + dt.timedelta(hours=5, minutes=45), None, None, None, None, naive,
    ]  # fmt: skip
    assert frame.select(tm.local("t", pl.lit("Asia/Tokyo")).dt.hour())["t"].to_list() == [21] * 7
    assert frame.head(0).select(tm.local("t", pl.col("zone"))).schema == {"t": pl.Datetime("us")}
    assert frame.lazy().select(tm.local("t", pl.col("zone"))).collect_schema() == {"t": pl.Datetime("us")}


@given(
    micros=st.integers(parse_time("1971-01-01"), parse_time("2037-01-01")),
    zone=st.sampled_from(("America/New_York", "Europe/Berlin")),
)
def test_both_spellings_of_local_time_are_python_s(micros: int, zone: str) -> None:
    at = to_datetime(micros)
    clock = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    assert one(tm.local("t", pl.col("z")), t=at, z=zone) == clock
    assert one(tm.local("t", zone).dt.replace_time_zone(None), t=at) == clock
    assert one(tm.local(pl.col("t"), zone).dt.hour(), t=at) == clock.hour


def test_cyclic_features_meet_at_the_end_of_the_cycle() -> None:
    pair = tm.cyclic("hour", "h", 24)
    assert list(pair) == ["hour_sin", "hour_cos"]
    rows = pl.DataFrame({"h": [0, 6, 12, 18, 23, 24, None]}).select(**pair)
    assert rows["hour_sin"].to_list()[:4] == pytest.approx([0, 1, 0, -1], abs=1e-15)
    assert rows["hour_cos"].to_list()[:4] == pytest.approx([1, 0, -1, 0], abs=1e-15)
    assert rows.row(5) == pytest.approx(rows.row(0), abs=1e-15)
    assert rows.row(6) == (None, None)
    assert one(tm.cyclic("x", pl.col("x") + 1, 7.5)["x_sin"], x=2) == math.sin(3.0 * (2 * math.pi / 7.5))
    for period in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="a period is a positive number"):
            tm.cyclic("x", "x", period)


def test_distances_are_those_of_the_sphere() -> None:
    def between(*places: float | None) -> object:
        names = ("lat1", "lon1", "lat2", "lon2")
        return one(tm.distance(*names), **dict(zip(names, places, strict=True)))

    quarter = 6371.0088 * math.pi / 2
    assert between(0, 0, 0, 90) == pytest.approx(quarter)
    assert between(90, 0, 0, 45) == pytest.approx(quarter)
    assert between(0, 0, 0, 180) == pytest.approx(2 * quarter)
    assert between(40.6413, -73.7781, 51.47, -0.4543) == pytest.approx(5540, abs=15)  # New York to London
    assert between(12.5, 7.25, 12.5, 7.25) == 0
    assert between(0, 179.9, 0, -179.9) == pytest.approx(quarter / 90 * 0.2)
    assert between(1e-9, 0, 0, 0) == pytest.approx(quarter / 90 * 1e-9)
    assert between(None, 0.0, 0.0, 1.0) is None


def test_the_length_of_a_text_is_in_characters() -> None:
    frame = pl.DataFrame({"s": ["", "abc", "日本", "🙂", None]})
    assert frame.select(tm.text_length("s"))["s"].to_list() == [0, 3, 2, 1, None]


def test_buckets_are_stable() -> None:
    # Written down once: stored features depend on them for ever.
    texts = pl.DataFrame({"s": ["", "a", "AA", "日本", None]})
    assert texts.select(tm.bucket("s", 1000))["s"].to_list() == [
        xxh64(each.encode()) % 1000 for each in ("", "a", "AA", "日本")
    ] + [None]
    assert texts.select(tm.bucket("s", 1000))["s"].to_list()[:2] == [
        0xEF46DB3751D8E999 % 1000,
        0xD24EC4F1A98C6E5B % 1000,
    ]
    numbers = pl.DataFrame({"n": [0, -1, 7, None]})
    expected = [xxh64(each.to_bytes(8, "little", signed=True)) % 32 for each in (0, -1, 7)] + [None]
    for dtype in (pl.Int8, pl.Int32, pl.Int64):
        assert numbers.cast(dtype).select(tm.bucket("n", 32))["n"].to_list() == expected
    assert texts.cast(pl.Categorical).select(tm.bucket("s", 9)).equals(texts.select(tm.bucket("s", 9)))
    assert texts.select(tm.bucket(pl.col("s").str.to_lowercase(), 9)).schema == {"s": pl.Int64}
    assert texts.head(0).select(tm.bucket("s", 9)).schema == {"s": pl.Int64}
    with pytest.raises(Exception, match="takes texts or whole numbers"):
        pl.DataFrame({"x": [1.5]}).select(tm.bucket("x", 3))
    for n in (0, -1, 2**31, 2.5, True):
        with pytest.raises(ValueError, match="buckets are counted"):
            tm.bucket("s", n)  # type: ignore[arg-type]
