"""Watching a model: have its inputs or predictions moved, and has its quality dropped? Pure functions to reports.

Drift goes by effect size against the profile stored at training, and must exceed what chance gives. A drop must exceed
the declared margin, and the intervals of then and now together must exclude that nothing got worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import polars as pl

from tidemill.engine.evaluate.interval import Interval, interval
from tidemill.engine.evaluate.metric import Floats, worsening
from tidemill.engine.evaluate.profile import PREDICTION, Profile, Shift, shifts
from tidemill.spec.model import Metric
from tidemill.spec.split import BLOCK
from tidemill.spec.system import Psi, WorseThan

MIN_ROWS = 200  # fewer recent or mature rows raise no alarm


@dataclass(frozen=True, slots=True)
class DriftReport:
    """How far features and predictions have moved, the furthest first; ``drifted`` names those that are alarming.

    Predictions appear as ``_prediction``. ``reason`` says why there is an alarm or none.
    """

    rows: int
    over: float
    shifts: tuple[Shift, ...]
    drifted: tuple[str, ...]
    reason: str

    @property
    def drift(self) -> bool:
        """True when at least one feature or the prediction has drifted."""
        return bool(self.drifted)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data for the journal."""
        return {
            "rows": self.rows,
            "over": self.over,
            "shifts": [shift.as_json() for shift in self.shifts],
            "drifted": list(self.drifted),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class PerformanceReport:
    """Quality on mature live predictions against the figure with which the champion was judged.

    ``worse_by`` is positive when live is worse, ``at_least`` its lower bound; both in the metric's unit, None when
    there is too little to tell.
    """

    metric: Metric
    judged: Interval
    live: Interval
    margin: float
    worse_by: float | None
    at_least: float | None
    drop: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data for the journal."""
        return {
            "metric": self.metric,
            "judged": self.judged.as_json(),
            "live": self.live.as_json(),
            "margin": self.margin,
            "worse_by": self.worse_by,
            "at_least": self.at_least,
            "drop": self.drop,
            "reason": self.reason,
        }


def drift(rule: Psi, reference: Profile, features: pl.DataFrame, prediction: Floats | None = None) -> DriftReport:
    """Compare recent ``features`` and ``prediction`` (row by row the same requests) with the ``reference``.

    A feature has drifted when its PSI exceeds both ``rule.over`` and its noise; nothing has with fewer than 200 rows.
    Raises TidemillError when a profiled feature is missing or has changed type.
    """
    if features.height < MIN_ROWS:
        reason = f"only {features.height:,} recent rows; drift is told from {MIN_ROWS}."
        return DriftReport(features.height, rule.over, (), (), reason)
    moved = shifts(reference, features, prediction)
    drifted = tuple(shift.feature for shift in moved if shift.psi > max(rule.over, shift.noise))
    named = ", ".join(f"{_spoken(each.feature)} (PSI {each.psi:.2f})" for each in moved if each.feature in drifted)
    reason = (
        f"{len(drifted)} of {len(moved)} moved by a PSI of more than {rule.over:g}: {named}."
        if drifted
        else f"none of {len(moved)} moved by a PSI of more than {rule.over:g}."
    )
    return DriftReport(features.height, rule.over, moved, drifted, reason)


def _spoken(feature: str) -> str:
    return "the prediction" if feature == PREDICTION else feature


def performance(
    rule: WorseThan,
    metric: Metric,
    judged: Interval,
    *,
    truth: npt.ArrayLike,
    prediction: npt.ArrayLike,
    times: npt.ArrayLike,
    seed: int,
    block: int = BLOCK,
) -> PerformanceReport:
    """Compare ``metric`` on mature live predictions with ``judged``, the champion's interval when it was judged.

    A drop: worse by more than ``rule.margin``, and the lower bound of the difference of the two independent figures
    (from their intervals: Zou & Donner 2008), at the confidence of ``judged``, is above 0. None with fewer than 200
    rows or three days. Raises TidemillError when the arrays do not fit the metric.
    """
    live = interval(metric, truth, prediction, times, seed=seed, confidence=judged.confidence, block=block)
    worse_by = at_least = None
    if live.rows >= MIN_ROWS and live.value is not None and judged.value is not None:
        worse_by = worsening(metric, live.value - judged.value)
        towards = (_reach(metric, live, better=True), _reach(metric, judged, better=False))
        if towards[0] is not None and towards[1] is not None:
            at_least = worse_by - math.hypot(*(each for each in towards if each is not None))
    drop = worse_by is not None and at_least is not None and worse_by > rule.margin and at_least > 0
    return PerformanceReport(
        metric, judged, live, rule.margin, worse_by, at_least, drop, _reason(rule, metric, live, worse_by, at_least)
    )


def _reach(metric: Metric, figure: Interval, *, better: bool) -> float | None:
    """Return how far the interval reaches from its value to the better or the worse side."""
    if figure.value is None or figure.low is None or figure.high is None:
        return None
    reach = [worsening(metric, end - figure.value) for end in (figure.low, figure.high)]
    return max(0.0, -min(reach) if better else max(reach))


def _reason(rule: WorseThan, metric: Metric, live: Interval, worse_by: float | None, at_least: float | None) -> str:
    if worse_by is None:
        return f"only {live.rows:,} mature rows on which {metric} can be told; a drop is told from {MIN_ROWS}."
    said = f"{metric} {'worse' if worse_by > 0 else 'better'} by {abs(worse_by):.4g} than when judged"
    if worse_by <= rule.margin:
        return f"{said}, within the margin of {rule.margin:.4g}."
    if at_least is None:
        return f"{said}, but on too few days to tell it from chance."
    if at_least <= 0:
        return f"{said}, above the margin of {rule.margin:.4g}, but chance may give as much."
    return f"{said}, above the margin of {rule.margin:.4g} and by at least {at_least:.4g}."
