"""Drift and performance reports: when they alarm, and when they must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from tidemill.base.clock import DAY
from tidemill.base.hashing import canonical
from tidemill.engine.evaluate.interval import Interval, interval
from tidemill.engine.evaluate.profile import PREDICTION, Profile
from tidemill.engine.monitor.monitor import drift, performance
from tidemill.spec.model import Metric
from tidemill.spec.system import psi, worse_than


def rows(seed: int, count: int, move: float = 0.0) -> tuple[pl.DataFrame, Any]:
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame({"temp": rng.normal(move, 1, count), "wind": rng.exponential(size=count)})
    return frame, 1 / (1 + np.exp(-frame["temp"].to_numpy()))


def test_no_drift_in_small_and_large_samples_of_the_same() -> None:
    reference = Profile.of(*rows(1, 5_000))
    for seed, count in enumerate((10, 199, 200, 250, 400, 10_000)):
        report = drift(psi(over=0.02), reference, *rows(50 + seed, count))
        assert not report.drift
        assert report.rows == count
        assert ("recent rows" in report.reason) == (count < 200)


def test_drift_names_what_moved_and_the_prediction_with_it() -> None:
    report = drift(psi(over=0.2), Profile.of(*rows(2, 5_000)), *rows(3, 1_000, move=1.0))
    assert report.drift
    assert set(report.drifted) == {"temp", PREDICTION}
    assert [shift.psi for shift in report.shifts] == sorted((shift.psi for shift in report.shifts), reverse=True)
    assert "2 of 3 moved" in report.reason
    assert "the prediction (PSI" in report.reason
    assert canonical(report.as_json()) == canonical(
        drift(psi(over=0.2), Profile.of(*rows(2, 5_000)), *rows(3, 1_000, move=1.0)).as_json()
    )
    assert not drift(psi(over=5.0), Profile.of(*rows(2, 5_000)), *rows(3, 1_000, move=1.0)).drift


def outcome(seed: int, days: int, skill: float, per_day: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(days * per_day) < 0.4).astype(float)
    prediction = np.clip(0.4 + skill * (truth - 0.4) + rng.normal(0, 0.15, len(truth)), 0.02, 0.98)
    return {"truth": truth, "prediction": prediction, "times": np.repeat(np.arange(days) * DAY, per_day)}


CASES: list[tuple[str, Metric, float, int, int, bool, str]] = [
    ("far worse", "log_loss", 0.0, 10, 60, True, "worse by"),
    ("far worse, higher is better", "roc_auc", 0.0, 10, 60, True, "worse by"),
    ("the same", "log_loss", 0.3, 10, 60, False, "within the margin"),
    ("better", "roc_auc", 0.6, 10, 60, False, "better by"),
    ("far worse on few rows", "log_loss", 0.0, 10, 15, False, "only 150 mature rows"),
    ("far worse on two days", "log_loss", 0.0, 2, 150, False, "too few days"),
    ("no rows", "log_loss", 0.0, 0, 60, False, "only 0 mature rows"),
]


@pytest.mark.parametrize(
    ("metric", "skill", "days", "per_day", "drop", "says"),
    [each[1:] for each in CASES],
    ids=[each[0] for each in CASES],
)
def test_drops(metric: Metric, skill: float, days: int, per_day: int, drop: bool, says: str) -> None:
    judged = interval(metric, **outcome(1, 30, 0.3), seed=1, confidence=0.9)
    report = performance(worse_than(0.02), metric, judged, **outcome(2, days, skill, per_day), seed=2)
    assert report.drop is drop
    assert says in report.reason
    assert report.live.confidence == 0.9
    assert canonical(report.as_json())


def test_worse_than_the_margin_by_chance_is_no_drop() -> None:
    live = outcome(3, 5, 0.25, 41)
    value = interval("log_loss", **live, seed=1).value
    assert value is not None
    judged = Interval(value - 0.03, value - 0.04, value - 0.02, 0.95, 5_000, 30)
    report = performance(worse_than(0.02), "log_loss", judged, **live, seed=1)
    assert report.worse_by == pytest.approx(0.03)
    assert report.at_least is not None
    assert report.at_least < 0
    assert not report.drop
    assert "chance may give as much" in report.reason
    sure = performance(worse_than(0.02), "log_loss", judged, **outcome(3, 60, 0.25, 200), seed=1)
    assert sure.at_least is not None
    assert sure.at_least > report.at_least


def test_a_judged_value_without_interval_raises_no_alarm() -> None:
    judged = Interval(0.1, None, None, 0.95, 100, 2)
    report = performance(worse_than(0.02), "log_loss", judged, **outcome(4, 10, 0.0), seed=1)
    assert not report.drop
    assert report.at_least is None
