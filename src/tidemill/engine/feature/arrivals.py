"""Rows that arrive for a table: who they are, what views keep of them, and how long each version of a key is valid.

A version that arrives ends the validity of another of its key, which may lie in another group. So for each key there is
a record of its versions that are not past, and of the groups they went to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import FOREVER
from tidemill.base.schema import KNOWN_AT, SEQ, TOMBSTONE
from tidemill.engine.feature.feature import TableView, Versions, by_version, keys, prepare, reach
from tidemill.engine.feature.layout import (
    groups,
    short,
)
from tidemill.engine.feature.parts import VERSION, select
from tidemill.engine.table.table import ALWAYS, FROM, TIME, TO, timeless
from tidemill.spec.source import Source, Table

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The new rows of a table that have a known-at: who they are, and what each view keeps of them.

    ``until``: the last time at which a view could still read the row. ``event``: when it happened, or None.
    ``versions`` and ``groups`` are by view, without tombstones, rows without an event time where it matters, and rows
    that are in no group.
    """

    keys: list[bytes]
    known: Array
    seq: Array
    tombstone: Array
    until: Array
    event: list[int | None]
    group: list[list[bytes | None]]
    versions: list[Versions]
    groups: list[list[bytes]]

    @staticmethod
    def of(rows: pl.DataFrame, table: Source | Table, views: Sequence[TableView]) -> Arrivals:
        """Return what arrives with ``rows`` of ``table``, by view of ``views``."""
        always = timeless(table)
        micros = pl.col(KNOWN_AT).cast(TIME).to_physical()
        begin = pl.lit(ALWAYS, dtype=pl.Int64) if always else micros
        if not always and rows[KNOWN_AT].null_count():
            rows = rows.filter(pl.col(KNOWN_AT).is_not_null())
        rows = rows.with_columns(begin.alias(FROM), pl.lit(FOREVER, dtype=pl.Int64).alias(TO))
        seq = rows[SEQ].to_numpy()
        until = np.full(len(seq), ALWAYS, dtype=np.int64)
        living = rows.filter(~pl.col(TOMBSTONE)) if rows[TOMBSTONE].any() else rows
        group: list[list[bytes | None]] = []
        versions: list[Versions] = []
        names: list[list[bytes]] = []
        for view in views:
            prepared, theirs = prepare(view, living)
            named = groups(theirs.iter_rows())
            prepared = select(prepared, np.array([each is not None for each in named], dtype=bool))
            places = np.searchsorted(seq, prepared.seq)
            inside = [each for each in named if each is not None]
            of_row: list[bytes | None] = [None] * len(seq)
            for place, each in zip(places.tolist(), inside, strict=True):
                of_row[place] = each
            until[places] = np.maximum(until[places], last_use(view, prepared))
            group.append(of_row)
            versions.append(prepared)
            names.append(inside)
        identity = rows.select(*table.key, SEQ)
        key = [
            short(("#", row[-1])) if None in row else short(row[:-1])
            for row in keys(identity, (*table.key, SEQ), identity.dtypes).iter_rows()
        ]
        known = rows[KNOWN_AT].cast(TIME).to_physical().fill_null(0).to_numpy()
        event = rows[table.event_time].cast(TIME).to_physical().to_list() if table.event_time else [None] * len(seq)
        return Arrivals(key, known, seq, rows[TOMBSTONE].to_numpy(), until, event, group, versions, names)


