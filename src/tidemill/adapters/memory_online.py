"""Online state in the memory of one process: for tests, notebooks and backtests. It is gone when the process ends."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tidemill.base.errors import FencedError, TidemillError
from tidemill.ports.online import MAX_KEY, Change, Value


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """A state that is never changed: the next batch makes a new one."""

    spaces: Mapping[str, Mapping[bytes, bytes]] = field(default_factory=dict)
    applied: bytes | None = None

    def get(self, space: str, key: bytes) -> bytes | None:
        """Return the value of ``key`` in ``space``, or None."""
        return self.spaces.get(space, {}).get(key)

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        """Return the value of each of ``keys`` in ``space``, or None."""
        pairs = self.spaces.get(space, {})
        return [pairs.get(key) for key in keys]

    def items(self, space: str, *, after: bytes | None = None) -> Iterable[tuple[bytes, bytes]]:
        """Yield the pairs of ``space`` in order of key, those whose key comes after ``after``."""
        pairs = sorted(self.spaces.get(space, {}).items())
        return iter(pairs if after is None else pairs[bisect.bisect_right(pairs, after, key=lambda pair: pair[0]) :])

    def mark(self) -> bytes | None:
        """Return the mark that the last batch set, or None when nothing was."""
        return self.applied


def check_epoch(claimed: int, mine: int) -> None:
    """Raise FencedError when the epoch that has claimed an online state is higher than this writer's."""
    if claimed > mine:
        raise FencedError(
            f"This worker's lease has epoch {mine}, but the online state was taken over with epoch {claimed}. "
            "Nothing was written; stop this worker."
        )


def check_keys(changes: Sequence[Change]) -> None:
    """Raise TidemillError when a key is too long for an online state."""
    for change in changes:
        if len(change.key) > MAX_KEY:
            raise TidemillError(
                f"Online state takes keys of at most {MAX_KEY} bytes; one in {change.space!r} has "
                f"{len(change.key)}: {change.key[:40]!r}… Use a shorter key column."
            )


class MemoryOnline:
    """Online state in memory; safe to share between threads. A batch copies the spaces it changes."""

    def __init__(self) -> None:
        self._current = MemorySnapshot()
        self._epoch = 0
        self._lock = threading.Lock()

    @contextmanager
    def snapshot(self) -> Iterator[MemorySnapshot]:
        """Open a consistent view."""
        yield self._current

    def claim(self, epoch: int) -> None:
        """Take over the writing. Raises FencedError when a higher epoch has claimed."""
        with self._lock:
            check_epoch(self._epoch, epoch)
            self._epoch = epoch

    def apply(self, changes: Sequence[Change], mark: bytes | None, *, epoch: int = 0) -> None:
        """Apply ``changes`` in order and set the mark, if there is one.

        Raises, having changed nothing, FencedError when a higher epoch has claimed and TidemillError on a long key.
        """
        check_keys(changes)
        with self._lock:
            check_epoch(self._epoch, epoch)
            spaces = dict(self._current.spaces)
            changed = {name: dict(spaces.get(name, {})) for name in {change.space for change in changes}}
            _carry_out(changes, changed)
            self._current = MemorySnapshot({**spaces, **changed}, self._current.applied if mark is None else mark)

    def draft(self, *, epoch: int = 0) -> MemoryDraft:
        """Begin with other content beside what is there. Raises FencedError when a higher epoch has claimed."""
        with self._lock:
            check_epoch(self._epoch, epoch)
        return MemoryDraft(self, epoch)

    def replace(self, snapshot: MemorySnapshot, epoch: int) -> None:
        """Put ``snapshot`` in the place of all that is there. For this module."""
        with self._lock:
            check_epoch(self._epoch, epoch)
            self._current = snapshot

    def clear(self, *, epoch: int = 0) -> None:
        """Forget everything, the mark included. Raises FencedError when a higher epoch has claimed."""
        with self._lock:
            check_epoch(self._epoch, epoch)
            self._current = MemorySnapshot()

    def close(self) -> None:
        """Do nothing: there are no files and no locks."""


class MemoryDraft:
    """Content in the making."""

    def __init__(self, online: MemoryOnline, epoch: int) -> None:
        self._online, self._epoch = online, epoch
        self._spaces: dict[str, dict[bytes, bytes]] = {}

    @contextmanager
    def snapshot(self) -> Iterator[MemorySnapshot]:
        """Open a view of what has been written so far."""
        yield MemorySnapshot(self._spaces)

    def write(self, changes: Sequence[Change]) -> None:
        """Apply ``changes`` in order. Raises TidemillError, having changed nothing, on a long key."""
        check_keys(changes)
        for change in changes:
            self._spaces.setdefault(change.space, {})
        _carry_out(changes, self._spaces)

    def publish(self, mark: bytes) -> None:
        """Put the draft in the place of all that is there. Raises FencedError when a higher epoch has claimed."""
        self._online.replace(MemorySnapshot(self._spaces, mark), self._epoch)


def _carry_out(changes: Sequence[Change], spaces: Mapping[str, dict[bytes, bytes]]) -> None:
    for change in changes:
        if change.value is None:
            spaces[change.space].pop(change.key, None)
        else:
            spaces[change.space][change.key] = change.value
