"""The journal: every commit and every decision, numbered, with its tick. Live state is a fold over it.

Beside it, what else must be in the same database: the lease, requests to the worker, and cached steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidemill.ports.lake import Fence


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry to be written. ``body`` is plain JSON data and depends on content and ticks alone.

    ``meta`` holds what does not belong to the decision: wall times, storage versions, host names.
    """

    tick: int
    kind: str
    body: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as written: ``number`` counts from 1 without gaps."""

    number: int
    tick: int
    kind: str
    body: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Request:
    """A command from outside the worker ("retrain", "rollback", …), waiting to be carried out."""

    id: str
    kind: str
    body: dict[str, Any]


class Lease(Fence, Protocol):
    """The right to write, held until released or until the process dies."""

    def release(self) -> None:
        """Give the lease up. No-op when it is already gone."""
        ...


class Journal(Protocol):
    """Numbered entries in one order. Reading needs no lease."""

    def acquire(self) -> Lease:
        """Take the lease and raise its epoch by one. Raises LeaseHeldError while another process holds it."""
        ...

    def append(self, drafts: Sequence[Draft], fence: Fence, *, answered: Sequence[str] = ()) -> tuple[Entry, ...]:
        """Write ``drafts`` and mark the requests ``answered``, in one durable transaction that checks the epoch.

        Raises FencedError, having written nothing, when the epoch has moved on.
        """
        ...

    def read(self, *, after: int = 0, kinds: Sequence[str] | None = None) -> Iterator[Entry]:
        """Yield the entries numbered above ``after``, in order, of the given ``kinds`` or all."""
        ...

    def last(self) -> int:
        """Return the number of the newest entry, 0 when there is none."""
        ...

    def end_tick(self, tick: int, fence: Fence) -> None:
        """Record that every decision of ``tick`` (microseconds) is in the journal. Raises FencedError as ``append``."""
        ...

    def ticks(self, *, after: int = -1) -> Sequence[int]:
        """Return the recorded ticks later than ``after``, in order."""
        ...

    def request(self, kind: str, body: dict[str, Any]) -> str:
        """Ask the worker for something, durably; returns the request's id. Needs no lease."""
        ...

    def requests(self) -> tuple[Request, ...]:
        """Return the requests not yet answered, oldest first."""
        ...

    def step(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the result recorded for the step with this fingerprint, or None."""
        ...

    def record_step(self, fingerprint: str, result: dict[str, Any], fence: Fence) -> None:
        """Remember the result of a step, durably. A known fingerprint keeps its first result."""
        ...
