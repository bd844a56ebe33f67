"""What lies behind a mismatch: each is derived again under assumptions, until one gives what was logged.

A hypothesis yields worlds (see ``scene``): the rows that the view would have had if a row had been lost, or counted
twice, or not been applied yet. One in which the view answers what was logged, in every column and bit, is a possible
cause. Of the possible causes of all mismatches, the one that accounts for most of them is taken first, then the one
that accounts for most of the rest (the greedy cover of Chvátal 1979): a lost row explains one group for as long as its
window lasts, a stale view every group with new rows. Where causes account for the same mismatches, the earlier of
``HYPOTHESES`` wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tidemill.base.clock import DAY, HOUR, MINUTE, SECOND
from tidemill.engine.feature import TableView
from tidemill.engine.scene import Cause, Scene, World, answers
from tidemill.spec.feature import Aggregation

Mask = npt.NDArray[np.bool_]

_STATES = 50  # earlier states tried

Hypothesis = Callable[[Scene], Iterator[World]]


def edge(scene: Scene) -> Iterator[World]:
    """Rows exactly at an edge of a window lay on its other side, or the question was asked a microsecond off."""
    age = scene.age
    if age is not None:
        ends: dict[str, tuple[Mask, int]] = {
            "the row at t is counted": (age == 0, -1),
            "the row just before t is not counted": (age == 1, 1),
        }
        for width in _widths(scene.view):
            ends |= {
                f"the row at the start of the window of {width} µs is not counted": (age == width, -1),
                f"the row just before the window of {width} µs is counted": (age == width + 1, 1),
            }
        named = [(name, mask * by) for name, (mask, by) in ends.items() if mask.any()]
        closed = (age == 0) | np.isin(age, _widths(scene.view))
        if closed.any():
            named.append(("the window ends with t, and not before it", closed * -1))
        for name, shift in named:
            yield World(Cause("window edge", scene.view.name, name), scene.seen, scene.t, shift=shift)
    for by in (-1, 1):
        name = f"asked at t {'+' if by > 0 else '-'} 1 µs"
        yield World(Cause("window edge", scene.view.name, name), scene.seen, scene.t + by)


def doubled(scene: Scene) -> Iterator[World]:
    """A row was counted twice."""
    for place in scene.likely(lambda adds: adds):
        cause = Cause("doubled row", scene.view.table.name, int(scene.seq[place]))
        yield World(cause, scene.seen, scene.t, again=np.array([place]))


def lost(scene: Scene) -> Iterator[World]:
    """A row was missing."""
    for place in scene.likely(lambda adds: -adds):
        cause = Cause("lost row", scene.view.table.name, int(scene.seq[place]))
        yield World(cause, scene.seen, scene.t, without=np.array([place]))


def stale(scene: Scene) -> Iterator[World]:
    """Rows from some number on had not been applied."""
    for place in scene.likely(lambda adds: -np.cumsum(adds[::-1])[::-1]):
        number, before = int(scene.seq[place]), int(scene.seq[place - 1]) if place else -1
        yield World(Cause("stale state", scene.view.name, number), number, scene.t, between=(before, number))


def earlier(scene: Scene) -> Iterator[World]:
    """The answer was that of an earlier state, at its time."""
    for t, seen in scene.states[:_STATES]:
        yield World(Cause("stale state", scene.view.name, f"as of {t}"), seen, t)


def ahead(scene: Scene) -> Iterator[World]:
    """Rows showed that had not been applied."""
    for number in scene.seq[scene.seq >= scene.seen][: scene.most].tolist():
        yield World(Cause("ahead", scene.view.name, "rows from beyond what had been applied"), number + 1, scene.t)


def together(scene: Scene) -> Iterator[World]:
    """All rows that one tick brought were missing, or counted twice."""
    for tick, places in scene.ticks():
        words = f"all of tick {tick}"
        yield World(Cause("lost row", scene.view.table.name, words), scene.seen, scene.t, without=places)
        yield World(Cause("doubled row", scene.view.table.name, words), scene.seen, scene.t, again=places)


def shifted(scene: Scene) -> Iterator[World]:
    """Event times were off by a whole unit."""
    if scene.age is None:
        return
    for unit, text in ((1000, "1 ms"), (SECOND, "1 s"), (MINUTE, "1 min"), (HOUR, "1 h"), (DAY, "1 d")):
        for sign, word in ((-1, "earlier"), (1, "later")):
            shift = np.full(scene.rows.height, sign * unit, dtype=np.int64)
            cause = Cause("window edge", scene.view.name, f"event times {text} {word}")
            yield World(cause, scene.seen, scene.t, shift=shift)


#: Tried in this order; of causes that account for the same mismatches the earlier one is taken.
HYPOTHESES: tuple[Hypothesis, ...] = (edge, doubled, lost, stale, earlier, ahead, together, shifted)


def _widths(view: TableView) -> list[int]:
    """Return the lengths of the view's windows, ``within`` among them."""
    if isinstance(view, Aggregation):
        return sorted({window.micros for _, aggregate in view.features for window in aggregate.over})
    return [] if view.within is None else [view.within]


def causes(scene: Scene, suspects: Mapping[Cause, Any]) -> list[World]:
    """Return the worlds in which the view answers what was logged.

    Those of ``suspects``, causes already found, are tried first and by themselves, for one fault shows in many answers.
    """
    logged = msgspec.json.encode(scene.logged)
    known: list[World] = []
    others: list[World] = []
    for rank, hypothesis in enumerate(HYPOTHESES):
        for world in hypothesis(scene):
            (known if _suspected(world, suspects) else others).append(replace(world, rank=rank))
    for worlds in (known, others):
        answered = zip(worlds, answers(scene, worlds) if worlds else (), strict=True)
        found = [world for world, answer in answered if answer == logged]
        if found:
            return found
    return []


def _suspected(world: World, suspects: Mapping[Cause, Any]) -> bool:
    if world.between is None:
        return world.cause in suspects
    kind, where, _ = world.cause
    low, high = world.between
    return any(
        (each.kind, each.where) == (kind, where) and isinstance(each.detail, int) and low < each.detail <= high
        for each in suspects
    )


def cover(found: Sequence[Sequence[World]]) -> list[Cause | None]:
    """Return a cause for each mismatch, given the worlds that account for it: as few causes as the greedy way finds."""
    cuts: dict[str, list[int]] = {}
    for world in chain.from_iterable(found):
        if world.between is not None:
            cuts.setdefault(world.cause.where, []).append(world.between[1])
    ranks: dict[Cause, int] = {}
    by_cause: dict[Cause, set[int]] = {}
    for place, worlds in enumerate(found):
        for world in worlds:
            kind, where, detail = world.cause
            details: Sequence[int | str] = [detail]
            if world.between is not None:
                details = [cut for cut in set(cuts[where]) if world.between[0] < cut <= world.between[1]]
            for each in details:
                cause = Cause(kind, where, each)
                by_cause.setdefault(cause, set()).add(place)
                ranks[cause] = min(ranks.get(cause, world.rank), world.rank)
    chosen: list[Cause | None] = [None] * len(found)
    while by_cause:
        best = min(by_cause, key=lambda cause: (-len(by_cause[cause]), ranks[cause], str(cause)))
        covered = by_cause.pop(best)
        for place in covered:
            chosen[place] = best
        by_cause = {cause: rest for cause, places in by_cause.items() if (rest := places - covered)}
    return chosen
