"""Shelves: one record of the store for the heads that all views of one key have for a group.

A question asks several views about one group, and reading a record costs more than what is read; so the heads of views
with the same ``by`` lie together. To those who keep the state each view seems to have its heads to itself: ``Shelved``
is a store where they have. Who looks features up reads whole records.

A record is the number of its fields (uint16), for each in ascending order the number of its view (uint16) and the
length of its head (uint32), then the heads; all little-endian and unaligned. A view without a head has no field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tidemill.base.errors import WorkspaceError
from tidemill.engine.feature.feature import TableView
from tidemill.engine.feature.layout import heads
from tidemill.ports.online import Change, Draft, Online, Snapshot, Value

_COUNT = struct.Struct("<H")
_FIELD = struct.Struct("<HI")


def shelf(view: TableView) -> str:
    """Return the space of the records that hold the view's heads."""
    return "shelf:" + ",".join(view.by)


def pack(fields: Mapping[int, bytes]) -> bytes:
    """Return the record of the heads ``fields``, by number of view; b"" of none."""
    if not fields:
        return b""
    numbers = sorted(fields)
    listed = b"".join(_FIELD.pack(number, len(fields[number])) for number in numbers)
    return b"".join((_COUNT.pack(len(numbers)), listed, *(fields[number] for number in numbers)))


def unpack(record: bytes | None) -> dict[int, bytes]:
    """Return what ``pack`` packed; of no record, nothing. Raises WorkspaceError when it is damaged."""
    if not record:
        return {}
    fields: dict[int, bytes] = {}
    try:
        (count,) = _COUNT.unpack_from(record)
        at = _COUNT.size + count * _FIELD.size
        for place in range(count):
            number, size = _FIELD.unpack_from(record, _COUNT.size + place * _FIELD.size)
            fields.setdefault(number, record[at : at + size])
            at += size
    except struct.error:
        at = -1
    if at != len(record):
        raise _damaged()
    return fields


def take(record: bytes | None, number: int) -> bytes | None:
    """Return the head of the view ``number`` in ``record``; None where there is none. Raises as ``unpack``."""
    return unpack(record).get(number)


def _damaged() -> WorkspaceError:
    return WorkspaceError("a record of the online state is damaged; ask for another state: tidemill rebuild")


class Shelved:
    """Implements ports.online.Online over ``store``: one in which each of ``views`` has a space of heads of its own."""

    def __init__(self, store: Online, views: Sequence[TableView]) -> None:
        self._store = store
        #: For the space of a view's heads, its shelf and its number.
        self.fields = {heads(view): (shelf(view), number) for number, view in enumerate(views)}

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Open a consistent view."""
        with self._store.snapshot() as snapshot:
            yield _Shelved(snapshot, self.fields)

    def claim(self, epoch: int) -> None:
        """As the store's."""
        self._store.claim(epoch)

    def apply(self, changes: Sequence[Change], mark: bytes | None, *, epoch: int = 0) -> None:
        """As the store's. The records that change are read, put together anew and written."""
        with self._store.snapshot() as snapshot:
            together = _together(changes, self.fields, snapshot)
        self._store.apply(together, mark, epoch=epoch)

    def draft(self, *, epoch: int = 0) -> Draft:
        """As the store's."""
        return _ShelvedDraft(self._store.draft(epoch=epoch), self.fields)

    def clear(self, *, epoch: int = 0) -> None:
        """As the store's."""
        self._store.clear(epoch=epoch)

    def close(self) -> None:
        """As the store's."""
        self._store.close()


class _ShelvedDraft:
    """A draft of a shelved store."""

    def __init__(self, inner: Draft, fields: Mapping[str, tuple[str, int]]) -> None:
        self._inner, self._fields = inner, fields

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        with self._inner.snapshot() as snapshot:
            yield _Shelved(snapshot, self._fields)

    def write(self, changes: Sequence[Change]) -> None:
        with self._inner.snapshot() as snapshot:
            together = _together(changes, self._fields, snapshot)
        self._inner.write(together)

    def publish(self, mark: bytes) -> None:
        self._inner.publish(mark)


def _together(changes: Sequence[Change], fields: Mapping[str, tuple[str, int]], snapshot: Snapshot) -> list[Change]:
    """Return ``changes`` with those of heads as changes of the records that hold them, as they are in ``snapshot``."""
    together: list[Change] = []
    records: dict[tuple[str, bytes], dict[int, bytes | None]] = {}
    for change in changes:
        field = fields.get(change.space)
        if field is None:
            together.append(change)
        else:
            records.setdefault((field[0], change.key), {})[field[1]] = change.value
    for (space, key), changed in records.items():
        merged = {**unpack(snapshot.get(space, key)), **changed}
        record = pack({number: head for number, head in merged.items() if head})
        together.append(Change(space, key, record or None))
    return together


class _Shelved:
    """A snapshot of a shelved store."""

    def __init__(self, inner: Snapshot, fields: Mapping[str, tuple[str, int]]) -> None:
        self._inner, self._fields = inner, fields

    def get(self, space: str, key: bytes) -> bytes | None:
        field = self._fields.get(space)
        if field is None:
            return self._inner.get(space, key)
        return take(self._inner.get(field[0], key), field[1])

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        field = self._fields.get(space)
        return self._inner.get_many(space, keys) if field is None else [self.get(space, key) for key in keys]

    def items(self, space: str, *, after: bytes | None = None) -> Iterable[tuple[bytes, bytes]]:
        field = self._fields.get(space)
        if field is None:
            yield from self._inner.items(space, after=after)
            return
        for key, record in self._inner.items(field[0], after=after):
            head = take(record, field[1])
            if head is not None:
                yield key, head

    def mark(self) -> bytes | None:
        return self._inner.mark()
