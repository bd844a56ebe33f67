"""Feature state that servers look up, kept current by the worker (time rule 9).

The state is brought from tick to tick; after a tick, questions are answered at ``t = tick + 1`` microsecond, so that
all that was known at the tick is visible. For each view and each value of its ``by`` columns (a group) it holds the
versions that can still matter at ``t`` or later, with the times of their validity and the values that the view reads,
packed as in ``layout.py``; ``lookup.py`` answers from them.

A version that arrives ends the validity of another of its key (``arrivals.py``), of which there is a record. Rows known
in the future lie there with the rest until their time. What can never matter again is dropped when its group or key is
touched, and, for the others, by a sweep that goes round the state a stretch at a time, faster than rows arrive.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.errors import WorkspaceError
from tidemill.base.schema import KNOWN_AT
from tidemill.engine.feature.arrivals import Arrivals, Validity, matters
from tidemill.engine.feature.feature import TableView, Versions
from tidemill.engine.feature.freshness import Rebuilding
from tidemill.engine.feature.layout import (
    FRESH,
    REBUILDING,
    VIEWS,
    Applied,
    Shape,
    blocks,
    definition,
    heads,
)
from tidemill.engine.feature.partition import things, view_columns
from tidemill.engine.feature.parts import Parts, joined, select, take
from tidemill.engine.feature.shelf import Shelved
from tidemill.engine.table.table import TIME, timeless
from tidemill.ports.online import Change, Online, Snapshot, Value
from tidemill.spec.feature import OnDemand, View
from tidemill.spec.source import Source, Table

Array = npt.NDArray[Any]

_SWEEP = 1_000  # rows of a table after which the next stretch of its state is swept
_STRETCH = 2  # keys and groups in a stretch, for each of those rows
_BATCH = 16 << 20  # bytes of keys and values that a rebuild writes at a time, where nothing answers meanwhile
_TOGETHER = 100_000  # versions of groups that a rebuild packs at a time

#: Values of a table (rows times columns) that a rebuild has in memory at a time.
PART_CELLS = 4_000_000

#: Returns rows of a table: its name, the columns, the number of the first row, how many; in order of sequence.
Read = Callable[[str, Sequence[str], int, int], pl.DataFrame]


class OnlineState:
    """The worker's side: keeps ``store`` current for ``views``. One writer; not safe to share between threads.

    ``epoch``: of the writer's lease. Once a higher one has claimed the store, writing raises FencedError.
    """

    def __init__(self, views: Sequence[View], store: Online, *, epoch: int = 0) -> None:
        self._epoch = epoch
        self._views: dict[str, tuple[TableView, ...]] = {}
        self._tables: dict[str, Source | Table] = {}
        stored = sorted({view for view in views if not isinstance(view, OnDemand)}, key=lambda view: view.name)
        self._store = Shelved(store, stored)
        for view in stored:
            self._tables[view.table.name] = view.table
            self._views[view.table.name] = (*self._views.get(view.table.name, ()), view)
        self._arrived = dict.fromkeys(self._tables, 0)  # rows since the last sweep
        self._swept: dict[str, bytes | None] = {}  # the last key swept in a space

    def claim(self) -> None:
        """Shut earlier writers out. Call it once, before anything else."""
        self._store.claim(self._epoch)

    def clear(self) -> None:
        """Forget everything."""
        self._store.clear(epoch=self._epoch)

    def applied(self) -> Applied | None:
        """Return how far the state is; None when it must be rebuilt: it is empty, or was built for other views."""
        with self._store.snapshot() as snapshot:
            mark = snapshot.mark()
            built = {name.decode(): msgspec.msgpack.decode(value)[0] for name, value in snapshot.items(VIEWS)}
        wanted = {view.name: definition(view) for views in self._views.values() for view in views}
        return Applied.decode(mark) if mark is not None and built == wanted else None

    def apply(self, tick: int, rows: Mapping[str, pl.DataFrame], next_seq: Mapping[str, int], journal: int) -> None:
        """Bring the state to ``tick``, all or nothing.

        ``rows``: the new rows of each table in order of sequence; tables without any may be left out. ``next_seq``: the
        number that the next row of each table will get. Raises WorkspaceError, having changed nothing, when the state
        cannot follow and must be rebuilt: it was built for other views, ``tick`` lies before its own, or rows of a
        table that it already holds rows of were known before its tick (a back-fill).
        """
        before = self.applied()
        if before is None:
            with self._store.snapshot() as snapshot:
                fresh = snapshot.mark() is None
            if not fresh:
                raise WorkspaceError("the online state was built for other feature views and must be rebuilt")
        elif tick < before.tick:
            raise WorkspaceError(f"the online state is at tick {before.tick} and cannot go back to {tick}; rebuild it")
        else:
            for name, new in rows.items():
                if name in self._tables and before.next_seq.get(name, 0) and self._late(name, new, before.tick):
                    raise WorkspaceError(
                        f"rows of {name!r} were known before tick {before.tick}, which the online state has left "
                        "behind (a back-fill); rebuild it"
                    )
        with self._store.snapshot() as snapshot:
            changes = list(self._declared(snapshot, rows))
            if snapshot.get(REBUILDING, b"") is not None:  # one that did not end
                changes.append(Change(REBUILDING, b"", None))
            for name in self._tables:
                if name in rows and rows[name].height:
                    changes.extend(self._merge(snapshot, name, rows[name], tick + 1))
        self._store.apply(changes, Applied(tick, tick + 1, next_seq, journal).encode(), epoch=self._epoch)

    def rebuild(
        self,
        tick: int,
        read: Read,
        next_seq: Mapping[str, int],
        journal: int,
        progress: Callable[[Rebuilding], None] | None = None,
    ) -> None:
        """Replace the state by one made of all rows numbered below ``next_seq``, at ``tick``.

        A table is read in partitions of its keys, so that a few million of its values are in memory at a time. Where
        there is a state that answers, it answers until the new one is whole, which is kept in memory until then and
        applied in one batch. Otherwise the new one is written in batches; that it is whole is told by the descriptions
        of its views, which come last. So when this is interrupted, or its process killed, either the old state stands
        or ``applied`` knows of none. ``freshness`` tells how far it is, and ``progress`` is told.
        """
        answers = self.applied() is not None
        applied = Applied(tick, tick + 1, next_seq, journal).encode()
        if answers:
            with self._store.snapshot() as snapshot:
                mark = snapshot.mark() or applied
        else:
            self._store.clear(epoch=self._epoch)
            mark = applied
        parts = {
            name: max(-(-next_seq.get(name, 0) * len(self._columns(name)) // PART_CELLS), 1) for name in self._tables
        }
        steps, done, began = sum(parts.values()), 0, time.perf_counter()

        def tell(table: str) -> None:
            nonlocal done
            said, done = Rebuilding(table, done, steps, time.perf_counter() - began), done + 1
            if table:
                self._store.apply([Change(REBUILDING, b"", said.encode())], mark, epoch=self._epoch)
            if progress is not None:
                progress(said)

        def changes() -> Iterator[Change]:
            for name, table in self._tables.items():
                pieces = _pieces(read, table, self._columns(name), next_seq.get(name, 0), parts[name])
                yield from self._anew(name, pieces, tick + 1, tell)
            some = {name: read(name, self._columns(name), 0, 1) for name in self._tables if name in next_seq}
            yield from self._declared(_Empty(), some)
            yield Change(REBUILDING, b"", None)

        if answers:
            self._replace(changes(), applied)
        else:
            for batch in _batches(changes()):
                self._store.apply(batch, applied, epoch=self._epoch)
        tell("")

    def _columns(self, table: str) -> tuple[str, ...]:
        """Return the columns of a table that its views read."""
        return tuple(sorted(set().union(*map(view_columns, self._views[table]))))

    def _anew(self, name: str, pieces: Iterable[pl.DataFrame], t: int, tell: Callable[[str], None]) -> Iterator[Change]:
        """Yield the key records and views of a table at ``t``; ``pieces``: its rows, versions of a key together.

        What ``_merge`` yields for all rows at once on an empty store.
        """
        table, views = self._tables[name], self._views[name]
        kept: list[list[tuple[list[bytes], Versions]]] = [[] for _ in views]
        newest: tuple[int | None, ...] | None = None
        tell(name)
        for number, rows in enumerate(pieces):
            if number:
                tell(name)
            if rows.is_empty():
                continue
            new = Arrivals.of(rows, table, views)
            validity = Validity({}, new, timeless=timeless(table))
            for key, record in validity.records(t).items():
                yield Change(f"key:{name}", key, record)
            for place, view in enumerate(views):
                versions = validity.ended(new.versions[place])
                needed = matters(view, versions, t)
                names = list(itertools.compress(new.groups[place], needed.tolist()))
                kept[place].append((names, select(versions, needed)))
            came = _newest(rows, table)
            newest = came if newest is None else tuple(map(_later, newest, came))
        if newest is None:
            return
        for view, parts in zip(views, kept, strict=True):
            yield Change(FRESH, view.name.encode(), msgspec.msgpack.encode(newest))
            yield from _groups_anew(view, parts, t)
            parts.clear()

    def _replace(self, changes: Iterable[Change], applied: bytes) -> None:
        """Make the state what ``changes`` make of an empty one, in one batch, leaving alone what is as it was."""
        spaces = [VIEWS, FRESH, *(f"key:{name}" for name in self._tables)]
        spaces += [space(view) for views in self._views.values() for view in views for space in (heads, blocks)]
        anew: dict[str, dict[bytes, bytes]] = {space: {} for space in spaces}
        batch: list[Change] = []
        for change in changes:
            if change.value is None:
                batch.append(change)
            else:
                anew[change.space][change.key] = change.value
        for space, pairs in anew.items():
            with self._store.snapshot() as snapshot:
                for key, value in snapshot.items(space):
                    if key not in pairs:
                        batch.append(Change(space, key, None))
                    elif pairs[key] == value:
                        del pairs[key]
            while pairs:  # so that it is not in memory twice
                key, new = pairs.popitem()
                batch.append(Change(space, key, new))
        self._store.apply(batch, applied, epoch=self._epoch)

    def _late(self, name: str, rows: pl.DataFrame, tick: int) -> bool:
        if timeless(self._tables[name]):
            return False  # ordered by sequence alone
        return bool((rows[KNOWN_AT].cast(TIME).to_physical() < tick).any())

    def _declared(self, snapshot: Snapshot, rows: Mapping[str, pl.DataFrame]) -> Iterator[Change]:
        """Yield the descriptions of views that are not there yet, or whose table shows its types for the first time."""
        for name, views in self._views.items():
            for view in views:
                there = snapshot.get(VIEWS, view.name.encode())
                if there is None or (name in rows and not msgspec.msgpack.decode(there)[1]):
                    types = Shape.describe(view, rows[name]) if name in rows else b""
                    described = msgspec.msgpack.encode((definition(view), types, self._store.fields[heads(view)][1]))
                    yield Change(VIEWS, view.name.encode(), described)

    def _merge(self, snapshot: Snapshot, name: str, rows: pl.DataFrame, t: int) -> Iterator[Change]:
        """Yield the changes that bring the table's key records and views to ``t`` with the new ``rows``."""
        table, views, space = self._tables[name], self._views[name], f"key:{name}"
        self._arrived[name] += rows.height
        count = 0
        if self._arrived[name] > _SWEEP:
            count, self._arrived[name] = _STRETCH * self._arrived[name], 0
        new = Arrivals.of(rows, table, views)
        records = self._stretch(snapshot, space, count)
        records.update((key, old) for key in dict.fromkeys(new.keys) if (old := snapshot.get(space, key)))
        validity = Validity(records, new, timeless=timeless(table))
        written = validity.records(t)
        for key in dict.fromkeys([*records, *new.keys]):
            if written.get(key) != records.get(key):
                yield Change(space, key, written.get(key))
        newest = _newest(rows, table)
        for place, view in enumerate(views):
            known = snapshot.get(FRESH, view.name.encode())
            if known is not None:
                newest = tuple(map(_later, newest, msgspec.msgpack.decode(known)))
            yield Change(FRESH, view.name.encode(), msgspec.msgpack.encode(newest))
            swept = self._stretch(snapshot, heads(view), count)
            yield from _merge_view(snapshot, view, new.versions[place], new.groups[place], validity, place, t, swept)

    def _stretch(self, snapshot: Snapshot, space: str, count: int) -> dict[bytes, bytes]:
        """Return the next ``count`` pairs of ``space`` to sweep; after the last comes the first."""
        if not count:
            return {}
        found = dict(itertools.islice(snapshot.items(space, after=self._swept.get(space)), count))
        self._swept[space] = next(reversed(found)) if len(found) == count else None
        return found


