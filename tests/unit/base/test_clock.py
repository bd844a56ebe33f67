"""The one clock: durations and times as text, and a clock that moves only when told to."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base import clock
from tidemill.base.clock import DAY, HOUR, MINUTE, SECOND, SystemClock, VirtualClock
from tidemill.base.errors import TidemillError

# The strategy adds the zone itself, and a day is kept free at either end for its offset.
EARLIEST, LATEST = dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30)  # noqa: DTZ001


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("0s", 0), ("1us", 1), ("5ms", 5_000), ("30s", 30 * SECOND), ("90m", 90 * MINUTE), ("6h", 6 * HOUR),
        ("30d", 30 * DAY),
        ("2w", 14 * DAY), ("1d12h", 36 * HOUR), ("1.5h", 90 * MINUTE), ("1h30m15s", 5_415 * SECOND),
    ],
)  # fmt: skip
def test_durations_are_read(text: str, micros: int) -> None:
    assert clock.parse_duration(text) == micros


@pytest.mark.parametrize("text", ["", "5", "d", "5 d", "-5d", "5days", "5d 3h", "1e3s", "5dx"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        clock.parse_duration(text)


@pytest.mark.parametrize("text", ["20000000w", "1000000000001s"])
def test_a_duration_that_would_overflow_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="longest duration"):
        clock.parse_duration(text)


@settings(deadline=None)
@given(st.integers(0, 10**18))
def test_durations_are_written_so_that_they_read_back(micros: int) -> None:
    assert clock.parse_duration(clock.format_duration(micros)) == micros


@settings(deadline=None)
@given(st.datetimes(EARLIEST, LATEST, timezones=st.timezones()))
def test_times_are_exact_to_the_microsecond(moment: dt.datetime) -> None:
    micros = clock.from_datetime(moment)
    assert clock.to_datetime(micros) == moment.astimezone(dt.UTC)
    assert clock.parse_time(clock.format_time(micros)) == micros


def test_times_without_an_offset_are_utc() -> None:
    assert clock.parse_time("2013-10-01") == clock.parse_time("2013-10-01T02:00+02:00")
    assert clock.format_time(clock.parse_time("2013-10-01T06:00Z")) == "2013-10-01T06:00:00Z"
    with pytest.raises(TidemillError, match=r"is not a time\. Write it as"):
        clock.parse_time("yesterday")


def test_a_virtual_clock_moves_forward_only() -> None:
    virtual = VirtualClock(10)
    virtual.advance_to(20)
    virtual.advance_to(20)
    assert virtual.now() == 20
    with pytest.raises(ValueError, match="cannot go back"):
        virtual.advance_to(19)
    assert virtual.now() == 20


def test_sleepers_of_a_virtual_clock_wake_at_their_time() -> None:
    virtual = VirtualClock()
    woken: list[int] = []

    def sleep(when: int) -> None:
        virtual.sleep_until(when)
        woken.append(when)

    sleepers = [threading.Thread(target=sleep, args=(when,), daemon=True) for when in (5, 10)]
    for sleeper in sleepers:
        sleeper.start()
    virtual.advance_to(7)
    sleepers[0].join(30)
    assert woken == [5]
    virtual.advance_to(10)
    sleepers[1].join(30)
    assert woken == [5, 10]


def test_the_machines_clock_runs_forward() -> None:
    machine = SystemClock()
    start = machine.now()
    assert start > clock.parse_time("2024-01-01")
    machine.sleep_until(start + 2_000)
    assert machine.now() >= start + 2_000
    machine.sleep_until(0)
