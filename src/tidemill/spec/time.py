"""How a declaration says when: offsets from a column, and durations."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.clock import format_duration, parse_duration
from tidemill.spec import argument


@dataclass(frozen=True, slots=True)
class Offset:
    """A time a fixed distance from a column: ``micros`` is negative before it, positive after it."""

    column: str
    micros: int

    def __str__(self) -> str:
        side = "before" if self.micros < 0 else "after"
        return f"{format_duration(abs(self.micros))} {side} {self.column!r}"


def before(column: str, duration: str) -> Offset:
    """Return the time ``duration`` before ``column``. Raises ValueError when the duration cannot be read."""
    argument.require(column, str, "the column of before()", "Name a column: tm.before('scheduled', '2h').")
    return Offset(column, -parse_duration(duration))


def after(column: str, duration: str) -> Offset:
    """Return the time ``duration`` after ``column``. Raises ValueError when the duration cannot be read."""
    argument.require(column, str, "the column of after()", "Name a column: tm.after('hour', '1h').")
    return Offset(column, parse_duration(duration))
