"""Rows in order of group and time: what every kernel over groups starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.kernels.compiled import load

Array = npt.NDArray[Any]

_MOST = 2**32 - 1  # rows from which their numbers are not uint32

_native = load("windows")


@dataclass(frozen=True, slots=True)
class Index:
    """Rows by group, in order of time within each: those of group g are ``order[bounds[g]:bounds[g + 1]]``.

    ``order`` is uint32 (int64 beyond 2**32 rows), ``bounds`` int64.
    """

    order: Array
    bounds: Array


def index(group: Array, groups: int, *times: Array) -> Index:
    """Return the rows sorted by ``group`` (0 … groups - 1; -1 for none: left out), then by each of ``times``.

    All int64. Rows that tie stay in their order.
    """
    if _native is None or len(group) >= _MOST:
        order = np.lexsort((*reversed(times), group))
        bounds = np.searchsorted(group[order], np.arange(groups + 1))
        kind = np.uint32 if len(group) < _MOST else np.int64
        return Index(order[bounds[0] :].astype(kind), (bounds - bounds[0]).astype(np.int64))
    order, bounds = np.empty(len(group), dtype=np.uint32), np.empty(groups + 1, dtype=np.int64)
    arrays = tuple(np.ascontiguousarray(each, dtype=np.int64) for each in times)
    placed = _native.order(np.ascontiguousarray(group, dtype=np.int64), groups, arrays, order, bounds)
    return Index(order[:placed], bounds)
