"""Worked examples, by hand, one for each sentence of the time rules. Times are hours after an origin."""

from __future__ import annotations

import math
import random
import statistics
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.base.clock import HOUR
from tidemill.spec.feature import Aggregate
from tidemill.spec.source import Files, Push, Source
from tidemill.testing.histories import TIME, edges, frame, histories
from tidemill.testing.oracle import (
    Example,
    LabelOutcome,
    Oracle,
    counted,
    evaluate,
    known_at,
    may_teach,
    root,
    timeless,
)

ARRIVALS = tm.Source("arrivals", tm.files("*.csv"), key="id", event_time="landed", known_at="reported")
SCHEDULES = tm.Source(
    "schedules",
    tm.files("*.csv"),
    key="id",
    event_time="scheduled",
    known_at=tm.before("scheduled", "30d"),
    corrected_at="changed",
)
PLANES = tm.Source("planes", tm.files("*.csv"), key="tail")
PRICES = tm.Source("prices", tm.files("*.csv"), key="item", known_at="published")
FORECASTS = tm.Source(
    "forecasts", tm.files("*.csv"), key=("place", "issued", "hour"), event_time="hour", known_at="issued"
)


def row(seq: int, known: float | None, *, gone: bool = False, **columns: Any) -> dict[str, Any]:
    """Return a row; `known` and the columns that are times are given in hours."""
    times = ("landed", "scheduled", "hour", "issued", "changed")
    return {
        **{name: hours(value) if name in times else value for name, value in columns.items()},
        "_known_at": hours(known),
        "_seq": seq,
        "_tombstone": gone,
    }


def hours(value: float | None) -> Any:
    return None if value is None else round(value * HOUR)


def arrival(
    seq: int,
    key: str,
    known: float | None,
    landed: float | None,
    delay: Any = 1.0,
    by: Any = "AA",
    *,
    gone: bool = False,
) -> dict[str, Any]:
    return row(seq, known, gone=gone, id=key, landed=landed, delay=delay, carrier=by)


def seen(rows: list[dict[str, Any]], t: int, table: Source = ARRIVALS) -> list[int]:
    """Return the sequence numbers that are visible."""
    return [each["_seq"] for each in Oracle({table.name: rows}).visible(table, t)]


def window(rows: list[dict[str, Any]], t: int, aggregate: Aggregate, by: Any = "AA") -> Any:
    view = tm.Aggregation("w", ARRIVALS, by="carrier", features={"f": aggregate})
    (value,) = Oracle({"arrivals": rows}).view(view, {"carrier": by}, t).values()
    return value


def latest(rows: list[dict[str, Any]], t: int, within: str | None = None, by: Any = "AA") -> Any:
    view = tm.Latest("l", ARRIVALS, by="carrier", columns="delay", within=within)
    return Oracle({"arrivals": rows}).view(view, {"carrier": by}, t)["l__delay"]


