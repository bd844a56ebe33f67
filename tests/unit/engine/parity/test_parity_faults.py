"""Faults planted between apply and look-up: what was served then is logged, and parity finds and names each one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.base.clock import HOUR, MINUTE, parse_time
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.example.ledger import prediction_rows
from tidemill.engine.feature.feature import demand
from tidemill.engine.feature.layout import Applied
from tidemill.engine.feature.lookup import Lookup
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.parity.explain import Past, explain, late, libraries, states
from tidemill.engine.parity.parity import PREDICTION, Finding, derive, differences
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Answerer, Columns, Logged, Predictor
from tidemill.spec.feature import View
from tidemill.spec.model import Model

TIME = pl.Datetime("us", "UTC")
START, STEP, TICKS = parse_time("2024-03-10"), 10 * MINUTE, 24
TYPES: dict[str, pl.DataType] = {"id": pl.String(), "carrier": pl.String(), "origin": pl.String(), "seats": pl.Int64()}

arrivals = tm.Source("arrivals", tm.push(), key="id", event_time="landed")
planes = tm.Source("planes", tm.files("planes.csv"), key="carrier")
things = tm.Source("things", tm.push(), key="id", event_time="at")
OVER = ("30m", "2h")
CARRIER = tm.Aggregation("carrier", arrivals, by="carrier", features={
    "n": tm.count(over=OVER), "delay": tm.mean("delay", over=OVER), "last": tm.last("delay", over=OVER)})  # fmt: skip
ORIGIN = tm.Aggregation("origin", arrivals, by="origin", features={"sum": tm.sum("delay", over="1h")})
NEAR = tm.Latest("near", arrivals, by="carrier", columns=["delay"], within="1h")
PLANE = tm.Latest("plane", planes, by="carrier", columns=["size"])
ASKED = tm.OnDemand("asked", {"third": pl.col("seats") / 3})


class Sum:
    """A regressor without state: the sum of its columns, weighted so that each counts, and ``more``."""

    more = 0.0

    def fit(self, frame: pl.DataFrame, truth: Any) -> Sum:
        return self

    def predict(self, frame: pl.DataFrame) -> np.ndarray[Any, Any]:
        values = frame.fill_nan(0).to_numpy()
        return np.array([math.fsum((row * (1 + np.arange(len(row)))).tolist()) for row in values]) + self.more


def model(*views: Any) -> Model:
    return tm.Model("m", examples=things, asked_at="at", label=tm.Label(arrivals, "delay", within="1d"),
                    estimator=Sum(), task="regression", features=views)  # fmt: skip


MODEL = model(CARRIER, ORIGIN, NEAR, PLANE, ASKED, "seats")
PREDICTOR = Predictor(Encoding(MODEL.columns, {}, (), ()), Sum())
COLUMNS = Columns.of(MODEL.columns)  # each is logged as it was served, the request's too, for some are spoilt


def tables() -> dict[str, pl.DataFrame]:
    """Four rows a tick; they happened at moments on the grid on which questions are asked, so edges are common."""
    rng = np.random.default_rng(3)
    rows = 4 * TICKS
    tick = START + STEP * np.repeat(np.arange(TICKS), 4)
    landed = tick + 1 - STEP * rng.integers(0, 3, rows)
    system = {TOMBSTONE: [False] * rows, HISTORY: [False] * rows}
    corrects = rng.integers(0, 12, rows) == 0  # some are corrections of the row before
    number = np.arange(rows) - corrects
    made = pl.DataFrame({
        "id": [f"f{each}" for each in number], "carrier": rng.choice(["a", "b", "c"], rows),
        "origin": rng.choice(["x", "y"], rows), "delay": rng.normal(size=rows), "landed": landed,
        KNOWN_AT: tick, TICK: tick, SEQ: np.arange(rows), **system,
    }).with_columns(pl.col("landed", KNOWN_AT, TICK).cast(TIME))  # fmt: skip
    ticks = np.array([START, START, START, START + 9 * STEP])
    sizes = pl.DataFrame({
        "carrier": ["a", "b", "c", "a"], "size": [10.0, 20.0, 30.0, 11.0], KNOWN_AT: ticks, TICK: ticks,
        SEQ: np.arange(4), TOMBSTONE: [False] * 4, HISTORY: [False] * 4,
    }).with_columns(pl.col(KNOWN_AT, TICK).cast(TIME))  # fmt: skip
    return {"arrivals": made, "planes": sizes}


#: What a view is given of the rows of a table that came at a tick; None: the view's state is not touched.
Fault = Callable[[str, int, pl.DataFrame], pl.DataFrame | None]


class Served:
    """Answers as a server does, each view from a state of its own, so that each can be given other rows."""

    def __init__(self, fault: Fault, spoil: Callable[[pl.DataFrame], pl.DataFrame], back: Mapping[str, int]) -> None:
        self._fault, self._spoil, self._back = fault, spoil, back
        self._views: list[View] = [CARRIER, ORIGIN, NEAR, PLANE]
        stores = [MemoryOnline() for _ in self._views]
        self._states = [OnlineState([view], store) for view, store in zip(self._views, stores, strict=True)]
        self._lookups = [Lookup(model(view), store) for view, store in zip(self._views, stores, strict=True)]
        self._applied = Applied(0, 1, {}, 0)

    def apply(self, tick: int, rows: Mapping[str, pl.DataFrame], next_seq: dict[str, int]) -> None:
        for view, state in zip(self._views, self._states, strict=True):
            given = self._fault(view.name, tick, rows[view.table.name])  # type: ignore[union-attr]
            if given is not None:
                state.apply(tick, {view.table.name: given}, next_seq, 1)  # type: ignore[union-attr]
        self._applied = Applied(tick, tick + 1, {name: count - self._back.get(name, 0)
                                                 for name, count in next_seq.items()}, 1)  # fmt: skip

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Applied]:
        found = pl.concat([lookup.features(requests)[0] for lookup in self._lookups], how="horizontal")
        asked = demand(ASKED, requests).with_columns(requests["seats"])
        return self._spoil(found.hstack(asked).select(MODEL.columns)), self._applied


def serve(
    fault: Fault = lambda view, tick, rows: rows,
    spoil: Callable[[pl.DataFrame], pl.DataFrame] = lambda features: features,
    back: Mapping[str, int] | None = None,
    predictor: Predictor = PREDICTOR,
) -> pl.DataFrame:
    """Serve three questions a tick and return the ledger's rows."""
    everything, kept = tables(), list[Logged]()
    served = Served(fault, spoil, back or {})
    answerer = Answerer("m", 1, ("id",), served, predictor, COLUMNS)
    for number in range(TICKS):
        tick = START + number * STEP
        moment = pl.lit(tick, dtype=TIME)
        rows = {name: frame.filter(pl.col(TICK) == moment) for name, frame in everything.items()}
        next_seq = {name: frame.filter(pl.col(TICK) <= moment).height for name, frame in everything.items()}
        served.apply(tick, rows, next_seq)
        requests = pl.DataFrame(
            {"id": [f"q{number}{each}" for each in "abc"], "carrier": ["a", "b", "c"], "origin": ["x", "y", "x"],
             "seats": [7, 8, number]}, schema=TYPES)  # fmt: skip
        kept += answerer.answer(requests, nonces=["1", "2", "3"])
    return prediction_rows(msgspec.json.encode(each) for each in kept)


