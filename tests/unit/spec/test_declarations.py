"""Declarations: names of columns, what a system reaches, and that they are frozen values."""

from __future__ import annotations

import dataclasses
from typing import Any

import polars as pl
import pytest

import tidemill as tm
from tidemill.base.clock import DAY, HOUR
from tidemill.spec.model import Model, offers
from tidemill.spec.source import Source
from tidemill.spec.time import Offset


class Classifier:
    def predict_proba(self, rows: Any) -> Any: ...


class Regressor:
    def predict(self, rows: Any) -> Any: ...


def source(name: str = "arrivals", **changes: Any) -> Source:
    return tm.Source(name, tm.files("*.csv"), **{"key": "flight_id", "event_time": "landed", **changes})


flights = source("flights")


@tm.table("landed", key="flight_id", event_time="landed", known_at=tm.after("landed", "1h"))
def landed(flights: pl.LazyFrame) -> pl.LazyFrame:
    return flights


def model(name: str = "late", **changes: Any) -> Model:
    given: dict[str, Any] = {
        "examples": source("schedules"),
        "asked_at": tm.before("scheduled", "2h"),
        "label": tm.Label(source(), pl.col("arr_delay") > 15, within="2d"),
        "features": [
            tm.Aggregation("carrier", landed, by="carrier", on={"carrier": "line"}, features={
                "delay": tm.mean("arr_delay", over=("6h", "1d")), "n": tm.count(over="1d"),
            }),
            tm.Latest("sky", source("weather"), by="origin", columns=["temp", "wind"], within="3h"),
            tm.OnDemand("calendar", {"hour": pl.col("scheduled").dt.hour()}),
            "distance",
        ],
        "estimator": Classifier(),
    }  # fmt: skip
    return tm.Model(name, **{**given, **changes})


def test_columns_take_their_views_name_and_windows_are_suffixes() -> None:
    assert model().columns == (
        "carrier__delay_6h", "carrier__delay_1d", "carrier__n_1d", "sky__temp", "sky__wind",
        "calendar__hour", "distance",
    )  # fmt: skip


def test_a_request_brings_the_key_and_what_the_features_read() -> None:
    assert model().request_columns == ("flight_id", "line", "origin", "scheduled", "distance")
    forecast = tm.Latest(
        "f", source("w", event_time="hour"), by="origin", columns="t", ahead=True, on={"hour": "scheduled"}
    )
    assert forecast.request_columns == ("origin", "scheduled")


def test_equal_declarations_are_equal_and_hash_alike() -> None:
    assert source() == source()
    assert hash(source()) == hash(source())
    assert source() != source(key="id")
    assert model().features == model().features
    assert len({*model().views, *model().views}) == 3
    assert tm.Label(source(), pl.col("x") > 1, within="1d") == tm.Label(source(), pl.col("x") > 1, within="24h")


@pytest.mark.parametrize("declaration", [source(), landed, model(), tm.Policy(), tm.Gate("log_loss"), tm.Endpoint()])
def test_declarations_are_frozen(declaration: Any) -> None:
    name = dataclasses.fields(declaration)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(declaration, name, None)


def test_a_system_reaches_tables_inputs_first_and_views_once() -> None:
    system = tm.System("flights", model("a"), model("b"))
    assert [table.name for table in system.tables] == ["schedules", "arrivals", "flights", "landed", "weather"]
    assert [each.name for each in system.sources] == ["arrivals", "flights", "schedules", "weather"]
    assert [view.name for view in system.views] == ["carrier", "sky", "calendar"]
    assert landed.inputs == ("flights",)


def test_a_table_names_its_inputs_by_its_parameters() -> None:
    with pytest.raises(TypeError, match=r"table 'x': parameter 'nothing' of wrong\(\) names no source or table"):

        @tm.table("x", key="id")
        def wrong(nothing: pl.LazyFrame) -> pl.LazyFrame:
            return nothing


def test_durations_are_read_when_declared() -> None:
    assert tm.before("a", "2h") == Offset("a", -2 * HOUR)
    assert str(tm.after("a", "1d12h")) == "1d12h after 'a'"
    assert tm.Policy(window="90d").window == 90 * DAY
    assert tm.Policy().window is None
    with pytest.raises(ValueError, match="'soon' is not a duration"):
        tm.count(over="soon")


def test_the_task_and_its_metrics_follow_from_the_estimator() -> None:
    assert model().task == "classification"
    assert model().gate.metric == model().metrics[0] == "log_loss"
    assert model(estimator=Regressor()).task == "regression"
    assert model(estimator=Regressor()).metrics == ("mae", "rmse", "r2")
    assert model(estimator=Regressor(), task="classification").task == "classification"


@pytest.mark.parametrize("test", [0.0, 1.0, -1.0])
def test_a_split_has_two_sides(test: float) -> None:
    with pytest.raises(ValueError, match="test must lie between 0 and 1"):
        tm.by_key(test=test)
    with pytest.raises(ValueError, match="blocks must be at least 1"):
        tm.by_time(test="1d", blocks=0)


def test_the_task_is_what_the_estimator_says_it_does() -> None:
    """Also where it hides a method until it is fitted, or has no probabilities."""
    from sklearn.ensemble import StackingClassifier, StackingRegressor, VotingClassifier
    from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    stacked = StackingClassifier([("a", LogisticRegression())])
    classifiers = (stacked, make_pipeline(StandardScaler(), stacked), SVC(), SGDClassifier(), LogisticRegression(),
                   VotingClassifier([("a", LogisticRegression())]))  # fmt: skip
    regressors = (Ridge(), StackingRegressor([("a", Ridge())]), make_pipeline(StandardScaler(), Ridge()))
    for estimator in (*classifiers, *regressors):
        wanted = "classification" if estimator in classifiers else "regression"
        assert model(estimator=estimator, task=None).task == wanted, estimator
        assert offers(estimator, "predict")
        gives = isinstance(estimator, LogisticRegression) or estimator in classifiers[:2]
        assert offers(estimator, "predict_proba") == gives, estimator


def test_features_are_retired() -> None:
    old = tm.Aggregation("old", flights, by="s", features={"n": tm.count(over="1d")})
    new = tm.Aggregation("new", flights, by="s", features={"n": tm.count(over="2d")})
    changing = model(features=[new, "x"], retired=[old, "y"])
    assert changing.columns == ("new__n_2d", "x", "old__n_1d", "y")
    assert changing.learned_columns == ("new__n_2d", "x")
    assert changing.learned == (new, "x")
    assert changing.request_columns == ("flight_id", "s", "x", "y")
    assert changing.reading(["y", "new__n_2d"]).features == (new, "y")
    assert changing.reading(["x"]).request_columns == ("flight_id", "x")
