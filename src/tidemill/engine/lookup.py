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
from tidemill.engine.feature import TableView, assemble, features, require
from tidemill.engine.layout import DIRECTORY, NO_DIRECTORY, VIEWS, Applied, Shape, blocks, definition, heads
from tidemill.engine.naming import Requests, name_of
from tidemill.engine.packed import Group, Packed
from tidemill.engine.program import Program, compiled
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
        self._names: list[Callable[[Mapping[str, Any]], bytes | None]] = []
        self._steps: list[_Step] = []

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Applied]:
        """Return ``model.columns`` for each of ``requests`` (columns of the examples' table), and as of when.

        All are answered at ``applied.t``, from one snapshot. Raises RequestError when a request column is missing,
        WorkspaceError when the state is empty, damaged, or was built for other views.
        """
        with self._store.snapshot() as snapshot:
            applied = self._move(snapshot)
            asked = Requests(requests)
            found = {view.name: self._readers[view.name].frame(snapshot, asked, applied.t) for view in self._views}
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
            names = [name(request) for name in self._names]
            values: list[Any] = []
            for pick, program, reader, place in self._steps:
                if pick is not None:
                    values += pick(request)
                elif program is not None:
                    values += program.row(request)
                elif reader is not None:
                    values += reader.row(snapshot, names[place], applied.t)
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
        """Make the steps of a row, in the order of the model's features. Views of one key share the group's name."""
        steps: list[_Step] = []
        places: dict[tuple[Any, ...], int] = {}
        names: list[Callable[[Mapping[str, Any]], bytes | None]] = []
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
                key = feature.request_columns, *reader.shape.keys
                if key not in places:
                    places[key] = len(names)
                    names.append(name_of(feature.request_columns, reader.shape.keys, schema))
                steps.append(_Step(reader=reader, place=places[key]))
        if columns:
            steps.append(_Step(pick=picker(columns)))
        self._steps, self._names, self._schema = steps, names, schema


class _Step(NamedTuple):
    """How values come into a row: columns of the request as they are, a program over it, or a view's reader.

    ``place``: which of the lookup's names is that of the view's group.
    """

    pick: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None = None
    program: Program | None = None
    reader: _Reader | None = None
    place: int = 0


@dataclass(slots=True)
class _Reader:
    """Reads one view's groups. ``described``: what the store says of it. ``kept``: answers at the state's moment."""

    view: TableView
    described: bytes | None
    shape: Shape
    packed: Packed
    heads: str
    blocks: str
    kept: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)

    @staticmethod
    def of(view: TableView, described: bytes | None) -> _Reader:
        """Return a reader. Raises WorkspaceError when the state was built for another definition of ``view``."""
        built, types = msgspec.msgpack.decode(described) if described is not None else (None, b"")
        if built != definition(view):
            raise WorkspaceError(f"the online state was built for another definition of view {view.name!r}")
        shape = Shape.decode(view, types)
        return _Reader(view, described, shape, Packed(view, shape), heads(view), blocks(view))

    def row(self, snapshot: Snapshot, name: bytes | None, t: int) -> tuple[Any, ...]:
        """Return the view's values for the group ``name``; None is no group."""
        head = None if name is None else snapshot.get(self.heads, name)
        if head is None or name is None or head[4:5] == NO_DIRECTORY:
            return self.packed.row(t, head)
        found = self.kept.get(name)
        if found is None:
            found = self.packed.row(t, self._whole(snapshot, name, head, t))
            if len(self.kept) >= KEPT:
                self.kept.clear()
            self.kept[name] = found
        return found

    def frame(self, snapshot: Snapshot, requests: Requests, t: int) -> pl.DataFrame:
        """Return the view's columns for ``requests``. Raises RequestError when a column is missing."""
        require(requests.frame, self.view.request_columns)
        names = requests.groups(self.view.request_columns, self.shape.keys)
        distinct = list(dict.fromkeys(names))
        found = snapshot.get_many(self.heads, [name or b"" for name in distinct])
        read: list[Group] = [
            head if head is None or head[4:5] == NO_DIRECTORY else self._whole(snapshot, name or b"", head, t)
            for name, head in zip(distinct, found, strict=True)
        ]
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
