"""Splits: which rows a model may learn from and which judge it."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.clock import DAY, parse_duration
from tidemill.spec import argument


@dataclass(frozen=True, slots=True)
class ByTime:
    """The newest ``test`` microseconds of mature examples judge; training ends ``gap`` before them.

    Judging rolls through the test period in ``blocks`` equal parts: each is predicted by a model fitted on the rows
    that were mature before it, less the gap.
    """

    test: int
    gap: int
    blocks: int


@dataclass(frozen=True, slots=True)
class ByKey:
    """A share ``test`` of the keys judges, chosen by a hash of the key, so that growth does not reshuffle."""

    test: float
    seed: int


def by_time(*, test: str, gap: str = "0s", blocks: int = 1) -> ByTime:
    """Judge on the newest ``test`` of time, with a ``gap`` before it, in ``blocks`` rolling parts."""
    argument.require(blocks, int, "blocks= of by_time()", "Write a whole number.")
    if blocks < 1:
        raise ValueError("blocks must be at least 1")
    return ByTime(parse_duration(test), parse_duration(gap), blocks)


def by_key(*, test: float = 0.2, seed: int = 0) -> ByKey:
    """Judge on the share ``test`` (0 < test < 1) of keys, chosen by a hash of the key and ``seed``."""
    argument.number(test, "test= of by_key()")
    if not 0 < test < 1:
        raise ValueError(f"test must lie between 0 and 1, not {test}")
    return ByKey(test, seed)


Split = ByTime | ByKey

#: Resampling unit of intervals and tests, in microseconds.
BLOCK = DAY
