"""A lake in memory: for backtests and unit tests. Every version is kept until ``cleanup``; rows are never copied."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tidemill.base.errors import NotFoundError, TidemillError
from tidemill.base.schema import NAME, SEQ, nearest
from tidemill.ports.lake import Commit, Fence


def check_append(table: str, schema: pa.Schema | None, head: Commit | None, rows: pa.Table, commit: Commit) -> None:
    """Raise TidemillError unless ``rows`` and ``commit`` continue ``table``; every lake asks this before it writes.

    ``schema`` and ``head`` are the table's own, or None when it does not exist yet. The rows must have the table's
    columns, in its order and of its types, and be numbered on from the head in ``_seq`` without a gap; the commit must
    agree with them.
    """
    if not NAME.match(table):
        raise TidemillError(f"{table!r} cannot name a table. Use letters, digits and underscores.")
    if commit.table != table:
        raise TidemillError(f"a commit of table {commit.table!r} was handed to table {table!r}.")
    if schema is not None and not rows.schema.equals(schema):
        raise TidemillError(f"the rows do not fit table {table!r}: {_difference(schema, rows.schema)}")
    if SEQ not in rows.column_names or rows.schema.field(SEQ).type != pa.int64():
        raise TidemillError(f"the rows for table {table!r} lack the column {SEQ!r} of type int64 that numbers them.")
    start = 0 if head is None else head.next_seq
    numbers = rows[SEQ].to_numpy()
    if not np.array_equal(numbers, np.arange(start, start + len(numbers))):
        raise TidemillError(f"the rows for table {table!r} must be numbered from {start} without a gap in {SEQ!r}.")
    if commit.rows != rows.num_rows or commit.next_seq != start + rows.num_rows:
        raise TidemillError(
            f"the commit to table {table!r} says {commit.rows} rows up to number {commit.next_seq}, "
            f"but {rows.num_rows} rows up to {start + rows.num_rows} came with it."
        )


def check_columns(table: str, schema: pa.Schema, columns: Sequence[str] | None) -> list[str]:
    """Return the columns to read, all when None. Raises NotFoundError for one that ``table`` does not have."""
    for column in columns or ():
        if column not in schema.names:
            raise NotFoundError(f"table {table!r} has no column {column!r}.{nearest(column, schema.names)}")
    return list(schema.names if columns is None else columns)


def _difference(ours: pa.Schema, theirs: pa.Schema) -> str:
    if ours.names != theirs.names:
        return f"its columns are {', '.join(ours.names)}, theirs are {', '.join(theirs.names)}."
    parts = [
        f"column {a.name!r} is {a.type}{'' if a.nullable else ' not null'}, "
        f"not {b.type}{'' if b.nullable else ' not null'}"
        for a, b in zip(ours, theirs, strict=True)
        if not a.equals(b)
    ]
    return "; ".join(parts) + "."


@dataclasses.dataclass(frozen=True, slots=True)
class _Version:
    """One version: the first ``parts`` chunks of a list that later versions of the same line go on filling."""

    chunks: list[pa.Table]
    parts: int
    head: Commit
    restored: int | None  # the version this one brought back, None for an append


class MemoryLake:
    """Tables held as chunks of Arrow rows. Threads may share it."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, _Version]] = {}
        self._lock = threading.RLock()

    def claim(self, fence: Fence) -> None:
        """Do nothing but check the fence: a write in memory is never half done for others."""
        with self._lock:
            fence.check()

    def tables(self) -> tuple[str, ...]:
        """Return the names of the tables, in alphabetical order."""
        with self._lock:
            return tuple(sorted(self._versions))

    def head(self, table: str) -> Commit | None:
        """Return the newest commit of ``table``, or None when there is no such table."""
        with self._lock:
            return self._newest(table)[1].head if table in self._versions else None

    def append(self, table: str, rows: pa.Table, commit: Commit, fence: Fence) -> Commit:
        """Append ``rows`` and record ``commit``; create the table on first use."""
        with self._lock:
            fence.check()
            number, newest = self._newest(table) if table in self._versions else (0, None)
            if newest is None:
                check_append(table, None, None, rows, commit)
                chunks = [rows.slice(0, 0)]  # holds the schema
                parts = 1
            else:
                check_append(table, newest.chunks[0].schema, newest.head, rows, commit)
                chunks, parts = newest.chunks, newest.parts
                if parts != len(chunks):  # an undone line goes on in this list: leave it that one
                    chunks = chunks[:parts]
            if rows.num_rows:
                chunks.append(rows)
            commit = dataclasses.replace(commit, version=number + 1)
            self._versions.setdefault(table, {})[number + 1] = _Version(chunks, len(chunks), commit, None)
            return commit

    def scan(
        self,
        table: str,
        *,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        since: int = 0,
        limit: int | None = None,
    ) -> pa.Table:
        """Return the rows with ``_seq >= since`` in order of ``_seq``, at ``version`` or the newest."""
        with self._lock:
            found = self._newest(table)[1] if version is None else self._at(table, version)
            empty, *chunks = found.chunks[: found.parts]
        left = found.head.next_seq - max(since, 0)
        parts = []
        for chunk in reversed(chunks):
            if left <= 0:
                break
            parts.append(chunk.slice(max(chunk.num_rows - left, 0)))
            left -= chunk.num_rows
        names = check_columns(table, empty.schema, columns)
        rows = pa.concat_tables([part.select(names) for part in (empty, *reversed(parts))])
        return rows if limit is None else rows.slice(0, limit)

    def schema(self, table: str) -> pa.Schema:
        """Return the schema of ``table``. Raises NotFoundError when there is none."""
        with self._lock:
            return self._newest(table)[1].chunks[0].schema

    def commits(self, table: str, *, after: int = 0) -> tuple[Commit, ...]:
        """Return the appends with a version above ``after`` that are still recorded and not undone, oldest first.

        The head is always among them.
        """
        found = []
        with self._lock:
            versions = self._versions.get(table, {})
            number = next(reversed(versions), 0)
            while number > after:
                version = versions.get(number)
                if version is not None and version.restored is not None:
                    number = version.restored
                    continue
                if version is not None:
                    found.append(version.head)
                number -= 1
            head = self.head(table)
        if head is not None and head.version > after and head not in found:
            found.insert(0, head)
        return tuple(reversed(found))

    def restore(self, table: str, version: int, fence: Fence) -> None:
        """Make the content and the recorded commit of ``version`` the newest again."""
        with self._lock:
            fence.check()
            old = self._at(table, version)
            number = self._newest(table)[0] + 1
            self._versions[table][number] = dataclasses.replace(old, restored=version)

    def compact(self, table: str, fence: Fence) -> None:
        """Join the newest version's chunks into one, in place: no version is made."""
        with self._lock:
            fence.check()
            number, newest = self._newest(table)
            empty = newest.chunks[0]
            rows = pa.concat_tables(newest.chunks[: newest.parts]).combine_chunks()
            chunks = [empty, rows] if rows.num_rows else [empty]
            self._versions[table][number] = dataclasses.replace(newest, chunks=chunks, parts=len(chunks))

    def cleanup(self, table: str, *, keep: int, fence: Fence) -> int:
        """Drop all but the newest ``keep`` versions. Returns 0: what Python frees is not known."""
        if keep < 1:
            raise TidemillError(f"cleanup must keep at least one version, not {keep}.")
        with self._lock:
            fence.check()
            self._newest(table)
            versions = self._versions[table]
            self._versions[table] = {number: versions[number] for number in sorted(versions)[-keep:]}
            return 0

    def _newest(self, table: str) -> tuple[int, _Version]:
        versions = self._versions.get(table)
        if not versions:
            raise NotFoundError(f"there is no table {table!r}.{nearest(table, self._versions)}")
        number = next(reversed(versions))  # they are kept in order
        return number, versions[number]

    def _at(self, table: str, version: int) -> _Version:
        self._newest(table)
        try:
            return self._versions[table][version]
        except KeyError:
            raise NotFoundError(f"table {table!r} has no version {version}: never made, or cleaned up.") from None
