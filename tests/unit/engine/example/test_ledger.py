"""Draining predictions and feedback into the lake, exactly once."""

from __future__ import annotations

from typing import Any

import msgspec
import polars as pl

import tidemill as tm
from tidemill.adapters.memory_lake import MemoryLake
from tidemill.adapters.memory_log import MemoryLog
from tidemill.engine.example import ledger
from tidemill.engine.predict import records
from tidemill.engine.predict.predict import Logged
from tidemill.testing.lake_suite import GivenFence


def logged(number: int, asked: int = 5) -> bytes:
    fields: dict[str, Any] = {
        "id": f"p{number}", "model": "m", "version": 1, "route": "champion", "asked": asked, "journal": 3, "nonce": "",
        "applied": {"b": 2, "a": 1}, "key": [number], "request": {"id": number, "x": 0.1 + 0.2},
        "features": {"y": 1e300, "z": None}, "prediction": 0.1,
        "columns": msgspec.Raw(b'["y", "x", "z"]'),
    }  # fmt: skip
    return msgspec.json.encode(Logged(**fields))


def test_a_drain_commits_rows_and_cursor_once() -> None:
    lake, log, fence = MemoryLake(), MemoryLog(), GivenFence()
    writer = log.writer()
    assert ledger.drain(records.PREDICTIONS, log, lake, fence, 10) is None
    for number in (2, 1):
        writer.append(logged(number))
    drained = ledger.drain(records.PREDICTIONS, log, lake, fence, 10)
    assert drained is not None
    assert drained.rows["id"].to_list() == ["p1", "p2"]  # by (asked, id), whatever process wrote first
    assert drained.commit.next_seq == 2
    assert ledger.drain(records.PREDICTIONS, log, lake, fence, 20) is None
    writer.append(logged(3))
    second = ledger.drain(records.PREDICTIONS, log, lake, fence, 30)
    assert second is not None
    assert second.rows["_seq"].to_list() == [2]
    assert pl.DataFrame(lake.scan(records.PREDICTIONS))["id"].to_list() == ["p1", "p2", "p3"]


def test_a_new_segment_is_drained_beside_the_old_one() -> None:
    lake, log, fence = MemoryLake(), MemoryLog(), GivenFence()
    first, second = log.writer(), log.writer()
    second.append(logged(1))
    ledger.drain(records.PREDICTIONS, log, lake, fence, 10)
    first.append(logged(2))
    second.append(logged(3))
    drained = ledger.drain(records.PREDICTIONS, log, lake, fence, 20)
    assert drained is not None
    assert drained.rows["id"].to_list() == ["p2", "p3"]


def test_floats_survive_the_ledger_bit_for_bit() -> None:
    row = ledger.prediction_rows([logged(1)])
    assert msgspec.json.decode(row["request"][0])["x"] == 0.1 + 0.2
    features = msgspec.json.decode(row["features"][0])
    assert list(features.items()) == [("y", 1e300), ("x", 0.1 + 0.2), ("z", None)]  # x came with the request


def test_feedback_about_a_prediction_waits_for_it() -> None:
    source = tm.Source("a", tm.push(), key="id", event_time="at")
    model = tm.Model(
        "m", examples=source, asked_at="at", label=tm.Label(source, "x", within="1d"), features=["x"],
        estimator=object(), task="regression",
    )  # fmt: skip
    stamps = {"_known_at": 7, "_tombstone": False, "_tick": 7, "_history": False}
    given = [
        {"model": "m", "prediction": "p1", "key": None, "value": "1.5", "_seq": 0, **stamps},
        {"model": "m", "prediction": None, "key": "[4]", "value": "2.5", "_seq": 1, **stamps},
        {"model": "m", "prediction": "unknown", "key": None, "value": "9", "_seq": 2, **stamps},
        {"model": "other", "prediction": None, "key": "[5]", "value": "9", "_seq": 3, **stamps},
    ]
    feedback = pl.DataFrame(given)
    asked = ledger.prediction_rows([logged(1), logged(2)])
    known = ledger.feedback_by_key(feedback, asked, model, {"id": pl.Int64()})
    assert known.select("id", "value").rows() == [(1, "1.5"), (4, "2.5")]
