"""The gate: may a candidate replace what serves? Rule 10 of the time rules, as a pure function.

Both are judged on the same mature rows, by the difference of the gate's metric and a one-sided bound of it at the
gate's confidence, from resampled days. The bound holds for one look at one set of rows.

- ``refresh`` (the champion's own recipe, newer rows): passes when it is not worse by more than the margin: the upper
  bound of how much worse it is lies at or below the margin.
- ``changed`` (another recipe): passes when it is better: the upper bound of how much worse it is lies below 0.
- ``first`` (no champion yet): the rival is the baseline, and the candidate must be better, as above.

Too few rows or days, or a metric that is not yet defined on them, means wait: keep going and ask again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from tidemill.base.clock import format_duration
from tidemill.base.errors import TidemillError
from tidemill.engine.evaluate.interval import Interval, paired
from tidemill.engine.evaluate.metric import worsening
from tidemill.spec.model import Gate, Metric
from tidemill.spec.split import BLOCK

MIN_BLOCKS = 5  # fewer blocks of time decide nothing, however many rows they hold

Case = Literal["first", "refresh", "changed"]
Outcome = Literal["pass", "refuse", "wait"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate decided, and on what grounds.

    ``difference`` is candidate minus rival in the metric's own unit. The three intervals are two-sided with confidence
    2c - 1, so that each end by itself is a one-sided bound at the gate's confidence c.
    """

    case: Case
    outcome: Outcome
    reasons: tuple[str, ...]
    metric: Metric
    candidate: Interval
    rival: Interval
    difference: Interval
    rows: int

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data for the journal."""
        return {
            "case": self.case,
            "outcome": self.outcome,
            "reasons": list(self.reasons),
            "metric": self.metric,
            "candidate": self.candidate.as_json(),
            "rival": self.rival.as_json(),
            "difference": self.difference.as_json(),
            "rows": self.rows,
        }


def decide(
    gate: Gate,
    case: Case,
    *,
    truth: npt.ArrayLike,
    candidate: npt.ArrayLike,
    rival: npt.ArrayLike,
    times: npt.ArrayLike,
    seed: int,
    block: int = BLOCK,
) -> Verdict:
    """Return the verdict on ``candidate`` against ``rival``: predictions of the same rows, asked at ``times`` (µs).

    The same arguments give the same verdict. Raises TidemillError when the gate's confidence is not above 0.5 and
    below 1, or the arrays do not fit its metric.
    """
    if not 0.5 < gate.confidence < 1:
        raise TidemillError(f"gate: confidence must lie above 0.5 and below 1, not {gate.confidence}.")
    pair = paired(
        gate.metric, truth, candidate, rival, times, seed=seed, confidence=2 * gate.confidence - 1, block=block
    )
    outcome, reason = _outcome(gate, case, pair.difference, format_duration(block))
    return Verdict(
        case, outcome, (reason,), gate.metric, pair.candidate, pair.rival, pair.difference, pair.difference.rows
    )


def _outcome(gate: Gate, case: Case, difference: Interval, length: str) -> tuple[Outcome, str]:
    rows, blocks = difference.rows, difference.blocks
    if rows < gate.min_rows:
        return "wait", f"only {rows:,} mature rows to compare on; the gate needs {gate.min_rows:,}. Keep going."
    if blocks < MIN_BLOCKS:
        return "wait", f"the {rows:,} rows lie in {blocks} blocks of {length}; the gate needs {MIN_BLOCKS}. Keep going."
    if difference.value is None or difference.low is None or difference.high is None:
        return "wait", f"{gate.metric} is not defined on these {rows:,} rows (one class only, perhaps). Keep going."
    worse = worsening(gate.metric, difference.value)
    at_best, at_worst = sorted(worsening(gate.metric, end) for end in (difference.low, difference.high))
    rival = "the baseline" if case == "first" else "the champion"
    said = (
        f"{gate.metric} {'worse' if worse > 0 else 'better'} than {rival} by {abs(worse):.4g} on {rows:,} rows of "
        f"{blocks} blocks of {length}; at {gate.confidence:.0%} confidence"
    )
    if case == "refresh":
        bound = f"{said} not worse by more than {max(at_worst, 0.0):.4g}, margin {gate.margin:.4g}"
        if at_worst <= gate.margin:
            return "pass", f"{bound}: not worse."
        if at_best > gate.margin:
            return "refuse", f"{said} worse by at least {at_best:.4g}, margin {gate.margin:.4g}: worse."
        return "refuse", f"{bound}: not shown to be as good."
    if at_worst < 0:
        return "pass", f"{said} better by at least {-at_worst:.4g}: better."
    if at_best > 0:
        return "refuse", f"{said} worse by at least {at_best:.4g}: worse."
    return "refuse", f"{said} anything from {-at_best:.4g} better to {at_worst:.4g} worse: not shown to be better."
