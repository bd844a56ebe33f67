"""The one clock. Times are integers: microseconds since 1970-01-01 00:00 UTC.

Nothing else in the package reads the machine's clock (a lint rule holds this), so a backtest that hands in a
``VirtualClock`` runs the very code that runs live. Durations for measuring use ``time.perf_counter``.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from typing import Protocol

from tidemill.base.errors import TidemillError

SECOND = 1_000_000  # microseconds
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY

#: Later than every time a row may carry: the end of validity of a row that nothing has replaced.
FOREVER = 2**63 - 1

#: The longest duration, some 31700 years: added to any date, it stays within the times that 64 bits hold.
LONGEST = 10**18

_UNITS = {"us": 1, "ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Clock(Protocol):
    """Tells the time and waits for it."""

    def now(self) -> int:
        """Return the current time in microseconds since the epoch, UTC."""
        ...

    def sleep_until(self, when: int) -> None:
        """Return once ``now() >= when`` (microseconds since the epoch)."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """Return the current time in microseconds since the epoch, UTC."""
        return time.time_ns() // 1_000

    def sleep_until(self, when: int) -> None:
        """Sleep in slices of at most a second, so that a change of the machine's clock is noticed."""
        while (left := when - self.now()) > 0:
            time.sleep(min(left / SECOND, 1.0))


class VirtualClock:
    """A clock that moves only when told to. Safe to share between threads."""

    def __init__(self, start: int = 0) -> None:
        self._now = start
        self._moved = threading.Condition()

    def now(self) -> int:
        """Return the time last set, in microseconds since the epoch."""
        return self._now

    def advance_to(self, when: int) -> None:
        """Move to ``when``. Raises ValueError if that lies in the past."""
        with self._moved:
            if when < self._now:
                raise ValueError(f"a virtual clock cannot go back from {format_time(self._now)} to {format_time(when)}")
            self._now = when
            self._moved.notify_all()

    def sleep_until(self, when: int) -> None:
        """Block until another thread has advanced the clock to ``when``."""
        with self._moved:
            self._moved.wait_for(lambda: self._now >= when)


def parse_duration(text: str) -> int:
    """Return the microseconds in ``text``: a number and a unit (us, ms, s, m, h, d, w), or several: ``"1d12h"``.

    Raises ValueError when the text is not of that form or longer than LONGEST. The result is not negative.
    """
    position = total = 0
    for match in _DURATION.finditer(text) if isinstance(text, str) else ():
        if match.start() != position:
            break
        total += round(float(match[1]) * _UNITS[match[2]])
        position = match.end()
    if not isinstance(text, str) or not text or position != len(text):
        raise ValueError(f"{text!r} is not a duration. Write a number and a unit, such as '30d', '6h' or '1d12h'.")
    if total > LONGEST:
        raise ValueError(
            f"{text!r} is longer than {format_duration(LONGEST)}, the longest duration. Write a shorter one."
        )
    return total


def format_duration(micros: int) -> str:
    """Return the shortest text that ``parse_duration`` reads back as ``micros``: ``"6h"``, ``"1d12h"``."""
    if micros == 0:
        return "0s"
    parts = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, micros = divmod(micros, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_time(text: str) -> int:
    """Return the microseconds since the epoch of an ISO 8601 date or time; without an offset it is read as UTC.

    Raises TidemillError when the text is not such a time.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise TidemillError(f"{text!r} is not a time. Write it as 2013-10-01 or 2013-10-01T06:00Z.") from error
    return from_datetime(moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC))


def from_datetime(moment: dt.datetime) -> int:
    """Return the microseconds since the epoch of an aware ``datetime``, exactly."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds


def to_datetime(micros: int) -> dt.datetime:
    """Return the aware UTC ``datetime`` of a time in microseconds since the epoch."""
    return _EPOCH + dt.timedelta(microseconds=micros)


def format_time(micros: int) -> str:
    """Return a time as ISO 8601 in UTC, ``2013-10-01T06:00:00Z``; microseconds only when there are any."""
    return to_datetime(micros).isoformat().replace("+00:00", "Z")
