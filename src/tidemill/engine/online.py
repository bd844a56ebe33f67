"""Feature state that servers look up, kept current by the worker (time rule 9).

The state is brought from tick to tick; after a tick, questions are answered at ``t = tick + 1`` microsecond, so that
all that was known at the tick is visible. For each view and each value of its ``by`` columns (a group) there is a blob:
the versions that can still matter at ``t`` or later, with the times of their validity and the values that the view
reads. The server hands those to ``feature.answer``, the function that computes training sets.

A version that arrives ends the validity of another of its key, which may lie in another group. So for each key there is
a record of its versions that are not past, and of the groups they went to. Rows known in the future lie there with the
rest until their time. What can never matter again is dropped when its group or key is touched, and, for the others, in
a sweep after as many rows as the state had keys.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import FOREVER
from tidemill.base.errors import DeclarationError, Fault, WorkspaceError
from tidemill.base.hashing import canonical, fingerprint
from tidemill.base.schema import KNOWN_AT, SEQ, TOMBSTONE
from tidemill.engine.feature import (
    TableView,
    Versions,
    answer,
    assemble,
    by_columns,
    features,
    keys,
    prepare,
    reach,
    require,
    slots,
)
from tidemill.engine.table import ALWAYS, FROM, TIME, TO, timeless
from tidemill.ports.online import Change, Online, Snapshot
from tidemill.spec.feature import Latest, OnDemand, View
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table

Array = npt.NDArray[Any]

_VIEWS = "views"  # space: view name -> (definition, types of its keys and values)
_SWEEP = 20_000  # rows after which a small table is swept


@dataclass(frozen=True, slots=True)
class Applied:
    """How far the state is: every row with ``_seq < next_seq[table]`` has been applied, as of ``t``.

    ``tick`` and ``t`` (= tick + 1) are microseconds; ``journal`` is the number of the newest journal entry by then.
    """

    tick: int
    t: int
    next_seq: Mapping[str, int]
    journal: int

    def encode(self) -> bytes:
        """Return the state's mark: canonical JSON."""
        return canonical({"tick": self.tick, "next_seq": dict(self.next_seq), "journal": self.journal})

    @staticmethod
    def decode(mark: bytes) -> Applied:
        """Return what ``encode`` wrote."""
        value = msgspec.json.decode(mark)
        return Applied(value["tick"], value["tick"] + 1, value["next_seq"], value["journal"])


