"""Window sums against a direct look at every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tidemill.kernels.windows import Windows, bisect


def rows_and_queries(seed: int, rows: int = 60, queries: int = 80) -> tuple[list[npt.NDArray[Any]], list[Any]]:
    random = np.random.default_rng(seed)
    group, event, start = (random.integers(0, high, rows) for high in (4, 20, 25))
    end = np.where(random.random(rows) < 0.5, 2**63 - 1, start + random.integers(1, 9, rows))
    return [group, event, start, end], [random.integers(-1, 4, queries), random.integers(0, 45, queries)]


@pytest.mark.parametrize("seed", range(8))
def test_totals_and_counts(seed: int) -> None:
    (group, event, start, end), (asked, t) = rows_and_queries(seed)
    numbers = np.random.default_rng(seed).integers(-50, 50, len(group))
    windows = Windows(group, 4, event, start, end, asked=asked, t=t)
    for width in (1, 4, 9):
        inside = [
            (group == g) & (event >= at - width) & (event < at) & (start < at) & (at <= end)
            for g, at in zip(asked, t, strict=True)
        ]
        assert windows.count(width).tolist() == [int(mask.sum()) for mask in inside]
        assert windows.total(numbers, width).tolist() == [int(numbers[mask].sum()) for mask in inside]
        assert windows.total(numbers.astype(object), width).tolist() == [int(numbers[mask].sum()) for mask in inside]


def test_no_rows_and_no_queries() -> None:
    none = np.zeros(0, dtype=np.int64)
    asked, t = np.array([-1, 0]), np.array([5, 5])
    assert Windows(none, 1, none, none, none, asked=asked, t=t).count(3).tolist() == [0, 0]
    assert Windows(none, 0, none, none, none, asked=np.array([-1]), t=t[:1]).total(none, 3).tolist() == [0]
    one = np.zeros(1, dtype=np.int64)
    assert Windows(one, 1, one, one, one + 9, asked=none, t=none).count(3).tolist() == []


def test_bisect_is_searchsorted_within_ranges() -> None:
    random = np.random.default_rng(0)
    times = np.concatenate([np.sort(random.integers(0, 9, size)) for size in (0, 1, 7, 20)])
    low, high = np.array([0, 0, 1, 8, 8, 28]), np.array([0, 1, 8, 28, 8, 28])
    for t in range(-1, 11):
        want = [a + np.searchsorted(times[a:b], t) for a, b in zip(low, high, strict=True)]
        assert bisect(times, low, high, np.full(6, t)).tolist() == want
