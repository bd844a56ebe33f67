"""One question to one view, and what the view would answer if its rows were others than they are.

An assumption about rows is a world. Worlds of one question are stacked into one table, told apart by one more key
column, and computed by the function that computes everything else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import DAY, FOREVER
from tidemill.base.schema import SEQ, TICK
from tidemill.engine.feature.feature import (
    TableView,
    Versions,
    by_columns,
    by_version,
    compute,
    keys,
    prepare,
    reach,
    slots,
)
from tidemill.engine.table.plain import plain
from tidemill.engine.table.table import LONE, TIME, lone, spans
from tidemill.spec.feature import Aggregation

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
D = TypeVar("D")

_WORLD, _COPY = "_world", "_copy"
_NONE = np.zeros(0, dtype=np.int64)
_BUDGET = 200_000  # rows stacked for one question
_FAR = 200  # rows kept where no window ends
_SLACK = DAY  # around a window, for edges that moved
_RANGES = 50_000  # ranges of rows looked at for one question
_NEAR = 1e-9  # relative: how closely a quick sum must meet what was logged


class Cause(NamedTuple):
    """A possible cause: its kind (of ``parity.CAUSES``), the view or table, and what exactly.

    ``detail``: the numbers of the rows that were lost, doubled or not applied (to FOREVER for a state that stands
    still), or words.
    """

    kind: str
    where: str
    detail: range | str


class Area(NamedTuple):
    """Ranges of row numbers that are the same to one question, for rows of other groups lie between its own.

    They begin above ``after`` and not above ``first``, and end (their last number) at ``last`` or later, and below
    ``before``. The least of them is from ``first`` to ``last``.
    """

    after: int
    first: int
    last: int
    before: int

    def meets(self, other: Area) -> bool:
        """Tell whether some range is of both."""
        firsts = max(self.after, other.after) < min(self.first, other.first)
        return firsts and max(self.last, other.last) < min(self.before, other.before)


@dataclass(frozen=True, slots=True)
class World:
    """The rows of a scene under one assumption, and the time of the question.

    ``upto``: only rows numbered below it. ``without`` and ``again``: places of rows left out, and counted twice.
    ``shift``: microseconds by which the event time of each row is moved; None leaves them. ``area``: where the cause is
    a range of rows, all ranges that come to the same here. ``rank``: place of its hypothesis.
    """

    cause: Cause
    upto: int
    t: int
    without: Ints = field(default_factory=lambda: _NONE)
    again: Ints = field(default_factory=lambda: _NONE)
    shift: Ints | None = None
    area: Area | None = None
    rank: int = 0


@dataclass(frozen=True)
class Scene:
    """One question to one view.

    ``rows``: all versions of the keys that can matter to it, in order of sequence, those that came later too. ``t``,
    ``seen`` (rows applied) and ``logged`` (the view's columns): as logged. ``states``: (t, rows applied) of answers
    before it, newest first. ``suspects``: worlds that account for other questions, whose causes are tried first, and,
    with ``suspects_only``, alone.
    """

    view: TableView
    rows: pl.DataFrame
    request: pl.DataFrame
    t: int
    seen: int
    logged: Mapping[str, Any]
    states: Sequence[tuple[int, int]] = ()
    suspects: Sequence[World] = ()
    suspects_only: bool = False

    @cached_property
    def seq(self) -> Ints:
        """The rows' numbers."""
        return self.rows[SEQ].to_numpy()

    @cached_property
    def applied(self) -> int:
        """How many of the rows had been applied: the first so many."""
        return int(np.searchsorted(self.seq, self.seen))

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

    @cached_property
    def ranges(self) -> tuple[Ints, Ints]:
        """Places of the first and last row of ranges of several applied rows, the newest and shortest first.

        All of them where the rows are few, else those that whole ticks brought, of the newest ticks.
        """
        few = self.applied * self.applied <= 2 * _RANGES
        ticks = self.rows[TICK].cast(TIME).to_physical().to_numpy()[: self.applied]
        begins = np.arange(self.applied) if few else np.flatnonzero(np.diff(ticks, prepend=ticks[0] - 1))
        ends = np.append(begins[1:], self.applied) - 1
        newest = max(len(begins) - math.isqrt(2 * _RANGES), 0)
        one, other = np.triu_indices(len(begins) - newest)
        firsts, lasts = begins[newest + one], ends[newest + other]
        order = np.lexsort((-firsts, -lasts))
        several = order[firsts[order] < lasts[order]]
        return firsts[several], lasts[several]

    def area(self, first: int, last: int) -> Area:
        """Return the ranges of numbers that leave out the rows at the places ``first`` to ``last`` and no other."""
        after = int(self.seq[first - 1]) if first else -1
        before = int(self.seq[last + 1]) if last + 1 < self.applied else FOREVER
        return Area(after, int(self.seq[first]), int(self.seq[last]), before)

    def likely(self, firsts: Ints, lasts: Ints, sign: int, suspects: Sequence[Area]) -> Ints:
        """Return which of some ranges of rows to try, those first with which the view likely answered as logged.

        ``firsts`` and ``lasts``: places. ``sign``: -1 for rows that were missing, 1 for rows that were counted twice.
        Counts, sums and means are reckoned so, in floating point, for all ranges at once; the ranges that contradict
        the fewest columns come first, after those that ``suspects`` name.
        """
        wrong = np.zeros(len(firsts), dtype=np.int64)
        if isinstance(self.view, Aggregation) and len(firsts) > self.most and not self.suspects_only:
            versions, _ = prepare(self.view, spans(self.rows[: self.applied], self.view.table))
            wrong = _contradictions(self, self.view, versions, firsts, lasts, sign)
        bounds = np.concatenate(([-1], self.seq[: self.applied], [FOREVER]))
        for each in suspects:
            begins = (bounds[firsts] < each.first) & (bounds[firsts + 1] > each.after)
            wrong[begins & (bounds[lasts + 2] > each.last) & (bounds[lasts + 1] < each.before)] = -1
        found = np.flatnonzero(wrong < 0) if self.suspects_only else np.argsort(wrong, kind="stable")
        return found[: self.most]


def _contradictions(scene: Scene, view: Aggregation, versions: Versions, firsts: Ints, lasts: Ints, sign: int) -> Ints:
    """Count, for each range of rows, the columns that would not be as logged with it gone, or counted twice."""
    t, places = scene.t, np.searchsorted(scene.seq, versions.seq)
    shows = (versions.start < t) & (t <= versions.end) & (versions.time < t)
    values = {slot.expression: versions.values.to_series(place) for place, slot in enumerate(slots(view))}
    found = np.zeros(len(firsts), dtype=np.int64)

    def with_it(each: Floats) -> tuple[Floats, Floats]:
        """Return what each row adds to a sum, by place, and the sum with each range gone or twice."""
        adds = np.zeros(scene.applied)
        adds[places] = each
        upto = np.concatenate(([0.0], np.cumsum(adds)))
        return adds, upto[-1] + sign * (upto[lasts + 1] - upto[firsts])

    for name, each in view.features:
        if each.function not in ("count", "sum", "mean"):
            continue
        there = np.ones(len(versions)) if each.value is None else values[each.value].is_not_null().to_numpy() * 1.0
        numbers = there if each.value is None else values[each.value].cast(pl.Float64).fill_null(0.0).to_numpy()
        for window in each.over:
            inside = shows & (versions.time >= t - window.micros)
            (ones, count), (adds, total) = with_it(there * inside), with_it(numbers * inside)
            said = scene.logged[f"{view.name}__{name}_{window.text}"]
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