class OnlineState:
    """The worker's side: keeps ``store`` current for ``views``. One writer; not safe to share between threads.

    ``epoch``: of the writer's lease. Once a higher one has claimed the store, writing raises FencedError.
    """

    def __init__(self, views: Sequence[View], store: Online, *, epoch: int = 0) -> None:
        self._store = store
        self._epoch = epoch
        self._views: dict[str, tuple[TableView, ...]] = {}
        self._tables: dict[str, Source | Table] = {}
        for view in dict.fromkeys(view for view in views if not isinstance(view, OnDemand)):
            self._tables[view.table.name] = view.table
            self._views[view.table.name] = (*self._views.get(view.table.name, ()), view)
        self._arrived = dict.fromkeys(self._tables, 0)
        self._kept = dict.fromkeys(self._tables, 0)

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
            built = {name.decode(): msgspec.msgpack.decode(value)[0] for name, value in snapshot.items(_VIEWS)}
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
            for name in self._tables:
                if name in rows and rows[name].height:
                    changes.extend(self._merge(snapshot, name, rows[name], tick + 1))
        self._store.apply(changes, Applied(tick, tick + 1, next_seq, journal).encode(), epoch=self._epoch)

    def rebuild(
        self,
        tick: int,
        tables: Mapping[str, pl.DataFrame],
        next_seq: Mapping[str, int],
        journal: int,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Replace the state by one made of all rows of ``tables``, at ``tick``; readers see the old or the new.

        ``tables``: all versions of every table, in order of sequence. ``progress`` is called with the table's name, the
        number of tables done, and their number.
        """
        empty = _Empty()
        changes = list(self._declared(empty, tables))
        for done, name in enumerate(self._tables):
            if progress is not None:
                progress(name, done, len(self._tables))
            if name in tables and tables[name].height:
                changes.extend(self._merge(empty, name, tables[name], tick + 1))
        fresh = {(change.space, change.key) for change in changes}
        spaces = [_VIEWS, *(f"key:{name}" for name in self._tables)]
        spaces.extend(f"view:{view.name}" for views in self._views.values() for view in views)
        with self._store.snapshot() as snapshot:
            stale = [
                Change(space, key, None)
                for space in spaces
                for key, _ in snapshot.items(space)
                if (space, key) not in fresh
            ]
        self._store.apply([*stale, *changes], Applied(tick, tick + 1, next_seq, journal).encode(), epoch=self._epoch)
        if progress is not None:
            progress("", len(self._tables), len(self._tables))

    def _late(self, name: str, rows: pl.DataFrame, tick: int) -> bool:
        if timeless(self._tables[name]):
            return False  # ordered by sequence alone
        return bool((rows[KNOWN_AT].cast(TIME).to_physical() < tick).any())

    def _declared(self, snapshot: Snapshot | _Empty, rows: Mapping[str, pl.DataFrame]) -> Iterator[Change]:
        """Yield the descriptions of views that are not there yet, or whose table shows its types for the first time."""
        for name, views in self._views.items():
            for view in views:
                there = snapshot.get(_VIEWS, view.name.encode())
                if there is None or (name in rows and not msgspec.msgpack.decode(there)[1]):
                    types = _Shape.describe(view, rows[name]) if name in rows else b""
                    described = msgspec.msgpack.encode((definition(view), types))
                    yield Change(_VIEWS, view.name.encode(), described)

    def _merge(self, snapshot: Snapshot | _Empty, name: str, rows: pl.DataFrame, t: int) -> Iterator[Change]:
        """Yield the changes that bring the table's key records and views to ``t`` with the new ``rows``."""
        table, views, space = self._tables[name], self._views[name], f"key:{name}"
        self._arrived[name] += rows.height
        sweep = self._arrived[name] > max(_SWEEP, self._kept[name])
        new = _News.of(rows, table, views)
        records: dict[bytes, bytes] = {}
        if sweep:
            records.update(snapshot.items(space))
        else:
            records.update((key, old) for key in dict.fromkeys(new.keys) if (old := snapshot.get(space, key)))
        ledger = _Ledger(records, new, timeless=timeless(table))
        written = ledger.records(t)
        for key in dict.fromkeys([*records, *new.keys]):
            if written.get(key) != records.get(key):
                yield Change(space, key, written.get(key))
        for place, view in enumerate(views):
            yield from _merge_view(snapshot, view, new.versions[place], new.groups[place], ledger, place, t, sweep)
        if sweep:
            self._arrived[name], self._kept[name] = 0, len(written)


class Lookup:
    """The server's side: answers requests for the features of ``model`` from ``store``. Not safe to share by threads.

    Answers are kept until the state moves on, so that a group that many ask about is computed once a tick.
    """

    def __init__(self, model: Model, store: Online) -> None:
        self._model, self._store = model, store
        self._mark: bytes | None = None
        self._answers: dict[str, _Answers] = {}
        self._shapes: dict[str, tuple[bytes | None, _Shape]] = {}

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Applied]:
        """Return ``model.columns`` for each of ``requests`` (columns of the examples' table), and as of when.

        All are answered at ``applied.t``, from one snapshot. The values are, bit for bit, those of ``features_at``.
        Raises RequestError when a request column is missing, WorkspaceError when the state is empty or was built for
        other views.
        """
        with self._store.snapshot() as snapshot:
            mark = snapshot.mark()
            if mark is None:
                raise WorkspaceError("the online state is empty; the worker has not built it yet")
            applied = Applied.decode(mark)
            if mark != self._mark:
                self._answers, self._mark = {}, mark
            lookups = [view for view in dict.fromkeys(self._model.views) if not isinstance(view, OnDemand)]
            wanted = {view.name: self._fetch(snapshot, view, requests, applied.t) for view in lookups}

        def answer_of(view: TableView) -> pl.DataFrame:
            answers = self._answers[view.name]
            assert answers.frame is not None
            return answers.frame[[answers.places[group] for group in wanted[view.name]]]

        return assemble(self._model, requests, answer_of), applied

    def _fetch(self, snapshot: Snapshot, view: TableView, requests: pl.DataFrame, t: int) -> list[bytes | None]:
        """Return the group that each request asks ``view`` about, having made sure that it is answered."""
        require(requests, view.request_columns)
        shape = self._shape(snapshot, view)
        wanted: list[bytes | None] = [None] * requests.height
        if shape.keys:
            wanted = _groups(keys(requests, view.request_columns, shape.keys))
        if view.name not in self._answers:
            self._answers[view.name] = _Answers()
        answers = self._answers[view.name]
        missing = [group for group in dict.fromkeys(wanted) if group not in answers.places]
        if missing or answers.frame is None:
            space = f"view:{view.name}"
            blobs = [b"" if group is None else snapshot.get(space, group) or b"" for group in missing]
            versions, group = shape.unpack(blobs)
            asked = np.arange(len(missing), dtype=np.int64)
            t_of = np.full(len(missing), t, dtype=np.int64)
            answers.add(missing, answer(view, versions, group, len(missing), asked, t_of))
        return wanted

    def _shape(self, snapshot: Snapshot, view: TableView) -> _Shape:
        """Return the shape of the view's blobs; reading it takes longer than a lookup, so it is kept."""
        described = snapshot.get(_VIEWS, view.name.encode())
        kept = self._shapes.get(view.name)
        if kept is not None and kept[0] == described:
            return kept[1]
        built, types = msgspec.msgpack.decode(described) if described is not None else (None, b"")
        if built != definition(view):
            raise WorkspaceError(f"the online state was built for another definition of view {view.name!r}")
        shape = _Shape.decode(view, types)
        self._shapes[view.name] = described, shape
        return shape


