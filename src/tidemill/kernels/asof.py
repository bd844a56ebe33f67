"""As-of joins: for each query the last row of its group that is visible, and recent enough."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.kernels.aggregate import Feature, Rows, Value, aggregate
from tidemill.kernels.compiled import load
from tidemill.kernels.index import index

Array = npt.NDArray[Any]

_FOREVER = 2**63 - 1
_SHARED = 1 << 16  # rows and queries from which threads share the work

_native = load("asof")


def last(rows: Rows, asked: Array, t: Array, width: int | None = None) -> Array:
    """Return for each query the row that comes last among the visible ones, -1 when there is none; int64.

    A query is about group ``asked`` (-1 for none), at ``t``; both int64. It sees the rows of its group with
    ``time < t`` and ``start < t <= end``, and with a ``width`` (microseconds) ``time >= t - width``. The order is that
    of (time, known, seq). Compiled, rows are read once, as they lie; only the queries are sorted.
    """
    most = 2**32 - 1
    if _native is not None and len(rows.group) < most and len(t) < most:
        found = _compiled(rows, asked, np.ascontiguousarray(t, dtype=np.int64), width)
        if found is not None:
            return found
    (found,) = aggregate(rows, [Value(None)], [Feature("last", 0, width)], asked, t)
    return found


def _compiled(rows: Rows, asked: Array, t: Array, width: int | None) -> Array | None:
    """Return the same, or None where so many rows are replaced that it would take long."""
    assert _native is not None
    native = _native
    queries = index(asked, rows.groups, t)
    columns = tuple(
        np.ascontiguousarray(each, dtype=np.int64)
        for each in (rows.group, rows.time, rows.known, rows.seq, rows.start, rows.end)
    )
    out = np.full(len(t), -1, dtype=np.int64)
    length = _FOREVER if width is None else width

    def answer(first: int, last: int) -> bool:
        done: bool = native.last(*columns, queries.order, queries.bounds, t, length, out, first, last)
        return done

    # Each part reads all rows and keeps those of its groups: more parts than processors would only read more.
    parts = 1 if len(t) + len(rows.group) < _SHARED else os.cpu_count() or 1
    cuts = np.searchsorted(queries.bounds, np.linspace(0, int(queries.bounds[-1]), parts + 1)[1:-1])
    edges = sorted({0, *np.minimum(cuts, rows.groups).tolist(), rows.groups})
    if len(edges) <= 2:
        return out if answer(0, rows.groups) else None
    with ThreadPoolExecutor(max_workers=parts) as threads:
        done = list(threads.map(answer, *zip(*pairwise(edges), strict=True)))
    return out if all(done) else None