def past(logged: pl.DataFrame, everything: Mapping[str, pl.DataFrame] | None = None, **changes: Any) -> Past:
    return replace(Past(MODEL, TYPES, everything or tables(), states(logged), PREDICTOR, libraries()), **changes)


def found(logged: pl.DataFrame, **changes: Any) -> list[Finding]:
    given = past(logged, **changes)
    derived = derive(MODEL, TYPES, given.tables, logged)
    mismatched, rounded = differences(logged, derived, given.predictor)
    assert rounded == 0
    findings = explain(given, logged, mismatched)
    assert {each.id for each in mismatched} >= {one.id for each in findings for one in each.examples}
    # Every difference is accounted for, once.
    assert sum(sum(each.columns.values()) for each in findings) == len(mismatched)
    return list(findings)


def test_without_a_fault_nothing_is_found() -> None:
    logged = serve()
    assert logged.height == 3 * TICKS
    assert found(logged) == []
    given = past(logged)
    assert late(given, logged, derive(MODEL, TYPES, given.tables, logged)) == ()


@pytest.mark.parametrize("number", [21, 46, 60])
def test_a_lost_row(number: int) -> None:
    lost = tables()["arrivals"].row(number, named=True)
    findings = found(serve(lambda view, tick, rows: rows.filter(pl.col(SEQ) != number) if view != "plane" else rows))
    assert [(each.kind, each.where) for each in findings] == [("lost row", "arrivals")]
    (one,) = findings
    assert f"row {number} of arrivals (id {lost['id']})" in one.detail
    assert one.fails
    assert one.columns["carrier__n_2h"] >= 1
    assert PREDICTION in one.columns


def test_a_lost_row_of_one_view_alone() -> None:
    findings = found(serve(lambda view, tick, rows: rows.filter(pl.col(SEQ) != 46) if view == "origin" else rows))
    assert [(each.kind, each.where) for each in findings] == [("lost row", "arrivals")]
    assert set(findings[0].columns) == {"origin__sum_1h", PREDICTION}