def features_at(
    model: Model, tables: Mapping[str, pl.DataFrame], requests: pl.DataFrame, applied: Applied
) -> pl.DataFrame:
    """Return what ``Lookup.features`` answered at ``applied``, from the tables: ``feature.features`` at that state."""
    then = {name: rows.filter(pl.col(SEQ) < applied.next_seq.get(name, 0)) for name, rows in tables.items()}
    return features(model, then, requests, np.full(requests.height, applied.t, dtype=np.int64))


def definition(view: TableView) -> str:
    """Return a hash of all that the state of ``view`` depends on; how requests name its columns is not part of it."""
    table = view.table
    common = [view.name, table.name, table.key, table.event_time, timeless(table), view.by]
    if isinstance(view, Latest):
        return fingerprint("latest", *common, view.values, view.within, view.ahead)
    aggregates = [
        (name, each.function, each.value.tree if each.value else None, [window.micros for window in each.over])
        for name, each in view.features
    ]
    return fingerprint("aggregation", *common, aggregates)


@dataclass(slots=True)
class _Answers:
    """Answers of one view at one state: the row of ``frame`` for each group (None: a null key)."""

    places: dict[bytes | None, int] = field(default_factory=dict)
    frame: pl.DataFrame | None = None

    def add(self, groups: Sequence[bytes | None], frame: pl.DataFrame) -> None:
        self.places.update(zip(groups, range(len(self.places), len(self.places) + len(groups)), strict=True))
        self.frame = frame if self.frame is None else self.frame.vstack(frame)


class _Empty:
    """The snapshot of an empty store."""

    def get(self, space: str, key: bytes) -> bytes | None:
        return None

    def items(self, space: str) -> Iterable[tuple[bytes, bytes]]:
        return ()


def _short(parts: tuple[Any, ...]) -> bytes:
    """Return a key of at most 500 bytes; long ones by their hash, which starts as no packed tuple does."""
    packed = msgspec.msgpack.encode(parts)
    return packed if len(packed) <= 400 else b"#" + hashlib.blake2b(packed, digest_size=32).digest()


def _groups(keys: pl.DataFrame) -> list[bytes | None]:
    """Return the name of the group of each row of ``keys``; None where a part is null."""
    named: dict[tuple[Any, ...], bytes | None] = {}
    for row in (rows := keys.rows()):
        if row not in named:
            named[row] = None if None in row else _short(row)
    return [named[row] for row in rows]


