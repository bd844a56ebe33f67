"""How fresh online state is: when it was brought up to date, by which rows, and whether it is being made anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tidemill.engine.feature.layout import FRESH, REBUILDING, Applied
from tidemill.ports.online import Online


@dataclass(frozen=True, slots=True)
class ViewFreshness:
    """The newest event time and the newest known-at among the rows that a view has taken in; microseconds, or None."""

    event_time: int | None
    known_at: int | None


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """A rebuild under way: the ``table`` being read ("" at the end), steps ``done`` of ``steps``, after ``seconds``."""

    table: str
    done: int
    steps: int
    seconds: float

    @property
    def left(self) -> float | None:
        """About how many seconds it will still take; None before the first step is done."""
        return self.seconds / self.done * (self.steps - self.done) if self.done else None

    def encode(self) -> bytes:
        """Return it as it lies under ``REBUILDING``."""
        return msgspec.msgpack.encode((self.table, self.done, self.steps, self.seconds))


@dataclass(frozen=True, slots=True)
class Freshness:
    """``applied``: None before the state is built. ``views``: those that have taken in rows, by name.

    ``rebuilding``: a rebuild under way, or that was broken off; the next rows that are applied end it.
    """

    applied: Applied | None = None
    views: Mapping[str, ViewFreshness] = field(default_factory=dict)
    rebuilding: Rebuilding | None = None


def freshness(store: Online) -> Freshness:
    """Return how fresh the state in ``store`` is, from one snapshot."""
    with store.snapshot() as snapshot:
        mark, said = snapshot.mark(), snapshot.get(REBUILDING, b"")
        views = {name.decode(): msgspec.msgpack.decode(value) for name, value in snapshot.items(FRESH)}
    return Freshness(
        None if mark is None else Applied.decode(mark),
        {name: ViewFreshness(*value) for name, value in views.items()},
        None if said is None else Rebuilding(*msgspec.msgpack.decode(said)),
    )
