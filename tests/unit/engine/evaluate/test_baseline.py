"""The trivial baseline."""

from __future__ import annotations

import numpy as np
import pytest

from tidemill.base.errors import TrainingError
from tidemill.engine.evaluate.baseline import fit
from tidemill.engine.evaluate.metric import value


def test_two_classes_get_the_rate() -> None:
    truth = np.repeat([0, 1], [900, 100])
    prediction = fit("classification", truth, metric="log_loss").predict(3)
    assert prediction == pytest.approx([100.5 / 1001] * 3)


def test_a_class_never_seen_is_not_impossible() -> None:
    baseline = fit("classification", [0, 0, 2], metric="log_loss", classes=4)
    assert baseline.predict(2) == pytest.approx(np.tile(np.array([2.5, 0.5, 1.5, 0.5]) / 5, (2, 1)))
    loss = value("log_loss", [3], baseline.predict(1))
    assert loss == pytest.approx(-np.log(0.1))


def test_regression_takes_the_constant_that_is_best_for_the_metric() -> None:
    truth = np.array([1.0, 2.0, 9.0])
    assert fit("regression", truth, metric="rmse").predict(2).tolist() == [4.0, 4.0]
    assert fit("regression", truth, metric="mae").predict(1).tolist() == [2.0]


def test_nothing_to_learn_from() -> None:
    with pytest.raises(TrainingError, match="no labels"):
        fit("regression", [], metric="mae")
