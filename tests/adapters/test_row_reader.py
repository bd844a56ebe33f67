from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tidemill.adapters.row_reader import RowReader, columns_of
from tidemill.base.errors import SourceError


def test_dictionaries_frames_and_arrow_in_order_with_the_number_taken() -> None:
    items: list[Any] = [
        {"a": 1},
        {"b": "x"},
        pl.DataFrame({"a": [2, 3]}),
        pa.record_batch({"a": [4]}),
        pa.table({"a": [5]}),
        pl.DataFrame({"a": []}),
    ]
    batches = list(RowReader(lambda taken: items if taken == 0 else []).poll(None))
    assert [batch.rows.to_pylist() for batch in batches] == [
        [{"a": 1, "b": None}, {"a": None, "b": "x"}],
        [{"a": 2}, {"a": 3}],
        [{"a": 4}],
        [{"a": 5}],
    ]
    assert [batch.cursor for batch in batches] == ["2", "4", "5", "6"]


def test_the_function_is_asked_from_the_cursor_on() -> None:
    asked = []

    def feed(taken: int) -> Iterator[dict[str, int]]:
        asked.append(taken)
        yield from ({"a": i} for i in range(taken, 5))

    reader = RowReader(feed)
    assert [row["a"] for batch in reader.poll("3") for row in batch.rows.to_pylist()] == [3, 4]
    assert asked == [3]


def test_mixed_columns_become_text_and_numbers_stay_numbers() -> None:
    when = dt.datetime(2013, 1, 1, tzinfo=dt.UTC)
    table = columns_of(
        [
            {"n": 1, "m": 1.0, "big": 2**70, "t": when},
            {"n": 1.5, "m": "a", "big": 1, "t": when.replace(tzinfo=None)},
            {"m": True},
        ]
    )
    assert table.to_pylist() == [
        {"n": 1.0, "m": "1", "big": str(2**70), "t": "2013-01-01T00:00:00+00:00"},
        {"n": 1.5, "m": "a", "big": "1", "t": "2013-01-01T00:00:00"},
        {"n": None, "m": "true", "big": None, "t": None},
    ]


def test_faults_of_the_function_name_it() -> None:
    def broken(_: int) -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise ValueError("no network")

    with pytest.raises(SourceError, match=r"broken\(0\) failed: ValueError: no network"):
        list(RowReader(broken).poll(None))
    with pytest.raises(SourceError, match="yielded a int"):
        list(RowReader(lambda _: [3]).poll(None))