@pytest.mark.parametrize("number", [21, 46])
def test_a_doubled_row(number: int) -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame:
        if view == "plane":
            return rows
        again = rows.filter(pl.col(SEQ) == number).with_columns(id=pl.lit("twice"), **{SEQ: pl.lit(10_000 + number)})
        return pl.concat([rows, again.select(rows.columns).cast(rows.schema)])

    findings = found(serve(fault))
    assert [(each.kind, each.where) for each in findings] == [("doubled row", "arrivals")]
    assert f"row {number} of arrivals" in findings[0].detail
    assert "near__delay" not in findings[0].columns  # the last row is the same row


@pytest.mark.parametrize("since", [6, 15])
def test_a_stale_view(since: int) -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.clear() if view == "carrier" and tick >= START + since * STEP else rows

    findings = found(serve(fault))
    assert [(each.kind, each.where) for each in findings] == [("stale state", "carrier")]
    assert f"from row {4 * since} of arrivals on" in findings[0].detail
    assert findings[0].predictions > TICKS - since
    assert all(name.startswith("carrier__") or name == PREDICTION for name in findings[0].columns)


def test_a_view_that_answers_as_of_an_earlier_tick() -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame | None:
        return None if view == "carrier" and tick == START + 12 * STEP else rows

    logged = serve(fault).filter(pl.col("asked") == pl.lit(START + 12 * STEP + 1, dtype=TIME))
    whole = serve()
    findings = found(logged, states=states(whole))
    assert [(each.kind, each.where) for each in findings] == [("stale state", "carrier")]
    assert findings[0].detail == "as of 2024-03-10T01:50:00.000001Z"


def test_a_window_that_is_off_by_one() -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(pl.col("landed") - pl.duration(microseconds=1)) if view == "carrier" else rows

    findings = found(serve(fault))
    assert [(each.kind, each.where) for each in findings] == [("window edge", "carrier")]
    assert findings[0].predictions > TICKS


def test_a_state_that_is_ahead_of_what_is_logged() -> None:
    findings = found(serve(back={"arrivals": 2}))
    assert {each.kind for each in findings} == {"ahead"}
    assert {each.where for each in findings} == {"carrier", "origin", "near"}


def test_a_transform_that_is_computed_otherwise() -> None:
    logged = serve(spoil=lambda features: features.with_columns(pl.col("asked__third") * 3))
    findings = found(logged)
    assert [(each.kind, each.where) for each in findings] == [("transform", "asked__third")]
    assert findings[0].fails
    findings = found(logged, made_with={**libraries(), "polars": "0.1"})
    assert [(each.kind, each.where) for each in findings] == [("library version", "asked__third")]
    assert not findings[0].fails
    assert "polars 0.1 then" in findings[0].detail


def test_last_digits() -> None:
    def nudge(features: pl.DataFrame) -> pl.DataFrame:
        moved = [None if each is None else math.nextafter(each, math.inf) for each in features["origin__sum_1h"]]
        return features.with_columns(pl.Series("origin__sum_1h", moved, dtype=pl.Float64))

    logged = serve(spoil=nudge)
    findings = [each for each in found(logged, predictor=PREDICTOR) if each.where != "m"]
    assert [(each.kind, each.where, each.fails) for each in findings] == [("float", "origin__sum_1h", True)]


def test_a_model_that_predicts_otherwise() -> None:
    other = Sum()
    other.more = 0.5
    findings = found(serve(), predictor=Predictor(PREDICTOR.encoding, other))
    assert [(each.kind, each.where, each.predictions) for each in findings] == [("model", "m", 3 * TICKS)]


def test_what_nothing_explains() -> None:
    logged = serve(spoil=lambda features: features.with_columns(pl.col("near__delay") * 2 + 1))
    findings = found(logged)
    assert {(each.kind, each.where) for each in findings} == {("unexplained", "near__delay")}
    assert all(each.fails for each in findings)


def test_two_faults_at_once() -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame:
        if view == "carrier":
            return rows.filter(pl.col(SEQ) != 30)
        return rows.clear() if view == "near" and tick >= START + 14 * STEP else rows

    assert {(each.kind, each.where) for each in found(serve(fault))} == {
        ("lost row", "arrivals"), ("stale state", "near"),
    }  # fmt: skip


