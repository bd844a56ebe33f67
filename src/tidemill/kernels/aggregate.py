"""Aggregates of windows for many queries at once: one pass of the compiled kernel, or the plain one with equal bits.

The functions, of the rows of a window in order of (time, known, seq):

* ``count``: the rows whose value is there. Int64.
* ``sum``, ``mean``, ``std`` (of a sample, n - 1): correctly rounded float64; NaN of nothing, and ``std`` of one.
* ``min``, ``max``: float64, a zero without a sign; NaN of nothing.
* ``quantile``: for n values as float64 in ascending order, with p = (n - 1) * q and f = p - floor(p): between
  a = values[floor(p)] and the one after it, b, ``a + (b - a) * f`` for f < 0.5 and ``b - (b - a) * (1 - f)`` else, as
  ``numpy.quantile`` does; ``a`` for f = 0, and ``a * (1 - f) + b * f`` where b - a overflows. NaN of nothing.
* ``first``, ``last``: the row, -1 for none. Int64.
* ``n_unique``: the number of distinct codes. Int64.
* ``since_last``: the seconds from the time of the last row to t, correctly rounded; NaN where there is no row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tidemill.kernels.compiled import load
from tidemill.kernels.exact import Exact, deviation, exact, quotient, squares
from tidemill.kernels.index import Index, index
from tidemill.kernels.latest import Line
from tidemill.kernels.windows import Windows

Array = npt.NDArray[Any]
Way = Literal["either", "look", "sweep", "plain"]
Function = Literal["count", "sum", "mean", "std", "min", "max", "first", "last", "n_unique", "quantile", "since_last"]

#: In the order of the compiled kernel's numbers.
_FUNCTIONS = ("count", "sum", "mean", "std", "min", "max", "first", "last", "n_unique", "quantile", "since_last")
_WAYS = ("either", "look", "sweep")
_WHOLE = ("count", "first", "last", "n_unique")
_KINDS = {"f": 1, "i": 2, "u": 3}
_FOREVER = 2**63 - 1  # the compiled kernel's width without an end
_MICROS = 10**6
_TICKED = 1 << 24  # bytes up to which distinct codes are ticked off in a table, and not sorted
_SHARED = 1 << 16  # rows and queries from which threads share the work

_native = load("windows")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows, each of a ``group`` (0 … groups - 1, -1 for none) and visible for ``start < t <= end``.

    All int64, times in microseconds. Rows of a group are ordered by (time, known, seq).
    """

    group: Array
    groups: int
    time: Array
    known: Array
    seq: Array
    start: Array
    end: Array


@dataclass(frozen=True, slots=True)
class Value:
    """A value of each row: float64 (finite), int64, uint32 codes below ``codes``, or None: that the row is there.

    ``present``: bool, which rows have it; None for all.
    """

    data: Array | None
    present: Array | None = None
    codes: int = 0


@dataclass(frozen=True, slots=True)
class Feature:
    """One function of a value (its place) over a window of ``width`` microseconds, None for one without a beginning."""

    function: Function
    value: int
    width: int | None
    q: float = 0.0


def aggregate(
    rows: Rows,
    values: Sequence[Value],
    features: Sequence[Feature],
    asked: Array,
    t: Array,
    *,
    order: Index | None = None,
    way: Way = "either",
) -> list[Array]:
    """Return each feature for each query: about group ``asked`` (-1 for none), at ``t``; both int64.

    ``order``: the rows' index, ``index(rows.group, rows.groups, rows.time, rows.known, rows.seq)``, where there is one.
    ``way``: the plain kernel, or how the compiled one goes about it (see ``windows.c``): the results are the same.
    """
    if way == "plain" or _native is None or len(rows.group) >= 2**32 - 1 or len(t) >= 2**32 - 1:
        plain = _Plain(rows, values, asked, t)
        return [plain.answer(feature) for feature in features]
    if order is None:
        order = index(rows.group, rows.groups, rows.time, rows.known, rows.seq)
    return _compiled(rows, values, features, asked, t, order, _WAYS.index(way))


