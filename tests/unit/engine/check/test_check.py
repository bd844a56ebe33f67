"""`check`: a sound system passes; each fault is found, named, and all of them at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.svm import LinearSVC

import tidemill as tm
from tidemill.base.errors import Fault
from tidemill.engine.check.check import check, derived_schemas, warnings
from tidemill.spec.feature import Latest, View
from tidemill.spec.model import Gate, Model
from tidemill.spec.source import Source, Table
from tidemill.spec.split import ByKey, ByTime
from tidemill.spec.system import System

TIME = pl.Datetime("us", "UTC")
SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    "schedules": {
        "flight_id": pl.String(), "scheduled": TIME, "carrier": pl.String(), "origin": pl.String(), "dest": pl.String(),
        "tailnum": pl.String(), "distance": pl.Int64(),
    },
    "arrivals": {
        "flight_id": pl.String(), "landed": TIME, "reported": TIME, "carrier": pl.String(), "origin": pl.String(),
        "arr_delay": pl.Float64(), "cancelled": pl.Boolean(),
    },
    "weather": {"origin": pl.String(), "observed": TIME, "temp": pl.Float64(), "wind": pl.Float64()},
    "planes": {"tailnum": pl.String(), "year": pl.Int64(), "engine": pl.String()},
}  # fmt: skip


def schedules(name: str = "schedules", **changes: Any) -> Source:
    given: dict[str, Any] = {"key": "flight_id", "event_time": "scheduled", "known_at": tm.before("scheduled", "30d")}
    return tm.Source(name, tm.files("schedules/*.csv"), **{**given, **changes})


def arrivals(name: str = "arrivals", **changes: Any) -> Source:
    given: dict[str, Any] = {
        "key": "flight_id",
        "event_time": "landed",
        "known_at": "reported",
        "checks": [tm.not_null("carrier", "origin"), tm.between("arr_delay", -120, 2000)],
    }
    return tm.Source(name, tm.files("arrivals/*.csv"), **{**given, **changes})


def weather(**changes: Any) -> Source:
    given: dict[str, Any] = {
        "key": ("origin", "observed"),
        "event_time": "observed",
        "known_at": tm.after("observed", "1h"),
    }
    return tm.Source("weather", tm.files("weather.csv"), **{**given, **changes})


def planes(**changes: Any) -> Source:
    return tm.Source("planes", tm.files("planes.csv"), **{"key": "tailnum", **changes})


def views(
    reports: Source | Table | None = None, sky: Source | Table | None = None, plane: Source | None = None
) -> list[View]:
    return [
        tm.Aggregation(
            "carrier",
            reports or arrivals(),
            by="carrier",
            features={
                "delay": tm.mean("arr_delay", over=("6h", "1d")),
                "late": tm.mean(pl.col("arr_delay") > 15, over="1d"),
                "landed": tm.count(over="1d"),
            },
        ),
        tm.Latest("sky", sky or weather(), by="origin", columns=["temp", "wind"], within="3h"),
        tm.Latest("plane", plane or planes(), by="tailnum", columns=["year", "engine"]),
        tm.OnDemand("calendar", {"hour": tm.local("scheduled", "America/New_York").dt.hour()}),
    ]


def model(**changes: Any) -> Model:
    given: dict[str, Any] = {
        "name": "late",
        "examples": schedules(),
        "asked_at": tm.before("scheduled", "2h"),
        "label": tm.Label(arrivals(), pl.col("arr_delay") > 15, within="2d"),
        "features": [*views(), "carrier", "distance"],
        "estimator": HistGradientBoostingClassifier(),
        "split": tm.by_time(test="30d", gap="1d"),
        "metrics": ["log_loss", "roc_auc"],
    }
    arguments = {**given, **changes}
    return tm.Model(arguments.pop("name"), **arguments)


def system(*models: Model, **changes: Any) -> System:
    return tm.System("flights", *(models or (model(),)), **changes)


def with_view(view: View) -> System:
    return system(model(features=[view, "distance"]))


def with_reports(**changes: Any) -> System:
    reports = arrivals(**changes)
    return system(model(features=views(reports), label=tm.Label(reports, pl.col("arr_delay") > 15, within="2d")))


def with_examples(**changes: Any) -> System:
    return system(model(examples=schedules(**changes)))


def texts(faults: tuple[Fault, ...]) -> list[str]:
    return [str(fault) for fault in faults]


def test_a_sound_system_passes_with_and_without_data() -> None:
    everything = system(
        monitor=tm.Monitor(drift=tm.psi(over=0.2), performance=tm.worse_than(0.02)),
        policy=tm.Policy(retrain=[tm.every("30d"), tm.on_drift(), tm.on_drop()]),
    )
    assert texts(check(everything, None)) == []
    assert texts(check(everything, SCHEMAS)) == []


LOCK = threading.Lock()


def holding_a_lock(truth: Any, prediction: Any) -> float:
    with LOCK:
        return 0.0


def one_argument(truth: Any) -> float:
    return 0.0


CASES: dict[str, tuple[Callable[[], System], str]] = {
    # names
    "model name": (lambda: system(model(name="late flights")), "model 'late flights': the name 'late flights' is not"),
    "system name": (lambda: tm.System("1st", model()), "system '1st': the name '1st' is not allowed. Use letters"),
    "window name": (
        lambda: with_view(tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.count(over="1.5h")})),
        "feature view 'c': the column 'c__n_1.5h' would have a name that is not allowed.",
    ),
    "KPI name": (lambda: system(model(kpis={"a b": max})), "the KPI name 'a b' is not allowed"),
    "two models": (
        lambda: system(model(), model(metrics=["brier"])),
        "model 'late': 2 different declarations have this",
    ),
    "two views": (
        lambda: system(model(features=[*views(), tm.Latest("sky", weather(), by="origin", columns="temp")])),
        "feature view 'sky': 2 different declarations have this name.",
    ),
    "two tables": (
        lambda: system(model(label=tm.Label(arrivals(known_at="landed"), "cancelled", within="2d"))),
        "source 'arrivals': 2 different declarations have this name.",
    ),
    "joined names": (
        lambda: system(
            model(
                features=[
                    tm.OnDemand("a", {"b__c": "distance"}),
                    tm.OnDemand("a__b", {"c": "distance"}),
                ]
            )
        ),
        "model 'late': 2 of its features are named 'a__b__c'.",
    ),
    "feature twice": (
        lambda: system(model(features=["distance", "distance"])),
        "2 of its features are named 'distance'.",
    ),
    "window twice": (
        lambda: with_view(tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.count(over=("1d", "1d"))})),
        "feature view 'c': yields the column 'c__n_1d' 2 times.",
    ),
    # tables
    "no key": (lambda: with_examples(key=()), "source 'schedules': has no key. Name the column"),
    "unknown key": (
        lambda: with_examples(key="flight"),
        "source 'schedules': has no column 'flight'. Did you mean 'flight_id'?",
    ),
    "unknown event time": (
        lambda: with_reports(event_time="landing"),
        "has no column 'landing'. Did you mean 'landed'?",
    ),
    "event time no time": (
        lambda: with_reports(event_time="carrier"),
        "its event time 'carrier' is String, not a time.",
    ),
    "known-at no time": (
        lambda: with_examples(known_at=tm.before("distance", "1d")),
        "source 'schedules': its known-at 'distance' is Int64, not a time.",
    ),
    "corrected-at no time": (lambda: with_reports(corrected_at="origin"), "its corrected-at 'origin' is String, not a"),
    "tombstone": (lambda: with_reports(tombstone="origin"), "its tombstone 'origin' is String, not a boolean."),
    "decimal key": (lambda: with_reports(key="arr_delay"), "its key 'arr_delay' is Float64, which does not identify"),
    "file format": (
        lambda: system(
            model(examples=tm.Source("schedules", tm.files("a.xlsx"), key="flight_id", event_time="scheduled"))
        ),
        "source 'schedules': its files 'a.xlsx' are of no known format.",
    ),
    "check of unknown column": (
        lambda: with_reports(checks=[tm.not_null("carier")]),
        "has no column 'carier'. Did you mean 'carrier'?",
    ),
    "check of strings": (
        lambda: with_reports(checks=[tm.between("origin", 0, 1)]),
        "between() compares 'origin', which",
    ),
    "check that cannot hold": (lambda: with_reports(checks=[tm.between("arr_delay", 2, 1)]), "can never hold"),
    "check not boolean": (
        lambda: with_reports(checks=[tm.holds("x", "arr_delay")]),
        "the check 'x' yields Float64, not",
    ),
    "check fails": (
        lambda: with_reports(checks=[tm.holds("x", pl.col("origin") > 3)]),
        "the check 'x' does not work on source 'arrivals': cannot compare string with numeric type (i32)",
    ),
    # feature views
    "unknown by": (
        lambda: with_view(tm.Aggregation("c", arrivals(), by="carier", features={"n": tm.count(over="1d")})),
        "feature view 'c': source 'arrivals' has no column 'carier'. Did you mean 'carrier'?",
    ),
    "unknown value": (
        lambda: with_view(tm.Latest("sky", weather(), by="origin", columns="tempo")),
        "feature view 'sky': source 'weather' has no column 'tempo'. Did you mean 'temp'?",
    ),
    "unknown on": (
        lambda: with_view(tm.Latest("sky", weather(), by="origin", columns="temp", on={"orig": "dest"})),
        "feature view 'sky': on= renames 'orig', which is not among by=.",
    ),
    "request column": (
        lambda: with_view(tm.Latest("sky", weather(), by="origin", columns="temp", on={"origin": "destiny"})),
        "model 'late', feature view 'sky': source 'schedules' has no column 'destiny'. Did you mean 'dest'?",
    ),
    "request type": (
        lambda: with_view(tm.Latest("sky", weather(), by="origin", columns="temp", on={"origin": "distance"})),
        "'origin' of source 'weather' is String and 'distance' of source 'schedules' is Int64: they never match.",
    ),
    "aggregate of strings": (
        lambda: with_view(tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.mean("origin", over="1d")})),
        "feature view 'c': 'n' takes the mean of String.",
    ),
    "quantile of strings": (
        lambda: with_view(
            tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.quantile("origin", 0.5, over="1d")})
        ),
        "feature view 'c': 'n' takes the quantile of String.",
    ),
    "quantile beyond one": (
        lambda: with_view(
            tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.quantile("arr_delay", 95, over="1d")})
        ),
        "feature view 'c': 'n' takes the 95.0 quantile.",
    ),
    "share of numbers": (
        lambda: with_view(
            tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.share("arr_delay", over="1d")})
        ),
        "feature view 'c': 'n' takes the share of",
    ),
    "unknown column in an aggregate": (
        lambda: with_view(tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.sum("delay", over="1d")})),
        "feature view 'c': source 'arrivals' has no column 'delay'. Did you mean 'arr_delay'?",
    ),
    "expression over other rows": (
        lambda: with_view(
            tm.Aggregation(
                "c",
                arrivals(),
                by="carrier",
                features={
                    "n": tm.mean(pl.col("arr_delay") - pl.col("arr_delay").mean(), over="1d"),
                },
            )
        ),
        "feature view 'c': 'n' depends on other rows of the batch",
    ),
    "on demand over other rows": (
        lambda: with_view(tm.OnDemand("o", {"d": pl.col("distance").cum_sum()})),
        "model 'late', feature view 'o': 'd' depends on other rows of the batch",
    ),
    "on demand unknown": (
        lambda: with_view(tm.OnDemand("o", {"d": pl.col("distanse") * 2})),
        "model 'late', feature view 'o': source 'schedules' has no column 'distanse'. Did you mean 'distance'?",
    ),
    "on demand time": (
        lambda: with_view(tm.OnDemand("o", {"d": tm.local("scheduled", "America/New_York")})),
        "feature view 'o': 'd' is Datetime(time_unit='us', time_zone='America/New_York'), which no estimator takes.",
    ),
    "windows on static": (
        lambda: with_view(tm.Aggregation("c", planes(), by="tailnum", features={"n": tm.count(over="1d")})),
        "feature view 'c': has windows over source 'planes', which has no event time.",
    ),
    "within on static": (
        lambda: with_view(tm.Latest("p", planes(), by="tailnum", columns="year", within="1d")),
        "feature view 'p': has within= on source 'planes', which has no event time.",
    ),
    "ahead on static": (
        lambda: with_view(tm.Latest("p", planes(), by="tailnum", columns="year", ahead=True)),
        "feature view 'p': looks ahead in source 'planes', which has no event time.",
    ),
    "ahead without the stated time": (
        lambda: with_view(tm.Latest("sky", weather(), by="origin", columns="temp", ahead=True)),
        "model 'late', feature view 'sky': source 'schedules' has no column 'observed'.",
    ),
    "zero window": (
        lambda: with_view(tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.count(over="0s")})),
        "feature view 'c': the window '0s' of 'n' is empty.",
    ),
    "zero within": (
        lambda: with_view(tm.Latest("sky", weather(), by="origin", columns="temp", within="0s")),
        "feature view 'sky': within= is zero, so no row is ever found.",
    ),
    "no by": (lambda: with_view(tm.Latest("sky", weather(), by=(), columns="temp")), "has no column to look up by."),
    "no window": (
        lambda: with_view(tm.Aggregation("c", arrivals(), by="carrier", features={"n": tm.count(over=())})),
        "feature view 'c': 'n' has no window.",
    ),
    "time as a value": (
        lambda: with_view(tm.Latest("a", arrivals(), by="flight_id", columns="landed")),
        "feature view 'a': 'landed' is Datetime(time_unit='us', time_zone='UTC'), which no estimator takes.",
    ),
    # questions and labels
    "unknown feature": (
        lambda: system(model(features=["carier"])),
        "model 'late': source 'schedules' has no column 'carier'. Did you mean 'carrier'?",
    ),
    "time as a feature": (lambda: system(model(features=["scheduled"])), "the feature 'scheduled' is Datetime"),
    "asked before it is known": (
        lambda: system(model(asked_at=tm.before("scheduled", "40d"))),
        "model 'late': is asked 40d before 'scheduled', but a row of source 'schedules' is known 30d before",
    ),
    "asked when it is known": (lambda: system(model(asked_at=tm.before("scheduled", "30d"))), "no example can exist"),
    "asked at the event, known then": (
        lambda: system(model(examples=schedules(known_at=None), asked_at="scheduled")),
        "is asked at 'scheduled', but a row of source 'schedules' is known at 'scheduled': no example can exist.",
    ),
    "asked at no column": (
        lambda: system(model(asked_at="schedule")),
        "has no column 'schedule'. Did you mean 'schedu",
    ),
    "asked at no time": (
        lambda: system(model(asked_at="distance")),
        "asked_at reads 'distance', which is Int64, not a time.",
    ),
    "label of static table": (
        lambda: system(model(label=tm.Label(planes(key="tailnum"), "year", within="2d", on={"tailnum": "tailnum"}))),
        "model 'late', label: source 'planes' has no event time, so no row of it can count.",
    ),
    "label within nothing": (
        lambda: system(model(label=tm.Label(arrivals(), "cancelled", within="0s"))),
        "model 'late', label: within= is zero, so no row can count.",
    ),
    "label without the key": (
        lambda: system(model(label=tm.Label(weather(), pl.col("temp") > 0, within="1d"))),
        "model 'late', label: source 'weather' has no column 'flight_id'. Labels share the key",
    ),
    "label of unknown column": (
        lambda: system(model(label=tm.Label(arrivals(), pl.col("arr_dely") > 15, within="2d"))),
        "model 'late', label: source 'arrivals' has no column 'arr_dely'. Did you mean 'arr_delay'?",
    ),
    "label on unknown": (
        lambda: system(model(label=tm.Label(arrivals(), "cancelled", within="2d", on={"flight_id": "flight"}))),
        "late', label: on= names 'flight', which is not in the key of source 'schedules'. Did you mean 'flight_id'?",
    ),
    "label type": (
        lambda: system(model(label=tm.Label(arrivals(), "arr_delay", within="2d"))),
        "model 'late', label: its value is Float64, and a classification needs classes.",
    ),
    "label of a regression": (
        lambda: system(model(estimator=HistGradientBoostingRegressor(), metrics=["mae"])),
        "model 'late', label: its value is Boolean, and a regression needs numbers.",
    ),
    "otherwise": (
        lambda: system(model(label=tm.Label(arrivals(), "cancelled", within="2d", otherwise="no"))),
        "model 'late', label: otherwise='no' does not fit its value, which is Boolean.",
    ),
    "label leak": (
        lambda: system(
            model(
                examples=arrivals(),
                asked_at="reported",
                features=["arr_delay", "carrier"],
                label=tm.Label(arrivals(), pl.col("arr_delay") > 15, within="2d"),
            )
        ),
        "model 'late': the feature 'arr_delay' gives the label away",
    ),
    "label leak on demand": (
        lambda: system(
            model(
                examples=arrivals(),
                asked_at="reported",
                features=[tm.OnDemand("o", {"d": pl.col("arr_delay") * 2})],
                label=tm.Label(arrivals(), pl.col("arr_delay") > 15, within="2d"),
            )
        ),
        "model 'late': feature view 'o' gives the label away",
    ),
    # estimator and judging
    "no estimator": (
        lambda: system(model(estimator=3, task="classification")),
        "its estimator 3 has no fit and predict",
    ),
    "estimator class": (
        lambda: system(model(estimator=HistGradientBoostingClassifier, task="classification")),
        "has no fit and predict of its own. Pass an object",
    ),
    "task": (
        lambda: system(model(task="regression", metrics=["mae"], label=tm.Label(arrivals(), "arr_delay", within="2d"))),
        "the task is regression, but its estimator does classification.",
    ),
    "metric for the other task": (
        lambda: system(model(metrics=["log_loss", "mae"])),
        "the metric 'mae' does not suit a clas",
    ),
    "unknown metric": (
        lambda: system(model(metrics=["log_los"])),
        "metric 'log_los' is not known. Did you mean 'log_loss'?",
    ),
    "unknown gate metric": (
        lambda: system(model(gate=Gate("roc_auk"))),  # type: ignore[arg-type]
        "model 'late': the gate's metric 'roc_auk' is not known. Did you mean 'roc_auc'?",
    ),
    "gate metric for the other task": (
        lambda: system(model(gate=Gate("rmse"))),
        "the gate's metric 'rmse' does not suit",
    ),
    "no probabilities": (
        lambda: system(model(estimator=LinearSVC(), task="classification", metrics=["accuracy", "brier"])),
        "the metric 'brier' needs probabilities, which its estimator does not give.",
    ),
    "gate confidence of a coin": (
        lambda: system(model(gate=Gate("log_loss", confidence=0.5))),
        "late', gate: confidence=0.5 is out",
    ),
    "gate confidence": (
        lambda: system(model(gate=Gate("log_loss", confidence=1.5))),
        "late', gate: confidence=1.5 is out",
    ),
    "gate margin": (lambda: system(model(gate=Gate("log_loss", margin=-1))), "model 'late', gate: margin=-1 is out of"),
    "gate rows": (lambda: system(model(gate=Gate("log_loss", min_rows=0))), "model 'late', gate: min_rows=0 is out of"),
    "split of nothing": (lambda: system(model(split=ByTime(0, 0, 1))), "model 'late', split: test= is zero"),
    "split blocks": (lambda: system(model(split=ByTime(5, 0, 0))), "model 'late', split: blocks=0 is out of bounds"),
    "split share": (lambda: system(model(split=ByKey(1.5, 0))), "model 'late', split: test=1.5 is out of bounds."),
    "KPI arguments": (
        lambda: system(model(kpis={"cost": one_argument})),
        "the KPI 'cost' does not take (truth, predic",
    ),
    "KPI closure": (
        lambda: system(model(kpis={"cost": holding_a_lock})),
        "the KPI 'cost' cannot be fingerprinted: ",
    ),
    "slices": (
        lambda: system(model(slices=["carier"])),
        "slices by 'carier', which is not in its training frame. Did you",
    ),
    # system
    "no model": (lambda: tm.System("flights"), "system 'flights': has no model."),
    "drift unwatched": (
        lambda: system(policy=tm.Policy(retrain=[tm.on_drift()])),
        "retrains on drift, which nothing watch",
    ),
    "drop unwatched": (lambda: system(policy=tm.Policy(retrain=[tm.on_drop()])), "retrains on a drop of performance"),
    "schedule": (lambda: system(policy=tm.Policy(retrain=[tm.every("0s")])), "the schedule of retraining is zero."),
    "window": (lambda: system(policy=tm.Policy(window="0d")), "system 'flights': the policy's window is zero."),
    "tick": (lambda: system(tick="0s"), "system 'flights': the tick is zero."),
    "port": (lambda: system(endpoint=tm.Endpoint(port=70_000)), "system 'flights': port=70000 is out of bounds."),
    "endpoint's words": (
        lambda: system(endpoint=tm.Endpoint(durability=cast("Any", "never"))),
        "system 'flights': durability='never' is not known. Write one of 'batch', 'sync'.",
    ),
    "table of predictions": (
        lambda: system(model(examples=schedules(name="predictions"))),
        "source 'predictions': 'predictions' is the name of a table that Tidemill keeps itself.",
    ),
    "table of feedback": (
        lambda: system(model(examples=tm.clean("feedback", schedules(), [tm.trim("carrier")]))),
        "table 'feedback': 'feedback' is the name of a table that Tidemill keeps itself.",
    ),
    "table of a quarantine": (
        lambda: system(model(examples=schedules(name="old__quarantine"))),
        "names that end in '__quarantine' are those of tables beside sources.",
    ),
    "table of pushes": (
        lambda: system(model(examples=schedules(name="old__pushes"))),
        "names that end in '__pushes' are those of tables beside sources.",
    ),
    "psi": (lambda: system(monitor=tm.Monitor(drift=tm.psi(over=0))), "psi(over=0) is out of bounds."),
    "margin": (lambda: system(monitor=tm.Monitor(performance=tm.worse_than(-1))), "worse_than(-1) is out of bounds."),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found(case: str) -> None:
    build, expected = CASES[case]
    found = texts(check(build(), SCHEMAS))
    assert any(expected in text for text in found), found


@pytest.mark.parametrize("divide", [lambda x: x / 3, lambda x: 1 / (x / 7 + 2) // 3, lambda x: (x / 49) % 0.1])
def test_a_division_reads_its_own_row(divide: Callable[[pl.Expr], pl.Expr]) -> None:
    """Over many rows Polars divides by a number otherwise than on one; what is declared is the value on one."""
    assert not texts(check(with_view(tm.OnDemand("o", {"d": divide(pl.col("distance"))})), SCHEMAS))


def test_what_an_examination_does_not_foresee_is_a_fault_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Iterator[Fault]:
        yield from dict[str, list[Fault]]()["nobody thought of it"]

    monkeypatch.setattr("tidemill.engine.check.check.view_faults", fails)
    found = texts(check(system(model(features=[tm.Latest("sky", weather(), by="origin", columns="temp"), "carier"]))))
    assert any("feature view 'sky': cannot be examined (KeyError): 'nobody thought of it'." in text for text in found)
    found = texts(check(system(model(features=[tm.Latest("sky", weather(), by="origin", columns="temp")]), tick="0s")))
    assert len(found) == 2


def test_all_faults_come_at_once_in_order_of_declaration() -> None:
    reports = arrivals(key=(), checks=[tm.not_null("orign")])
    wrong = system(
        model(
            name="no good",
            examples=schedules(event_time="schedule"),
            label=tm.Label(reports, pl.col("arr_delay") > 15, within="0s"),
            features=[tm.Latest("sky", weather(), by="origin", columns="temper", within="0s"), "carier"],
            metrics=["mae"],
        ),
        tick="0s",
    )
    where = [fault.where for fault in check(wrong, SCHEMAS)]
    order = ["source 'schedules'", "source 'arrivals'", "feature view 'sky'", "model 'no good'", "system 'flights'"]
    assert list(dict.fromkeys(each.partition(",")[0] for each in where)) == order
    assert len(where) == 11
    assert all(fault.what for fault in check(wrong, SCHEMAS))


def test_columns_kept_by_tidemill_and_unstorable_names_are_refused() -> None:
    schema = {**SCHEMAS["planes"], "_seq": pl.Int64(), "max.speed": pl.Int64()}
    found = texts(check(system(), {**SCHEMAS, "planes": schema}))
    assert [text.partition(".")[0] for text in found] == [
        "source 'planes': its column '_seq' has a name that Tidemill keeps for itself",
        "source 'planes': its column 'max",
    ]


def test_dates_count_as_times_as_the_lake_keeps_them() -> None:
    assert check(system(), {**SCHEMAS, "arrivals": {**SCHEMAS["arrivals"], "landed": pl.Date()}}) == ()


@pytest.mark.parametrize(
    ("changes", "faulty"),
    [
        ({"known_at": tm.before("scheduled", "30d")}, True),
        ({"known_at": None}, True),
        ({"known_at": "scheduled"}, False),
        ({"known_at": tm.before("scheduled", "30d"), "corrected_at": "scheduled"}, False),
    ],
)
def test_corrections_need_a_known_at_of_their_own(changes: Mapping[str, Any], faulty: bool) -> None:
    found = check(with_examples(**changes), SCHEMAS, repeated=["schedules"])
    assert [fault.where for fault in found if "later versions" in fault.what] == ["source 'schedules'"] * faulty
    assert not [fault for fault in check(with_examples(**changes), SCHEMAS) if "later versions" in fault.what]


def test_too_many_categories_need_an_encoder_where_the_estimator_refuses_them() -> None:
    counts = {"schedules": {"carrier": 255}, "planes": {"engine": 256}}
    (found,) = check(system(), SCHEMAS, categories=counts)
    assert (
        "the feature 'plane__engine' has 256 different values; HistGradientBoostingClassifier takes 255" in found.what
    )
    encoded = make_pipeline(OrdinalEncoder(), HistGradientBoostingClassifier())
    assert check(system(model(estimator=encoded)), SCHEMAS, categories=counts) == ()


def test_a_text_needs_an_encoder_before_lightgbm() -> None:
    estimator = pytest.importorskip("lightgbm").LGBMClassifier()
    counts = {"schedules": {"carrier": 3}}
    (found,) = check(system(model(estimator=estimator)), SCHEMAS, categories=counts)
    assert "the feature 'carrier' is text" in found.what
    assert "OrdinalEncoder" in found.do
    assert check(system(model(estimator=estimator)), SCHEMAS, categories={"schedules": {"carrier": 0}}) == ()
    assert check(system(model(estimator=make_pipeline(OrdinalEncoder(), estimator))), SCHEMAS, categories=counts) == ()


def test_static_files_without_known_at_warn_and_are_no_fault() -> None:
    (warning,) = warnings(system())
    assert warning.where == "source 'planes'"
    assert "history is not kept" in warning.what
    pushed = tm.Source("planes", tm.push(), key="tailnum")
    assert warnings(system(model(features=views(plane=pushed)))) == ()


def test_rows_of_a_function_warn_that_the_past_does_not_see_them() -> None:
    called = tm.Source("planes", tm.rows(lambda taken: []), key="tailnum")
    (warning,) = warnings(system(model(features=views(plane=called))))
    assert (warning.where, "no question of the past sees it" in warning.what) == ("source 'planes'", True)
    assert "history=True" in warning.do
    told = tm.Source("planes", tm.rows(lambda taken: [], history=True), key="tailnum", known_at="told")
    assert warnings(system(model(features=views(plane=told)))) == ()


def test_history_of_a_function_needs_its_known_at() -> None:
    called = tm.Source("planes", tm.rows(lambda taken: [], history=True), key="tailnum", event_time="built")
    (fault,) = check(system(model(features=views(plane=called))))
    assert (fault.where, fault.do) == ("source 'planes'", "Declare known_at=: a column, or tm.before or tm.after one.")


def test_a_feature_named_like_the_labels_column_warns() -> None:
    found = warnings(system(model(features=["arr_delay"])))
    assert [fault.where for fault in found] == ["model 'late'"]


# The functions' parameters are matched with declarations by name when they are decorated.
reports = arrivals("reports", key="flight_id")
REPORTS = {**SCHEMAS, "reports": SCHEMAS["arrivals"]}


@tm.table("delays", key="flight_id", event_time="landed", known_at="reported")
def delays(reports: pl.LazyFrame) -> pl.LazyFrame:
    return reports.with_columns(minutes=pl.col("arr_delay") * 1.0).drop("arr_delay")


@tm.table("wrong", key="flight_id", event_time="landed", known_at="reported")
def wrong(reports: pl.LazyFrame) -> pl.LazyFrame:
    return reports.select(pl.col("arrival_delay"))


@tm.table("unframed", key="flight_id", event_time="landed")
def unframed(reports: pl.LazyFrame) -> Any:
    return [reports]


@tm.table("locked", key="flight_id", event_time="landed", known_at="reported")
def locked(reports: pl.LazyFrame) -> pl.LazyFrame:
    with LOCK:
        return reports


def on(table: Table, column: str) -> System:
    return with_view(tm.Aggregation("c", table, by="carrier", features={"n": tm.mean(column, over="1d")}))


def test_a_derived_tables_columns_come_from_its_function() -> None:
    assert check(on(delays, "minutes"), REPORTS) == ()
    (found,) = check(on(delays, "arr_delay"), REPORTS)
    assert str(found).startswith("feature view 'c': table 'delays' has no column 'arr_delay'.")
    assert list(derived_schemas(on(delays, "minutes"), REPORTS)["delays"])[-1] == "minutes"
    assert check(on(delays, "arr_delay"), None) == ()  # nothing is known yet


def test_a_failing_table_function_is_a_fault() -> None:
    (found,) = check(on(wrong, "arr_delay"), REPORTS)
    assert found.where == "table 'wrong'"
    assert 'fails on empty input (ColumnNotFoundError): unable to find column "arrival_delay"' in found.what
    (found,) = check(on(unframed, "arr_delay"), REPORTS)
    assert found.what == "its function returns a list, not a Polars frame."


def test_a_closure_that_cannot_be_fingerprinted_is_a_fault() -> None:
    (found,) = check(on(locked, "arr_delay"), REPORTS)
    assert found.where == "table 'locked'"
    assert "LOCK is a lock" in found.what


def test_a_cycle_is_named() -> None:
    first = Table("a", delays.function, ("flight_id",), "landed", "reported", False, (reports,))
    second = Table("b", delays.function, ("flight_id",), "landed", "reported", False, (first,))
    again = Table("a", delays.function, ("flight_id",), "landed", "reported", False, (second,))
    found = [fault for fault in check(on(again, "minutes"), None) if "itself" in fault.what]
    assert [fault.what for fault in found] == ["is derived from itself: a -> b -> a."]


def test_faults_of_the_cut_test_take_their_tables_place() -> None:
    cut = Fault("table 'delays'", "gives other rows when the future is cut off.", "Encode with past rows only.")
    found = check(on(delays, "nothing"), REPORTS, cut_faults=[cut])
    assert [fault.where for fault in found] == ["table 'delays'", "feature view 'c'"]
    assert found[0] is cut


def test_looking_ahead_asks_for_the_stated_time() -> None:
    ahead = Latest("sky", weather(), by="origin", columns="temp", ahead=True, on={"observed": "scheduled"})
    assert check(with_view(ahead), SCHEMAS) == ()
