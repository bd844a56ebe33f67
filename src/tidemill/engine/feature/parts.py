"""The parts of groups: a group's versions in its head and its blocks, found, read, and written back.

A group is a line of versions in order of (time, known, seq), cut into parts: the blocks its directory lists, and the
head that holds the newest. Every version has one part it can lie in, so only parts that something happens to are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.engine.feature.feature import TableView, Versions, reach
from tidemill.engine.feature.layout import (
    BLOCK,
    DIRECTORY,
    Block,
    Directory,
    Shape,
    blocks,
    has_directory,
    heads,
    with_directory,
)
from tidemill.engine.feature.packed import Packed
from tidemill.ports.online import Change, Snapshot

Array = npt.NDArray[Any]

#: (time, known, seq) of a version: its place in its group.
VERSION = tuple[int, int, int]

_FIELDS = ("time", "known", "seq", "start", "end")


class Parts:
    """The parts of the groups ``names`` of one view, as ``snapshot`` has them. The parts are numbered in order.

    What is past at ``t``, whole blocks at a time, is not read but dropped. A group whose blocks have grown thin is put
    together and cut anew.
    """

    def __init__(self, snapshot: Snapshot, view: TableView, shape: Shape, names: Iterable[bytes], t: int) -> None:
        self._snapshot, self._view, self._shape = snapshot, view, shape
        self._names = list(dict.fromkeys(names))
        self._places = {name: place for place, name in enumerate(self._names)}
        self._heads = [snapshot.get(heads(view), name) or b"" for name in self._names]
        self._directories: dict[int, Directory] = {}
        self._written: dict[int, bytes] = {}  # directories as they lie in the store
        self._packed: Packed | None = None
        self._dropped: list[tuple[int, Block]] = []
        self._thin: dict[int, list[Block]] = {}  # groups to be cut anew, and the blocks they had
        for place, head in enumerate(self._heads):
            if has_directory(head):
                self._list(place, t)
        counts = np.ones(len(self._names), dtype=np.int64)
        for place, directory in self._directories.items():
            counts[place] += len(directory.blocks)
        self._last = np.cumsum(counts) - 1  # the part of each group's head
        self._read = set(self._last.tolist())

    def of(self, names: Sequence[bytes], versions: Versions) -> Array:
        """Return the part of each of ``versions``, whose groups are ``names``; they will be read."""
        group = np.array([self._places[name] for name in names], dtype=np.int64)
        part = self._last[group]
        if self._directories:
            for row in np.flatnonzero(np.isin(group, list(self._directories))).tolist():
                version = int(versions.time[row]), int(versions.known[row]), int(versions.seq[row])
                part[row] = self._part(int(group[row]), version)
            self._read.update(part.tolist())
        return part

    def open(self, versions: Iterable[tuple[bytes, VERSION]]) -> None:
        """Have the parts of ``versions``, given with their groups, read."""
        if self._directories:
            for name, version in versions:
                place = self._places[name]
                if place in self._directories:
                    self._read.add(self._part(place, version))

    def read(self) -> tuple[Versions, Array]:
        """Return the versions in the parts to be read, and the part of each."""
        blobs: list[bytes] = []
        numbers: list[int] = []
        place, space = 0, blocks(self._view)
        for part in sorted(self._read):
            while self._last[place] < part:
                place += 1
            if part == self._last[place]:
                for block in self._thin.get(place, ()):
                    blobs.append(self._snapshot.get(space, self._names[place] + block.key) or b"")
                    numbers.append(part)
                blobs.append(self._heads[place])
            else:
                directory = self._directories[place]
                block = directory.blocks[part - self._first(place)]
                blobs.append(self._snapshot.get(space, self._names[place] + block.key) or b"")
            numbers.append(part)
        versions, which = self._shape.unpack(blobs)
        return versions, np.array(numbers, dtype=np.int64)[which]

    def write(self, versions: Versions, part: Array) -> Iterator[Change]:
        """Yield the changes that leave ``versions`` in the parts that were read; ``part`` says where each belongs."""
        order = np.lexsort((versions.seq, versions.known, versions.time, part))
        if (order[1:] < order[:-1]).any():
            versions, part = take(versions, order), part[order]
        read = np.array(sorted(self._read), dtype=np.int64)
        first = np.searchsorted(part, read).tolist()
        after = np.searchsorted(part, read, side="right").tolist()
        bounds: list[tuple[int, int]] = []
        pieces: list[range] = []  # of each part, places in bounds
        for begin, end in zip(first, after, strict=True):
            # The last piece takes the rest: BLOCK to 2 * BLOCK rows.
            starts = list(range(begin, end, BLOCK))[:-1] if end - begin > 2 * BLOCK else [begin]
            pieces.append(range(len(bounds), len(bounds) + len(starts)))
            bounds += zip(starts, [*starts[1:], end], strict=True)
        blobs = self._shape.pack(versions, bounds)
        of_group: dict[int, list[tuple[int, range]]] = {}
        place = 0
        for number, range_ in zip(read.tolist(), pieces, strict=True):
            while self._last[place] < number:
                place += 1
            of_group.setdefault(place, []).append((number, range_))
        for place, name in enumerate(self._names):
            yield from self._group(place, name, of_group[place], versions, bounds, blobs)

    def _group(
        self,
        place: int,
        name: bytes,
        parts: Sequence[tuple[int, range]],
        versions: Versions,
        bounds: Sequence[tuple[int, int]],
        blobs: Sequence[bytes],
    ) -> Iterator[Change]:
        """Yield the changes of one group; ``parts``: those that were read, the head last, and their pieces."""
        directory, space = self._directories.get(place), blocks(self._view)
        _, tail = parts[-1]
        if directory is None and len(tail) == 1 and place not in self._thin:
            if blobs[tail[0]] != self._heads[place]:
                yield Change(heads(self._view), name, blobs[tail[0]] or None)
            return
        gone = {block.number: block for at, block in self._dropped if at == place}
        gone.update((block.number, block) for block in self._thin.get(place, ()))
        fresh: dict[int, bytes] = {}
        directory = directory or Directory()
        listed: list[Block] = []
        known = dict(parts)
        for at, block in enumerate(directory.blocks):
            pieces = known.get(self._first(place) + at)
            if pieces is None:
                listed.append(block)
                continue
            gone[block.number] = block
            for piece in pieces:
                if blobs[piece]:
                    number = block.number if piece == pieces[0] else directory.number()
                    fence = block.fence if piece == pieces[0] else _version(versions, bounds[piece][0])
                    listed.append(self._block(number, fence, versions, bounds[piece], blobs[piece]))
                    fresh[number] = blobs[piece]
        for piece in tail[:-1]:
            number = directory.number()
            fence = directory.fence if piece == tail[0] else _version(versions, bounds[piece][0])
            listed.append(self._block(number, fence, versions, bounds[piece], blobs[piece]))
            fresh[number] = blobs[piece]
        if len(tail) > 1:
            directory.fence = _version(versions, bounds[tail[-1]][0])
        directory.blocks = listed
        for number, blob in fresh.items():
            yield Change(space, name + number.to_bytes(4, "big"), blob)
        for number, block in gone.items():
            if number not in fresh:
                yield Change(space, name + block.key, None)
        head = with_directory(blobs[tail[-1]]) if listed else blobs[tail[-1]]
        if head != self._heads[place]:
            yield Change(heads(self._view), name, head or None)
        written = directory.encode() if listed else b""
        if written != self._written.get(place, b""):
            yield Change(space, name + DIRECTORY, written or None)

    def _list(self, place: int, t: int) -> None:
        """Read the directory of a group."""
        written = self._snapshot.get(blocks(self._view), self._names[place] + DIRECTORY)
        if written is None:
            return
        self._written[place] = written
        directory = Directory.decode(written)
        width = reach(self._view)
        if width is not None:
            self._dropped += [(place, block) for block in directory.blocks if block.last + width < t]
            directory.blocks = [block for block in directory.blocks if block.last + width >= t]
        rows = int.from_bytes(self._heads[place][:4], "little") + sum(block.rows for block in directory.blocks)
        if rows < len(directory.blocks) * BLOCK // 4:
            self._thin[place] = directory.blocks
        else:
            self._directories[place] = directory

    def _first(self, place: int) -> int:
        return int(self._last[place - 1]) + 1 if place else 0

    def _part(self, place: int, version: VERSION) -> int:
        return self._first(place) + self._directories[place].find(version)

    def _block(self, number: int, fence: VERSION, versions: Versions, bounds: tuple[int, int], blob: bytes) -> Block:
        first, after = bounds
        if self._packed is None:
            self._packed = Packed(self._view, self._shape)
        return Block(
            number,
            after - first,
            fence,
            int(versions.time[first]),
            int(versions.time[after - 1]),
            int(versions.start[first:after].max()),
            int(versions.end[first:after].min()),
            self._packed.summary(blob),
        )


def _version(versions: Versions, row: int) -> VERSION:
    return int(versions.time[row]), int(versions.known[row]), int(versions.seq[row])


def select(versions: Versions, mask: Array) -> Versions:
    """Return the versions under ``mask`` (bool)."""
    if mask.all():
        return versions
    values = versions.values.filter(pl.Series(mask)) if versions.values.width else versions.values
    return Versions(**{name: getattr(versions, name)[mask] for name in _FIELDS}, values=values)


def joined(first: Versions, second: Versions) -> Versions:
    """Return the versions of both."""
    times = {name: np.concatenate((getattr(first, name), getattr(second, name))) for name in _FIELDS}
    return Versions(**times, values=first.values.vstack(second.values) if first.values.width else first.values)


def take(versions: Versions, order: Array) -> Versions:
    """Return the versions at the places ``order``."""
    values = versions.values[order] if versions.values.width else versions.values
    return Versions(**{name: getattr(versions, name)[order] for name in _FIELDS}, values=values)
