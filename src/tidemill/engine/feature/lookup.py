"""Features looked up in online state: the server's side (time rule 9).

All of an answer is read from one snapshot, as of the moment that the state has reached. One request is answered value
by value, without a frame; many make one. The values are, bit for bit, those of ``feature.features`` over the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl

from tidemill.base.errors import RequestError, WorkspaceError
from tidemill.base.schema import SEQ, picker
from tidemill.engine.expression.program import Program, compiled
from tidemill.engine.feature.feature import TableView, demand, features, require
from tidemill.engine.feature.layout import DIRECTORY, VIEWS, Applied, Shape, blocks, definition
from tidemill.engine.feature.naming import Name, name_of, names_of
from tidemill.engine.feature.packed import Packed, PackedShelf
from tidemill.engine.feature.shelf import shelf
from tidemill.ports.online import Online, Snapshot, Value
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
        self._shelves: list[_Shelf] = []
        self._columns = list(model.columns)
        self._schema: Mapping[str, pl.DataType] | None = None
        self._names: list[Name] = []
        self._steps: list[_Step] = []

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Applied]:
        """Return ``model.columns`` for each of ``requests`` (columns of the examples' table), and as of when.

        All are answered at ``applied.t``, from one snapshot. Raises RequestError when a request column is missing,
        WorkspaceError when the state is empty, damaged, or was built for other views.
        """
        require(requests, self._model.plain)
        with self._store.snapshot() as snapshot:
            applied = self._move(snapshot)
            frames = [shelf.frame(snapshot, requests, applied.t) for shelf in self._shelves]
        frames += [demand(view, requests) for view in self._model.views if isinstance(view, OnDemand)]
        frames += [requests[name].to_frame() for name in self._model.plain]
        found = pl.concat(frames, how="horizontal")
        return found if found.columns == self._columns else found[self._columns], applied

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
            rows = [
                shelf.row(snapshot, name(request), applied.t)
                for shelf, name in zip(self._shelves, self._names, strict=True)
            ]
            values: list[Any] = []
            for pick, program, reader, shelf, place in self._steps:
                if pick is not None:
                    values += pick(request)
                elif program is not None:
                    values += program.row(request)
                elif reader is not None:
                    name, found = rows[shelf]
                    one = found[place]
                    values += one if isinstance(one, tuple) else reader.row(snapshot, name, one, applied.t)
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
                    self._shelves, self._schema = [], None
                else:
                    reader.kept.clear()
            self._shelves = self._shelves or _shelves(self._readers[view.name] for view in self._views)
            self._mark = mark
        return self._applied

    def _prepare(self, schema: Mapping[str, pl.DataType]) -> None:
        """Make the steps of a row, in the order of the model's features."""
        steps: list[_Step] = []
        places = {
            reader.view.name: (number, place)
            for number, shelf in enumerate(self._shelves)
            for place, reader in enumerate(shelf.readers)
        }
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
                shelf, place = places[feature.name]
                steps.append(_Step(reader=self._readers[feature.name], shelf=shelf, place=place))
        if columns:
            steps.append(_Step(pick=picker(columns)))
        self._names = [name_of(shelf.columns, shelf.types, schema) for shelf in self._shelves]
        self._steps, self._schema = steps, schema


class _Step(NamedTuple):
    """How values come into a row: columns of the request as they are, a program over it, or a view's reader.

    ``shelf``: which of the lookup's shelves has the view, and ``place`` among those on it.
    """

    pick: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None = None
    program: Program | None = None
    reader: _Reader | None = None
    shelf: int = 0
    place: int = 0


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Views that are asked about the same groups and lie in the same records, so that a record is read once for all.

    ``columns`` of a request name the group, as ``types``.
    """

    space: str
    columns: tuple[str, ...]
    types: tuple[pl.DataType, ...]
    readers: tuple[_Reader, ...]
    packed: PackedShelf

    def row(self, snapshot: Snapshot, name: bytes | None, t: int) -> tuple[bytes, Sequence[tuple[Any, ...] | bytes]]:
        """Return the name of a group, and for each view its values at ``t`` or its head (``PackedShelf.row``)."""
        return name or b"", self.packed.row(t, None if name is None else snapshot.get(self.space, name))

    def frame(self, snapshot: Snapshot, requests: pl.DataFrame, t: int) -> pl.DataFrame:
        """Return the columns of the views for the requests. Raises RequestError when a column is missing.

        Groups are read once each where that saves half of the reading.
        """
        require(requests, self.columns)
        names = distinct = names_of(requests, self.columns, self.types)
        repeated = 2 * len(set(names)) <= len(names)
        if repeated:
            distinct = list(dict.fromkeys(names))

        def fetch(view: int, row: int) -> tuple[bytes, tuple[Value, ...]]:
            return self.readers[view].fetch(snapshot, distinct[row], t)

        answered = self.packed.frame(t, snapshot.get_many(self.space, distinct), fetch)
        if not repeated:
            return answered
        places = {name: place for place, name in enumerate(distinct)}
        return answered[[places[name] for name in names]]


def _shelves(readers: Iterable[_Reader]) -> list[_Shelf]:
    """Put together those that are read together."""
    shelves: dict[tuple[Any, ...], list[_Reader]] = {}
    for reader in readers:
        key = reader.shelf, reader.view.request_columns, reader.packed.plan is None, *reader.shape.keys
        shelves.setdefault(key, []).append(reader)
    made = []
    for (space, columns, _, *types), shared in shelves.items():
        packed = PackedShelf([(reader.packed, reader.number) for reader in shared])
        made.append(_Shelf(space, columns, tuple(types), tuple(shared), packed))
    return made


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

    def row(self, snapshot: Snapshot, name: bytes, head: bytes, t: int) -> tuple[Any, ...]:
        """Return the view's values for the group ``name``, which has blocks besides this ``head``."""
        found = self.kept.get(name)
        if found is None:
            found = self.packed.row(t, (head, *self.fetch(snapshot, name, t)))
            if len(self.kept) >= KEPT:
                self.kept.clear()
            self.kept[name] = found
        return found

    def fetch(self, snapshot: Snapshot, name: bytes, t: int) -> tuple[bytes, tuple[Value, ...]]:
        """Return the directory of a group that has blocks, and those that it needs to answer at ``t``."""
        directory = snapshot.get(self.blocks, name + DIRECTORY) or b""
        needed = self.packed.needs(t, directory)
        read = snapshot.get_many(self.blocks, [name + number.to_bytes(4, "big") for number in needed])
        return directory, tuple(blob or b"" for blob in read)


def features_at(
    model: Model, tables: Mapping[str, pl.DataFrame], requests: pl.DataFrame, applied: Applied
) -> pl.DataFrame:
    """Return what ``Lookup.features`` answered at ``applied``, from the tables: ``feature.features`` at that state."""
    then = {name: rows.filter(pl.col(SEQ) < applied.next_seq.get(name, 0)) for name, rows in tables.items()}
    return features(model, then, requests, np.full(requests.height, applied.t, dtype=np.int64))
