"""Tables of time zones say what Polars says, and Python where both keep the same history."""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from itertools import pairwise
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.base.clock import parse_time, to_datetime
from tidemill.engine.expression.zone import table
from tidemill.spec.function import on_clocks

ZONES = (
    "America/New_York", "Europe/Dublin", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia",
    "Asia/Tehran", "America/St_Johns", "Etc/GMT+5", "UTC", "Asia/Gaza",
)  # fmt: skip


def offset(zone: str, time: int) -> int:
    found = table(zone)
    assert found is not None
    changes, offsets = found
    return offsets[bisect_right(changes, time)]


@pytest.mark.parametrize("zone", ZONES)
def test_around_every_change_and_far_from_all(zone: str) -> None:
    found = table(zone)
    assert found is not None
    changes, offsets = found
    assert len(offsets) == len(changes) + 1
    assert list(changes) == sorted(set(changes))
    assert all(one != other for one, other in pairwise(offsets))
    far = [
        parse_time(f"{year:04}-{month:02}-15")
        for year in (2, 999, 1700, 1950, 2099, 2100, 2101, 9998)
        for month in (1, 4, 7, 10)
    ]
    times = [*far, *(change + near for change in changes for near in (-3_600_000_000, -1, 0, 1, 3_600_000_000))]
    local = on_clocks(pl.Series(times, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")), zone).to_physical().to_list()
    assert [time + offset(zone, time) for time in times] == local


@given(time=st.integers(parse_time("1972-01-01"), parse_time("2037-01-01")), zone=st.sampled_from(ZONES))
def test_python_agrees_on_the_present(time: int, zone: str) -> None:
    if zone == "Africa/Casablanca" or zone == "Asia/Gaza":
        return  # rules made from year to year: two editions of the database need not agree on them
    expected = to_datetime(time).astimezone(ZoneInfo(zone)).utcoffset()
    assert dt.timedelta(microseconds=offset(zone, time)) == expected


@pytest.mark.parametrize("zone", ["Nowhere/None", "", "+01:00", "america/new_york", "\x00"])
def test_there_is_no_table_of_what_is_no_zone(zone: str) -> None:
    assert table(zone) is None
