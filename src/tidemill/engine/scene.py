"""One question to one view, and what the view would answer if its rows were others than they are.

An assumption about rows is a world. Worlds of one question are stacked into one table, told apart by one more key
column, and computed by the function that computes everything else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import DAY
from tidemill.base.schema import SEQ, TICK
from tidemill.engine.feature import TableView, Versions, by_columns, by_version, compute, keys, prepare, reach, slots
from tidemill.engine.predict import plain
from tidemill.engine.table import LONE, TIME, lone, spans
from tidemill.spec.feature import Aggregation

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
D = TypeVar("D")

_WORLD, _COPY = "_world", "_copy"
_NONE = np.zeros(0, dtype=np.int64)
_BUDGET = 200_000  # rows stacked for one question
_FAR = 200  # rows kept where no window ends
_SLACK = DAY  # around a window, for edges that moved
_NEAR = 1e-9  # relative: how closely a quick sum must meet what was logged


class Cause(NamedTuple):
    """A possible cause: its kind (of ``parity.CAUSES``), the view or table, and what exactly (a number or words)."""

    kind: str
    where: str
    detail: int | str


@dataclass(frozen=True, slots=True)
class World:
    """The rows of a scene under one assumption, and the time of the question.

    ``upto``: only rows numbered below it. ``without`` and ``again``: places of rows left out, and counted twice.
    ``shift``: microseconds by which the event time of each row is moved; None leaves them. ``between``: the assumption
    is the same for every ``upto`` above the first number and up to the second. ``rank``: place of its hypothesis.
    """

    cause: Cause
    upto: int
    t: int
    without: Ints = field(default_factory=lambda: _NONE)
    again: Ints = field(default_factory=lambda: _NONE)
    shift: Ints | None = None
    between: tuple[int, int] | None = None
    rank: int = 0


@dataclass(frozen=True)
class Scene:
    """One question to one view.

    ``rows``: all versions of the keys that can matter to it, in order of sequence, those that came later too. ``t``,
    ``seen`` (rows applied) and ``logged`` (the view's columns): as logged. ``states``: (t, rows applied) of answers
    before it, newest first. ``suspects``: numbers of rows to be tried first.
    """

    view: TableView
    rows: pl.DataFrame
    request: pl.DataFrame
    t: int
    seen: int
    logged: Mapping[str, Any]
    states: Sequence[tuple[int, int]] = ()
    suspects: Sequence[int] = ()

    @cached_property
    def seq(self) -> Ints:
        """The rows' numbers."""
        return self.rows[SEQ].to_numpy()

    @cached_property
    def applied(self) -> Ints:
        """Places of the rows that had been applied, newest first."""
        return np.flatnonzero(self.seq < self.seen)[::-1]

    @cached_property
    def age(self) -> Ints | None:
        """How long before ``t`` each row happened, in microseconds; None where windows do not matter."""
        time = self.view.table.event_time
        if by_version(self.view) or time is None:
            return None
        return self.t - self.rows[time].cast(TIME).to_physical().fill_null(-(2**62)).to_numpy()

    @property
    def most(self) -> int:
        """How many worlds of one hypothesis are tried: fewer of long windows."""
        return max(_BUDGET // (4 * max(self.rows.height, 1)), 16)

    def ticks(self) -> Iterator[tuple[int, Ints]]:
        """Yield the ticks that brought several of the applied rows, newest first, with the places of those."""
        ticks = self.rows[TICK].cast(TIME).to_physical().to_numpy()[self.applied]
        distinct, counts = np.unique(ticks, return_counts=True)
        for tick in distinct[counts > 1][::-1][: self.most].tolist():
            yield tick, self.applied[ticks == tick]

    def likely(self, change: Callable[[Floats], Floats]) -> list[int]:
        """Return places of applied rows, those first with which the view is likely to have answered as logged.

        ``change`` says by how much each row, being lost, say, would change a sum, given what each adds to it, in order
        of sequence. Counts, sums and means are reckoned so, in floating point, for all rows at once; rows that
        contradict the fewest columns come first, after suspects and before older ones.
        """
        seq = self.seq[self.applied]
        wrong = np.full(len(seq), np.iinfo(np.int64).max)
        if isinstance(self.view, Aggregation) and len(seq) > self.most:
            rows = self.rows[self.applied[::-1]]
            versions, _ = prepare(self.view, spans(rows, self.view.table))
            order = np.argsort(versions.seq)
            places = np.searchsorted(-seq, -versions.seq[order])
            wrong[places] = _contradictions(self.view, versions, order, self.t, self.logged, change)
        suspects = np.searchsorted(self.seq, np.asarray(self.suspects, dtype=np.int64))
        wrong[np.isin(self.applied, suspects)] = -1
        return [int(place) for place in self.applied[np.argsort(wrong, kind="stable")][: self.most]]


def _contradictions(
    view: Aggregation, versions: Versions, order: Ints, t: int, logged: Mapping[str, Any],
    change: Callable[[Floats], Floats],
) -> Ints:  # fmt: skip
    """Count, for each version in ``order``, the columns that would not be as ``logged`` with what it would change."""
    shows = (versions.start < t) & (t <= versions.end) & (versions.time < t)
    values = {slot.expression: versions.values.to_series(place) for place, slot in enumerate(slots(view))}
    found = np.zeros(len(order), dtype=np.int64)
    for name, each in view.features:
        if each.function not in ("count", "sum", "mean"):
            continue
        there = np.ones(len(order)) if each.value is None else values[each.value].is_not_null().to_numpy() * 1.0
        numbers = there if each.value is None else values[each.value].cast(pl.Float64).fill_null(0.0).to_numpy()
        for window in each.over:
            inside = (shows & (versions.time >= t - window.micros))[order]
            ones, adds = there[order] * inside, numbers[order] * inside
            count, total = ones.sum() + change(ones), adds.sum() + change(adds)
            said = logged[f"{view.name}__{name}_{window.text}"]
            if each.function == "count" or said is None:
                found += count != (said or 0)
                continue
            total = total / np.maximum(count, 1) if each.function == "mean" else total
            scale = np.abs(adds).max(initial=0.0) * (1 if each.function == "mean" else max(float(ones.sum()), 1.0))
            found += ~np.isclose(total, said, rtol=_NEAR, atol=_NEAR * scale) | (count == 0)
    return found


def answers(scene: Scene, worlds: Sequence[World]) -> list[bytes]:
    """Return what the view would have answered in each of ``worlds``: its columns as the log writes them."""
    seq, places, copies, shifts = scene.seq, [], [], []
    for world in worlds:
        kept = np.flatnonzero(seq < world.upto)
        kept = np.setdiff1d(kept, world.without, assume_unique=True) if len(world.without) else kept
        places.append(np.concatenate((kept, world.again)))
        copies.append(np.repeat([0, 1], [len(kept), len(world.again)]))
        shifts.append(np.zeros(len(places[-1]), dtype=np.int64) if world.shift is None else world.shift[places[-1]])
    number = np.repeat(np.arange(len(worlds)), [len(each) for each in places])
    rows = scene.rows[np.concatenate(places)].with_columns(
        pl.Series(_WORLD, number, dtype=pl.Int64), pl.Series(_COPY, np.concatenate(copies), dtype=pl.Int64)
    )
    if (time := scene.view.table.event_time) is not None:
        moved = pl.col(time).cast(TIME).to_physical() + pl.Series(np.concatenate(shifts), dtype=pl.Int64)
        rows = rows.with_columns(moved.cast(TIME).alias(time))
    table = scene.view.table
    table = _with(table, key=(*table.key, _COPY, _WORLD))
    view = _with(scene.view, table=table, by=(*scene.view.by, _WORLD))
    requests = scene.request[np.zeros(len(worlds), dtype=np.int64)].with_columns(
        pl.int_range(len(worlds), dtype=pl.Int64).alias(_WORLD)
    )
    asked = np.array([world.t for world in worlds], dtype=np.int64)
    return [msgspec.json.encode(row) for row in plain(compute(view, rows, requests, asked)).iter_rows(named=True)]


class Scenes:
    """Makes the scenes of one view: finds the rows that can matter to each of ``requests``, asked at ``t``."""

    def __init__(self, view: TableView, rows: pl.DataFrame, requests: pl.DataFrame) -> None:
        self._view, self._rows, self._requests = view, rows, requests
        columns = by_columns(view)
        types = [rows.schema[column] for column in columns]
        theirs, ours = keys(rows, columns, types), keys(requests, view.request_columns, types)
        distinct = ours.unique(maintain_order=True).drop_nulls().with_row_index("group")
        self._asked = _matched(ours, distinct)
        self._group = _matched(theirs, distinct)
        numbered = rows.select(*view.table.key, lone(view.table), pl.int_range(pl.len(), dtype=pl.Int64).alias(_WORLD))
        self._key = numbered.select(pl.col(_WORLD).min().over(*view.table.key, LONE)).to_series().to_numpy()

    def group(self, request: int) -> int:
        """Return the number of the group that a request asks about; -1 for none."""
        return int(self._asked[request])

    def scene(self, request: int, t: int, seen: int, logged: Mapping[str, Any], **more: Any) -> Scene:
        """Return the scene of the request at that place; ``more``: its other attributes."""
        own = np.flatnonzero((self._group == self._asked[request]) & (self._asked[request] >= 0))
        if not by_version(self._view) and len(own):
            time = self._rows[str(self._view.table.event_time)][own].cast(TIME).to_physical()
            age = t - time.fill_null(2**62).to_numpy()
            own, age = own[age > -_SLACK], age[age > -_SLACK]
            width = reach(self._view)
            own = own[age <= width + _SLACK] if width is not None else own[np.argsort(age, kind="stable")[:_FAR]]
        rows = np.flatnonzero(np.isin(self._key, np.unique(self._key[own])))
        return Scene(self._view, self._rows[rows], self._requests[request], t, seen, logged, **more)


def _matched(frame: pl.DataFrame, distinct: pl.DataFrame) -> Ints:
    joined = frame.join(distinct, on=frame.columns, how="left", maintain_order="left")
    return joined["group"].cast(pl.Int64).fill_null(-1).to_numpy()


def _with(declared: D, **changes: Any) -> D:
    """Return a copy of a frozen declaration with other attributes."""
    made = copy.copy(declared)
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made
