"""One row and many rows give the same bits."""

from __future__ import annotations

import os
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.clock import DAY, HOUR, MINUTE, SECOND, parse_time, to_datetime
from tidemill.engine.expression.expression import evaluate
from tidemill.spec.expression import Expression

A, N = pl.col("a"), pl.col("n")
EXPRESSIONS = {
    "third": A / 3, "nested": (A / 3 + N / 7) / pl.lit(0.7), "constant": A / (pl.lit(2.0) * 1.5), "floor": A // 0.3,
    "rest": A % 0.3, "whole": N // 7, "whole rest": N % 7, "other way": 3 / A, "single": A.cast(pl.Float32) / 3,
    "small": N.cast(pl.Int16) // 7, "branch": pl.when(A / 3 > 1).then(A / 9).otherwise(N / 11), "power": A**2,
    "log": A.abs().log(), "exp": (A / 100).exp(), "round": (A / 7).round(2), "missing": A.fill_null(0.1) / 0.7,
    "literal": pl.lit(1.5), "hour": tm.local("t", "America/New_York").dt.hour() / 24, "is": A / 3 > 2.1,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_one_row_is_the_definition(name: str) -> None:
    random = np.random.default_rng(0)
    frame = pl.DataFrame({"a": random.normal(0, 100, 300), "n": random.integers(-1000, 1000, 300)}).with_columns(
        pl.from_epoch(pl.col("n") * 3_600_000_000, "us").dt.replace_time_zone("UTC").alias("t"),
        pl.when(pl.int_range(300) % 9 > 0).then("a").alias("a"),
    )
    expression = EXPRESSIONS[name]
    together = evaluate(frame, {"x": Expression.of(expression)})["x"]
    alone = pl.concat([frame[row : row + 1].select(x=expression) for row in range(frame.height)])["x"]
    assert together.dtype == alone.dtype
    assert together.equals(alone, null_equal=True)
    assert evaluate(frame.head(0), {"x": Expression.of(expression)}).schema["x"] == alone.dtype
    one = pl.concat([evaluate(frame[row : row + 1], {"x": Expression.of(expression)}) for row in range(20)])["x"]
    assert one.equals(alone.head(20), null_equal=True)


def test_names_may_be_those_of_columns() -> None:
    frame = pl.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    got = evaluate(frame, {"a": Expression.of("b"), "b": Expression.of(pl.col("a") / 2)})
    assert got.to_dict(as_series=False) == {"a": [3.0, 4.0], "b": [0.5, 1.0]}


#: New York's clocks go forward and back; leap days that are and are not; the year's end; the beginning of zones.
TURNS = [
    parse_time(text)
    for text in (
        "2024-03-10T07:00", "2024-11-03T06:00", "2013-03-10T07:00", "2013-11-03T06:00", "2025-03-09T07:00",
        "1967-04-30T07:00", "2024-02-29T05:00", "2024-03-01T05:00", "2000-02-29T05:00", "1900-03-01T05:00",
        "2100-03-01T05:00", "2023-03-01T05:00", "2024-12-31T05:00", "2025-01-01T05:00", "2025-01-01T00:00",
        "1970-01-01T00:00", "1883-11-18T17:00",
    )
]  # fmt: skip
TYPES = {"t": pl.Datetime("us", "UTC")}
ZONES = ("America/New_York", "UTC", "Asia/Kathmandu", "Australia/Lord_Howe")


def calendar(zone: str) -> dict[str, pl.Expr]:
    local = tm.local("t", zone)
    return {
        "hour": local.dt.hour(), "minute": local.dt.minute(), "weekday": local.dt.weekday(), "day": local.dt.day(),
        "ordinal": local.dt.ordinal_day(), "month": local.dt.month(), "year": local.dt.year(), "week": local.dt.week(),
        "date": local.dt.date(), "leap": local.dt.is_leap_year(), "dst": local.dt.dst_offset(),
        "midnight": local.dt.truncate("1d"), "clock": local.dt.replace_time_zone(None),
        "share": local.dt.hour() / 24 + local.dt.minute() / 1440, "turn": (local.dt.hour() * 2 / 24 * 3.141592).sin(),
        "weekend": local.dt.weekday() > 5, "since": (pl.col("t") - pl.lit(0).cast(TYPES["t"])).dt.total_hours() / 24,
    }  # fmt: skip


@pytest.mark.parametrize("zone", ZONES)
@given(data=st.data())
@settings(max_examples=int(os.environ.get("TIDEMILL_ORACLE_EXAMPLES", "12")), deadline=None)
def test_local_time_around_its_turns(zone: str, data: st.DataObject) -> None:
    near = st.sampled_from((0, 1, -1, HOUR, -HOUR, HOUR - 1, -HOUR - 1, 30 * MINUTE, DAY, -DAY, DAY - SECOND))
    anywhere = st.integers(parse_time("1850-01-01"), parse_time("2150-01-01"))
    moments = st.none() | anywhere | st.builds(int.__add__, st.sampled_from(TURNS), near)
    times = data.draw(st.lists(moments, min_size=2, max_size=6))
    frame = pl.DataFrame({"t": times}, schema=TYPES)
    expressions = calendar(zone)
    together = evaluate(frame, {name: Expression.of(each) for name, each in expressions.items()})
    for row in range(frame.height):
        one = frame[row : row + 1].select(**expressions)
        assert together.schema == one.schema
        assert together[row : row + 1].equals(one, null_equal=True)
    # And Python's own reading of the same clocks, but for the summer times after 2099, which Polars' tables lack.
    read = [(row, time) for row, time in enumerate(times) if time is not None and time < parse_time("2100-01-01")]
    for row, time in read:
        clock = to_datetime(time).astimezone(ZoneInfo(zone))
        said = together.row(row, named=True)
        assert (said["hour"], said["weekday"], said["date"]) == (clock.hour, clock.isoweekday(), clock.date())
