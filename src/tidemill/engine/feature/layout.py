"""How online state is written down: its mark, the names of groups, and the packed versions of a view.

Three kinds of space hold a view's state. ``view:<name>`` has one head for each group: its newest versions, packed; how
it shares a record with the heads of other views is said in ``shelf.py``. A group of many versions has its older
ones in blocks of ``block:<name>``, under the group's name and a number, and beside them, under ``DIRECTORY``, the list
of the blocks: from which version on each reaches, when its rows happened, and from when on and how long all of them are
visible. So a row that comes to a hot group rewrites a block and not the group, and a question skips what lies outside
its window. A summary of each block (sums, extremes) lets the compiled kernel pass over blocks that lie wholly inside.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import FOREVER
from tidemill.base.errors import DeclarationError, Fault
from tidemill.base.hashing import canonical, fingerprint
from tidemill.engine.feature.feature import TableView, Versions, by_columns, prepare, slots
from tidemill.engine.table.table import ALWAYS, FROM, TO, timeless
from tidemill.spec.feature import Latest

Array = npt.NDArray[Any]

#: The space of what was built: view name -> (definition, types of its keys and values, number on its shelf).
VIEWS = "views"

#: The space of how fresh views are: view name -> (newest event time, newest known-at) of the rows applied, or None.
FRESH = "fresh"

#: The space of a rebuild under way: b"" -> (table, steps done, steps, seconds so far).
REBUILDING = "rebuilding"

#: What follows a group's name in the key of its directory; blocks have smaller numbers there.
DIRECTORY = b"\xff\xff\xff\xff"

#: Rows of a block when it is made; it is cut again when it has grown to twice as many.
BLOCK = 256

_LAYOUT = 3  # of what is described here; another one is rebuilt

_HEADER = struct.Struct("<II")  # rows, and 1 where a directory lists more of them in blocks
_TIMES = ("time", "known", "seq", "end")


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


def definition(view: TableView) -> str:
    """Return a hash of all that the state of ``view`` depends on; how requests name its columns is not part of it."""
    table = view.table
    common = [_LAYOUT, view.name, table.name, table.key, table.event_time, timeless(table), view.by]
    if isinstance(view, Latest):
        return fingerprint("latest", *common, view.values, view.within, view.ahead)
    aggregates = [
        (name, each.function, each.value.tree if each.value else None, [window.micros for window in each.over])
        + (() if each.q is None else (each.q,))
        for name, each in view.features
    ]
    return fingerprint("aggregation", *common, aggregates)


def heads(view: TableView) -> str:
    """Return the space of the view's heads."""
    return f"view:{view.name}"


def blocks(view: TableView) -> str:
    """Return the space of the view's blocks and directories."""
    return f"block:{view.name}"


def short(parts: tuple[Any, ...]) -> bytes:
    """Return a key of at most 400 bytes; long ones by their hash, which starts as no packed tuple does."""
    packed = _pack(parts)
    return packed if len(packed) <= 400 else _hashed(packed)


def shorts(rows: Iterable[tuple[Any, ...]]) -> list[bytes]:
    """Return what ``short`` makes of each of many."""
    packed = list(map(_pack, rows))
    if max(map(len, packed), default=0) <= 400:
        return packed
    return [each if len(each) <= 400 else _hashed(each) for each in packed]


def _hashed(packed: bytes) -> bytes:
    return b"#" + hashlib.blake2b(packed, digest_size=32).digest()


_pack = msgspec.msgpack.Encoder().encode


def groups(rows: Iterable[tuple[Any, ...]]) -> list[bytes | None]:
    """Return the name of the group of each row of plain key values; None where a part is null."""
    named: dict[tuple[Any, ...], bytes | None] = {}
    found = []
    for row in rows:
        if row not in named:
            named[row] = None if None in row else short(row)
        found.append(named[row])
    return found


#: The fifth byte of the head of a group without blocks.
NO_DIRECTORY = b"\0"


def has_directory(head: bytes) -> bool:
    """Tell whether the group with this head has blocks as well."""
    return bool(head) and head[4:5] != NO_DIRECTORY


