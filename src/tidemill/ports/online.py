"""Online state: keys to bytes, changed by one writer in whole batches, read by many processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

#: Longest key, in bytes.
MAX_KEY = 500

#: A value as many are read at once.
Value = bytes | memoryview


class Snapshot(Protocol):
    """A consistent view: no later batch shows in it."""

    def get(self, space: str, key: bytes) -> bytes | None:
        """Return the value of ``key`` in ``space``, or None."""
        ...

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        """Return the value of each of ``keys`` in ``space``, or None.

        Values may be views of the store's own memory: they can be read as long as the snapshot is open.
        """
        ...

    def items(self, space: str, *, after: bytes | None = None) -> Iterable[tuple[bytes, bytes]]:
        """Yield the pairs of ``space`` in order of key, those whose key comes after ``after``."""
        ...

    def mark(self) -> bytes | None:
        """Return the mark that the last batch set (what has been applied), or None when nothing was."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """Set ``key`` of ``space`` to ``value``; None removes it."""

    space: str
    key: bytes
    value: bytes | None


class Online(Protocol):
    """A small key-value store with atomic, durable batches. Keys are at most 500 bytes, spaces are short names."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open a consistent view. Cheap (microseconds); close it soon, it holds old pages."""
        ...

    def claim(self, epoch: int) -> None:
        """Take over the writing: from now on, batches of a lower epoch are refused, those being made included.

        Durable. Raises FencedError when a higher epoch has claimed.
        """
        ...

    def apply(self, changes: Sequence[Change], mark: bytes, *, epoch: int = 0) -> None:
        """Apply ``changes`` in order and set the mark, all or nothing, for every later snapshot of any process.

        ``epoch``: of the writer's lease; 0 for a store that no lease guards. Raises, having changed nothing,
        FencedError when a higher epoch has claimed, and TidemillError when a key is longer than MAX_KEY.
        """
        ...

    def clear(self, *, epoch: int = 0) -> None:
        """Forget everything, the mark included, but not who has claimed. Raises FencedError as ``apply``."""
        ...

    def close(self) -> None:
        """Release files and locks. Idempotent."""
        ...
