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

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.errors import WorkspaceError
from tidemill.base.schema import KNOWN_AT
from tidemill.engine.feature.arrivals import Arrivals, Validity, later, matters, newest
from tidemill.engine.feature.feature import TableView, Versions
from tidemill.engine.feature.freshness import Rebuilding
from tidemill.engine.feature.layout import (
    FRESH,
    REBUILDING,
    VIEWS,
    Applied,
    Shape,
    definition,
    heads,
)
from tidemill.engine.feature.parts import Parts, joined, select
from tidemill.engine.feature.rebuild import NOTHING, Making, Read, batches
from tidemill.engine.feature.shelf import Shelved
from tidemill.engine.table.table import TIME, timeless
from tidemill.ports.online import Change, Online, Snapshot
from tidemill.ports.scratch import Scratch
from tidemill.spec.feature import OnDemand, View
from tidemill.spec.source import Source, Table

Array = npt.NDArray[Any]

_SWEEP = 1_000  # rows of a table after which the next stretch of its state is swept
_STRETCH = 2  # keys and groups in a stretch, for each of those rows


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
        scratch: Scratch,
        progress: Callable[[Rebuilding], None] | None = None,
    ) -> None:
        """Replace the state by one made of all rows numbered below ``next_seq``, at ``tick``.

        The new one is written beside the old, in batches, and takes its place when it is whole: until then the old one
        answers, or nothing does, also when this is interrupted or its process killed. A few million values of a table
        are in memory at a time (``rebuild.py``); what is dealt out meanwhile lies in ``scratch``, which is of no use
        afterwards. ``freshness`` tells how far it is, and ``progress`` is told.
        """
        draft = self._store.draft(epoch=self._epoch)
        making = [Making(table, self._views[name], next_seq.get(name, 0)) for name, table in self._tables.items()]
        steps, done, began = sum(each.steps for each in making), 0, time.perf_counter()

        def tell(table: str) -> None:
            nonlocal done
            said, done = Rebuilding(table, done, steps, time.perf_counter() - began), done + 1
            if table:
                self._store.apply([Change(REBUILDING, b"", said.encode())], None, epoch=self._epoch)
            if progress is not None:
                progress(said)

        def changes() -> Iterator[Change]:
            for each in making:
                yield from each.changes(read, scratch, tick + 1, tell)
            some = {
                each.table.name: read(each.table.name, each.columns, 0, 1)
                for each in making
                if each.table.name in next_seq
            }
            yield from self._declared(NOTHING, some)

        for batch in batches(changes()):
            draft.write(batch)
        draft.publish(Applied(tick, tick + 1, next_seq, journal).encode())
        tell("")

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
        fresh = newest(rows, table)
        for place, view in enumerate(views):
            known = snapshot.get(FRESH, view.name.encode())
            if known is not None:
                fresh = tuple(map(later, fresh, msgspec.msgpack.decode(known)))
            yield Change(FRESH, view.name.encode(), msgspec.msgpack.encode(fresh))
            swept = self._stretch(snapshot, heads(view), count)
            yield from _merge_view(snapshot, view, new.versions[place], new.groups[place], validity, place, t, swept)

    def _stretch(self, snapshot: Snapshot, space: str, count: int) -> dict[bytes, bytes]:
        """Return the next ``count`` pairs of ``space`` to sweep; after the last comes the first."""
        if not count:
            return {}
        found = dict(itertools.islice(snapshot.items(space, after=self._swept.get(space)), count))
        self._swept[space] = next(reversed(found)) if len(found) == count else None
        return found


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