@dataclass(frozen=True, slots=True)
class Shape:
    """How versions of a view are packed.

    A head or a block is a header (rows; whether there is a directory), a record of fixed size for each row in order of
    (time, known, seq), then the texts. A record is the times, then for each value a number and whether it is there, or
    for a text where it begins among the texts and its length, -1 for null. All little-endian and unaligned. When a row
    begins to be visible is its ``known``, or always in a timeless table. An empty blob holds no rows.
    """

    keys: list[pl.DataType]
    values: dict[str, pl.DataType]
    record: np.dtype[Any]
    timeless: bool

    @staticmethod
    def of(view: TableView, keys: list[pl.DataType], values: pl.DataFrame) -> Shape:
        """Return the shape for values such as ``values``. Raises DeclarationError for types that it cannot hold."""
        fields: list[tuple[str, str]] = [(name, "<i8") for name in _TIMES]
        for name, dtype in values.schema.items():
            match kind(dtype):
                case "":
                    fault = Fault(
                        f"view {view.name!r}", f"reads a value of type {dtype}, which online state cannot hold.",
                        "Use numbers, booleans, times or strings.",
                    )  # fmt: skip
                    raise DeclarationError([fault])
                case "t":
                    fields += [(f"{name} at", "<u4"), (name, "<i4")]
                case letter:
                    fields += [(name, _FIELDS[letter]), (f"{name} there", "?")]
        return Shape(keys, dict(values.schema), np.dtype(fields), timeless(view.table))

    @staticmethod
    def describe(view: TableView, rows: pl.DataFrame) -> bytes:
        """Return the types of the view's keys and values over a table such as ``rows``, as Arrow IPC."""
        spanned = rows.head(0).with_columns(pl.lit(ALWAYS).alias(FROM), pl.lit(FOREVER).alias(TO))
        keys = spanned.select(pl.col(name).alias(f"k{place}") for place, name in enumerate(by_columns(view)))
        file = io.BytesIO()
        pl.concat((keys, prepare(view, spanned)[0].values), how="horizontal").write_ipc(file)
        return file.getvalue()

    @staticmethod
    def decode(view: TableView, described: bytes) -> Shape:
        """Return the shape that ``describe`` described; of nothing, one without types that only fits empty blobs."""
        if not described:
            unseen: dict[str, pl.DataType] = {
                f"v{place}": pl.Float64() if slot.numeric else pl.Null() for place, slot in enumerate(slots(view))
            }
            return Shape([], unseen, np.dtype([(name, "<i8") for name in _TIMES]), timeless(view.table))
        frame = pl.read_ipc(io.BytesIO(described))
        width = len(by_columns(view))
        return Shape.of(view, frame.dtypes[:width], frame[:, width:])

    def pack(self, versions: Versions, bounds: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return a blob of the ``versions`` from the first to the second of each of ``bounds``; b"" of none.

        ``bounds`` follow one another, from the first version to the last.
        """
        records = np.zeros(len(versions), dtype=self.record)
        for name in _TIMES:
            records[name] = getattr(versions, name)
        first, after = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
        blob = np.repeat(np.arange(len(bounds)), after - first)
        begin = np.zeros(len(bounds), dtype=np.int64)  # where the next value's texts begin in each blob
        texts: list[list[bytes]] = []
        for name, dtype in self.values.items():
            value, letter = versions.values[name], kind(dtype)
            if letter == "t":
                text = [None if each is None else each.encode() for each in value.cast(pl.String).to_list()]
                texts.append([each or b"" for each in text])
                ends = np.zeros(len(text) + 1, dtype=np.int64)
                np.cumsum([len(each) for each in texts[-1]], out=ends[1:])
                records[f"{name} at"] = (begin - ends[first])[blob] + ends[:-1]
                records[name] = [-1 if each is None else len(each) for each in text]
                begin += ends[after] - ends[first]
            else:
                records[name] = _numbers(value, letter)
                records[f"{name} there"] = True if not value.null_count() else value.is_not_null().to_numpy()
        blobs = []
        for start, stop in bounds:
            written = b"".join(b"".join(column[start:stop]) for column in texts)
            fixed = records[start:stop].tobytes()
            blobs.append(_HEADER.pack(stop - start, 0) + fixed + written if stop > start else b"")
        return blobs

    def unpack(self, blobs: Sequence[bytes]) -> tuple[Versions, Array]:
        """Return the versions in ``blobs``, and for each the place of its blob."""
        counts = [int.from_bytes(blob[:4], "little") for blob in blobs]
        size = self.record.itemsize
        fixed = [blob[8 : 8 + count * size] for blob, count in zip(blobs, counts, strict=True)]
        records = np.frombuffer(b"".join(fixed), dtype=self.record)
        group = np.repeat(np.arange(len(blobs), dtype=np.int64), counts)
        columns: list[pl.Series] = []
        for name, dtype in self.values.items():
            if name not in (self.record.names or ()):
                columns.append(pl.Series(name, [], dtype=dtype))
            elif kind(dtype) == "t":
                columns.append(pl.Series(name, self._texts(name, blobs, counts, records), pl.String).cast(dtype))
            else:
                there = records[f"{name} there"]
                value = pl.Series(name, np.ascontiguousarray(records[name]))
                value = value if there.all() else value.set(pl.Series(~there, dtype=pl.Boolean), None)
                columns.append(value.reinterpret(signed=False) if dtype == pl.UInt64 else value.cast(dtype))
        times = {name: np.ascontiguousarray(records[name]) for name in _TIMES}
        start = np.full(len(records), ALWAYS, dtype=np.int64) if self.timeless else times["known"]
        return Versions(**times, start=start, values=pl.DataFrame(columns)), group

    def _texts(self, name: str, blobs: Sequence[bytes], counts: Sequence[int], records: Array) -> list[str | None]:
        found: list[str | None] = []
        offsets, lengths = records[f"{name} at"].tolist(), records[name].tolist()
        for blob, count in zip(blobs, counts, strict=True):
            begin = _HEADER.size + count * self.record.itemsize
            for row in range(len(found), len(found) + count):
                at = begin + offsets[row]
                found.append(None if lengths[row] < 0 else blob[at : at + lengths[row]].decode())
        return found


@dataclass(slots=True)
class Block:
    """A block as its directory lists it; all times int64 microseconds.

    ``fence``: it takes the versions that are not before this one, by (time, known, seq), up to the next block's. Its
    rows happened from ``first`` to ``last``; all are visible for ``opened < t <= closes``. ``summary``: what the
    compiled kernel makes of its values, or b"".
    """

    number: int
    rows: int
    fence: tuple[int, int, int]
    first: int
    last: int
    opened: int
    closes: int
    summary: bytes = b""

    @property
    def key(self) -> bytes:
        """What follows the group's name in the block's key."""
        return self.number.to_bytes(4, "big")


@dataclass(slots=True)
class Directory:
    """The blocks of a group, in order, and the fence of its head, which holds what comes after them.

    Written as: the number of the next block, how many blocks, the head's fence; a record for each block (ENTRY), in
    which ``at`` says where its summary begins; the summaries.
    """

    next: int = 0
    fence: tuple[int, int, int] = (ALWAYS, ALWAYS, ALWAYS)
    blocks: list[Block] = field(default_factory=list)

    @staticmethod
    def decode(blob: bytes) -> Directory:
        """Return what ``encode`` wrote."""
        following, count, *fence = _OPENING.unpack_from(blob)
        listed = []
        for each in np.frombuffer(blob, dtype=ENTRY, count=count, offset=_OPENING.size).tolist():
            number, rows, time, known, seq, first, last, opened, closes, at, size = each
            block = Block(number, rows, (time, known, seq), first, last, opened, closes, blob[at : at + size])
            listed.append(block)
        return Directory(following, (fence[0], fence[1], fence[2]), listed)

    def encode(self) -> bytes:
        """Return the directory as bytes."""
        entries, summaries = [], []
        at = _OPENING.size + len(self.blocks) * ENTRY.itemsize
        for block in self.blocks:
            times = (block.first, block.last, block.opened, block.closes)
            entries.append((block.number, block.rows, *block.fence, *times, at, len(block.summary)))
            summaries.append(block.summary)
            at += len(block.summary)
        opening = _OPENING.pack(self.next, len(self.blocks), *self.fence)
        return opening + np.array(entries, dtype=ENTRY).tobytes() + b"".join(summaries)

    def find(self, version: tuple[int, int, int]) -> int:
        """Return the place of the block that ``version`` (time, known, seq) belongs to; of the head, the last."""
        if version >= self.fence:
            return len(self.blocks)
        return max(bisect.bisect_right(self.blocks, version, key=lambda block: block.fence) - 1, 0)

    def number(self) -> int:
        """Return a number for a new block."""
        self.next += 1
        return self.next - 1


_OPENING = struct.Struct("<IIqqq")

#: A block in a directory.
ENTRY = np.dtype(
    [("number", "<u4"), ("rows", "<u4")]
    + [(name, "<i8") for name in ("time", "known", "seq", "first", "last", "opened", "closes")]
    + [("at", "<u4"), ("size", "<u4")]
)


def with_directory(head: bytes) -> bytes:
    """Return ``head`` with the note that the group has blocks."""
    rows = _HEADER.unpack_from(head)[0] if head else 0
    return _HEADER.pack(rows, 1) + head[_HEADER.size :]


def kind(dtype: pl.DataType) -> str:
    """Return how a value is packed: ``f`` float, ``i`` int64, ``u`` uint64, ``b`` boolean, ``t`` text; "" for not."""
    if dtype.is_float():
        return "f"
    if dtype == pl.Boolean:
        return "b"
    if dtype.is_integer() or dtype.is_temporal():
        return "u" if dtype == pl.UInt64 else "i"
    return "t" if isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Decimal | pl.Null) else ""


_FIELDS = {"f": "<f8", "i": "<i8", "u": "<i8", "b": "|i1"}


def _numbers(value: pl.Series, letter: str) -> Array:
    if letter == "f":
        floats = value.cast(pl.Float64)
        return (floats.fill_null(0.0) if floats.null_count() else floats).to_numpy()
    physical = value.to_physical()
    if physical.null_count():
        physical = physical.fill_null(False if letter == "b" else 0)
    if letter == "u":
        return physical.reinterpret(signed=True).to_numpy()
    return physical.cast(pl.Int8 if letter == "b" else pl.Int64).to_numpy()
