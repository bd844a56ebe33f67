"""The gate's cases as a table, and how often it errs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tidemill.base.clock import DAY
from tidemill.base.errors import TidemillError
from tidemill.base.hashing import canonical
from tidemill.engine.evaluate.gate import Case, Verdict, decide
from tidemill.spec.model import Gate, Metric


def judged(
    gate: Gate, case: Case, by: float, *, days: int = 30, per_day: int = 40, seed: int = 1, related: float = 0.5
) -> Verdict:
    """Judge two regressions whose absolute errors differ by ``by`` on average and by days that resemble each other."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=days + 20) * (1 - related**2) ** 0.5
    for day in range(1, days + 20):
        effect[day] += related * effect[day - 1]
    rows = days * per_day
    rival = 10 + rng.normal(size=rows)
    candidate = 10 + by + 0.15 * np.repeat(effect[20:], per_day) + rng.normal(size=rows)
    times = np.repeat(np.arange(days) * DAY, per_day)
    return decide(gate, case, truth=np.zeros(rows), candidate=candidate, rival=rival, times=times, seed=seed)


CASES: list[tuple[str, Case, float, dict[str, Any], str, str]] = [
    ("changed and far better", "changed", -1.0, {}, "pass", "better by at least"),
    ("changed and the same", "changed", 0.0, {}, "refuse", "not shown to be better"),
    ("changed and far worse", "changed", 1.0, {}, "refuse", "worse by at least"),
    ("first and far better", "first", -1.0, {}, "pass", "than the baseline"),
    ("first and the same", "first", 0.0, {}, "refuse", "not shown to be better"),
    ("refresh and the same", "refresh", 0.0, {}, "pass", "not worse by more than"),
    ("refresh and far worse", "refresh", 1.0, {}, "refuse", "worse by at least"),
    ("refresh worse than the margin within noise", "refresh", 0.33, {}, "refuse", "not shown to be as good"),
    ("too few rows", "changed", -1.0, {"per_day": 10}, "wait", "only 300 mature rows"),
    ("too few days", "first", -1.0, {"days": 4, "per_day": 200}, "wait", "lie in 4 blocks of 1d"),
    ("few days and far better", "first", -1.5, {"days": 7, "per_day": 200}, "pass", "on 1,400 rows of 7 blocks of 1d"),
    ("no rows", "refresh", 0.0, {"days": 0}, "wait", "only 0 mature rows"),
]


@pytest.mark.parametrize(
    ("case", "by", "how", "outcome", "says"), [each[1:] for each in CASES], ids=[c[0] for c in CASES]
)
def test_cases(case: Case, by: float, how: dict[str, Any], outcome: str, says: str) -> None:
    verdict = judged(Gate("mae", margin=0.3), case, by, **how)
    assert verdict.outcome == outcome
    assert says in verdict.reasons[0]


@pytest.mark.parametrize(("metric", "sign"), [("roc_auc", 1), ("log_loss", -1)])
def test_better_is_better_in_either_direction(metric: Metric, sign: int) -> None:
    rng = np.random.default_rng(2)
    truth, times = (rng.random(3_000) < 0.3).astype(float), np.arange(3_000) // 100 * DAY
    good, poor = (np.clip(0.3 + skill * (truth - 0.3) + rng.normal(0, 0.15, 3_000), 0.01, 0.99) for skill in (0.4, 0.1))
    arrays: dict[str, Any] = {"truth": truth, "times": times, "seed": 1}
    better = decide(Gate(metric), "changed", candidate=good, rival=poor, **arrays)
    worse = decide(Gate(metric), "changed", candidate=poor, rival=good, **arrays)
    assert (better.outcome, worse.outcome) == ("pass", "refuse")
    assert better.difference.value is not None
    assert better.difference.value * sign > 0


def test_the_same_predictions() -> None:
    truth, same, times = np.zeros(1_000), np.ones(1_000), np.arange(1_000) // 20 * DAY
    arrays: dict[str, Any] = {"truth": truth, "candidate": same, "rival": same, "times": times, "seed": 1}
    assert decide(Gate("mae"), "refresh", **arrays).outcome == "pass"
    assert decide(Gate("mae"), "changed", **arrays).outcome == "refuse"


def test_one_class_waits() -> None:
    truth, times = np.zeros(1_000), np.arange(1_000) // 20 * DAY
    half = np.full(1_000, 0.5)
    verdict = decide(Gate("roc_auc"), "changed", truth=truth, candidate=half, rival=half, times=times, seed=1)
    assert verdict.outcome == "wait"
    assert "not defined" in verdict.reasons[0]


def test_a_verdict_is_plain_data_and_repeats() -> None:
    first, again = (judged(Gate("mae"), "changed", -0.2) for _ in range(2))
    assert canonical(first.as_json()) == canonical(again.as_json())
    assert first.as_json()["difference"]["confidence"] == pytest.approx(0.9)
    assert canonical(judged(Gate("mae"), "first", 0.0, days=0).as_json())


def test_confidence_must_be_one() -> None:
    with pytest.raises(TidemillError, match="confidence"):
        judged(Gate("mae", confidence=0.5), "changed", 0.0)


def test_how_often_the_gate_errs() -> None:
    """At 95 %: an equal candidate is called better, and one worse by the margin as good, about once in twenty.

    The true rate lies near 5 to 6 % for these related days, the bound is two standard errors above it.
    """
    trials, gate = 300, Gate("mae", margin=0.2)
    changed = sum(judged(gate, "changed", 0.0, seed=seed).outcome == "pass" for seed in range(trials))
    refresh = sum(judged(gate, "refresh", 0.2, seed=seed).outcome == "pass" for seed in range(trials))
    assert changed / trials <= 0.085
    assert refresh / trials <= 0.085
    better = sum(judged(gate, "changed", -0.2, seed=seed).outcome == "pass" for seed in range(100))
    as_good = sum(judged(gate, "refresh", 0.0, seed=seed).outcome == "pass" for seed in range(100))
    assert better >= 65
    assert as_good >= 65
