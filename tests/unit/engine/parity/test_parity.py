from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.feature.feature import features
from tidemill.engine.parity.parity import (
    BOUND,
    PREDICTION,
    Difference,
    Finding,
    Parity,
    compare,
    derive,
    enough,
    same,
    sample,
    upper_bound,
)
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.table.plain import plain, storable, storable_rows, stored
from tidemill.spec.source import Source

TIME = pl.Datetime("us", "UTC")
TYPES = {"id": pl.Int64(), "by": pl.Int64()}


class Sum:
    """A regressor without state: the sum of its columns."""

    def fit(self, frame: pl.DataFrame, truth: Any) -> Sum:
        return self

    def predict(self, frame: Any) -> np.ndarray[Any, Any]:
        return np.asarray(pl.DataFrame(frame).fill_nan(0).sum_horizontal().to_numpy())


timed = Source("timed", tm.push(), key="k", event_time="at")
static = Source("static", tm.files("static.csv"), key="by")
MODEL = tm.Model(
    "m", examples=Source("things", tm.push(), key="id", event_time="at"), asked_at="at",
    label=tm.Label(timed, "x", within="1d"), estimator=Sum(), task="regression",
    features=[tm.Aggregation("w", timed, by="by", features={"s": tm.sum("x", over="1s")}),
              tm.Latest("l", static, by="by", columns=["v"])],
)  # fmt: skip
PREDICTOR = Predictor(Encoding(MODEL.columns, {}, (), ()), Sum())


def versions(rows: list[tuple[int, int, int, float]], value: str) -> pl.DataFrame:
    """Return rows of (key, known-at in microseconds, by, value) as all versions of a table."""
    known = pl.Series([row[1] for row in rows], dtype=pl.Int64).cast(TIME)
    key = pl.Series([row[0] for row in rows], dtype=pl.Int64)
    return pl.DataFrame({
        KNOWN_AT: known, SEQ: pl.Series(range(len(rows)), dtype=pl.Int64), TOMBSTONE: [False] * len(rows),
        TICK: known, HISTORY: [False] * len(rows), "k": key, "by": pl.Series([row[2] for row in rows], dtype=pl.Int64),
        "at": (known.to_physical() - 5).cast(TIME), value: pl.Series([row[3] for row in rows], dtype=pl.Float64),
    }, schema_overrides={TOMBSTONE: pl.Boolean, HISTORY: pl.Boolean})  # fmt: skip


