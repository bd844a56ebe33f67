"""Windows over rows that come late and are replaced: sums as differences of two prefix sums.

A row with event time e that is visible for start < t <= end lies in the window [t - w, t) for exactly the t with
``max(start, e) < t <= min(end, e + w)``: it opens and it closes. So a sum at t is the sum of the rows that have opened
before t less the sum of those that have closed before t, and each is a prefix sum, found by binary search. When all
queries ask at one time, as they do online, rows are compared with it instead, and nothing is sorted by time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.kernels.exact import prefix

Array = npt.NDArray[Any]


def bounds(group: Array, groups: int) -> Array:
    """Return where each of ``groups`` groups starts when rows are sorted by group, and the number of rows last."""
    return np.concatenate(([0], np.cumsum(np.bincount(group, minlength=groups)))).astype(np.int64)


def ranges(bounds: Array, asked: Array) -> tuple[Array, Array]:
    """Return first and last + 1 position of the groups ``asked`` about; an empty range for the group -1 (none)."""
    known = asked >= 0
    place = np.where(known, asked, 0)
    if len(bounds) == 1:
        return np.zeros_like(place), np.zeros_like(place)
    return np.where(known, bounds[place], 0), np.where(known, bounds[place + 1], 0)


def bisect(times: Array, low: Array, high: Array, t: Array) -> Array:
    """Return for each query the first position in [low, high) with ``times >= t``, or ``high``.

    ``times`` is ascending within each of the ranges.
    """
    low, high = low.copy(), high.copy()
    if not len(times):
        return low
    widest = int((high - low).max(initial=0))
    for _ in range(widest.bit_length()):
        middle = (low + high) >> 1
        before = (low < high) & (times[np.minimum(middle, len(times) - 1)] < t)
        low = np.where(before, middle + 1, low)
        high = np.where(before, high, middle)
    return low


class Windows:
    """Rows and queries, sorted and searched once for all columns and, for each width, once more.

    Rows: ``group`` (0 … groups - 1), ``event``, ``start``, ``end``; queries: ``asked`` (a group, or -1 for none) and
    ``t``. All int64, times in microseconds.
    """

    def __init__(
        self, group: Array, groups: int, event: Array, start: Array, end: Array, *, asked: Array, t: Array
    ) -> None:
        self._group, self._event, self._end, self._t = group, event, end, t
        self._opens = np.maximum(start, event)
        self._low, self._high = ranges(bounds(group, groups), asked)
        self._one_time = len(t) > 0 and bool((t == t[0]).all())
        if self._one_time:
            self._order = np.argsort(group, kind="stable")
            self._open = self._opens < t[0]
        else:
            self._opening, self._opened = self._search(self._opens)
            self._closing: dict[int, tuple[Array, Array]] = {}

    def total(self, integers: Array, width: int) -> Array:
        """Return for each query the sum of ``integers`` (one per row) over the window of ``width`` microseconds."""
        if self._one_time:
            return self._sum(np.where(self._inside(width), integers, 0))
        order, closed = self._close(width)
        result: Array = prefix(integers[self._opening])[self._opened] - prefix(integers[order])[closed]
        return result

    def count(self, width: int) -> Array:
        """Return for each query the number of rows in the window of ``width`` microseconds."""
        if self._one_time:
            return self._sum(self._inside(width).astype(np.int64))
        result: Array = self._opened - self._close(width)[1]
        return result

    def _inside(self, width: int) -> Array:
        """Return which rows lie in the window of ``width`` at the one time."""
        inside: Array = self._open & (self._t[0] <= np.minimum(self._end, self._event + width))
        return inside

    def _sum(self, integers: Array) -> Array:
        sums = prefix(integers[self._order])
        result: Array = sums[self._high] - sums[self._low]
        return result

    def _close(self, width: int) -> tuple[Array, Array]:
        if width not in self._closing:
            # A row that would close before it opens (it came too late for this width) opens and closes at once.
            self._closing[width] = self._search(np.maximum(np.minimum(self._end, self._event + width), self._opens))
        return self._closing[width]

    def _search(self, times: Array) -> tuple[Array, Array]:
        order = np.lexsort((times, self._group))
        return order, bisect(times[order], self._low, self._high, self._t)
