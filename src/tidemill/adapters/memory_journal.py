"""The journal in memory: for backtests and tests. Values pass through canonical JSON as they would to disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tidemill.base.errors import FencedError, LeaseHeldError
from tidemill.base.hashing import canonical
from tidemill.ports.journal import Draft, Entry, Request
from tidemill.ports.lake import Fence


class MemoryJournal:
    """A journal that lives as long as the object. Safe to share between threads."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, str, bytes, bytes]] = []
        self._ticks: set[int] = set()
        self._requests: dict[str, tuple[str, bytes]] = {}
        self._asked = 0
        self._steps: dict[str, bytes] = {}
        self._epoch = 0
        self._holder: MemoryLease | None = None
        self._lock = threading.RLock()

    def acquire(self) -> MemoryLease:
        """Take the lease and raise its epoch by one. Raises LeaseHeldError while it is held."""
        with self._lock:
            if self._holder is not None:
                raise LeaseHeldError(
                    f"Another worker holds the lease of this journal, with epoch {self._epoch}. Release that one first."
                )
            return self.take_over()

    def take_over(self) -> MemoryLease:
        """Take the lease whoever holds it: what a second host does once it believes the first one dead."""
        with self._lock:
            self._epoch += 1
            self._holder = MemoryLease(self, self._epoch)
            return self._holder

    def append(self, drafts: Sequence[Draft], fence: Fence, *, answered: Sequence[str] = ()) -> tuple[Entry, ...]:
        """Write ``drafts`` and mark the requests ``answered``, all or nothing. Raises FencedError."""
        rows = [(draft.tick, draft.kind, canonical(draft.body), canonical(draft.meta)) for draft in drafts]
        with self._lock:
            self.check(fence.epoch)
            first = len(self._entries) + 1
            self._entries.extend(rows)
            for id in answered:
                self._requests.pop(id, None)
        return tuple(_entry(number, row) for number, row in enumerate(rows, first))

    def read(self, *, after: int = 0, kinds: Sequence[str] | None = None) -> Iterator[Entry]:
        """Yield the entries numbered above ``after``, in order, of the given ``kinds`` or all."""
        number = max(after, 0)
        while number < len(self._entries):  # entries are never changed or removed, so no lock is needed
            row = self._entries[number]
            number += 1
            if kinds is None or row[1] in kinds:
                yield _entry(number, row)

    def last(self) -> int:
        """Return the number of the newest entry, 0 when there is none."""
        return len(self._entries)

    def end_tick(self, tick: int, fence: Fence) -> None:
        """Record that every decision of ``tick`` (microseconds) is in the journal. Raises FencedError."""
        with self._lock:
            self.check(fence.epoch)
            self._ticks.add(tick)

    def ticks(self, *, after: int = -1) -> Sequence[int]:
        """Return the recorded ticks later than ``after``, in order."""
        with self._lock:
            return sorted(tick for tick in self._ticks if tick > after)

    def request(self, kind: str, body: dict[str, Any]) -> str:
        """Ask the worker for something; returns the request's id. Needs no lease."""
        with self._lock:
            self._asked += 1
            id = f"request-{self._asked}"
            self._requests[id] = (kind, canonical(body))
            return id

    def requests(self) -> tuple[Request, ...]:
        """Return the requests not yet answered, oldest first."""
        with self._lock:
            return tuple(Request(id, kind, json.loads(body)) for id, (kind, body) in self._requests.items())

    def step(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the result recorded for the step with this fingerprint, or None."""
        found = self._steps.get(fingerprint)
        return None if found is None else dict(json.loads(found))

    def record_step(self, fingerprint: str, result: dict[str, Any], fence: Fence) -> None:
        """Remember the result of a step. A known fingerprint keeps its first result. Raises FencedError."""
        content = canonical(result)
        with self._lock:
            self.check(fence.epoch)
            self._steps.setdefault(fingerprint, content)

    def check(self, epoch: int) -> None:
        """Raise FencedError unless ``epoch`` is the current one."""
        if epoch != self._epoch:
            raise FencedError(
                f"This worker's lease has epoch {epoch}, but the journal is at {self._epoch}: another worker has "
                "taken over. Nothing was written; stop this one."
            )

    def drop(self, lease: MemoryLease) -> None:
        """Forget ``lease``. No-op when it is no longer the holder."""
        with self._lock:
            if self._holder is lease:
                self._holder = None


class MemoryLease:
    """The right to write to one MemoryJournal."""

    def __init__(self, journal: MemoryJournal, epoch: int) -> None:
        self._journal, self._epoch, self._held = journal, epoch, True

    @property
    def epoch(self) -> int:
        """The lease's number; a successor's is higher."""
        return self._epoch

    def check(self) -> None:
        """Raise FencedError when the lease was released or has passed to another worker."""
        if not self._held:
            raise FencedError(f"The lease with epoch {self._epoch} was released; nothing was written.")
        self._journal.check(self._epoch)

    def release(self) -> None:
        """Give the lease up. No-op when it is already gone."""
        self._held = False
        self._journal.drop(self)


def _entry(number: int, row: tuple[int, str, bytes, bytes]) -> Entry:
    tick, kind, body, meta = row
    return Entry(number, tick, kind, json.loads(body), json.loads(meta))