def log(requests: list[tuple[int, int, int, int]], tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Answer (by, t, rows of timed applied, rows of static applied) one by one, as a server did, and log it."""
    records = []
    for place, (by, t, first, second) in enumerate(requests):
        applied = {"timed": first, "static": second}
        seen = {name: rows.filter(pl.col(SEQ) < applied[name]) for name, rows in tables.items()}
        request = pl.DataFrame({"id": [place], "by": [by]})
        values = features(MODEL, seen, request, np.array([t]))
        records.append({
            "id": f"{place:024x}", "asked": t, "applied": json.dumps(applied),
            "request": json.dumps({"id": place, "by": by}),
            "features": json.dumps(plain(values).row(0, named=True), separators=(",", ":")),
            "prediction": json.dumps(PREDICTOR.predict(values).tolist()[0]),
        })  # fmt: skip
    return pl.DataFrame(records).with_columns(pl.col("asked").cast(TIME))


ROW = st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 1), st.floats(-10, 10))


@settings(deadline=None, max_examples=60)
@given(st.lists(ROW, max_size=12), st.lists(ROW, max_size=6), st.data())
def test_what_was_answered_one_by_one_is_derived_again_in_one_go(
    first: list[tuple[int, int, int, float]], second: list[tuple[int, int, int, float]], data: st.DataObject
) -> None:
    # Known-ats are in no order of sequence, as after a back-fill: some questions need their own cut, some do not.
    tables = {"timed": versions(first, "x"), "static": versions(second, "v")}
    asked = st.tuples(st.integers(0, 2), st.integers(0, 70), st.integers(0, len(first)), st.integers(0, len(second)))
    logged = log(data.draw(st.lists(asked, min_size=1, max_size=8)), tables)
    derived = derive(MODEL, TYPES, tables, logged)
    found = compare(logged, derived, PREDICTOR)
    assert (found.rows, found.mismatched) == (logged.height, 0)


def test_differences_are_named_and_counted() -> None:
    tables = {"timed": versions([(0, 10, 0, 1.5)], "x"), "static": versions([(0, 10, 0, 2.0)], "v")}
    logged = log([(0, 20, 1, 1), (1, 20, 1, 1)], tables)
    tables["static"] = tables["static"].with_columns(v=math.nextafter(2.0, 3.0))
    found = compare(logged, derive(MODEL, TYPES, tables, logged), PREDICTOR)
    assert (found.rows, found.mismatched) == (2, 1)
    assert found.by_value == {"l__v": 1}
    assert found.rounded == 0  # the row counts already
    assert (found.examples[0].what, found.examples[0].logged) == ("l__v", 2.0)
    tables["static"] = tables["static"].with_columns(v=4.0)
    found = compare(logged, derive(MODEL, TYPES, tables, logged), PREDICTOR)
    assert found.by_value == {"l__v": 1, PREDICTION: 1}


def test_the_last_digits_of_a_prediction_alone_are_rounding() -> None:
    tables = {"timed": versions([(0, 10, 0, 1.5)], "x"), "static": versions([(0, 10, 0, 2.0)], "v")}
    logged = log([(0, 20, 1, 1)], tables)
    derived = derive(MODEL, TYPES, tables, logged)
    nearly = logged.with_columns(prediction=pl.lit(json.dumps(math.nextafter(3.5, 4))))
    found = compare(nearly, derived, PREDICTOR)
    assert (found.mismatched, found.rounded) == (0, 1)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [(1.0, 1.0, True), (0.0, -0.0, False), (1, 1.0, False), (True, 1, False), (None, None, True), ("a", "a", True)],
)
def test_values_are_the_same_bit_for_bit(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) is equal


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    # By definition, so few hits or fewer have a chance of 5 % at the bound.
    assert upper_bound(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    bound = upper_bound(3, 100)
    chance = sum(math.comb(100, hits) * bound**hits * (1 - bound) ** (100 - hits) for hits in range(4))
    assert chance == pytest.approx(0.05)
    assert upper_bound(4, 4) == 1.0
    assert Parity().rate is None
    assert Parity().bound is None


def test_reports_add_up() -> None:
    both = Parity(10, 1, 0, {"a": 1}) + Parity(20, 2, 1, {"a": 1, "b": 2})
    assert (both.rows, both.mismatched, both.rounded, both.by_value) == (30, 3, 1, {"a": 2, "b": 2})


def test_a_sample_is_the_same_every_time_and_of_the_asked_size() -> None:
    ids = [f"{number * 0x9E3779B97F4A7C15 % 2**96:024x}" for number in range(1, 2000)]
    ids = [each[12:] + each[:12] for each in ids]
    chosen = sample(ids, 0.25)
    assert (chosen == sample(ids, 0.25)).all()
    assert 0.2 < chosen.mean() < 0.3
    assert sample(ids, 1.0).all()


def test_enough_is_what_the_bound_needs_and_all_when_there_are_few() -> None:
    ids = [f"{number * 0x9E3779B97F4A7C15 % 2**96:024x}" for number in range(1, 9000)]
    ids = [each[12:] + each[:12] for each in ids]
    chosen = enough(ids)
    rows = int(chosen.sum())
    assert upper_bound(0, rows) <= BOUND < upper_bound(0, rows - 1)
    assert (chosen == enough(ids)).all()
    # The same ones that a share of that size takes, whatever else is in the ledger.
    least = max(int(each[:12], 16) for each, taken in zip(ids, chosen, strict=True) if taken)
    assert (chosen == sample(ids, (least + 1) / 16**12)).all()
    assert enough(ids[:100]).all()
    assert not enough([]).any()


def test_findings_of_one_cause_add_up_and_keep_the_largest_differences() -> None:
    def finding(kind: str, *apart: float) -> Finding:
        examples = tuple(Difference(str(each), "a", 1.0, 1.0 + each) for each in apart)
        return Finding(kind, "v", "d", len(apart), {"a": len(apart)}, examples)

    both = Parity(findings=(finding("lost row", 0.1, 0.2, 0.3),)) + Parity(
        findings=(finding("lost row", 0.4, 0.5, 0.6), finding("late row", 1.0))
    )
    lost, late = both.findings
    assert (lost.predictions, lost.columns, lost.fails, late.fails) == (6, {"a": 6}, True, False)
    assert [each.id for each in lost.examples] == ["0.6", "0.5", "0.4", "0.3", "0.2"]


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1.5, 7, True, "inf", None])
def test_the_log_keeps_infinities(value: Any) -> None:
    kept = json.loads(json.dumps(storable(value), allow_nan=False))
    assert stored(kept) == value
    assert type(stored(kept)) is type(value)


def test_an_infinite_feature_is_compared() -> None:
    derived = pl.DataFrame({"w__s_1s": [math.inf, -math.inf, 2.0], "l__v": [1.0, None, math.nan]})
    predictor = Predictor(Encoding(("l__v",), {}, (), ()), Sum())
    texts = [
        json.dumps({name: None if value != value else value for name, value in row.items()})
        for row in storable_rows(derived)
    ]
    assert json.loads(texts[0])["w__s_1s"] == {"float": "inf"}
    predictions = [str(each) for each in predictor.predict(derived).tolist()]
    logged = pl.DataFrame({"id": ["a", "b", "c"], "features": texts, "prediction": predictions})
    assert compare(logged, derived, predictor).mismatched == 0
    wrong = derived.with_columns(pl.lit(math.inf).alias("w__s_1s"))
    found = compare(logged, wrong, predictor)
    assert (found.mismatched, found.by_value) == (2, {"w__s_1s": 2})
    assert found.examples[0].logged == {"float": "-inf"}