class TestRule1TwoTimes:
    def test_known_at_is_a_column(self) -> None:
        assert known_at(ARRIVALS, {"reported": 5, "landed": 3}, tick=9, first=True, history=True) == 5

    def test_known_at_is_a_delay_before_or_after_a_column(self) -> None:
        source = tm.Source("s", tm.files("*"), key="k", event_time="e", known_at=tm.after("e", "1h"))
        assert known_at(source, {"e": 0}, tick=0, first=True, history=True) == HOUR
        assert known_at(SCHEDULES, {"scheduled": 0}, tick=0, first=True, history=True) == -720 * HOUR

    def test_undeclared_it_is_the_event_time_for_files_and_the_ingest_time_for_pushes(self) -> None:
        from_files = Source("s", Files("*"), key="k", event_time="e")
        pushed = Source("s", Push(), key="k", event_time="e")
        assert known_at(from_files, {"e": 3}, tick=9, first=True, history=True) == 3
        assert known_at(pushed, {"e": 3}, tick=9, first=True, history=True) == 9

    def test_a_derived_known_at_belongs_to_the_first_version(self) -> None:
        corrected = {"scheduled": 0, "changed": 7}
        assert known_at(SCHEDULES, corrected, tick=3, first=False, history=True) == 7

    def test_later_versions_without_a_column_take_the_ingest_clock_but_not_in_history(self) -> None:
        source = tm.Source("s", tm.files("*"), key="k", event_time="e", known_at=tm.before("e", "1h"))
        assert known_at(source, {"e": 0}, tick=9, first=False, history=False) == 9
        with pytest.raises(ValueError, match="says nothing of when it became known"):
            known_at(source, {"e": 0}, tick=9, first=False, history=True)

    def test_a_tombstone_needs_no_event_time(self) -> None:
        source = tm.Source("s", tm.push(), key="k", event_time="e", known_at=tm.after("e", "1h"), tombstone="gone")
        assert known_at(source, {"e": None, "gone": True}, tick=9, first=True, history=False) == 9
        rows = [arrival(0, "x", 1, 1), arrival(1, "x", 3, None, None, None, gone=True)]
        assert seen(rows, hours(4)) == []

    def test_a_null_known_at_waits_until_it_is_filled(self) -> None:
        rows = [arrival(0, "x", None, 1)]
        assert known_at(ARRIVALS, {"reported": None}, tick=9, first=True, history=False) is None
        assert seen(rows, hours(99)) == []
        assert seen([*rows, arrival(1, "x", 5, 1)], hours(6)) == [1]


class TestRule2Visible:
    def test_a_row_is_seen_if_and_only_if_known_before_t(self) -> None:
        rows = [arrival(0, "x", 5, 1)]
        assert seen(rows, hours(5)) == []
        assert seen(rows, hours(5) + 1) == [0]

    def test_the_last_visible_version_of_each_key(self) -> None:
        rows = [arrival(0, "x", 5, 1), arrival(1, "x", 7, 1), arrival(2, "y", 6, 1)]
        assert seen(rows, hours(6.5)) == [0, 2]
        assert seen(rows, hours(7.5)) == [1, 2]

    def test_versions_are_ordered_by_known_at_then_sequence(self) -> None:
        rows = [arrival(0, "x", 7, 1), arrival(1, "x", 5, 1)]
        assert seen(rows, hours(9)) == [0]
        rows = [arrival(1, "x", 5, 1), arrival(0, "x", 5, 1)]
        assert seen(rows, hours(9)) == [1]

    def test_a_tombstone_takes_the_key_away_until_a_later_version(self) -> None:
        rows = [arrival(0, "x", 1, 1), arrival(1, "x", 3, 1, gone=True), arrival(2, "x", 5, 1)]
        assert [seen(rows, hours(t)) for t in (2, 4, 6)] == [[0], [], [2]]

    def test_a_correction_replaces_and_does_not_count_twice(self) -> None:
        rows = [arrival(0, "x", 1, 1, 10.0), arrival(1, "x", 3, 1, 20.0)]
        assert window(rows, hours(2), tm.sum("delay", over="6h")) == 10.0
        assert window(rows, hours(4), tm.sum("delay", over="6h")) == 20.0
        assert window(rows, hours(4), tm.count(over="6h")) == 1

    def test_a_correction_moves_a_row_to_another_group(self) -> None:
        rows = [arrival(0, "x", 1, 1, by="AA"), arrival(1, "x", 3, 1, by="UA")]
        assert [window(rows, hours(t), tm.count(over="6h"), by) for t in (2, 4) for by in ("AA", "UA")] == [1, 0, 0, 1]

    def test_a_correction_with_a_null_event_time_takes_its_predecessor_out_of_every_window(self) -> None:
        rows = [arrival(0, "x", 1, 1), arrival(1, "x", 3, None)]
        assert window(rows, hours(2), tm.count(over="6h")) == 1
        assert window(rows, hours(4), tm.count(over="6h")) == 0
        assert latest(rows, hours(4)) is None

    def test_null_keys_match_nothing(self) -> None:
        rows = [arrival(0, "x", 1, 1, by=None)]
        assert window(rows, hours(2), tm.count(over="6h"), None) == 0
        assert latest(rows, hours(2), by=None) is None

    def test_rows_with_a_null_key_are_versions_of_nothing(self) -> None:
        rows = [row(0, 1, id=None, landed=1), row(1, 2, id=None, landed=1), row(2, 3, gone=True, id=None, landed=1)]
        assert seen(rows, hours(4)) == [0, 1]