@dataclass(frozen=True, slots=True)
class _News:
    """The new rows of a table that have a known-at: who they are, and what each view keeps of them.

    ``until``: the last time at which a view could still read the row. ``versions`` and ``groups`` are by view, without
    tombstones, rows without an event time where it matters, and rows that are in no group.
    """

    keys: list[bytes]
    known: Array
    seq: Array
    tombstone: Array
    until: Array
    group: list[list[bytes | None]]
    versions: list[Versions]
    groups: list[list[bytes]]

    @staticmethod
    def of(rows: pl.DataFrame, table: Source | Table, views: Sequence[TableView]) -> _News:
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
        groups: list[list[bytes]] = []
        for view in views:
            prepared, theirs = prepare(view, living)
            named = _groups(theirs)
            inside = np.array([each is not None for each in named], dtype=bool)
            prepared = _select(prepared, inside)
            places = np.searchsorted(seq, prepared.seq)
            names = [each for each in named if each is not None]
            of_row: list[bytes | None] = [None] * len(seq)
            for place, each in zip(places.tolist(), names, strict=True):
                of_row[place] = each
            until[places] = np.maximum(until[places], _last_use(view, prepared))
            group.append(of_row)
            versions.append(prepared)
            groups.append(names)
        identity = rows.select(*table.key, SEQ)
        key = [
            _short(("#", row[-1])) if None in row else _short(row[:-1])
            for row in keys(identity, (*table.key, SEQ), identity.dtypes).iter_rows()
        ]
        known = rows[KNOWN_AT].cast(TIME).to_physical().fill_null(0).to_numpy()
        return _News(key, known, seq, rows[TOMBSTONE].to_numpy(), until, group, versions, groups)


class _Ledger:
    """The versions of the keys that something happened to: those on record and the new ones."""

    def __init__(self, records: Mapping[bytes, bytes], new: _News, *, timeless: bool) -> None:
        self._timeless = timeless
        self._names = list(dict.fromkeys([*records, *new.keys]))
        places = {name: place for place, name in enumerate(self._names)}
        old = [
            (places[name], *version) for name, record in records.items() for version in msgspec.msgpack.decode(record)
        ]
        key, known, seq, tombstone, until, groups = zip(*old, strict=True) if old else ((),) * 6
        self._key = np.array([*key, *(places[name] for name in new.keys)], dtype=np.int64)
        self._known = np.concatenate((np.array(known, dtype=np.int64), new.known))
        seqs = np.concatenate((np.array(seq, dtype=np.int64), new.seq))
        self._tombstone = np.concatenate((np.array(tombstone, dtype=bool), new.tombstone))
        self._until = np.concatenate((np.array(until, dtype=np.int64), new.until))
        self._groups = [*groups, *(list(each) for each in zip(*new.group, strict=True))]
        # Versions of a key are ordered by (known-at, sequence); each is valid until the next one is known.
        order = np.lexsort((seqs, self._known * (not timeless), self._key))
        follows = np.append(self._key[order][1:] == self._key[order][:-1], False)[: len(order)]
        begin = np.full(len(order), ALWAYS, dtype=np.int64) if timeless else self._known[order]
        self._end = np.empty_like(self._known)
        self._end[order] = np.where(follows, np.append(begin[1:], FOREVER)[: len(order)], FOREVER)
        self._seq = seqs
        by_seq = np.argsort(seqs)
        self._seqs, self._ends = seqs[by_seq], self._end[by_seq]

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
                self._groups[row],
            )  # fmt: skip
            kept.setdefault(int(self._key[row]), []).append(version)
        return {self._names[place]: msgspec.msgpack.encode(versions) for place, versions in kept.items()}

    def touched(self, place: int) -> list[bytes]:
        """Return the groups of view number ``place`` in which there are versions of these keys."""
        return list(dict.fromkeys(groups[place] for groups in self._groups if groups[place] is not None))

    def ended(self, versions: Versions) -> Versions:
        """Return ``versions`` with the ends of validity that hold now."""
        if not len(self._seqs):
            return versions
        place = np.minimum(np.searchsorted(self._seqs, versions.seq), len(self._seqs) - 1)
        end = np.where(self._seqs[place] == versions.seq, self._ends[place], versions.end)
        return replace(versions, end=end)