def _compiled(
    rows: Rows,
    values: Sequence[Value],
    features: Sequence[Feature],
    asked: Array,
    t: Array,
    order: Index,
    way: int,
) -> list[Array]:
    assert _native is not None
    native, t = _native, np.ascontiguousarray(t, dtype=np.int64)
    queries = index(asked, rows.groups, t)
    outs = []
    for feature in features:  # queries about no group are not answered, but by nothing
        whole = feature.function in _WHOLE
        none = -1 if feature.function in ("first", "last") else 0 if whole else np.nan
        outs.append(np.full(len(t), none, dtype=np.int64 if whole else np.float64))
    lengths = [_FOREVER if feature.width is None else feature.width for feature in features]
    widths = sorted(set(lengths))
    if not widths:
        return outs
    wanted = tuple(
        (_FUNCTIONS.index(feature.function), feature.value, widths.index(length), float(feature.q), out)
        for length, feature, out in sorted(zip(lengths, features, outs, strict=True), key=lambda each: each[0])
    )
    kept = tuple(
        (
            0 if value.data is None else _KINDS[value.data.dtype.kind],
            None if value.data is None else np.ascontiguousarray(value.data),
            None if value.present is None else np.ascontiguousarray(value.present),
            value.codes,
        )
        for value in values
    )
    times = tuple(np.ascontiguousarray(each, dtype=np.int64) for each in (rows.time, rows.start, rows.end))

    def answer(first: int, last: int) -> None:
        native.answer(
            order.order, order.bounds, *times, queries.order, queries.bounds, t, tuple(widths), kept, wanted, first,
            last, way,
        )  # fmt: skip

    parts = _parts(order.bounds + queries.bounds)
    if len(parts) == 1:
        answer(*parts[0])
    else:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
            list(threads.map(answer, *zip(*parts, strict=True)))
    return outs


def _parts(bounds: Array) -> list[tuple[int, int]]:
    """Return ranges of groups with about as much in each, a few for each processor; one where there is little."""
    groups, load = len(bounds) - 1, int(bounds[-1])
    count = 1 if load < _SHARED else 4 * (os.cpu_count() or 1)
    cuts = np.searchsorted(bounds, np.linspace(0, load, count + 1)[1:-1])
    edges = sorted({0, *np.minimum(cuts, groups).tolist(), groups})
    return list(pairwise(edges)) or [(0, 0)]