class TestRule3Windows:
    ROWS = (arrival(0, "x", 1, 1, 1.0), arrival(1, "y", 2, 2, 2.0), arrival(2, "z", 3, 3, 4.0))

    def test_a_window_includes_its_start_and_not_its_end(self) -> None:
        total = tm.sum("delay", over="2h")
        late = [arrival(0, "x", 0, 1, 1.0), arrival(1, "y", 0, 2, 2.0), arrival(2, "z", 0, 3, 4.0)]
        assert window(late, hours(3), total) == 3.0
        assert window(late, hours(3) + 1, total) == 6.0
        assert window(late, hours(3) - 1, total) == 3.0
        assert window(late, hours(3) + 2, total) == 6.0
        assert window(late, hours(4), total) == 6.0

    def test_a_row_known_in_advance_waits_for_its_event_time(self) -> None:
        rows = [arrival(0, "x", 0, 5)]
        assert [window(rows, hours(5) + off, tm.count(over="1h")) for off in (0, 1)] == [0, 1]
        assert [latest(rows, hours(5) + off) for off in (0, 1)] == [None, 1.0]

    def test_a_late_row_enters_the_window_of_its_event_time_once_known(self) -> None:
        rows = [arrival(0, "x", 5, 1)]
        assert [window(rows, hours(t), tm.count(over="6h")) for t in (4, 5, 5.5, 7, 7.5)] == [0, 0, 1, 1, 0]

    def test_an_empty_window_counts_0_and_is_null_otherwise(self) -> None:
        assert window([], hours(1), tm.count(over="1h")) == 0
        for make in (tm.sum, tm.mean, tm.std, tm.min, tm.max, tm.first, tm.last, tm.n_unique):
            assert window([], hours(1), make("delay", over="1h")) is None

    def test_aggregates_skip_nulls_and_count_counts_rows(self) -> None:
        rows = [arrival(0, "x", 1, 1, None), arrival(1, "y", 1, 1.5, 3.0), arrival(2, "z", 1, 1.7, None)]
        expected = {"sum": 3.0, "mean": 3.0, "std": None, "min": 3.0, "max": 3.0, "first": 3.0, "last": 3.0}
        for name, value in expected.items():
            assert window(rows, hours(2), getattr(tm, name)("delay", over="6h")) == value
        assert window(rows, hours(2), tm.n_unique("delay", over="6h")) == 1
        assert window(rows, hours(2), tm.count(over="6h")) == 3

    def test_first_and_last_go_by_event_time_then_known_at_then_sequence(self) -> None:
        by_event = [arrival(0, "x", 1, 2, 1.0), arrival(1, "y", 3, 1, 2.0)]
        by_known = [arrival(0, "x", 3, 1, 1.0), arrival(1, "y", 2, 1, 2.0)]
        by_sequence = [arrival(1, "x", 2, 1, 1.0), arrival(0, "y", 2, 1, 2.0)]
        for rows in (by_event, by_known, by_sequence):
            assert window(rows, hours(4), tm.last("delay", over="6h")) == 1.0
            assert window(rows, hours(4), tm.first("delay", over="6h")) == 2.0
            assert latest(rows, hours(4)) == 1.0

    def test_a_condition_counts_as_0_and_1(self) -> None:
        rows = [arrival(n, str(n), 1, 1, delay) for n, delay in enumerate((20.0, 10.0, None, 30.0))]
        late = pl.col("delay") > 15
        assert window(rows, hours(2), tm.mean(late, over="6h")) == 2 / 3
        assert window(rows, hours(2), tm.sum(late, over="6h")) == 2.0

    def test_latest_copies_the_last_row_with_its_nulls(self) -> None:
        assert latest([arrival(0, "x", 1, 1, 5.0), arrival(1, "y", 2, 2, None)], hours(3)) is None

    def test_within_includes_its_edge(self) -> None:
        rows = [arrival(0, "x", 1, 1)]
        assert latest(rows, hours(4), "3h") == 1.0
        assert latest(rows, hours(4) + 1, "3h") is None

    def test_on_compares_with_another_column_of_the_request(self) -> None:
        view = tm.Latest("l", ARRIVALS, by="carrier", columns="delay", on={"carrier": "operator"})
        oracle = Oracle({"arrivals": [arrival(0, "x", 1, 1)]})
        assert oracle.view(view, {"operator": "AA", "carrier": "UA"}, hours(2)) == {"l__delay": 1.0}

    def test_ahead_takes_the_last_known_row_of_the_stated_hour(self) -> None:
        view = tm.Latest("f", FORECASTS, by="place", columns="temp", ahead=True, on={"hour": "departs"})
        rows = [
            row(0, 1, place="JFK", issued=1, hour=9, temp=10.0),
            row(1, 3, place="JFK", issued=3, hour=9, temp=12.0),
            row(2, 4, place="JFK", issued=4, hour=10, temp=15.0),
        ]
        oracle = Oracle({"forecasts": rows})

        def temp(t: int, departs: float | None) -> Any:
            return oracle.view(view, {"place": "JFK", "departs": hours(departs)}, t)["f__temp"]

        assert [temp(hours(t), 9) for t in (1, 2, 3, 4, 12)] == [None, 10.0, 10.0, 12.0, 12.0]
        assert temp(hours(5), 10) == 15.0
        assert temp(hours(5), 11) is None
        assert temp(hours(5), None) is None

    def test_on_demand_features_read_the_request(self) -> None:
        view = tm.OnDemand("c", {"hour": tm.local("at", "America/New_York").dt.hour(), "half": pl.col("x") / 2})
        oracle = Oracle({})
        assert oracle.view(view, {"at": hours(12), "x": 3}, 0, types={"at": TIME}) == {"c__hour": 7, "c__half": 1.5}

    def test_an_expression_means_its_value_on_one_row(self) -> None:
        value = next(x for x in map(float, range(1, 99)) if x / 10 != x * 0.1)
        view = tm.OnDemand("d", {"tenth": pl.col("x") / 10})
        assert Oracle({}).view(view, {"x": value}, 0) == {"d__tenth": value / 10}