def _merge_view(
    snapshot: Snapshot | _Empty,
    view: TableView,
    new: Versions,
    groups: Sequence[bytes],
    ledger: _Ledger,
    place: int,
    t: int,
    sweep: bool,
) -> Iterator[Change]:
    """Yield the changed blobs of ``view``: ``new`` versions added, ends of validity set, what is past dropped."""
    space = f"view:{view.name}"
    old: dict[bytes, bytes] = dict(snapshot.items(space)) if sweep else {}
    names = list(dict.fromkeys([*old, *ledger.touched(place), *groups]))
    if not sweep:
        old.update((name, blob) for name in names if (blob := snapshot.get(space, name)))
    places = {name: number for number, name in enumerate(names)}
    shape = _Shape.of(view, [], new.values)
    there, group = shape.unpack([old.get(name, b"") for name in names])
    versions = ledger.ended(_joined(there, new))
    group = np.concatenate((group, np.array([places[name] for name in groups], dtype=np.int64)))
    matters = (versions.start < versions.end) & (versions.end >= t) & (_last_use(view, versions) >= t)
    blobs = shape.pack(_select(versions, matters), group[matters], len(names))
    for name, blob in zip(names, blobs, strict=True):
        if blob != old.get(name, b""):
            yield Change(space, name, blob or None)


def _last_use(view: TableView, versions: Versions) -> Array:
    """Return the last time at which ``view`` can read each version, its validity aside."""
    width = reach(view)
    return np.full(len(versions), FOREVER) if width is None else versions.time + width


def _select(versions: Versions, mask: Array) -> Versions:
    """Return the versions under ``mask`` (bool)."""
    if mask.all():
        return versions
    values = versions.values.filter(pl.Series(mask)) if versions.values.width else versions.values
    return Versions(**{name: getattr(versions, name)[mask] for name in _TIMES}, values=values)


def _joined(first: Versions, second: Versions) -> Versions:
    times = {name: np.concatenate((getattr(first, name), getattr(second, name))) for name in _TIMES}
    return Versions(**times, values=first.values.vstack(second.values) if first.values.width else first.values)


