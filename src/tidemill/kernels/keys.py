"""Which rows share their keys: numbers for the distinct keys of some rows, and the same numbers for others.

Keys are whole numbers, of one column or more. What else is compared (text, say) is for the caller to number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.kernels.compiled import load

Array = npt.NDArray[Any]

_SHARED = 1 << 16  # rows from which threads share the work

_native = load("keys")


@dataclass(frozen=True, slots=True)
class Keys:
    """The key of each row: ``columns`` of int64, one or more; ``null``: bool, which rows have no key, None for none."""

    columns: tuple[Array, ...]
    null: Array | None = None

    def __len__(self) -> int:
        return len(self.columns[0])


def match(ours: Keys, theirs: Keys) -> tuple[Array, Array, int]:
    """Number the distinct keys of ``ours`` from 0, as they first come.

    Return the number of each of ``ours`` and of each of ``theirs`` (int64, -1 for no key and for one that ``ours`` has
    not), and how many there are. Both have the same number of columns.
    """
    if _native is None or len(ours) >= 2**31 - 1:
        return _plain(ours, theirs)
    native = _native
    mine, other = np.empty(len(ours), dtype=np.int64), np.empty(len(theirs), dtype=np.int64)
    keys, groups = native.number(_contiguous(ours), ours.null, mine)
    columns = _contiguous(theirs)
    _in_parts(len(theirs), lambda first, last: native.find(keys, columns, theirs.null, other, first, last))
    return mine, other, groups


def repeated(hashes: Array) -> Array:
    """Return the places (ascending) of all ``hashes`` (uint64) that come more than once, with a few that do not.

    Compiled: those that share some of their bits with another are left, a few in a hundred. Plain: all.
    """
    if _native is None:
        return np.arange(len(hashes))
    marks = np.empty(len(hashes), dtype=np.bool_)
    _native.repeated(np.ascontiguousarray(hashes), marks)
    return np.flatnonzero(marks)


def _in_parts(count: int, work: Callable[[int, int], Any]) -> None:
    """Call ``work(first, last)`` for ranges that make up ``count``, in as many threads as there are processors."""
    parts = 1 if count < _SHARED else os.cpu_count() or 1
    if parts == 1:
        work(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(max_workers=parts) as threads:
        list(threads.map(work, *zip(*pairwise(edges), strict=True)))


def _contiguous(keys: Keys) -> tuple[Array, ...]:
    return tuple(np.ascontiguousarray(column, dtype=np.int64) for column in keys.columns)


def _plain(ours: Keys, theirs: Keys) -> tuple[Array, Array, int]:
    code = np.zeros(len(ours) + len(theirs), dtype=np.int64)
    for left, right in zip(ours.columns, theirs.columns, strict=True):
        values, column = np.unique(np.concatenate((left, right)), return_inverse=True)
        code = np.unique(code * len(values) + column, return_inverse=True)[1]  # stays below the number of rows
    mine, other = code[: len(ours)], code[len(ours) :]
    kept = np.arange(len(ours)) if ours.null is None else np.flatnonzero(~ours.null)
    distinct, first = np.unique(mine[kept], return_index=True)
    number = np.full(len(code) + 1, -1, dtype=np.int64)
    number[distinct[np.argsort(first)]] = np.arange(len(distinct))
    numbers = [
        number[each] if keys.null is None else np.where(keys.null, -1, number[each])
        for each, keys in ((mine, ours), (other, theirs))
    ]
    return numbers[0], numbers[1], len(distinct)