class _Plain:
    """The same by numpy; what several features need is made once."""

    def __init__(self, rows: Rows, values: Sequence[Value], asked: Array, t: Array) -> None:
        # Rows of no group get one that no query asks about.
        self._group = np.where(rows.group < 0, rows.groups, rows.group)
        self._rows, self._values, self._asked, self._t = rows, values, asked, t
        self._windows = Windows(self._group, rows.groups + 1, rows.time, rows.start, rows.end, asked=asked, t=t)
        self._numbers: dict[int, Exact] = {}
        self._lines: dict[int, tuple[Line, Array]] = {}

    def answer(self, feature: Feature) -> Array:
        """Return the feature for each query."""
        place, width = feature.value, feature.width
        match feature.function:
            case "count":
                assert width is not None
                return self._count(place, width)
            case "sum" | "mean" | "std":
                assert width is not None
                return self._moment(feature.function, place, width)
            case "min" | "max":
                return self._extreme(feature.function, place, width)
            case "n_unique":
                return self._distinct(place, width)
            case "quantile":
                return self._quantile(place, width, feature.q)
            case _:
                line, rows = self._line(place)
                found = line.first(width) if feature.function == "first" else line.last(width)
                rows = np.append(rows, -1)[found]  # found is -1 for none
                if feature.function != "since_last":
                    return rows
                micros = np.where(rows < 0, 0, self._t - np.append(self._rows.time, 0)[rows])
                return np.where(rows < 0, np.nan, quotient(micros, np.full(len(micros), _MICROS), 0))

    def _count(self, place: int, width: int) -> Array:
        present = self._values[place].present
        return self._windows.count(width) if present is None else self._windows.total(present.astype(np.int64), width)

    def _moment(self, function: str, place: int, width: int) -> Array:
        numbers = self._number(place)
        counts = self._count(place, width)
        sums = self._windows.total(numbers.integers, width)
        if function == "std":
            squared = self._windows.total(squares(numbers).integers, width)
            return deviation(counts, sums, squared, numbers.exponent)
        divisors = np.maximum(counts, 1) if function == "mean" else np.ones_like(counts)
        return np.where(counts > 0, quotient(sums, divisors, numbers.exponent), np.nan)

    def _extreme(self, function: str, place: int, width: int | None) -> Array:
        sign = 1.0 if function == "min" else -1.0
        values = sign * self._floats(place)
        smallest = np.full(len(self._t), np.inf)
        line, rows = self._line(place)
        for query, row in line.visible(width):
            np.minimum.at(smallest, query, values[rows[row]])
        return np.where(np.isinf(smallest), np.nan, sign * smallest + 0.0)  # + 0.0: zero has no sign

    def _distinct(self, place: int, width: int | None) -> Array:
        codes = self._data(place).astype(np.int64)
        counts = np.zeros(len(self._t), dtype=np.int64)
        base = self._values[place].codes
        line, rows = self._line(place)
        for query, row in line.visible(width):
            if not len(query):
                continue
            first, size = int(query[0]), int(query[-1] - query[0] + 1)
            pairs = (query - first) * base + codes[rows[row]]
            if size * base <= _TICKED:
                ticked = np.zeros(size * base, dtype=bool)
                ticked[pairs] = True
                counts[first : first + size] += ticked.reshape(size, base).sum(axis=1)
            else:
                counts += np.bincount(np.unique(pairs) // base + first, minlength=len(counts))
        return counts

    def _quantile(self, place: int, width: int | None, q: float) -> Array:
        values = self._floats(place)
        result = np.full(len(self._t), np.nan)
        line, rows = self._line(place)
        for query, row in line.visible(width):
            numbers = values[rows[row]]
            order = np.lexsort((numbers, query))
            numbers = numbers[order]
            queries, first, count = np.unique(query[order], return_index=True, return_counts=True)
            result[queries] = interpolated(numbers, first, count, q)
        return result

    def _number(self, place: int) -> Exact:
        if place not in self._numbers:
            data, present = self._data(place), self._values[place].present
            self._numbers[place] = exact(data, np.ones(len(data), dtype=bool) if present is None else present)
        return self._numbers[place]

    def _floats(self, place: int) -> Array:
        floats: Array = self._data(place).astype(np.float64)
        return floats

    def _data(self, place: int) -> Array:
        data = self._values[place].data
        assert data is not None
        return data

    def _line(self, place: int) -> tuple[Line, Array]:
        """Return the rows whose value is there, in order of time, and their places among all rows."""
        if place not in self._lines:
            present, rows = self._values[place].present, self._rows
            kept = np.arange(len(rows.time)) if present is None else np.flatnonzero(present)
            times = (each[kept] for each in (rows.time, rows.known, rows.seq, rows.start, rows.end))
            line = Line(self._group[kept], rows.groups + 1, *times, asked=self._asked, t=self._t)
            self._lines[place] = line, kept
        return self._lines[place]


def interpolated(numbers: Array, first: Array, count: Array, q: float) -> Array:
    """Return quantile ``q`` of each stretch ``numbers[first:first + count]`` (ascending, not empty)."""
    place = (count - 1).astype(np.float64) * q
    whole = np.floor(place)
    part = place - whole
    low = first + whole.astype(np.int64)
    a, b = numbers[low], numbers[np.minimum(low + 1, first + count - 1)]
    with np.errstate(over="ignore", invalid="ignore"):
        step = b - a
        near = np.where(part < 0.5, a + step * part, b - step * (1.0 - part))
        far = a * (1.0 - part) + b * part
    result: Array = np.where(part == 0.0, a, np.where(np.isfinite(step), near, far)) + 0.0
    return result
