"""What lies behind a mismatch: each is derived again under assumptions, until one gives what was logged.

A hypothesis yields worlds (see ``scene``): the rows that the view would have had if a row, or a range of rows, had been
lost, or counted twice, or not been applied yet. One in which the view answers what was logged, in every column and bit,
is a possible cause. Of the possible causes of all mismatches, the one that accounts for most of them is taken first,
then the one that accounts for most of the rest (the greedy cover of Chvátal 1979): a lost row explains one group for as
long as its window lasts, a lost batch every group that it had rows of, a stale view every group with new rows. Where
causes account for the same mismatches, the earlier of ``HYPOTHESES`` wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from tidemill.base.clock import DAY, FOREVER, HOUR, MINUTE, SECOND
from tidemill.engine.feature.feature import TableView
from tidemill.engine.parity.scene import Area, Cause, Scene, World, answers
from tidemill.spec.feature import Aggregation

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_ALIKE = 200  # worlds of one question that are kept
_TELLING = 8  # a question with more possible causes than this names no suspects
_SUSPECTS = 64

#: Earlier states tried.
STATES = 50

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


def doubled_row(scene: Scene) -> Iterator[World]:
    """A row was counted twice."""
    each = np.arange(scene.applied)
    yield from _ranges(scene, "doubled row", each, each)


def lost_row(scene: Scene) -> Iterator[World]:
    """A row was missing."""
    each = np.arange(scene.applied)
    yield from _ranges(scene, "lost row", each, each)


def stale(scene: Scene) -> Iterator[World]:
    """Rows from some number on had not been applied."""
    newest_first = np.arange(scene.applied)[::-1]
    last = np.full(scene.applied, scene.applied - 1)
    view = scene.view.name
    for place in scene.likely(newest_first, last, -1, _areas(scene.suspects, "stale state", view)):
        first = int(newest_first[place])
        after, number, *_ = scene.area(first, first)
        area = Area(after, number, FOREVER - 1, FOREVER)
        yield World(Cause("stale state", view, range(number, FOREVER)), number, scene.t, area=area)


def earlier(scene: Scene) -> Iterator[World]:
    """The answer was that of an earlier state, at its time."""
    for t, seen in scene.states[:STATES]:
        yield World(Cause("stale state", scene.view.name, f"as of {t}"), seen, t)


def ahead(scene: Scene) -> Iterator[World]:
    """Rows showed that had not been applied."""
    for number in scene.seq[scene.seq >= scene.seen][: scene.most].tolist():
        yield World(Cause("ahead", scene.view.name, "rows from beyond what had been applied"), number + 1, scene.t)


def lost_rows(scene: Scene) -> Iterator[World]:
    """Rows that follow on each other were missing: a batch never came, or a state skipped some and then went on."""
    if scene.applied > 1:
        yield from _ranges(scene, "lost row", *scene.ranges)


def doubled_rows(scene: Scene) -> Iterator[World]:
    """Rows that follow on each other were counted twice: a batch was taken in again."""
    if scene.applied > 1:
        yield from _ranges(scene, "doubled row", *scene.ranges)


def _ranges(scene: Scene, kind: str, firsts: Ints, lasts: Ints) -> Iterator[World]:
    table, gone = scene.view.table.name, kind == "lost row"
    sign = -1 if gone else 1
    for each in scene.likely(firsts, lasts, sign, _areas(scene.suspects, kind, table)):
        first, last = int(firsts[each]), int(lasts[each])
        area, places = scene.area(first, last), np.arange(first, last + 1)
        world = World(Cause(kind, table, range(area.first, area.last + 1)), scene.seen, scene.t, area=area)
        yield replace(world, without=places) if gone else replace(world, again=places)


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
HYPOTHESES: tuple[Hypothesis, ...] = (
    edge, doubled_row, lost_row, stale, earlier, ahead, shifted, lost_rows, doubled_rows,
)  # fmt: skip


def _widths(view: TableView) -> list[int]:
    """Return the lengths of the view's windows, ``within`` among them."""
    if isinstance(view, Aggregation):
        return sorted({window.micros for _, aggregate in view.features for window in aggregate.over})
    return [] if view.within is None else [view.within]


def causes(scene: Scene) -> list[World]:
    """Return the worlds in which the view answers what was logged; of very many, the most likely ones.

    The scene's suspects are tried first and by themselves, for one fault shows in many answers.
    """
    logged = msgspec.json.encode(scene.logged)
    known: list[World] = []
    others: list[World] = []
    for rank, hypothesis in enumerate(HYPOTHESES):
        for world in hypothesis(scene):
            (known if _suspected(world, scene.suspects) else others).append(replace(world, rank=rank))
    for worlds in (known, [] if scene.suspects_only else others):
        answered = zip(worlds, answers(scene, worlds) if worlds else (), strict=True)
        found = [world for world, answer in answered if answer == logged]
        if found:
            return found[:_ALIKE]
    return []


