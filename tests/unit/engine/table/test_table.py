"""What is visible when, by hand; the oracle's histories are in test_feature_oracle.py."""

from __future__ import annotations

from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.clock import FOREVER
from tidemill.engine.table.table import ALWAYS, spans, timeless, visible
from tidemill.testing.histories import TIME, frame

TYPES: dict[str, pl.DataType] = {"id": pl.String(), "part": pl.Int64(), "at": TIME}
EVENTS = tm.Source("events", tm.files("*"), key=("id", "part"), event_time="at")
STATIC = tm.Source("static", tm.files("*"), key=("id", "part"))


def row(seq: int, known: int | None, id: str | None = "a", *, gone: bool = False, at: int | None = 0) -> dict[str, Any]:
    system = {"_known_at": known, "_seq": seq, "_tombstone": gone, "_tick": 0, "_history": False}
    return {"id": id, "part": 1, "at": at, **system}


def seen(rows: list[dict[str, Any]], t: int, table: tm.Source = EVENTS) -> list[int]:
    return visible(frame(rows, TYPES), table, t)["_seq"].to_list()


def test_known_before_t_the_last_version_less_tombstones() -> None:
    rows = [row(0, 5), row(1, 9), row(2, 7), row(3, 12, gone=True), row(4, 14), row(5, None)]
    assert [seen(rows, t) for t in (5, 6, 8, 10, 13, 15)] == [[], [0], [2], [1], [], [4]]
    got = spans(frame(rows, TYPES), EVENTS).select("_seq", "_from", "_to").rows()
    assert got == [(0, 5, 7), (1, 9, 12), (2, 7, 9), (4, 14, FOREVER)]


def test_versions_known_at_once_go_by_sequence() -> None:
    rows = [row(0, 5), row(1, 5)]
    assert seen(rows, 6) == [1]
    assert spans(frame(rows, TYPES), EVENTS)["_seq"].to_list() == [1]


def test_a_key_with_a_null_is_a_version_of_nothing() -> None:
    assert seen([row(0, 1, None), row(1, 2, None), row(2, 3, None, gone=True)], 9) == [0, 1]


def test_a_timeless_table_shows_its_newest_versions_always() -> None:
    rows = [row(0, 50), row(1, 40), row(2, 10, "b"), row(3, 10, "b", gone=True)]
    assert timeless(STATIC)
    assert not timeless(tm.Source("pushed", tm.push(), key="id"))
    assert seen(rows, 0, STATIC) == [1]
    assert spans(frame(rows, TYPES), STATIC).select("_seq", "_from", "_to").rows() == [(1, ALWAYS, FOREVER)]


def test_no_rows() -> None:
    assert seen([], 5) == []
    assert spans(frame([], TYPES), EVENTS).schema["_to"] == pl.Int64


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5) | st.none(), st.booleans()), max_size=12))
@settings(deadline=None, max_examples=40)
def test_spans_say_what_visible_says(versions: list[tuple[str, int | None, bool]]) -> None:
    rows = [row(seq, known, id, gone=gone) for seq, (id, known, gone) in enumerate(versions)]
    for table in (EVENTS, STATIC):
        spanned = spans(frame(rows, TYPES), table)
        for t in range(8):
            within = spanned.filter((pl.col("_from") < t) & (pl.col("_to") >= t))
            assert sorted(within["_seq"]) == seen(rows, t, table)
