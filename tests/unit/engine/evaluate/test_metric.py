"""Metrics against scikit-learn, and where they are not defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.errors import TidemillError
from tidemill.engine.evaluate.metric import combine, higher_is_better, is_ranking, terms, total, value, worsening
from tidemill.spec.model import Metric

BINARY: dict[Metric, Callable[..., float]] = {
    "log_loss": lambda y, p, w: float(reference.log_loss(y, p, sample_weight=w, labels=[0, 1])),
    "brier": lambda y, p, w: float(reference.brier_score_loss(y, p, sample_weight=w)),
    "roc_auc": lambda y, p, w: float(reference.roc_auc_score(y, p, sample_weight=w)),
    "average_precision": lambda y, p, w: float(reference.average_precision_score(y, p, sample_weight=w)),
    "accuracy": lambda y, p, w: float(reference.accuracy_score(y, p > 0.5, sample_weight=w)),
    "f1": lambda y, p, w: float(reference.f1_score(y, p > 0.5, sample_weight=w)),
}
REGRESSION: dict[Metric, Callable[..., float]] = {
    "mae": lambda y, p, w: float(reference.mean_absolute_error(y, p, sample_weight=w)),
    "rmse": lambda y, p, w: float(reference.root_mean_squared_error(y, p, sample_weight=w)),
    "mape": lambda y, p, w: float(reference.mean_absolute_percentage_error(y, p, sample_weight=w)),
    "r2": lambda y, p, w: float(reference.r2_score(y, p, sample_weight=w)),
}
METRICS: tuple[Metric, ...] = get_args(Metric)


def two_classes(seed: int, rows: int = 9_000) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(rows) < 0.3).astype(float)
    prediction = np.round(np.clip(rng.normal(0.3 + 0.2 * truth, 0.25), 0, 1), 2)  # many ties, and exact 0 and 1
    return truth, prediction, rng.integers(1, 5, rows).astype(float)


def test_every_declared_metric_is_covered() -> None:
    assert set(BINARY) | set(REGRESSION) == set(METRICS)


@pytest.mark.parametrize("metric", BINARY)
@pytest.mark.parametrize("weighted", [False, True])
def test_two_classes_agree_with_the_reference(metric: Metric, weighted: bool) -> None:
    truth, prediction, weight = two_classes(1)
    some = weight if weighted else None
    assert value(metric, truth, prediction, some) == pytest.approx(BINARY[metric](truth, prediction, some), rel=1e-12)


@pytest.mark.parametrize("metric", BINARY)
def test_a_weight_counts_a_row_that_often(metric: Metric) -> None:
    truth, prediction, weight = two_classes(2, 500)
    times = weight.astype(int)
    repeated = value(metric, np.repeat(truth, times), np.repeat(prediction, times))
    assert value(metric, truth, prediction, weight) == pytest.approx(repeated, rel=1e-12)


@pytest.mark.parametrize("metric", REGRESSION)
@pytest.mark.parametrize("weighted", [False, True])
def test_regression_agrees_with_the_reference(metric: Metric, weighted: bool) -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(1e4, 3, 9_000)  # far from zero: sums of squares would lose digits
    prediction, weight = truth + rng.normal(0.5, 1, 9_000), rng.random(9_000) if weighted else None
    assert value(metric, truth, prediction, weight) == pytest.approx(
        REGRESSION[metric](truth, prediction, weight), rel=1e-10
    )


def test_more_classes_agree_with_the_reference() -> None:
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 4, 3_000)
    prediction = rng.dirichlet(np.ones(4), 3_000) + 0.4 * (truth[:, None] == np.arange(4))
    prediction /= prediction.sum(axis=1, keepdims=True)
    guess = prediction.argmax(axis=1)
    expected: dict[Metric, float] = {
        "log_loss": reference.log_loss(truth, prediction),
        "brier": reference.brier_score_loss(truth, prediction),
        "accuracy": reference.accuracy_score(truth, guess),
        "f1": reference.f1_score(truth, guess, average="macro"),
        "roc_auc": reference.roc_auc_score(truth, prediction, multi_class="ovr", average="macro"),
        "average_precision": reference.average_precision_score(truth, prediction, average="macro"),
    }
    assert {metric: value(metric, truth, prediction) for metric in expected} == pytest.approx(expected, rel=1e-12)


def test_two_columns_of_probabilities_are_the_second() -> None:
    truth, prediction, _ = two_classes(5, 300)
    both = np.column_stack((1 - prediction, prediction))
    for metric in BINARY:
        assert value(metric, truth, both) == value(metric, truth, prediction)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_define_nothing(metric: Metric) -> None:
    assert value(metric, [], []) is None


def test_where_metrics_are_not_defined() -> None:
    assert value("roc_auc", [1, 1], [0.2, 0.9]) is None
    assert value("roc_auc", [0, 0], [0.2, 0.9]) is None
    assert value("average_precision", [0, 0], [0.2, 0.9]) is None
    assert value("average_precision", [1, 1], [0.2, 0.9]) == 1.0
    assert value("f1", [0, 0], [0.2, 0.3]) is None
    assert value("f1", [0, 1], [0.2, 0.3]) == 0.0
    assert value("r2", [0.1] * 7, [0.2] * 7) is None
    assert value("r2", [3.0], [2.0]) is None
    assert value("mape", [0.0, 0.0], [1.0, 2.0]) is None
    assert value("mape", [0.0, 2.0], [1.0, 3.0]) == 0.5  # the row without a relative error is left out


def test_a_class_that_does_not_occur_is_left_out_of_the_average() -> None:
    prediction = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    assert value("roc_auc", [0, 1, 0], prediction) == 1.0
    assert value("f1", [0, 1, 0], prediction) == 1.0


def test_constant_predictions_rank_by_chance() -> None:
    assert value("roc_auc", [0, 1, 0, 1], [0.5] * 4) == 0.5


def test_certain_and_wrong_costs_much_but_not_infinitely() -> None:
    loss = value("log_loss", [1], [0.0])
    assert loss is not None
    assert 36 < loss < 37


@pytest.mark.parametrize(
    ("metric", "truth", "prediction", "says"),
    [
        ("log_loss", [0, 1], [0.5], "shape"),
        ("log_loss", [0, 1], [0.5, float("nan")], "1 predictions"),
        ("mae", [0, float("nan")], [0.5, 1.0], "1 true values"),
        ("log_loss", [0, 2], [0.5, 0.5], "classes 0 to 1"),
        ("brier", [0, 1], [0.5, 1.5], "probabilities"),
        ("mae", [0, 1], [[0.5, 0.5], [0.5, 0.5]], "one predicted value"),
        ("log_loss", [0, 1], [[0.5, 0.1, 0.1], [1.0, 0.0, 0.0]], "add up to 1"),
    ],
)
def test_what_does_not_fit_is_refused(metric: Metric, truth: Any, prediction: Any, says: str) -> None:
    with pytest.raises(TidemillError, match=says):
        value(metric, truth, prediction)


def test_directions() -> None:
    higher = {metric for metric in METRICS if higher_is_better(metric)}
    assert higher == {"roc_auc", "average_precision", "accuracy", "f1", "r2"}
    assert worsening("roc_auc", -0.1) == 0.1
    assert worsening("log_loss", 0.1) == 0.1


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])), min_size=1, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, float]]) -> None:
    positive = [score for label, score in rows if label]
    negative = [score for label, score in rows if not label]
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    expected = sum(pairs) / len(pairs) if pairs else None
    assert value("roc_auc", [label for label, _ in rows], [score for _, score in rows]) == expected


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), metric=st.sampled_from([each for each in METRICS if not is_ranking(each)]))
def test_sums_of_parts_combine_to_the_whole(seed: int, metric: Metric) -> None:
    truth, prediction, _ = two_classes(seed, 400)
    columns = terms(metric, truth, prediction)
    cut = 1 + seed % 398
    whole = value(metric, truth, prediction)
    parts = columns[:cut].sum(axis=0) + columns[cut:].sum(axis=0)
    assert float(combine(metric, parts)) == pytest.approx(whole, rel=1e-9)


def test_a_sum_does_not_lose_small_numbers_between_blocks() -> None:
    values = np.zeros(3 * 4096)
    values[0], values[4096], values[-1] = 1e16, 1.0, -1e16
    assert total(values) == 1.0
