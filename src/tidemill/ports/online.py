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


class Draft(Protocol):
    """Content in the making, which no snapshot of the store shows. For its one writer."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open a view of what has been written so far, to be closed before more is written. It has no mark."""
        ...

    def write(self, changes: Sequence[Change]) -> None:
        """Apply ``changes`` in order, all or nothing; no more of them stays in memory than those. Raises as ``apply``.

        Nothing of a draft has to survive the process.
        """
        ...

    def publish(self, mark: bytes) -> None:
        """Put the draft in the place of all that the store holds, and set the mark.

        For every later snapshot of any process, all or nothing, durable when it returns. A snapshot that is open goes
        on showing what was there. Raises FencedError as ``apply``. The draft is used up.
        """
        ...


class Online(Protocol):
    """A small key-value store with atomic, durable batches. Keys are at most 500 bytes, spaces are short names."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Open a consistent view. Cheap (microseconds); close it soon, it holds old pages."""
        ...

    def claim(self, epoch: int) -> None:
        """Take over the writing: from now on, batches of a lower epoch are refused, those being made included.

        Durable. A draft that an earlier writer left behind is forgotten. Raises FencedError when a higher epoch has
        claimed.
        """
        ...

    def apply(self, changes: Sequence[Change], mark: bytes | None, *, epoch: int = 0) -> None:
        """Apply ``changes`` in order and set the mark, all or nothing, for every later snapshot of any process.

        ``mark``: None leaves it as it is. ``epoch``: of the writer's lease; 0 for a store that no lease guards. Raises,
        having changed nothing, FencedError when a higher epoch has claimed, and TidemillError when a key is longer than
        MAX_KEY.
        """
        ...

    def draft(self, *, epoch: int = 0) -> Draft:
        """Begin with other content, empty at first, beside what is there. There is one at a time: the newest.

        Raises FencedError as ``apply``.
        """
        ...

    def clear(self, *, epoch: int = 0) -> None:
        """Forget everything, mark and draft included, but not who has claimed. Raises FencedError as ``apply``."""
        ...

    def close(self) -> None:
        """Release files and locks. Idempotent."""
        ...
