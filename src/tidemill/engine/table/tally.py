"""What cleaning steps and joins did: counted while a table's function runs, kept in the entry of its commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

#: What a step did, by name: ``step`` and numbers of rows and values.
Count = dict[str, Any]

#: The numbers in it, in order; a join has ``rows`` and ``matched``.
NUMBERS = ("rows", "matched", "dropped", "filled", "changed", "emptied", "flagged")

_RUNS: ContextVar[list[list[Count]] | None] = ContextVar("runs", default=None)


@contextmanager
def counting() -> Iterator[list[list[Count]]]:
    """Collect what steps do meanwhile: a list of runs, each begun by ``begin``, of what each step did."""
    runs: list[list[Count]] = []
    token = _RUNS.set(runs)
    try:
        yield runs
    finally:
        _RUNS.reset(token)


def begin() -> None:
    """Begin another run of a table's function."""
    if (runs := _RUNS.get()) is not None:
        runs.append([])


def tell(count: Count) -> None:
    """Note what a step did, when somebody counts."""
    if runs := _RUNS.get():
        runs[-1].append(count)


def added(runs: Iterable[Sequence[Count]]) -> list[Count]:
    """Return what each step did in all ``runs`` together; a step is known by its place and its name."""
    total: dict[tuple[int, str], Count] = {}
    for run in runs:
        for place, count in enumerate(run):
            sums = total.setdefault((place, count["step"]), {"step": count["step"]})
            sums |= {name: sums.get(name, 0) + count[name] for name in NUMBERS if name in count}
    return [total[each] for each in sorted(total, key=lambda each: each[0])]


def report(bodies: Iterable[Mapping[str, Any]]) -> dict[str, list[Count]]:
    """Return by table what each step did to the rows that came of it, from the bodies of commit entries in order.

    Tables made row by row add up, from the last time everything was made anew; the others are made whole each time.
    """
    found: dict[str, list[Count]] = {}
    for body in bodies:
        if cleaned := body.get("cleaned"):
            before = [found.get(body["table"], [])] if cleaned["more"] else []
            found[body["table"]] = added([*before, cleaned["steps"]])
    return found