class Validity:
    """The versions of some keys: those on record and the new ones. The ends of validity are those that hold now."""

    def __init__(self, records: Mapping[bytes, bytes], new: Arrivals, *, timeless: bool) -> None:
        self._timeless = timeless
        self._names = list(dict.fromkeys([*records, *new.keys]))
        places = {name: place for place, name in enumerate(self._names)}
        old = [
            (places[name], *version) for name, record in records.items() for version in msgspec.msgpack.decode(record)
        ]
        key, known, seq, tombstone, until, event, group = zip(*old, strict=True) if old else ((),) * 7
        fresh = [places[name] for name in new.keys]
        self._key = np.array([*key, *fresh], dtype=np.int64)
        self._known = np.concatenate((np.array(known, dtype=np.int64), new.known))
        self._seq = np.concatenate((np.array(seq, dtype=np.int64), new.seq))
        self._tombstone = np.concatenate((np.array(tombstone, dtype=bool), new.tombstone))
        self._until = np.concatenate((np.array(until, dtype=np.int64), new.until))
        self._event = [*event, *new.event]
        self._groups = [*group, *(list(each) for each in zip(*new.group, strict=True))]
        self._touched = np.isin(self._key, fresh)
        # Versions of a key are ordered by (known-at, sequence); each is valid until the next one is known.
        order = np.lexsort((self._seq, self._known * (not timeless), self._key))
        follows = np.append(self._key[order][1:] == self._key[order][:-1], False)[: len(order)]
        begin = np.full(len(order), ALWAYS, dtype=np.int64) if timeless else self._known[order]
        self._end = np.empty_like(self._known)
        self._end[order] = np.where(follows, np.append(begin[1:], FOREVER)[: len(order)], FOREVER)
        by_seq = np.argsort(self._seq)
        self._seqs, self._ends = self._seq[by_seq], self._end[by_seq]

    def records(self, t: int) -> dict[bytes, bytes]:
        """Return the records of the keys that still have versions which can matter at ``t`` or later.

        A version matters while a view can read it, and as long as it is known in the future: a version that is known
        before it can still come, and will end with it. The last version of a timeless table always matters.
        """
        if self._timeless:
            matters = self._end == FOREVER
        else:
            matters = (self._known >= t) | ((self._end >= t) & (self._until >= t) & ~self._tombstone)
        kept: dict[int, list[Any]] = {}
        for row in np.flatnonzero(matters).tolist():
            version = (
                int(self._known[row]), int(self._seq[row]), bool(self._tombstone[row]), int(self._until[row]),
                self._event[row], self._groups[row],
            )  # fmt: skip
            kept.setdefault(int(self._key[row]), []).append(version)
        return {self._names[place]: msgspec.msgpack.encode(versions) for place, versions in kept.items()}

    def touched(self, view: TableView, place: int) -> list[tuple[bytes, VERSION]]:
        """Return where ``view``, number ``place``, has versions of the keys that new ones came for: group, version."""
        found: list[tuple[bytes, VERSION]] = []
        for row in np.flatnonzero(self._touched).tolist():
            group = self._groups[row][place]
            if group is not None:
                known, seq = int(self._known[row]), int(self._seq[row])
                if self._timeless:
                    version = (ALWAYS, 0, seq)
                else:
                    version = (known if by_version(view) else self._event[row], known, seq)
                found.append((group, version))
        return found

    def ended(self, versions: Versions) -> Versions:
        """Return ``versions`` with the ends of validity that hold now."""
        if not len(self._seqs):
            return versions
        place = np.minimum(np.searchsorted(self._seqs, versions.seq), len(self._seqs) - 1)
        end = np.where(self._seqs[place] == versions.seq, self._ends[place], versions.end)
        return replace(versions, end=end)


def matters(view: TableView, versions: Versions, t: int) -> Array:
    """Tell which versions ``view`` can read at ``t`` or later."""
    return (versions.start < versions.end) & (versions.end >= t) & (last_use(view, versions) >= t)


def last_use(view: TableView, versions: Versions) -> Array:
    """Return the last time at which ``view`` can read each version, its validity aside."""
    width = reach(view)
    return np.full(len(versions), FOREVER) if width is None else versions.time + width


def newest(rows: pl.DataFrame, table: Source | Table) -> tuple[int | None, ...]:
    """Return the newest event time and known-at among ``rows``; None where there is none."""
    columns = (rows[table.event_time] if table.event_time else None, rows[KNOWN_AT])
    found = [None if column is None else column.cast(TIME).to_physical().max() for column in columns]
    return tuple(each if isinstance(each, int) else None for each in found)


def later(one: int | None, other: int | None) -> int | None:
    """Return the later of two times, of which there may be none."""
    return max((each for each in (one, other) if each is not None), default=None)
