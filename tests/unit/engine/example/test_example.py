"""Examples, labels and training sets, by hand; the oracle's histories are in test_feature_oracle.py."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.base.clock import HOUR
from tidemill.base.errors import NotFoundError
from tidemill.engine.example.example import examples, labels, training_set
from tidemill.testing.histories import TIME, frame

PLAN: dict[str, pl.DataType] = {"id": pl.String(), "due": TIME, "size": pl.Float64()}
DONE: dict[str, pl.DataType] = {"id": pl.String(), "done": TIME, "late": pl.Float64()}
PLANS = tm.Source("plans", tm.files("*"), key="id", event_time="due", known_at="made")
RESULTS = tm.Source("results", tm.files("*"), key="id", event_time="done")


def model(otherwise: bool | None = None) -> tm.Model:
    label = tm.Label(RESULTS, pl.col("late") > 0, within="2h", settle="1h", otherwise=otherwise)
    return tm.Model(
        "m", examples=PLANS, asked_at=tm.before("due", "1h"), label=label, features=["size"],
        estimator=LogisticRegression(),
    )  # fmt: skip


def row(seq: int, known: int, gone: bool = False, **values: Any) -> dict[str, Any]:
    system = {"_known_at": known * HOUR, "_seq": seq, "_tombstone": gone, "_tick": 0, "_history": False}
    return {**values, **system}


def plan(seq: int, id: str, known: int, due: int | None, gone: bool = False) -> dict[str, Any]:
    return row(seq, known, gone, id=id, due=None if due is None else due * HOUR, size=float(seq))


def result(seq: int, id: str, done: int, late: float | None, known: int | None = None) -> dict[str, Any]:
    return row(seq, done if known is None else known, id=id, done=done * HOUR, late=late)


def test_the_newest_version_known_before_its_own_question() -> None:
    rows = [
        plan(0, "kept", 0, 10), plan(1, "kept", 10, 11),  # known too late for its own question: changes nothing
        plan(2, "moved", 0, 10), plan(3, "moved", 5, 20),
        plan(4, "withdrawn", 0, 10), plan(5, "withdrawn", 5, None, gone=True),
        plan(6, "withdrawn late", 0, 10), plan(7, "withdrawn late", 9, None, gone=True),
        plan(8, "never asked", 0, None), plan(9, "too late", 10, 10), plan(10, "unknown", 50, 90),
    ]  # fmt: skip
    found, counts = examples(model(), frame(rows, PLAN), 30 * HOUR)
    asked = found["_asked_at"].to_physical() // HOUR
    got = {id: (seq, hour) for id, seq, hour in zip(found["id"], found["_seq"], asked, strict=True)}
    assert got == {"kept": (0, 9), "withdrawn late": (6, 9), "moved": (3, 19)}
    assert found["id"].to_list() == ["kept", "withdrawn late", "moved"]
    assert counts == {"no_example": 3}


def test_labels_and_their_status() -> None:
    asked = dict.fromkeys(("late", "on time", "edge", "early", "after", "null", "corrected", "unseen"), 10)
    plans = [plan(seq, name, 0, due) for seq, (name, due) in enumerate((asked | {"young": 30}).items())]
    rows = [
        result(0, "late", 10, 5.0), result(1, "on time", 10, -5.0), result(2, "edge", 11, 5.0),
        result(3, "early", 9, 5.0), result(4, "after", 12, 5.0), result(5, "null", 10, None),
        result(6, "corrected", 10, 5.0), result(7, "corrected", 10, -5.0, known=20), result(8, "young", 30, 5.0),
    ]  # fmt: skip
    found, _ = examples(model(), frame(plans, PLAN), 32 * HOUR)
    got = labels(model(), found, frame(rows, DONE), 32 * HOUR)
    assert dict(zip(got["id"], zip(got["_label"], got["_status"], strict=True), strict=True)) == {
        "late": (True, "ok"), "on time": (False, "ok"), "edge": (True, "ok"), "early": (None, "none"),
        "after": (None, "none"), "null": (None, "null"), "corrected": (False, "ok"), "unseen": (None, "none"),
        "young": (None, "immature"),
    }  # fmt: skip
    other = labels(model(otherwise=False), found, frame(rows, DONE), 32 * HOUR)
    assert other.filter(pl.col("id") == "unseen").select("_label", "_status").rows() == [(False, "ok")]


def test_mature_means_strictly_earlier() -> None:
    found, _ = examples(model(), frame([plan(0, "a", 0, 10)], PLAN), 30 * HOUR)
    rows = frame([result(0, "a", 10, 5.0)], DONE)
    assert labels(model(), found, rows, 12 * HOUR)["_status"].to_list() == ["immature"]
    assert labels(model(), found, rows, 12 * HOUR + 1)["_status"].to_list() == ["ok"]


def test_a_training_set_is_sorted_windowed_and_counted() -> None:
    plans = [plan(0, "b", 0, 10), plan(1, "a", 0, 10), plan(2, "old", 0, 5), plan(3, "c", 0, 9), plan(4, "n", 0, None)]
    rows = [result(seq, id, 10, 5.0) for seq, id in enumerate("abc")]
    tables = {"plans": frame(plans, PLAN), "results": frame(rows, DONE)}
    got = training_set(model(), tables, 20 * HOUR, window=12 * HOUR)
    assert got.frame.columns == ["id", "_asked_at", "size", "_label"]
    assert got.frame.select("id", "size").rows() == [("c", 3.0), ("a", 1.0), ("b", 0.0)]
    assert got.counts == {"no_example": 1, "outside_window": 1, "immature": 0, "no_label": 0, "null_label": 0}
    assert training_set(model(), tables, 20 * HOUR).counts["no_label"] == 1
    empty = training_set(model(), {"plans": frame([], PLAN), "results": frame([], DONE)}, 0)
    assert empty.frame.schema == got.frame.schema
    with pytest.raises(NotFoundError, match="'results'"):
        training_set(model(), {"plans": tables["plans"]}, 0)
