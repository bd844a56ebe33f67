from __future__ import annotations

from typing import Any

import polars as pl
import pytest

import tidemill as tm
from tidemill.engine.check.check import check, derived_schemas
from tidemill.engine.check.fingerprint import of
from tidemill.spec.clean import Step, label

SCHEMA = {"id": pl.Int64(), "at": pl.Datetime("us", "UTC"), "x": pl.Float64(), "s": pl.String()}
readings = tm.Source("readings", tm.files("*.csv"), key="id", event_time="at")


def faults(*steps: Step, **more: Any) -> list[str]:
    table = tm.clean("cleaned", readings, steps, **more)
    return [str(fault) for fault in check(system(table), {"readings": SCHEMA})]


def system(table: Any) -> tm.System:
    view = tm.Latest("newest", table, by="id", columns=["x"])
    label = tm.Label(readings, "x", within="1d")
    model = tm.Model(
        "m", examples=readings, asked_at=tm.after("at", "1m"), label=label, features=[view], estimator=Estimator(),
        task="regression",
    )  # fmt: skip
    return tm.System("lab", model)


class Estimator:
    def fit(self, frame: Any, truth: Any) -> Estimator:
        return self

    def predict(self, frame: Any) -> Any:
        return frame


def test_sound_steps_pass_and_their_columns_are_known() -> None:
    steps = (tm.cast("s", "number"), tm.outliers("x", over="1d", flag="far"), tm.sample(0.5, weight="w"))
    assert faults(*steps) == []
    table = tm.clean("cleaned", readings, steps)
    found = derived_schemas(system(table), {"readings": SCHEMA})["cleaned"]
    assert dict(found) == {**SCHEMA, "s": pl.Float64(), "far": pl.Boolean(), "w": pl.Float64()}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (tm.fill("z", 0), "'fill z' reads 'z', which is no column"),
        (tm.fill("x", "none"), "'fill x' fails on empty input"),
        (tm.fill("x", pl.col("x").mean()), "'fill x' has an expression that reads other rows"),
        (tm.invalid(tm.holds("low", pl.col("x") < pl.col("x").max())), "reads other rows"),
        (tm.fill("x", trailing="mode", over="1d"), "statistic='mode', which is none of 'mean', 'median'"),  # type: ignore[arg-type]
        (tm.cast("s", "int"), "to='int', which is none of"),  # type: ignore[arg-type]
        (tm.cast("s", "time", zone="Paris"), "zone 'Paris', which there is not"),
        (tm.convert("x", unit="s", to="kg", units={}), "knows no other units"),
        (tm.recode("s", {}), "has no codes"),
        (tm.trim(), "names no column"),
        (tm.clip("x", 2, 1), "bounds 2 and 1"),
        (tm.clip("x", float("nan"), 1), "not a number"),
        (tm.invalid(tm.not_null("x"), then="null"), "cannot tell which value"),
        (tm.invalid(tm.not_null("x"), then="keep"), "changes nothing"),
        (tm.invalid(tm.not_null("x"), flag="no good"), "'no good', which is no name"),
        (tm.outliers("x", over="0s"), "looks back over no time"),
        (tm.outliers("x", over="1d", k=-1), "has k=-1"),
        (tm.outliers("x", over="1d", least=0), "has least=0"),
        (tm.sample(1.5), "has a share of 1.5"),
        (tm.sample({"a": -1}, by="s"), "has a share of -1.0"),
        (tm.balance("s", over="0s"), "looks back over no time"),
    ],
)
def test_faults_of_steps_are_named(step: Step, message: str) -> None:
    said = faults(step)
    assert any(message in each and each.startswith("table 'cleaned': ") for each in said), said


NUMBER_STEPS: list[Step] = [
    tm.clip("s", 0, 1), tm.convert("s", unit="x", to="kg", units={"g": 0.001}), tm.outliers("s", over="1d"),
    tm.fill("s", trailing="mean", over="1d"),
]  # fmt: skip


@pytest.mark.parametrize("step", NUMBER_STEPS, ids=label)
def test_steps_that_want_numbers_refuse_text(step: Step) -> None:
    (said,) = faults(step)
    assert said == (f"table 'cleaned': the step '{label(step)}' wants numbers, and 's' is text: cast it first, with "
                    "tm.cast('s', 'number').")  # fmt: skip
    assert faults(tm.cast("s", "number"), step) == []
    table = tm.clean("cleaned", readings, [step])
    assert not any("wants numbers" in str(fault) for fault in check(system(table), {}))  # not known yet


def test_steps_in_a_function_that_want_numbers_refuse_text() -> None:
    @tm.table("made", key="id", event_time="at")
    def made(readings: pl.LazyFrame) -> pl.LazyFrame:
        return tm.apply(readings, [tm.clip("s", 0, 1)])

    table = made
    assert any("'clip s' wants numbers" in str(fault) for fault in check(system(table), {"readings": SCHEMA}))


def test_the_last_of_the_past_fills_text() -> None:
    assert faults(tm.fill("s", trailing="last", over="1d")) == []


def test_steps_that_look_back_need_a_past() -> None:
    timeless = tm.Source("readings", tm.files("*.csv"), key="id")
    table = tm.clean("cleaned", timeless, [tm.duplicates("s")])
    assert any("looks back: say when rows were known" in str(each)
               for each in check(system(table), {"readings": SCHEMA}))  # fmt: skip


def test_a_table_runs_row_by_row_when_its_steps_do() -> None:
    assert tm.clean("c", readings, [tm.fill("x", 0), tm.sample(0.5)]).by_row
    assert not tm.clean("c", readings, [tm.fill("x", 0), tm.duplicates("s")]).by_row
    timeless = tm.Source("readings", tm.files("*.csv"), key="id")
    assert tm.clean("c", timeless, [tm.fill("x", 0)]).by_row
    assert not tm.clean("c", timeless, [tm.cast("s", "time")], event_time="s").by_row


def test_each_part_of_a_step_enters_the_fingerprint() -> None:
    declared: list[list[Step]] = [
        [], [tm.fill("x", 0)], [tm.fill("x", 1)], [tm.fill("x", pl.col("x") + 1)], [tm.fill("x", pl.col("x") + 2)],
        [tm.fill("x", 0), tm.clip("x", 0, 1)], [tm.clip("x", 0, 1), tm.fill("x", 0)],
        [tm.outliers("x", over="1d")], [tm.outliers("x", over="2d")], [tm.invalid(tm.between("x", 0, 1))],
        [tm.invalid(tm.between("x", 0, 2))],
    ]  # fmt: skip
    prints = [of(tm.clean("c", readings, steps)) for steps in declared]
    assert len(set(prints)) == len(prints)
    assert prints == [of(tm.clean("c", readings, steps)) for steps in declared]
