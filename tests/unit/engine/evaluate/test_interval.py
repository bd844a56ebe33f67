"""Block-bootstrap intervals: deterministic, exact in their replicates, and of the coverage they claim."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from tidemill.base.clock import DAY, HOUR
from tidemill.base.errors import TidemillError
from tidemill.base.hashing import canonical
from tidemill.engine.evaluate import interval as module
from tidemill.engine.evaluate.interval import MAX_BLOCKS, Interval, interval, paired
from tidemill.engine.evaluate.metric import value
from tidemill.spec.model import Metric

METRICS: tuple[Metric, ...] = get_args(Metric)


def sample(seed: int, days: int, rows: int = 600) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, days * DAY, rows))
    times[:days] = np.arange(days) * DAY  # every day has a row
    times.sort()
    truth = (rng.random(rows) < 0.4).astype(float)
    prediction = np.round(np.clip(rng.normal(0.4 + 0.15 * truth, 0.2), 0.01, 0.99), 2)
    return truth, prediction, times


@pytest.mark.parametrize("metric", METRICS)
def test_replicates_are_the_metric_of_the_rows_drawn(metric: Metric) -> None:
    truth, prediction, times = sample(1, 12)
    blocks, count = module._blocks(times, DAY, len(truth))
    draws = module._draws(count, 7)[0][:25]
    replicates = module._replicates(metric, truth, prediction, blocks, draws)
    for draw, replicate in zip(draws, replicates, strict=True):
        taken = np.repeat(np.arange(len(truth)), draw.astype(int)[blocks])
        assert replicate == pytest.approx(value(metric, truth[taken], prediction[taken]), rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_a_kpi_and_the_same_metric_agree(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, prediction, times = sample(2, 12)
    monkeypatch.setattr(module, "RESAMPLES", 100)
    direct = interval(metric, truth, prediction, times, seed=1)
    as_kpi = interval(lambda y, p: value(metric, y, p) or 0.0, truth, prediction, times, seed=1)
    assert as_kpi.as_json() == pytest.approx(direct.as_json(), rel=1e-9)


def test_every_draw_takes_as_many_blocks_in_runs() -> None:
    draws, runs = module._draws(30, 3)
    assert draws.shape == (module.RESAMPLES, 30)
    assert (draws.sum(axis=1) == 30).all()
    assert runs == 5  # runs of 6 days
    assert draws.mean(axis=0) == pytest.approx(np.ones(30), abs=0.15)
    neighbours = np.corrcoef(draws[:, 4], draws[:, 5])[0, 1]
    assert neighbours > 0.5 > np.corrcoef(draws[:, 4], draws[:, 19])[0, 1]


def test_the_same_seed_gives_the_same_interval_and_plain_data() -> None:
    truth, prediction, times = sample(3, 20)
    first, again, other = (interval("roc_auc", truth, prediction, times, seed=seed) for seed in (5, 5, 6))
    assert canonical(first.as_json()) == canonical(again.as_json())
    assert first != other
    assert first.value == other.value == value("roc_auc", truth, prediction)
    assert Interval.from_json(first.as_json()) == first
    assert first.low is not None
    assert first.high is not None
    assert first.value is not None
    assert first.low < first.value < first.high


def test_more_confidence_is_wider() -> None:
    truth, prediction, times = sample(4, 25)
    widths = []
    for confidence in (0.5, 0.8, 0.95):
        found = interval("log_loss", truth, prediction, times, seed=1, confidence=confidence)
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths == sorted(widths)
    with pytest.raises(TidemillError, match="confidence"):
        interval("log_loss", truth, prediction, times, seed=1, confidence=95)


def test_too_few_blocks_give_no_interval() -> None:
    for days in (1, 2):
        truth, prediction, times = sample(5, days)
        found = interval("brier", truth, prediction, times, seed=1)
        assert found.value == value("brier", truth, prediction)
        assert (found.low, found.high, found.blocks) == (None, None, days)
    three = interval("brier", *sample(5, 3), seed=1)
    assert three.low is not None
    assert three.high is not None


def test_an_interval_ends_where_the_metric_does() -> None:
    truth = np.tile([0.0, 1.0], 100)
    prediction = np.where(np.arange(200) == 7, 0.0, truth)  # one mistake in all
    found = interval("accuracy", truth, prediction, np.arange(200) // 20 * DAY, seed=1)
    assert found.value == 0.995
    assert found.high == 1.0


def test_no_rows_and_one_class() -> None:
    assert interval("r2", [], [], [], seed=1) == Interval(None, None, None, 0.95, 0, 0)
    assert interval("roc_auc", [], [], [], seed=1).value is None
    same = interval("roc_auc", np.ones(40), np.full(40, 0.5), np.arange(40) * DAY, seed=1)
    assert (same.value, same.low, same.high) == (None, None, None)
    # one positive: most draws of days miss it or take it, some cannot be scored
    rare = interval("roc_auc", np.eye(40)[3], np.linspace(0, 1, 40), np.arange(40) * DAY, seed=1)
    assert rare.value is not None
    assert rare.low is None


def test_very_many_blocks_are_merged() -> None:
    truth, prediction, _ = sample(6, 1, 4_000)
    found = interval("accuracy", truth, prediction, np.arange(4_000) * HOUR, seed=1, block=HOUR)
    assert found.blocks == MAX_BLOCKS


def test_a_pair_shares_its_draws() -> None:
    truth, prediction, times = sample(7, 30)
    same = paired("roc_auc", truth, prediction, prediction, times, seed=1)
    assert (same.difference.value, same.difference.low, same.difference.high) == (0, 0, 0)
    shifted = paired("mae", truth, prediction + 2, prediction + 1, times, seed=1)  # all errors larger by exactly 1
    assert (shifted.difference.low, shifted.difference.high) == pytest.approx((1, 1))
    assert shifted.candidate.low is not None
    assert shifted.candidate.high is not None
    assert shifted.candidate.high - shifted.candidate.low > 0.01


def test_times_must_match() -> None:
    with pytest.raises(TidemillError, match="one time for each"):
        interval("mae", [1.0, 2.0], [1.0, 2.0], [0], seed=1)


@pytest.mark.parametrize("days", [5, 10, 30])
def test_coverage_when_days_resemble_their_neighbours(days: int) -> None:
    """95 % intervals of a mean cover it at least nine times in ten, where day-by-day ones do not."""
    rng = np.random.default_rng(11)
    times, covered, plain, trials = np.repeat(np.arange(days) * DAY, 10), 0, 0, 300
    for trial in range(trials):
        effect = rng.normal(size=days + 20)
        for day in range(1, days + 20):
            effect[day] += 0.4 * effect[day - 1]
        errors = 20 + np.repeat(effect[20:], 10) + rng.normal(size=10 * days)
        found = interval("mae", np.zeros(len(errors)), errors, times, seed=trial)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 20 <= found.high
        daily = errors.reshape(days, 10).mean(axis=1)
        plain += abs(daily.mean() - 20) <= 1.96 * daily.std() / days**0.5
    assert plain / trials < 0.86
    assert covered / trials > 0.885