class TestRule4StaticTables:
    PLANE = tm.Latest("p", PLANES, by="tail", columns="seats")
    PRICE = tm.Latest("p", PRICES, by="item", columns="price")

    def test_with_a_known_at_they_are_looked_up_by_it(self) -> None:
        rows = [row(0, 3, item="a", price=1.0), row(1, 5, item="a", price=2.0), row(2, None, item="a", price=3.0)]
        oracle = Oracle({"prices": rows})
        got = [oracle.view(self.PRICE, {"item": "a"}, hours(t))["p__price"] for t in (3, 4, 5, 6)]
        assert got == [None, 1.0, 1.0, 2.0]

    def test_with_neither_they_are_always_visible_at_the_version_pinned(self) -> None:
        rows = [row(0, 8, tail="N1", seats=100), row(1, 9, tail="N1", seats=120), row(2, None, tail="N2", seats=5)]
        oracle = Oracle({"planes": rows})
        assert oracle.view(self.PLANE, {"tail": "N1"}, 0) == {"p__seats": 120}
        assert oracle.view(self.PLANE, {"tail": "N2"}, 0) == {"p__seats": 5}
        assert oracle.applied({"planes": 0}).view(self.PLANE, {"tail": "N1"}, 0) == {"p__seats": 100}

    def test_pushed_static_rows_are_known_from_their_ingest(self) -> None:
        assert timeless(PLANES)
        assert not timeless(PRICES)
        assert not timeless(Source("s", Push(), key="k"))


class TestRule5TwoAxes:
    def test_live_ingest_takes_the_later_of_declared_and_tick_and_history_the_declared(self) -> None:
        for reported, tick, live in ((5, 9, 9), (9, 5, 9)):
            given_row = {"reported": reported}
            assert known_at(ARRIVALS, given_row, tick=tick, first=True, history=False) == live
            assert known_at(ARRIVALS, given_row, tick=tick, first=True, history=True) == reported


