"""Time zones as tables of changes, asked of Polars itself: what is looked up in one is what Polars converts to.

Polars carries a time zone database of its own, which need not be the one Python finds on the machine, and knows no
daylight saving after 2099. A table made from its answers agrees with it at any moment by construction.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import DAY, HOUR, parse_time
from tidemill.spec.function import known, on_clocks

Array = npt.NDArray[Any]
Table = tuple[tuple[int, ...], tuple[int, ...]]

_FIRST, _LAST = parse_time("1800-01-01"), parse_time("2101-01-01")  # standard time began later; all rules end before
_STEP = 12 * HOUR  # no zone changed and changed back within half a day
_EARLIER = np.array([parse_time("0001-01-02"), parse_time("1500-06-01")])
_LATER = _LAST + 91 * DAY * np.arange(400)


@lru_cache(maxsize=1024)
def table(zone: str) -> Table | None:
    """Return when the clocks of ``zone`` change (UTC, rising) and their offsets before the first change and after each.

    Both in microseconds. None when Polars knows no such zone, or one whose clocks still change after 2100.
    """
    if not known(zone):
        return None
    grid = pl.int_range(_FIRST, _LAST, _STEP, eager=True)
    times, offsets = grid.to_numpy(), _offsets(grid, zone)
    turning = np.flatnonzero(offsets[1:] != offsets[:-1])
    before, after, old = times[turning], times[turning + 1], offsets[turning]
    while (after - before > 1).any():
        middle = before + (after - before) // 2
        unchanged = _at(middle, zone) == old
        before, after = np.where(unchanged, middle, before), np.where(unchanged, after, middle)
    found = (int(offsets[0]), *_at(after, zone).tolist())
    early, late = set(_at(_EARLIER, zone).tolist()), set(_at(_LATER, zone).tolist())
    return (tuple(after.tolist()), found) if (early, late) == ({found[0]}, {found[-1]}) else None


def _at(times: Array, zone: str) -> Array:
    return _offsets(pl.Series(times.tolist(), dtype=pl.Int64), zone)  # a list: arrays make Polars load numpy.ma


def _offsets(times: pl.Series, zone: str) -> Array:
    local = on_clocks(times.cast(pl.Datetime("us", "UTC")), zone)
    return (local.to_physical() - times).to_numpy()
