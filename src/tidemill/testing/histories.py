"""Hypothesis strategies for small, nasty histories of a table and for questions on their edges.

A history is a list of rows as the oracle reads them (``testing/oracle.py``); ``frame`` turns it into the Polars frame
that the engine reads. Few keys, few groups and few moments, so that ties, corrections that move a row to another group,
late rows, rows known in advance and windows that end exactly on a row are the common case, not the rare one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl
from hypothesis import strategies as st

from tidemill.base.clock import DAY, MINUTE, parse_time
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.spec.feature import Aggregation, Latest, OnDemand, View
from tidemill.spec.source import Source, Table
from tidemill.testing.oracle import Row, timeless

TIME = pl.Datetime("us", "UTC")


def reading(tables: Mapping[str, pl.DataFrame]) -> Callable[[str, Sequence[str], int, int], pl.DataFrame]:
    """Return what reads some columns of some rows of ``tables``, as the lake does: see ``online.Read``."""
    return lambda table, columns, since, limit: tables[table].select(columns)[since : since + limit]


SYSTEM_TYPES: dict[str, pl.DataType] = {
    KNOWN_AT: TIME,
    SEQ: pl.Int64(),
    TOMBSTONE: pl.Boolean(),
    TICK: TIME,
    HISTORY: pl.Boolean(),
}

#: Moments lie on a grid of STEP from ORIGIN (microseconds), a few of them a microsecond off.
ORIGIN = parse_time("2024-03-10")
STEP = 30 * MINUTE
FAR = ORIGIN + 30 * DAY

#: Things, the groups they belong to, and the one that no row ever has.
KEYS = ("a", "b", "c", "d", "e")
GROUPS = ("a", "b")
NEVER = "never"

_FLOATS = (
    0.0, 1.0, -1.0, 0.1, 0.2, 0.3, -2.5, 1 / 3, 1e9, 1e9 + 0.1, 1e9 + 1, -1e9, 1e16, 1e-9, 1e-160, 1e160,
    123456.789, 3.141592653589793,
)  # fmt: skip
#: Signed zeros, what is not finite, numbers without an implicit bit, and numbers whose sums and squares overflow.
_EXTREMES = (
    0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 2.225073858507201e-308, 2.2250738585072014e-308,
    1e308, -1e308, 1.7976931348623157e308,
)  # fmt: skip
_INTS = (0, 1, -1, 2, 3, 7, 10**9, -(10**9), 2**53 + 1, -(2**40), 2**63 - 1, -(2**63))


def moments() -> st.SearchStrategy[int]:
    """Return times on the grid, ORIGIN to ORIGIN + 8 STEP, some a microsecond before or after."""
    return st.builds(
        lambda step, off: ORIGIN + step * STEP + off, st.integers(0, 8), st.sampled_from((0, 0, 0, 0, -1, 1))
    )


def values(dtype: pl.DataType) -> st.SearchStrategy[Any]:
    """Return non-null values of a Polars type (Float64, Int64, Boolean, String or Datetime)."""
    match dtype:
        case pl.Float64():
            ordinary = st.sampled_from(_FLOATS)
            return st.one_of(ordinary, ordinary, st.sampled_from(_EXTREMES), st.floats(-1e6, 1e6))
        case pl.Int64():
            return st.sampled_from(_INTS)
        case pl.Boolean():
            return st.booleans()
        case pl.String():
            return st.sampled_from(GROUPS)
        case pl.Datetime():
            return moments()
        case _:
            raise TypeError(f"no values for columns of type {dtype}")


def keys(dtype: pl.DataType) -> st.SearchStrategy[Any]:
    """Return values of a key column: more of them than groups."""
    return st.sampled_from(KEYS) if dtype == pl.String else values(dtype)


def _rarely(strategy: st.SearchStrategy[Any], rare: Any) -> st.SearchStrategy[Any]:
    """Return ``strategy`` with the value ``rare`` instead one time in eight."""
    return st.integers(0, 7).flatmap(lambda die: st.just(rare) if die == 7 else strategy)


@st.composite
def histories(
    draw: st.DrawFn,
    table: Source | Table,
    types: Mapping[str, pl.DataType],
    *,
    max_rows: int = 12,
    live: bool = False,
    offsets: Sequence[int] = (0, 1, STEP, 4 * STEP, -STEP, -5 * STEP),
) -> list[dict[str, Any]]:
    """Draw the rows of ``table``, numbered in order, whose user columns have ``types``.

    Known-at is near the event time (by one of ``offsets``, microseconds), or anywhere, or null, or far ahead. A
    tombstone keeps its columns or has none but its key. With ``live``, rows come in ticks that do not go back, and
    known-at is no earlier than the tick (rule 5); otherwise all is history.
    """
    rows: list[dict[str, Any]] = []
    tick = ORIGIN - STEP
    for seq in range(draw(st.integers(0, max_rows))):
        if live or timeless(table):
            tick += draw(st.sampled_from((0, 0, 1, STEP, 2 * STEP)))
        row = {
            name: draw(keys(dtype) if name in table.key else _rarely(values(dtype), None))
            for name, dtype in types.items()
        }
        happened = row[table.event_time] if table.event_time else None
        near = st.sampled_from([(happened or ORIGIN) + offset for offset in offsets])
        known = draw(st.one_of(near, near, near, moments(), st.sampled_from((None, FAR, ORIGIN - DAY))))
        if timeless(table):
            known = tick
        elif live and known is not None:
            known = max(known, tick)
        gone = draw(st.sampled_from((False,) * 6 + (True,)))
        if gone and draw(st.booleans()):
            row = {name: value if name in table.key else None for name, value in row.items()}
        rows.append({**row, KNOWN_AT: known, SEQ: seq, TOMBSTONE: gone, TICK: tick, HISTORY: not live})
    return rows


def requests(types: Mapping[str, pl.DataType]) -> st.SearchStrategy[dict[str, Any]]:
    """Return requests with columns of ``types``: values that rows have, now and then one never seen, or a null."""
    return st.fixed_dictionaries(
        {
            name: _rarely(_rarely(values(dtype), NEVER) if dtype == pl.String else values(dtype), None)
            for name, dtype in types.items()
        }
    )


def edges(rows: Iterable[Row], view: View) -> st.SearchStrategy[int]:
    """Return times to ask ``view`` at: on the grid, and on each edge that a row makes, a microsecond to either side.

    A row makes an edge where it becomes known, where it happened, and where it leaves a window.
    """
    table = None if isinstance(view, OnDemand) else view.table
    lengths = {0}
    if isinstance(view, Aggregation):
        lengths |= {window.micros for _, aggregate in view.features for window in aggregate.over}
    elif isinstance(view, Latest):
        lengths |= {view.within or 0}
    some, after_known = set(), set()
    for row in rows:
        known = row[KNOWN_AT]
        happened = row[table.event_time] if table is not None and table.event_time else None
        marks = {happened + length for length in lengths} if happened is not None else set()
        if known is not None:
            after_known |= {mark for mark in (*marks, known) if mark >= known}
            some.add(known)
        some |= marks
    if not after_known:
        return moments()
    off = st.sampled_from((-1, 0, 1, 1))
    return st.one_of(
        st.builds(int.__add__, st.sampled_from(sorted(after_known)), off),
        st.builds(int.__add__, st.sampled_from(sorted(after_known)), off),
        st.builds(int.__add__, st.sampled_from(sorted(some)), off),
        moments(),
    )


@st.composite
def questions(
    draw: st.DrawFn, rows: Sequence[Row], view: View, types: Mapping[str, pl.DataType]
) -> tuple[dict[str, Any], int]:
    """Draw a request with columns of ``types`` and the time it is asked at; more often than not it meets a row."""
    request = draw(requests(types))
    if rows and not isinstance(view, OnDemand) and draw(st.integers(0, 3)):
        row = draw(st.sampled_from(rows))
        columns = (*view.by, view.table.event_time or "")
        request |= {name: row[column] for column, name in zip(columns, view.request_columns, strict=False)}
    return request, draw(edges(rows, view))


def frame(rows: Sequence[Row], types: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return ``rows`` as the engine reads them: user columns of ``types``, then the system columns."""
    schema = {**types, **SYSTEM_TYPES}
    return pl.DataFrame({name: [row[name] for row in rows] for name in schema}, schema=schema)


def request_frame(requests: Sequence[Row], types: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return requests as a frame with columns of ``types``."""
    return pl.DataFrame({name: [each[name] for each in requests] for name in types}, schema=dict(types))
