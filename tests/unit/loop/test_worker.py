"""The loop: which ticks are turned, and when it stops."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.base.clock import VirtualClock
from tidemill.loop.worker import next_tick, work


@given(st.integers(0, 10**6), st.integers(1, 1000), st.none() | st.integers(0, 10**6))
def test_ticks_lie_on_the_grid_and_only_move_forward(now: int, period: int, last: int | None) -> None:
    tick = next_tick(now, period, last)
    assert tick % period == 0
    if last is None or tick <= now:
        assert now - period < tick <= now or last is not None
    if last is not None:
        assert tick > last
        assert tick <= max(now, last + period)


@pytest.mark.parametrize(
    ("now", "last", "expected"),
    [(105, None, 100), (105, 90, 100), (105, 100, 110), (135, 100, 130), (99, 100, 110), (100, 95, 100)],
)
def test_missed_ticks_are_left_out(now: int, last: int | None, expected: int) -> None:
    assert next_tick(now, 10, last) == expected


class _Counting:
    """A mill that advances the clock as it turns, and stops the loop after the fourth tick."""

    def __init__(self, clock: VirtualClock, stop: threading.Event) -> None:
        self.system = SimpleNamespace(tick=10)
        self.clock, self.stop = clock, stop
        self.ticks: list[int] = []

    def tick(self, tick: int) -> int:
        self.ticks.append(tick)
        self.clock.advance_to(tick + (25 if len(self.ticks) == 2 else 10))
        if len(self.ticks) == 4:
            self.stop.set()
        return tick


def test_the_loop_turns_each_tick_once_and_hands_it_on() -> None:
    clock, stop = VirtualClock(100), threading.Event()
    mill: Any = _Counting(clock, stop)
    turned: list[Any] = []
    work(mill, clock, stop, turned.append)
    assert mill.ticks == turned == [100, 110, 130, 140]