def test_rows_that_came_late_are_told_and_are_no_mismatch() -> None:
    logged, everything = serve(), tables()
    # Afterwards, history is loaded: known long before, committed only now.
    before = everything["arrivals"].height
    early = everything["arrivals"].head(6).with_columns(
        pl.Series("id", [f"h{each}" for each in range(6)]), pl.Series(SEQ, np.arange(6) + before),
        pl.lit(START + HOUR).cast(TIME).alias("landed"), pl.lit(START + HOUR).cast(TIME).alias(KNOWN_AT),
        pl.lit(START + 100 * HOUR).cast(TIME).alias(TICK), pl.lit(value=True).alias(HISTORY),
    )  # fmt: skip
    everything["arrivals"] = pl.concat([everything["arrivals"], early])
    given = past(logged, everything)
    derived = derive(MODEL, TYPES, everything, logged)
    assert differences(logged, derived, PREDICTOR) == ((), 0)
    findings = late(given, logged, derived)
    assert {each.kind for each in findings} == {"late row"}
    assert {each.where for each in findings} == {"carrier", "origin", "near"}
    assert not any(each.fails for each in findings)


def rows_named(detail: str) -> range:
    """Return the numbers of the rows that a finding names."""
    numbers = re.match(r"rows? (\d+)(?: to (\d+))? of arrivals", detail)
    assert numbers, detail
    first, last = numbers.groups()
    return range(int(first), int(last or first) + 1)


@settings(deadline=None, max_examples=5)
@given(first=st.integers(8, 70), count=st.integers(1, 26), everywhere=st.booleans())
@example(first=24, count=4, everywhere=True)  # what one tick brought
@example(first=24, count=12, everywhere=False)
def test_rows_that_were_skipped_before_the_state_went_on(first: int, count: int, *, everywhere: bool) -> None:
    lost = range(first, first + count)

    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(~pl.col(SEQ).is_in(lost)) if view == "carrier" or (everywhere and view != "plane") else rows

    findings = found(serve(fault))
    assert [(each.kind, each.where, each.fails) for each in findings] == [("lost row", "arrivals", True)]
    named = rows_named(findings[0].detail)
    assert lost[0] <= named[0] <= named[-1] <= lost[-1]
    assert findings[0].against == 0


@settings(deadline=None, max_examples=5)
@given(first=st.integers(8, 70), count=st.integers(1, 12))
def test_rows_that_were_taken_in_twice(first: int, count: int) -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame:
        again = rows.filter(pl.col(SEQ).is_between(first, first + count - 1))
        if view != "origin" or again.is_empty():  # a sum; the numbers of copies would decide which is last
            return rows
        return pl.concat([rows, again.with_columns(pl.col("id") + " again", pl.col(SEQ) + 10_000)])

    findings = found(serve(fault))
    assert [(each.kind, each.where) for each in findings] == [("doubled row", "arrivals")]
    named = rows_named(findings[0].detail)
    assert first <= named[0] <= named[-1] < first + count


@settings(deadline=None, max_examples=3)
@given(first=st.integers(4, 12), count=st.integers(1, 6))
def test_a_view_that_stood_still_and_then_went_on_without_what_it_missed(first: int, count: int) -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame | None:
        return None if view == "carrier" and first <= (tick - START) // STEP < first + count else rows

    findings = found(serve(fault))
    assert {each.kind for each in findings} == {"lost row", "stale state"}
    (missed,) = [each for each in findings if each.kind == "lost row"]
    named = rows_named(missed.detail)
    assert 4 * first <= named[0] <= named[-1] < 4 * (first + count)


def test_of_very_many_mismatches_the_others_are_held_against_the_causes_of_some() -> None:
    def fault(view: str, tick: int, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(~pl.col(SEQ).is_between(20, 29)) if view == "carrier" else rows

    logged = serve(fault)
    given = past(logged)
    mismatched, _ = differences(logged, derive(MODEL, TYPES, given.tables, logged), PREDICTOR)
    (whole,) = explain(given, logged, mismatched)
    (some,) = explain(given, logged, mismatched, looked_into=12)
    assert whole.predictions == some.predictions > 24
    assert set(rows_named(some.detail)) <= set(range(20, 30))
    (none,) = explain(given, logged, mismatched, looked_into=0)
    assert (none.kind, none.where) == ("unexplained", "carrier")
    assert "more than 0 answers" in none.detail


def test_predictions_that_agree_speak_against_a_cause() -> None:
    broken = serve(lambda view, tick, rows: rows.filter(pl.col(SEQ) != 46) if view != "plane" else rows)
    mended = pl.lit(START + 14 * STEP, dtype=TIME)
    logged = pl.concat([broken.filter(pl.col("asked") < mended), serve().filter(pl.col("asked") >= mended)])
    (lasting,), (passing,) = found(broken), found(logged)
    assert lasting.against == 0
    assert passing.detail == lasting.detail
    assert passing.against == lasting.predictions - passing.predictions > 0
