"""The lake: named, append-only, versioned tables of Arrow rows, with one fenced writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a server reads the journal, whose port names the fence, without ever loading Arrow
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Commit:
    """What one append did. All but ``version`` is given by the caller and comes back unchanged.

    ``version``: the storage version it made (never hashed). ``tick``: the logical tick, microseconds. ``batch``: an id
    shared by the commits of one batch. ``rows``: rows appended. ``next_seq``: the number that the next row will get.
    ``cursor``: where the source's reader continues, canonical JSON, or None. ``entry``: the body of the journal entry
    that announces the commit, canonical JSON.
    """

    table: str
    version: int
    tick: int
    batch: str
    rows: int
    next_seq: int
    cursor: str | None
    entry: str


class Fence(Protocol):
    """Proof of being the one writer."""

    @property
    def epoch(self) -> int:
        """The lease's number; a successor's is higher."""
        ...

    def check(self) -> None:
        """Raise FencedError when the lease has passed to another worker."""
        ...


class Lake(Protocol):
    """Tables of rows. Readers need no lease and see committed versions only; every write is durable when it returns."""

    def claim(self, fence: Fence) -> None:
        """Wait for commits that an earlier holder of the lease has already begun; after this none of its can begin."""
        ...

    def tables(self) -> tuple[str, ...]:
        """Return the names of the tables, in alphabetical order."""
        ...

    def head(self, table: str) -> Commit | None:
        """Return the newest commit of ``table``, or None when there is no such table.

        Survives compaction and cleanup: cursor, next_seq, batch and entry are those of the newest append.
        """
        ...

    def append(self, table: str, rows: pa.Table, commit: Commit, fence: Fence) -> Commit:
        """Append ``rows`` and record ``commit`` in one transaction; create the table on first use.

        Zero rows still record the commit. Returns the commit with its version. Raises FencedError, having changed
        nothing, when the fence's lease is gone or another writer has committed meanwhile; TidemillError when the rows'
        schema is not the table's.
        """
        ...

    def scan(
        self,
        table: str,
        *,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        since: int = 0,
        limit: int | None = None,
    ) -> pa.Table:
        """Return the rows with ``_seq >= since`` in order of ``_seq``, at ``version`` or the newest.

        ``limit``: at most so many of them; other rows are not read.

        Raises NotFoundError when the table or the version does not exist.
        """
        ...

    def schema(self, table: str) -> pa.Schema:
        """Return the schema of ``table``. Raises NotFoundError when there is none."""
        ...

    def commits(self, table: str, *, after: int = 0) -> tuple[Commit, ...]:
        """Return the appends with a version above ``after`` that are still recorded, oldest first."""
        ...

    def restore(self, table: str, version: int, fence: Fence) -> None:
        """Make the content and the recorded commit of ``version`` the newest again. Raises as ``append``."""
        ...

    def compact(self, table: str, fence: Fence) -> None:
        """Rewrite small fragments into large ones; rows, head and scans stay the same."""
        ...

    def cleanup(self, table: str, *, keep: int, fence: Fence) -> int:
        """Drop all but the newest ``keep`` versions, with the files only they use. Returns bytes freed."""
        ...
