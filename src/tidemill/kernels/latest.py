"""Rows in order of time within their group: the last or first visible one, and all visible ones of a stretch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.kernels.windows import bisect, bounds, ranges

Array = npt.NDArray[Any]

_BEGINNING = -(2**63)
_CHUNK = 1 << 21  # rows looked at together; bounds the memory of a scan


class Line:
    """Rows sorted by (group, time, known, seq), each visible for start < t <= end, and queries about them.

    Rows: ``group`` (0 … groups - 1), ``time``, ``known``, ``seq``, ``start``, ``end``; queries: ``asked`` (a group, or
    -1 for none) and ``t``. All int64, times in microseconds. A query is about the rows of its group with
    ``time < t``, and with a ``width`` ``time >= t - width``.
    """

    def __init__(
        self,
        group: Array,
        groups: int,
        time: Array,
        known: Array,
        seq: Array,
        start: Array,
        end: Array,
        *,
        asked: Array,
        t: Array,
    ) -> None:
        self._order = np.lexsort((seq, known, time, group))
        self._time, self._start, self._end, self._t = time[self._order], start[self._order], end[self._order], t
        self._low, high = ranges(bounds(group, groups), asked)
        self._high = bisect(self._time, self._low, high, t)

    def last(self, width: int | None = None) -> Array:
        """Return for each query the row that comes last among the visible ones, -1 when there is none."""
        low = self._since(width)
        return self._walk(self._high - 1, low, -1)

    def first(self, width: int | None = None) -> Array:
        """Return for each query the row that comes first among the visible ones, -1 when there is none."""
        return self._walk(self._since(width), self._high - 1, 1)

    def visible(self, width: int | None = None) -> Iterator[tuple[Array, Array]]:
        """Yield (query, row) for every visible row of every query, chunk by chunk; a query lies in one chunk."""
        low = self._since(width)
        sizes = self._high - low
        ends = np.cumsum(sizes)
        first = 0
        while first < len(sizes):
            done = int(ends[first - 1]) if first else 0
            after = max(int(np.searchsorted(ends, done + _CHUNK, side="right")), first + 1)
            size = sizes[first:after]
            query = np.repeat(np.arange(first, after), size)
            place = np.arange(len(query)) - np.repeat(ends[first:after] - size - done, size) + low[query]
            t = self._t[query]
            seen = (self._start[place] < t) & (t <= self._end[place])
            yield query[seen], self._order[place[seen]]
            first = after

    def _since(self, width: int | None) -> Array:
        if width is None:
            return self._low
        since = np.where(self._t < _BEGINNING + width, _BEGINNING, self._t - width)  # does not run beyond int64
        return bisect(self._time, self._low, self._high, since)

    def _walk(self, place: Array, stop: Array, step: int) -> Array:
        """Return the first visible row from ``place`` to ``stop`` (inclusive) in the direction of ``step``, or -1.

        One step for all unanswered queries at a time: few steps unless much of a group is late, replaced or withdrawn.
        """
        found = np.full(len(place), -1, dtype=np.int64)
        waiting = np.flatnonzero((stop - place) * step >= 0)
        place = place[waiting]
        while len(waiting):
            t = self._t[waiting]
            seen = (self._start[place] < t) & (t <= self._end[place])
            found[waiting[seen]] = self._order[place[seen]]
            place = place[~seen] + step
            waiting = waiting[~seen]
            more = (stop[waiting] - place) * step >= 0
            waiting, place = waiting[more], place[more]
        return found