def _pieces(
    read: Read, table: Source | Table, columns: Sequence[str], number: int, parts: int
) -> Iterator[pl.DataFrame]:
    """Yield the first ``number`` rows of a table in ``parts`` pieces by their keys, each in order of sequence."""
    rows = max(PART_CELLS // len(columns), 1)
    for part in range(parts if number else 0):
        piece = []
        for first in range(0, number, rows):
            some = read(table.name, columns, first, min(rows, number - first))
            piece.append(some.filter(pl.Series(things(some, table, parts) == part)) if parts > 1 else some)
        yield pl.concat(piece)


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Yield ``changes`` in batches of about ``_BATCH`` bytes, the last of which is never empty."""
    batch: list[Change] = []
    size = 0
    for change in changes:
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(change)
        size += len(change.key) + len(change.value or b"")
    yield batch


def _groups_anew(view: TableView, parts: Sequence[tuple[list[bytes], Versions]], t: int) -> Iterator[Change]:
    """Yield the groups of a view from versions that matter at ``t``, with the group of each, some groups at a time."""
    places: dict[bytes, int] = {}
    group = np.array([places.setdefault(name, len(places)) for names, _ in parts for name in names], dtype=np.int64)
    names, versions = list(places), functools.reduce(joined, (versions for _, versions in parts))
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(names)))
    begin = first = 0
    while first < len(names):
        after = max(int(np.searchsorted(ends, begin + _TOGETHER, side="right")), first + 1)
        chosen = order[begin : ends[after - 1]]
        some = take(versions, chosen)
        made = Parts(_Empty(), view, Shape.of(view, [], some.values), names[first:after], t)
        yield from made.write(some, made.of([names[each] for each in group[chosen].tolist()], some))
        begin, first = int(ends[after - 1]), after


class _Empty:
    """The snapshot of an empty store."""

    def get(self, space: str, key: bytes) -> bytes | None:
        return None

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        return [None] * len(keys)

    def items(self, space: str, *, after: bytes | None = None) -> Iterable[tuple[bytes, bytes]]:
        return ()

    def mark(self) -> bytes | None:
        return None


def _merge_view(
    snapshot: Snapshot,
    view: TableView,
    new: Versions,
    names: Sequence[bytes],
    validity: Validity,
    place: int,
    t: int,
    swept: Mapping[bytes, bytes],
) -> Iterator[Change]:
    """Yield the changed blobs of ``view``: ``new`` versions added, ends of validity set, what is past dropped.

    ``names``: the group of each new version. ``swept``: heads of groups to look at besides those that change.
    """
    touched = validity.touched(view, place)
    parts = Parts(snapshot, view, Shape.of(view, [], new.values), [*swept, *(group for group, _ in touched), *names], t)
    came = parts.of(names, new)
    parts.open(touched)
    there, where = parts.read()
    versions = validity.ended(joined(there, new))
    where = np.concatenate((where, came))
    needed = matters(view, versions, t)
    yield from parts.write(select(versions, needed), where[needed])


def _newest(rows: pl.DataFrame, table: Source | Table) -> tuple[int | None, ...]:
    """Return the newest event time and known-at among ``rows``; None where there is none."""
    columns = (rows[table.event_time] if table.event_time else None, rows[KNOWN_AT])
    found = [None if column is None else column.cast(TIME).to_physical().max() for column in columns]
    return tuple(each if isinstance(each, int) else None for each in found)


def _later(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)
