"""The loop worker: turns the mill at every logical tick until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tidemill.base.clock import SECOND, Clock
from tidemill.engine.mill.mill import Mill, Turned


def next_tick(now: int, period: int, last: int | None) -> int:
    """Return the newest tick of the grid of ``period`` microseconds that is not after ``now``, later than ``last``.

    Ticks that passed while the worker was busy or down are left out: what came meanwhile is taken at the next one.
    """
    tick = now - now % period
    return tick if last is None or tick > last else last - last % period + period


def work(
    mill: Mill, clock: Clock, stop: threading.Event, turned: Callable[[Turned], None], *, last: int | None = None
) -> None:
    """Turn ``mill`` at each tick of ``clock``, handing every outcome to ``turned``, until ``stop`` is set.

    ``last`` is the newest tick of earlier runs. The first tick is turned at once. The mill must have been started.
    """
    while not stop.is_set():
        tick = next_tick(clock.now(), mill.system.tick, last)
        while (left := tick - clock.now()) > 0:
            if stop.wait(min(left / SECOND, 1.0)):
                return
        turned(mill.tick(tick))
        last = tick
