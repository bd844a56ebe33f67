"""Features looked up in online state: the server's side (time rule 9).

All of an answer is read from one snapshot, as of the moment that the state has reached. One request is answered value
by value, without a frame; many make one. The values are, bit for bit, those of ``feature.features`` over the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl

from tidemill.base.errors import RequestError, WorkspaceError
from tidemill.base.schema import SEQ, picker
from tidemill.engine.expression.program import Program, compiled
from tidemill.engine.feature.feature import TableView, assemble, features, require
from tidemill.engine.feature.layout import DIRECTORY, NO_DIRECTORY, VIEWS, Applied, Shape, blocks, definition
from tidemill.engine.feature.naming import Requests, name_of
from tidemill.engine.feature.packed import Group, Packed
from tidemill.engine.feature.shelf import shelf, take, take_all
from tidemill.ports.online import Online, Snapshot
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model

#: Groups of a view whose answers are kept until the state moves on. Only those that have blocks are.
KEPT = 1024


class Lookup:
    """Answers requests for the features of ``model`` from ``store``. Not safe to share between threads."""

    def __init__(self, model: Model, store: Online) -> None:
        self._model, self._store = model, store
        self._views = [view for view in dict.fromkeys(model.views) if not isinstance(view, OnDemand)]
        self._mark: bytes | None = None
        self._applied = Applied(0, 1, {}, 0)
        self._readers: dict[str, _Reader] = {}
        self._schema: Mapping[str, pl.DataType] | None = None
        self._shelves: list[_Shelf] = []
        self._steps: list[_Step] = []

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Applied]:
        """Return ``model.columns`` for each of ``requests`` (columns of the examples' table), and as of when.

        All are answered at ``applied.t``, from one snapshot. Raises RequestError when a request column is missing,
        WorkspaceError when the state is empty, damaged, or was built for other views.
        """
        with self._store.snapshot() as snapshot:
            applied = self._move(snapshot)
            shelves = _Shelves(snapshot, requests)
            found = {view.name: self._readers[view.name].frame(shelves, applied.t) for view in self._views}
        return assemble(self._model, requests, lambda view: found[view.name]), applied

    def row(
        self, request: dict[str, Any], schema: Mapping[str, pl.DataType], snapshot: Snapshot | None = None
    ) -> tuple[list[Any], Applied]:
        """Return the values of ``model.columns`` for one request, and as of when: a row of ``features``.

        ``schema``: the columns of the request with their types, the same mapping each time. Times are whole
        microseconds, in the request and among the values; dates are ``date``. ``snapshot``: of the store; by default a
        new one. Raises as ``features``.
        """
        if snapshot is None:
            with self._store.snapshot() as own:
                return self.row(request, schema, own)
        try:
            applied = self._move(snapshot)
            if schema is not self._schema:
                self._prepare(schema)
            heads = [shelf.row(snapshot, request) for shelf in self._shelves]
            values: list[Any] = []
            for pick, program, reader, shelf, place in self._steps:
                if pick is not None:
                    values += pick(request)
                elif program is not None:
                    values += program.row(request)
                elif reader is not None:
                    name, found = heads[shelf]
                    values += reader.row(snapshot, name, found[place], applied.t)
        except KeyError as error:
            if error.args and error.args[0] in request and error.args[0] in schema:
                raise
            raise RequestError(f"column {error.args[0]!r} is missing from the request.", field=error.args[0]) from error
        return values, applied

    def _move(self, snapshot: Snapshot) -> Applied:
        """Return how far the state is, having made ready to read it."""
        mark = snapshot.mark()
        if mark is None:
            raise WorkspaceError("the online state is empty; the worker has not built it yet")
        if mark != self._mark:
            self._mark = None  # so that what fails is tried again
            self._applied = Applied.decode(mark)
            for view in self._views:
                described = snapshot.get(VIEWS, view.name.encode())
                reader = self._readers.get(view.name)
                if reader is None or reader.described != described:
                    self._readers[view.name] = _Reader.of(view, described)
                    self._schema = None
                else:
                    reader.kept.clear()
            self._mark = mark
        return self._applied

    def _prepare(self, schema: Mapping[str, pl.DataType]) -> None:
        """Make the steps of a row, in the order of the model's features. Views of one group are read together."""
        steps: list[_Step] = []
        shelves: dict[tuple[Any, ...], list[_Reader]] = {}
        columns: list[str] = []
        for feature in self._model.features:
            if isinstance(feature, str):
                columns.append(feature)
                continue
            if columns:
                steps.append(_Step(pick=picker(columns)))
                columns = []
            if isinstance(feature, OnDemand):
                for column in feature.request_columns:
                    schema[column]
                named = {f"{feature.name}__{name}": expression for name, expression in feature.features}
                steps.append(_Step(program=compiled(named, schema)))
            else:
                reader = self._readers[feature.name]
                shared = shelves.setdefault((reader.shelf, feature.request_columns, *reader.shape.keys), [])
                steps.append(_Step(reader=reader, shelf=list(shelves.values()).index(shared), place=len(shared)))
                shared.append(reader)
        if columns:
            steps.append(_Step(pick=picker(columns)))
        self._shelves = [
            _Shelf(space, name_of(columns, types, schema), tuple(reader.number for reader in readers))
            for (space, columns, *types), readers in shelves.items()
        ]
        self._steps, self._schema = steps, schema


class _Step(NamedTuple):
    """How values come into a row: columns of the request as they are, a program over it, or a view's reader.

    ``shelf``: which of the lookup's shelves has the view's head, and ``place`` among those taken from it.
    """

    pick: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None = None
    program: Program | None = None
    reader: _Reader | None = None
    shelf: int = 0
    place: int = 0


class _Shelf(NamedTuple):
    """A space of shelves, what names the group of a request in it, and the numbers of the views to be read."""

    space: str
    name: Callable[[Mapping[str, Any]], bytes | None]
    numbers: tuple[int, ...]

    def row(self, snapshot: Snapshot, request: Mapping[str, Any]) -> tuple[bytes | None, tuple[bytes | None, ...]]:
        """Return the name of the group that ``request`` asks about, and its heads."""
        name = self.name(request)
        return name, take(None if name is None else snapshot.get(self.space, name), self.numbers)


class _Shelves:
    """The records that many requests ask about, each read once."""

    def __init__(self, snapshot: Snapshot, requests: pl.DataFrame) -> None:
        self.snapshot, self.requests = snapshot, requests
        self._asked = Requests(requests)
        self._read: dict[tuple[Any, ...], tuple[list[bytes | None], list[bytes | None]]] = {}

    def heads(self, reader: _Reader) -> tuple[list[bytes | None], list[bytes | None], list[bytes | None], list[int]]:
        """Return the group that each request asks ``reader`` about; which are read, their heads, and which have blocks.

        Groups are read once each where that saves half of the reading.
        """
        columns, types = reader.view.request_columns, reader.shape.keys
        names = self._asked.groups(columns, types)
        key = reader.shelf, columns, *types
        if key not in self._read:
            distinct = list(dict.fromkeys(names))
            if 2 * len(distinct) > len(names):
                distinct = names
            self._read[key] = distinct, self.snapshot.get_many(reader.shelf, [name or b"" for name in distinct])
        distinct, records = self._read[key]
        return names, distinct, *take_all(records, reader.number)


@dataclass(slots=True)
class _Reader:
    """Reads one view's groups. ``described``: what the store says of it. ``kept``: answers at the state's moment."""

    view: TableView
    described: bytes | None
    shape: Shape
    packed: Packed
    shelf: str
    number: int
    blocks: str
    kept: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)

    @staticmethod
    def of(view: TableView, described: bytes | None) -> _Reader:
        """Return a reader. Raises WorkspaceError when the state was built for another definition of ``view``."""
        built, types, number = msgspec.msgpack.decode(described) if described is not None else (None, b"", 0)
        if built != definition(view):
            raise WorkspaceError(f"the online state was built for another definition of view {view.name!r}")
        shape = Shape.decode(view, types)
        return _Reader(view, described, shape, Packed(view, shape), shelf(view), number, blocks(view))

    def row(self, snapshot: Snapshot, name: bytes | None, head: bytes | None, t: int) -> tuple[Any, ...]:
        """Return the view's values for the group ``name`` with this ``head``; None is no group."""
        if head is None or name is None or head[4:5] == NO_DIRECTORY:
            return self.packed.row(t, head)
        found = self.kept.get(name)
        if found is None:
            found = self.packed.row(t, self._whole(snapshot, name, head, t))
            if len(self.kept) >= KEPT:
                self.kept.clear()
            self.kept[name] = found
        return found

    def frame(self, shelves: _Shelves, t: int) -> pl.DataFrame:
        """Return the view's columns for the requests. Raises RequestError when a column is missing."""
        require(shelves.requests, self.view.request_columns)
        names, distinct, found, listed = shelves.heads(self)
        read: list[Group] = list(found)
        for place in listed:
            read[place] = self._whole(shelves.snapshot, distinct[place] or b"", found[place] or b"", t)
        answered = self.packed.frame(t, read)
        if len(distinct) == len(names):
            return answered
        places = {name: place for place, name in enumerate(distinct)}
        return answered[[places[name] for name in names]]

    def _whole(self, snapshot: Snapshot, name: bytes, head: bytes, t: int) -> Group:
        """Return what must be read of a group that has blocks, to answer at ``t``."""
        directory = snapshot.get(self.blocks, name + DIRECTORY) or b""
        needed = self.packed.needs(t, directory)
        read = snapshot.get_many(self.blocks, [name + number.to_bytes(4, "big") for number in needed])
        return head, directory, tuple(blob or b"" for blob in read)


def features_at(
    model: Model, tables: Mapping[str, pl.DataFrame], requests: pl.DataFrame, applied: Applied
) -> pl.DataFrame:
    """Return what ``Lookup.features`` answered at ``applied``, from the tables: ``feature.features`` at that state."""
    then = {name: rows.filter(pl.col(SEQ) < applied.next_seq.get(name, 0)) for name, rows in tables.items()}
    return features(model, then, requests, np.full(requests.height, applied.t, dtype=np.int64))
