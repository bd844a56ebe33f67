"""Online state made anew from all rows of a table, in bounded memory.

How a version is written depends on others: when it ends, on those of its key; in which block it lies, on those of its
group. So rows are dealt out twice, by a hash, and lie in scratch meanwhile:

- **split**: the table is read once, a slice of its rows at a time, and each slice dealt by key;
- **spread**: a part of that has all versions of its keys. Their records are made, and what can still matter of the
  versions, which know their ends now, is dealt by group, for each view;
- **groups**: a part of that has all that matters of its groups, which are packed.

What is made of the parts, records of keys and groups, is sorted by its place in the store and written in that order.

There are as many parts as slices, so that a part is about as large as a slice, and one at a time is in memory. Only
what belongs together stays together: a key or a group that is larger than a slice is in memory whole.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import polars as pl

from tidemill.engine.feature.arrivals import Arrivals, Validity, later, matters, newest
from tidemill.engine.feature.feature import TableView, Versions
from tidemill.engine.feature.layout import FRESH, Shape, kind
from tidemill.engine.feature.partition import deal, frame_of, things, view_columns
from tidemill.engine.feature.parts import Parts, select
from tidemill.engine.table.table import timeless
from tidemill.ports.online import Change, Value
from tidemill.ports.scratch import Scratch
from tidemill.spec.source import Source, Table

#: Values of a table (rows times columns) in a slice.
SLICE_CELLS = 1_000_000

#: Bytes of keys and values that are written at a time.
BATCH = 4 << 20

#: Returns rows of a table: its name, the columns, the number of the first row, how many; in order of sequence.
Read = Callable[[str, Sequence[str], int, int], pl.DataFrame]

_GROUP = ".group"  # beside the values, whose names have no dot
_TIMES = ("time", "known", "seq", "start", "end")
_SEED = 3
_CHANGE = {"space": pl.String, "key": pl.Binary, "value": pl.Binary}


@dataclass(frozen=True, slots=True)
class Making:
    """The state of ``views``, all those of ``table``, made from its first ``rows`` rows."""

    table: Source | Table
    views: tuple[TableView, ...]
    rows: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that the views read."""
        return tuple(sorted(set().union(*map(view_columns, self.views))))

    @property
    def slices(self) -> range:
        """The first row of each slice; they are as many as the parts."""
        return range(0, self.rows, max(SLICE_CELLS // len(self.columns), 1))

    @property
    def steps(self) -> int:
        """How many steps ``changes`` takes."""
        return len(self.slices) * (3 + 2 * len(self.views))

    def changes(self, read: Read, scratch: Scratch, t: int, tell: Callable[[str], None]) -> Iterator[Change]:
        """Yield what makes an empty store hold the key records and views at ``t``; ``tell`` hears of each step first.

        It is what all rows at once would make.
        """
        fresh: tuple[int | None, ...] | None = None
        for number, first in enumerate(self.slices):
            tell(self.table.name)
            rows = read(self.table.name, self.columns, first, min(self.slices.step, self.rows - first))
            came = self._split(scratch, number, rows)
            fresh = came if fresh is None else tuple(map(later, fresh, came))
            del rows  # or it would stay until the end
        parts = range(len(self.slices))
        keys = (self._keys(scratch, part, t) for part in parts)
        yield from self._sorted(scratch, f"keys-{self.table.name}", keys, tell)
        for view in self.views if fresh else ():
            groups = (_groups(view, self._gathered(scratch, f"spread-{view.name}", part), t) for part in parts)
            yield from self._sorted(scratch, f"groups-{view.name}", groups, tell)
            yield Change(FRESH, view.name.encode(), msgspec.msgpack.encode(fresh))

    def _split(self, scratch: Scratch, number: int, rows: pl.DataFrame) -> tuple[int | None, ...]:
        """Split the slice ``number`` by key; return its newest event time and known-at."""
        parts = len(self.slices)
        scratch.put(f"split-{self.table.name}-{number}", deal(rows, things(rows, self.table, parts), parts))
        return newest(rows, self.table)

    def _keys(self, scratch: Scratch, part: int, t: int) -> Iterator[Change]:
        """Yield the records of the keys of a part, and spread what matters of their versions by group."""
        arrived = Arrivals.of(self._gathered(scratch, f"split-{self.table.name}", part), self.table, self.views)
        validity = Validity({}, arrived, timeless=timeless(self.table))
        for key, record in validity.records(t).items():
            yield Change(f"key:{self.table.name}", key, record)
        for place, view in enumerate(self.views):
            versions = validity.ended(arrived.versions[place])
            needed = matters(view, versions, t)
            frame = _frame(itertools.compress(arrived.groups[place], needed.tolist()), select(versions, needed))
            parts = len(self.slices)
            groups = (frame.select(_GROUP).hash_rows(_SEED) % parts).cast(pl.Int64).to_numpy()
            scratch.put(f"spread-{view.name}-{part}", deal(frame, groups, parts))

    def _sorted(
        self, scratch: Scratch, name: str, parts: Iterable[Iterable[Change]], tell: Callable[[str], None]
    ) -> Iterator[Change]:
        """Yield the changes of all ``parts`` in order of space and key: each sorted, and merged from scratch.

        A store that is a tree of pages then fills them one after the other. In any other order nearly every change
        would rewrite a page.
        """
        pieces = range(len(self.slices))
        for number, part in enumerate(parts):
            tell(self.table.name)
            rows = pl.DataFrame([(each.space, each.key, each.value) for each in part], schema=_CHANGE, orient="row")
            rows = rows.sort("space", "key")
            size = -(-rows.height // len(pieces))
            scratch.put(f"{name}-{number}", [rows[size * piece :][:size].to_arrow() for piece in pieces])

        def run(number: int) -> Iterator[tuple[str, bytes, bytes]]:
            for piece in pieces:  # one of each part is in memory, together as much as a part
                if number == 0:  # as far as this one is come the others, about
                    tell(self.table.name)
                yield from frame_of([scratch.get(f"{name}-{number}", piece)]).iter_rows()

        for space, key, value in heapq.merge(*map(run, pieces)):
            yield Change(space, key, value)

    def _gathered(self, scratch: Scratch, name: str, part: int) -> pl.DataFrame:
        """Return what was dealt to ``part`` from each of the pieces ``name``, in their order."""
        return frame_of([scratch.get(f"{name}-{number}", part) for number in range(len(self.slices))])


def batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Yield ``changes`` in batches of about ``BATCH`` bytes."""
    batch: list[Change] = []
    size = 0
    for change in changes:
        if size >= BATCH:
            yield batch
            batch, size = [], 0
        batch.append(change)
        size += len(change.key) + len(change.value or b"")
    yield batch


def _groups(view: TableView, rows: pl.DataFrame, t: int) -> Iterator[Change]:
    """Yield the groups of a view, of which ``rows`` has all versions that matter at ``t``."""
    names = rows[_GROUP].to_list()
    times = {name: rows[f".{name}"].to_numpy() for name in _TIMES}
    versions = Versions(**times, values=rows.drop(_GROUP, *(f".{name}" for name in _TIMES)))
    parts = Parts(NOTHING, view, Shape.of(view, [], versions.values), names, t)
    yield from parts.write(versions, parts.of(names, versions))


def _frame(groups: Iterable[bytes], versions: Versions) -> pl.DataFrame:
    """Return ``versions`` and the group of each as a frame, from which ``_groups`` takes them.

    What is packed as text is text here already: pieces of it go together, whatever their categories.
    """
    texts = [name for name, dtype in versions.values.schema.items() if kind(dtype) == "t"]
    columns = {_GROUP: pl.Series(list(groups), dtype=pl.Binary)}
    columns |= {f".{name}": pl.Series(getattr(versions, name)) for name in _TIMES}
    return pl.DataFrame({**columns, **versions.values.with_columns(pl.col(texts).cast(pl.String)).to_dict()})


class _Nothing:
    """The snapshot of an empty store."""

    def get(self, space: str, key: bytes) -> bytes | None:
        return None

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        return [None] * len(keys)

    def items(self, space: str, *, after: bytes | None = None) -> Iterable[tuple[bytes, bytes]]:
        return ()

    def mark(self) -> bytes | None:
        return None


NOTHING = _Nothing()