def _suspected(world: World, suspects: Iterable[World]) -> bool:
    if world.area is None:
        return any(each.cause == world.cause for each in suspects)
    return any(map(world.area.meets, _areas(suspects, world.cause.kind, world.cause.where)))


def _areas(worlds: Iterable[World], kind: str, where: str) -> list[Area]:
    return [each.area for each in worlds if each.area and (each.cause.kind, each.cause.where) == (kind, where)]


def suspects_with(suspects: Sequence[World], found: Sequence[World]) -> list[World]:
    """Return the suspects after one more question, which ``found`` account for: the ones it confirms come first.

    A question that much can account for tells little; its worlds make no suspects.
    """
    fresh = [each for each in found if not _suspected(each, suspects)] if len(found) <= _TELLING else []
    confirmed = [each for each in suspects if _suspected(each, found)]
    others = [each for each in suspects if not _suspected(each, found)]
    return [*confirmed, *fresh, *others][:_SUSPECTS]


@dataclass(frozen=True, slots=True)
class _Family:
    """Worlds whose causes differ in their rows alone, or not at all: which mismatches they account for.

    ``places`` of the mismatches, ``areas`` (a row of four numbers each) and ``ranks`` of the worlds.
    """

    cause: Cause
    places: Ints
    areas: Ints
    ranks: Ints

    def without(self, places: Ints) -> _Family:
        """Return what is left when the mismatches at ``places`` are accounted for."""
        left = ~np.isin(self.places, places)
        return self if left.all() else _Family(self.cause, self.places[left], self.areas[left], self.ranks[left])

    def best(self) -> _Claim:
        """Return the cause that accounts for most mismatches; of equals the least range of rows."""
        if isinstance(self.cause.detail, str):
            return _Claim(self.cause, np.unique(self.places), int(self.ranks.min()))
        after, first, last, before = self.areas.T
        firsts, begins = np.unique(first), np.sort(after)
        # A range that begins at a number can account for no more mismatches than there are areas around that number.
        bounds = np.searchsorted(begins, firsts) - np.searchsorted(np.sort(first), firsts)
        best: tuple[int, int, int] | None = None  # mismatches, less the length, and the first number
        for place in np.lexsort((-firsts, -bounds)).tolist():
            if best is not None and bounds[place] < best[0]:
                break
            number = int(firsts[place])
            around = (after < number) & (number <= first)
            ends = np.unique(last[around])
            depth = np.searchsorted(np.sort(last[around]), ends, side="right")
            depth -= np.searchsorted(np.sort(before[around]), ends, side="right")
            end = int(ends[depth.argmax()])
            best = max(best or (0, 0, 0), (int(depth.max()), number - end, number))
        assert best is not None
        number, end = best[2], best[2] - best[1]
        chosen = (after < number) & (number <= first) & (last <= end) & (end < before)
        open_end = end == FOREVER - 1
        rank = int(self.ranks[chosen].min()) if open_end or number == end else len(HYPOTHESES)
        rows = range(number, FOREVER if open_end else end + 1)
        return _Claim(self.cause._replace(detail=rows), np.unique(self.places[chosen]), rank)


class _Claim(NamedTuple):
    """A cause, the places of the mismatches that it accounts for, and its rank among causes that do the same."""

    cause: Cause
    places: Ints
    rank: int


def cover(found: Sequence[Sequence[World]]) -> list[Cause | None]:
    """Return a cause for each mismatch, given the worlds that account for it: as few causes as the greedy way finds."""
    chosen: list[Cause | None] = [None] * len(found)
    families = _families(found)
    claims = [family.best() for family in families]
    while claims:
        claim = min(claims, key=lambda each: (-len(each.places), each.rank, str(each.cause)))
        for place in claim.places.tolist():
            chosen[place] = claim.cause
        left = [(family, family.without(claim.places), each) for family, each in zip(families, claims, strict=True)]
        left = [each for each in left if len(each[1].places)]
        families = [family for _, family, _ in left]
        claims = [each if family is before else family.best() for before, family, each in left]
    return chosen


def _families(found: Sequence[Sequence[World]]) -> list[_Family]:
    worlds: dict[Cause, list[tuple[int, World]]] = {}
    for place, each in enumerate(found):
        for world in each:
            cause = world.cause if world.area is None else world.cause._replace(detail=range(0))
            worlds.setdefault(cause, []).append((place, world))
    return [
        _Family(
            cause,
            np.array([place for place, _ in members], dtype=np.int64),
            np.array([world.area or (0, 0, 0, 0) for _, world in members], dtype=np.int64),
            np.array([world.rank for _, world in members], dtype=np.int64),
        )
        for cause, members in worlds.items()
    ]