_TIMES = ("time", "known", "seq", "start", "end")


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the versions of a view are laid out in a blob.

    A blob is the number of versions (4 bytes), a record of fixed size for each (times; for each value a number and
    whether it is there, or the length of its text, -1 for null), then the texts, value by value. All little-endian.
    An empty blob holds no versions.
    """

    keys: list[pl.DataType]
    values: dict[str, pl.DataType]
    record: np.dtype[Any]

    @staticmethod
    def of(view: TableView, keys: list[pl.DataType], values: pl.DataFrame) -> _Shape:
        """Return the shape for values such as ``values``. Raises DeclarationError for types that it cannot hold."""
        fields: list[tuple[str, str]] = [(name, "<i8") for name in _TIMES]
        for name, dtype in values.schema.items():
            kind = _kind(dtype)
            if kind is None:
                fault = Fault(
                    f"view {view.name!r}", f"reads a value of type {dtype}, which online state cannot hold.",
                    "Use numbers, booleans, times or strings.",
                )  # fmt: skip
                raise DeclarationError([fault])
            fields += [(name, kind)] if kind == _TEXT else [(name, kind), (f"{name} there", "?")]
        return _Shape(keys, dict(values.schema), np.dtype(fields))

    @staticmethod
    def describe(view: TableView, rows: pl.DataFrame) -> bytes:
        """Return the types of the view's keys and values over a table such as ``rows``, as Arrow IPC."""
        spanned = rows.head(0).with_columns(pl.lit(ALWAYS).alias(FROM), pl.lit(FOREVER).alias(TO))
        keys = spanned.select(pl.col(name).alias(f"k{place}") for place, name in enumerate(by_columns(view)))
        file = io.BytesIO()
        pl.concat((keys, prepare(view, spanned)[0].values), how="horizontal").write_ipc(file)
        return file.getvalue()

    @staticmethod
    def decode(view: TableView, described: bytes) -> _Shape:
        """Return the shape that ``describe`` described; of nothing, one without types that only fits empty blobs."""
        if not described:
            unseen: dict[str, pl.DataType] = {
                f"v{place}": pl.Float64() if slot.numeric else pl.Null() for place, slot in enumerate(slots(view))
            }
            return _Shape([], unseen, np.dtype([(name, "<i8") for name in _TIMES]))
        frame = pl.read_ipc(io.BytesIO(described))
        width = len(by_columns(view))
        return _Shape.of(view, frame.dtypes[:width], frame[:, width:])

    def pack(self, versions: Versions, group: Array, groups: int) -> list[bytes]:
        """Return the blob of each group."""
        order = np.argsort(group, kind="stable")
        bounds = np.searchsorted(group[order], np.arange(groups + 1))
        records = np.zeros(len(order), dtype=self.record)
        for name in _TIMES:
            records[name] = getattr(versions, name)
        texts: list[list[bytes]] = []
        for name, dtype in self.values.items():
            value, kind = versions.values[name], _kind(dtype)
            if kind == _TEXT:
                text = [None if each is None else each.encode() for each in value.cast(pl.String).to_list()]
                records[name] = [-1 if each is None else len(each) for each in text]
                texts.append([text[place] or b"" for place in order.tolist()])
            else:
                records[name] = _numbers(value, dtype)
                records[f"{name} there"] = True if not value.null_count() else value.is_not_null().to_numpy()
        records = records[order]
        blobs = []
        for first, after in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            blob = (after - first).to_bytes(4, "little") + records[first:after].tobytes()
            blobs.append(blob + b"".join(b"".join(text[first:after]) for text in texts) if after > first else b"")
        return blobs

    def unpack(self, blobs: Sequence[bytes]) -> tuple[Versions, Array]:
        """Return the versions in ``blobs``, and for each the place of its blob."""
        counts = [int.from_bytes(blob[:4], "little") if blob else 0 for blob in blobs]
        size = self.record.itemsize
        fixed = b"".join(blob[4 : 4 + count * size] for blob, count in zip(blobs, counts, strict=True))
        records = np.frombuffer(fixed, dtype=self.record)
        columns: list[pl.Series] = []
        texts = self._texts(blobs, counts, records)
        for name, dtype in self.values.items():
            if name in texts:
                columns.append(pl.Series(name, texts[name], dtype=pl.String).cast(dtype))
            elif f"{name} there" in (self.record.names or ()):
                there = records[f"{name} there"]
                value = pl.Series(name, np.ascontiguousarray(records[name]))
                value = value if there.all() else value.set(pl.Series(~there, dtype=pl.Boolean), None)
                columns.append(value.reinterpret(signed=False) if dtype == pl.UInt64 else value.cast(dtype))
            else:
                columns.append(pl.Series(name, [], dtype=dtype))
        times = {name: np.ascontiguousarray(records[name]) for name in _TIMES}
        group = np.repeat(np.arange(len(blobs), dtype=np.int64), counts)
        return Versions(**times, values=pl.DataFrame(columns)), group

    def _texts(self, blobs: Sequence[bytes], counts: Sequence[int], records: Array) -> dict[str, list[str | None]]:
        names = [
            name for name, dtype in self.values.items() if _kind(dtype) == _TEXT and name in (self.record.names or ())
        ]
        texts: dict[str, list[str | None]] = {name: [] for name in names}
        if names:
            first = 0
            for blob, count in zip(blobs, counts, strict=True):
                at = 4 + count * self.record.itemsize
                for name in names:
                    for length in records[name][first : first + count].tolist():
                        texts[name].append(None if length < 0 else blob[at : at + length].decode())
                        at += max(length, 0)
                first += count
        return texts


_TEXT = "<i4"


def _kind(dtype: pl.DataType) -> str | None:
    if dtype.is_float():
        return "<f8"
    if dtype.is_integer() or dtype.is_temporal() or dtype == pl.Boolean:
        return "<i8"
    return _TEXT if isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Decimal | pl.Null) else None


def _numbers(value: pl.Series, dtype: pl.DataType) -> Array:
    if dtype.is_float():
        floats = value.cast(pl.Float64)
        return (floats.fill_null(0.0) if floats.null_count() else floats).to_numpy()
    physical = value.to_physical()
    if physical.null_count():
        physical = physical.fill_null(False if dtype == pl.Boolean else 0)
    return (physical.reinterpret(signed=True) if dtype == pl.UInt64 else physical.cast(pl.Int64)).to_numpy()