MODEL = tm.Model(
    "late",
    examples=SCHEDULES,
    asked_at=tm.before("scheduled", "2h"),
    label=tm.Label(ARRIVALS, pl.col("delay") > 15, within="10h", settle="1h"),
    features=[tm.Aggregation("carrier", ARRIVALS, by="carrier", features={"n": tm.count(over="6h")}), "carrier"],
    estimator=LogisticRegression(),
)


def schedule(
    seq: int, key: str, known: float | None, scheduled: float | None, by: str = "AA", *, gone: bool = False
) -> dict[str, Any]:
    return row(seq, known, gone=gone, id=key, scheduled=scheduled, carrier=by)


def asked(rows: list[dict[str, Any]], now: float = 999) -> list[tuple[int, int]]:
    """Return (sequence, hour asked at) of each example."""
    examples = Oracle({"schedules": rows}).examples(MODEL, hours(now))
    return [(each.row["_seq"], each.asked_at // HOUR) for each in examples]


class TestRule6Examples:
    def test_the_newest_version_visible_at_its_own_asked_at(self) -> None:
        assert asked([schedule(0, "x", 1, 10), schedule(1, "x", 2, 20)]) == [(1, 18)]

    def test_known_at_its_asked_at_is_too_late(self) -> None:
        assert asked([schedule(0, "x", 8, 10)]) == []
        assert asked([schedule(0, "x", 7.9, 10)]) == [(0, 8)]

    def test_later_versions_do_not_change_it(self) -> None:
        assert asked([schedule(0, "x", 1, 10), schedule(1, "x", 9, 10)]) == [(0, 8)]

    def test_a_version_too_late_for_its_own_question_changes_nothing(self) -> None:
        assert asked([schedule(0, "x", 1, 20), schedule(1, "x", 5, 6)]) == [(0, 18)]

    def test_a_later_version_with_a_later_question_replaces_an_example_already_asked(self) -> None:
        assert asked([schedule(0, "x", 1, 10), schedule(1, "x", 9, 30)]) == [(1, 28)]

    def test_later_tombstones_do_not_change_it(self) -> None:
        assert asked([schedule(0, "x", 1, 10), schedule(1, "x", 8, None, gone=True)]) == [(0, 8)]

    def test_a_tombstone_known_before_the_question_leaves_nothing_to_ask(self) -> None:
        assert asked([schedule(0, "x", 1, 10), schedule(1, "x", 7, None, gone=True)]) == []
        assert asked([schedule(0, "x", 1, 10), schedule(1, "x", 7, 10, gone=True)]) == []

    def test_a_version_after_the_tombstone_asks_again(self) -> None:
        rows = [schedule(0, "x", 1, 10), schedule(1, "x", 3, None, gone=True), schedule(2, "x", 5, 12)]
        assert asked(rows) == [(2, 10)]

    def test_a_null_time_asks_nothing(self) -> None:
        assert asked([schedule(0, "x", 1, None)]) == []
        assert asked([schedule(0, "x", 1, 10), schedule(1, "x", 2, None)]) == [(0, 8)]

    def test_only_rows_known_before_now(self) -> None:
        rows = [schedule(0, "x", 1, 10), schedule(1, "x", 3, 20)]
        assert asked(rows, now=3) == [(0, 8)]
        assert asked(rows, now=1) == []

    def test_keys_without_an_example_are_counted(self) -> None:
        rows = [schedule(0, "x", 9, 10), schedule(1, "y", 1, 10), schedule(2, "z", None, 10)]
        training = Oracle({"schedules": rows}).training_set(MODEL, hours(999))
        assert training.counts["no_example"] == 1  # z waits: nobody knows of it

    def test_no_example_is_dropped_because_a_feature_is_missing(self) -> None:
        schedules = [schedule(0, "x", 1, 10, by="never")]
        model = tm.Model(
            "late",
            examples=SCHEDULES,
            asked_at=tm.before("scheduled", "2h"),
            label=tm.Label(ARRIVALS, "delay", within="10h"),
            features=[tm.Latest("l", ARRIVALS, by="carrier", columns="delay")],
            estimator=LogisticRegression(),
        )
        training = Oracle({"schedules": schedules, "arrivals": [arrival(0, "x", 12, 12, 7.0)]}).training_set(
            model, hours(99)
        )
        assert training.rows == [{"id": "x", "_asked_at": hours(8), "l__delay": None, "_label": 7.0}]


def outcome(rows: list[dict[str, Any]], now: float = 99, *, otherwise: bool | None = None) -> LabelOutcome:
    """Return the label of flight x, asked about at 8 and given 10 hours."""
    model = tm.Model(
        "late",
        examples=SCHEDULES,
        asked_at="scheduled",
        label=tm.Label(ARRIVALS, pl.col("delay") > 15, within="10h", settle="1h", otherwise=otherwise),
        features=["carrier"],
        estimator=LogisticRegression(),
    )
    example = Example(("x",), hours(8), schedule(0, "x", 1, 8))
    return Oracle({"arrivals": rows}, {"arrivals": {"delay": pl.Float64()}}).label(model, example, hours(now))


class TestRule7Labels:
    YES = LabelOutcome("labelled", value=True)
    NO = LabelOutcome("labelled", value=False)

    def test_event_time_after_asked_at_up_to_and_with_the_edge(self) -> None:
        assert [outcome([arrival(0, "x", 9, landed, 20.0)]).status for landed in (8, 8.1, 18, 18.1)] == [
            "no_label",
            "labelled",
            "labelled",
            "no_label",
        ]

    def test_only_rows_of_the_examples_key(self) -> None:
        assert outcome([arrival(0, "y", 9, 9, 20.0)]).status == "no_label"

    def test_only_visible_rows(self) -> None:
        rows = [arrival(0, "x", 9, 9, 20.0), arrival(1, "x", 50, 9, 0.0), arrival(2, "x", 60, None, gone=True)]
        assert [outcome(rows, now) for now in (50, 50.1, 60, 60.1)] == [
            self.YES,
            self.NO,
            self.NO,
            LabelOutcome("no_label"),
        ]

    def test_the_last_by_event_time_known_at_and_sequence(self) -> None:
        legs = tm.Source("arrivals", tm.push(), key=("id", "leg"), event_time="landed")
        model = tm.Model(
            "late",
            examples=SCHEDULES,
            asked_at="scheduled",
            label=tm.Label(legs, "delay", within="10h"),
            features=["carrier"],
            estimator=LogisticRegression(),
        )
        example = Example(("x",), hours(8), schedule(0, "x", 1, 8))
        first = {**arrival(0, "x", 9, 10, 1.0), "leg": 1}
        for change in ({"landed": hours(11)}, {"_known_at": hours(9.5)}, {}):
            second = {**arrival(1, "x", 9, 10, 2.0), "leg": 2, **change}
            assert Oracle({"arrivals": [second, first]}).label(model, example, hours(99)).value == 2.0

    def test_mature_when_within_and_settle_lie_before_now(self) -> None:
        rows = [arrival(0, "x", 9, 9, 20.0)]
        assert outcome(rows, 19).status == "immature"
        assert outcome(rows, 19.1) == self.YES

    def test_otherwise_is_the_label_when_none_came(self) -> None:
        assert outcome([], otherwise=False) == self.NO
        assert outcome([]) == LabelOutcome("no_label")

    def test_a_null_label_value_excludes_the_example(self) -> None:
        assert outcome([arrival(0, "x", 9, 9, None)], otherwise=False) == LabelOutcome("null_label")

    def test_on_names_the_tables_column_for_the_examples(self) -> None:
        feedback = tm.Source("feedback", tm.push(), key="flight", event_time="at")
        model = tm.Model(
            "late",
            examples=SCHEDULES,
            asked_at="scheduled",
            label=tm.Label(feedback, "late", within="10h", on={"flight": "id"}),
            features=["carrier"],
            estimator=LogisticRegression(),
        )
        rows = [{"flight": "x", "at": hours(9), "late": True, "_known_at": hours(9), "_seq": 0, "_tombstone": False}]
        example = Example(("x",), hours(8), schedule(0, "x", 1, 8))
        assert Oracle({"feedback": rows}).label(model, example, hours(99)) == self.YES

    def test_the_training_set_counts_what_it_leaves_out(self) -> None:
        schedules = [schedule(n, key, 1, at) for n, (key, at) in enumerate(zip("dcba", (10, 10, 10, 80), strict=True))]
        arrivals = [arrival(0, "d", 9, 9, 20.0), arrival(1, "c", 9, 9, None)]
        oracle = Oracle({"schedules": schedules, "arrivals": arrivals})
        training = oracle.training_set(MODEL, hours(81))
        assert training.rows == [
            {"id": "d", "_asked_at": hours(8), "carrier__n_6h": 0, "carrier": "AA", "_label": True}
        ]
        assert training.counts == {
            "no_example": 0,
            "outside_window": 0,
            "immature": 1,
            "no_label": 1,
            "null_label": 1,
        }
        newest = oracle.training_set(MODEL, hours(81), window=hours(73))
        assert newest.rows == training.rows
        assert oracle.training_set(MODEL, hours(81), window=hours(73) - 1).counts["outside_window"] == 3

    def test_training_rows_are_sorted_by_asked_at_then_key(self) -> None:
        schedules = [schedule(0, "b", 1, 10), schedule(1, "a", 1, 10), schedule(2, "c", 1, 9)]
        arrivals = [arrival(n, key, 11, 11, 20.0) for n, key in enumerate("abc")]
        training = Oracle({"schedules": schedules, "arrivals": arrivals}).training_set(MODEL, hours(99))
        assert [each["id"] for each in training.rows] == ["c", "a", "b"]

    def test_one_prediction_counts_the_last_answered_before_the_labels_event(self) -> None:
        assert counted([(1, 0), (5, 1), (5, 2), (7, 3)], 7) == 2
        assert counted([(7, 0)], 7) is None


DELAYED = tm.Source("delayed", tm.files("*.csv"), key="id", event_time="landed", known_at="reported")


@tm.table("late_only", key="id", event_time="landed")
def late_only(delayed: pl.LazyFrame) -> pl.LazyFrame:
    return delayed.filter(pl.col("delay") > 15)


@tm.table("worst", key="carrier")
def worst(late_only: pl.LazyFrame) -> pl.LazyFrame:
    return late_only.group_by("carrier").agg(pl.col("delay").max())


def test_rule_8_a_derived_table_at_t_is_f_of_its_inputs_at_t() -> None:
    rows = [arrival(0, "x", 1, 1, 20.0), arrival(1, "x", 3, 1, 5.0), arrival(2, "y", 2, 1, 30.0)]
    oracle = Oracle({"delayed": rows}, {"delayed": {"landed": TIME}})
    assert [sorted(each["id"] for each in oracle.derived(late_only, hours(t))) for t in (1, 2, 3, 4)] == [
        [],
        ["x"],
        ["x", "y"],
        ["y"],
    ]
    assert oracle.derived(late_only, hours(4)) == [{"id": "y", "landed": hours(1), "delay": 30.0, "carrier": "AA"}]
    assert oracle.derived(worst, hours(3)) == [{"carrier": "AA", "delay": 30.0}]


def test_rule_9_re_derivation_uses_the_rows_that_had_been_applied() -> None:
    view = tm.Aggregation("w", ARRIVALS, by="carrier", features={"n": tm.count(over="6h")})
    oracle = Oracle({"arrivals": [arrival(0, "x", 1, 1), arrival(1, "y", 1, 1)]})
    assert oracle.view(view, {"carrier": "AA"}, hours(2)) == {"w__n_6h": 2}
    assert oracle.applied({"arrivals": 0}).view(view, {"carrier": "AA"}, hours(2)) == {"w__n_6h": 1}


def test_rule_10_a_block_is_judged_by_a_model_of_rows_mature_before_it() -> None:
    assert may_teach(MODEL, hours(0), hours(11) + 1, 0)
    assert not may_teach(MODEL, hours(0), hours(11), 0)
    assert not may_teach(MODEL, hours(0), hours(20), hours(20))
    assert may_teach(MODEL, hours(0), hours(20) + 1, hours(20))


def test_an_oracle_over_frames_reads_their_times() -> None:
    rows = [arrival(0, "x", 1, 1)]
    types = {"id": pl.String(), "landed": TIME, "delay": pl.Float64(), "carrier": pl.String()}
    full = [{**each, "_tick": hours(1), "_history": True} for each in rows]
    assert Oracle.of({"arrivals": frame(full, types)}).visible(ARRIVALS, hours(2)) == full


class TestArithmetic:
    @given(st.lists(st.floats(-1e200, 1e200), min_size=1, max_size=9))
    @settings(max_examples=100, deadline=None)
    def test_sums_agree_with_fsum_and_means_with_statistics(self, values: list[float]) -> None:
        rows = [arrival(n, str(n), 1, 1, value) for n, value in enumerate(values)]
        assert window(rows, hours(2), tm.sum("delay", over="6h")) == math.fsum(values)
        assert window(rows, hours(2), tm.mean("delay", over="6h")) == statistics.mean(values)

    def test_rounding_happens_once(self) -> None:
        rows = [arrival(n, str(n), 1, 1, value) for n, value in enumerate((1e16, 1.0, 1.0, -1e16))]
        assert window(rows, hours(2), tm.sum("delay", over="6h")) == 2.0
        assert window(rows, hours(2), tm.mean("delay", over="6h")) == 0.5

    def test_the_spread_survives_an_offset(self) -> None:
        rows = [arrival(n, str(n), 1, 1, 1e9 + value) for n, value in enumerate((1.0, 2.0, 3.0))]
        assert window(rows, hours(2), tm.std("delay", over="6h")) == 1.0

    def test_a_sum_beyond_the_largest_float_is_infinite(self) -> None:
        rows = [arrival(n, str(n), 1, 1, -1.7e308) for n in range(2)]
        assert window(rows, hours(2), tm.sum("delay", over="6h")) == -math.inf
        assert window(rows, hours(2), tm.mean("delay", over="6h")) == -1.7e308

    def test_zero_has_no_sign_in_an_aggregate(self) -> None:
        rows = [arrival(0, "x", 1, 1, -0.0)]
        for make in (tm.sum, tm.mean, tm.min, tm.max):
            assert math.copysign(1, window(rows, hours(2), make("delay", over="6h"))) == 1

    def test_roots_are_correctly_rounded(self) -> None:
        random.seed(0)
        with localcontext() as context:
            context.prec = 60
            for _ in range(500):
                square = Fraction(random.getrandbits(random.randint(1, 300)) + 1, random.getrandbits(200) + 1)
                exact = (Decimal(square.numerator) / Decimal(square.denominator)).sqrt()
                assert root(square) == float(exact)
        assert root(Fraction(2)) == math.sqrt(2)
        assert root(Fraction(5e-324) ** 2) == 5e-324


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_visible_is_known_whole_and_never_doubled(data: st.DataObject) -> None:
    types = {"id": pl.String(), "landed": TIME, "delay": pl.Float64(), "carrier": pl.String()}
    rows = data.draw(histories(ARRIVALS, types))
    view = tm.Aggregation("w", ARRIVALS, by="carrier", features={"n": tm.count(over="1h")})
    t = data.draw(edges(rows, view))
    newest: dict[str, dict[str, Any]] = {}
    for each in rows:
        if each["_known_at"] is not None and each["_known_at"] < t:
            held = newest.setdefault(each["id"], each)
            if held["_known_at"] <= each["_known_at"]:
                newest[each["id"]] = each
    expected = [each["_seq"] for each in newest.values() if not each["_tombstone"]]
    assert seen(rows, t) == sorted(expected)


def test_evaluate_reads_a_bare_column_without_polars() -> None:
    assert evaluate(MODEL.label.value, {"delay": 20}, {}) is True
    assert evaluate(tm.Label(ARRIVALS, "delay", within="1h").value, {"delay": hours(1)}, {}) == hours(1)
