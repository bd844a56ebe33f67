"""Online state in the memory of one process: for tests, notebooks and backtests. It is gone when the process ends."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tidemill.base.errors import TidemillError
from tidemill.ports.online import MAX_KEY, Change


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """A state that is never changed: the next batch makes a new one."""

    spaces: Mapping[str, Mapping[bytes, bytes]] = field(default_factory=dict)
    applied: bytes | None = None

    def get(self, space: str, key: bytes) -> bytes | None:
        """Return the value of ``key`` in ``space``, or None."""
        return self.spaces.get(space, {}).get(key)

    def items(self, space: str) -> Iterable[tuple[bytes, bytes]]:
        """Yield the pairs of ``space`` in order of key."""
        return iter(sorted(self.spaces.get(space, {}).items()))

    def mark(self) -> bytes | None:
        """Return the mark that the last batch set, or None when nothing was."""
        return self.applied


class MemoryOnline:
    """Online state in memory; safe to share between threads. A batch copies the spaces it changes."""

    def __init__(self) -> None:
        self._current = MemorySnapshot()
        self._lock = threading.Lock()

    @contextmanager
    def snapshot(self) -> Iterator[MemorySnapshot]:
        """Open a consistent view."""
        yield self._current

    def apply(self, changes: Sequence[Change], mark: bytes) -> None:
        """Apply ``changes`` in order and set the mark. Raises TidemillError, having changed nothing, on a long key."""
        for change in changes:
            if len(change.key) > MAX_KEY:
                raise TidemillError(
                    f"Online state takes keys of at most {MAX_KEY} bytes; one in {change.space!r} has "
                    f"{len(change.key)}. Use a shorter key column."
                )
        with self._lock:
            spaces = dict(self._current.spaces)
            changed = {name: dict(spaces.get(name, {})) for name in {change.space for change in changes}}
            for change in changes:
                if change.value is None:
                    changed[change.space].pop(change.key, None)
                else:
                    changed[change.space][change.key] = change.value
            self._current = MemorySnapshot({**spaces, **changed}, mark)

    def clear(self) -> None:
        """Forget everything, the mark included."""
        with self._lock:
            self._current = MemorySnapshot()

    def close(self) -> None:
        """Do nothing: there are no files and no locks."""
