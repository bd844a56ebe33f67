"""Intervals by resampling blocks of time (days), never rows: rows of a day share weather, prices, outages.

Runs of consecutive blocks are drawn around the circle of time (circular block bootstrap: Politis & Romano 1992),
because days resemble the days next to them. A run is as long as the square root of the number of blocks: tests keep
their level better with runs longer than those of least mean square error (Lazarus, Lewis, Stock & Watson 2018). With n
= blocks / run independent runs, the interval is the t interval of n degrees of freedom on the standard deviation of the
draws, times sqrt(n / (n - 1)) because a circle of few runs varies too little about its own mean, and it ends where the
metric's range ends. Plain percentiles are far too narrow for the few weeks that usually judge.

Measured on simulated means over 3 to 90 days, one-sided tests at 5 % err 2 to 5 times in a hundred on unrelated days
and 5 to 8 times with a correlation of 0.4 from day to day, where day-by-day resampling errs 9 to 14 times. Fewer than
three blocks give no interval: both ends are None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from tidemill.base.errors import TidemillError
from tidemill.engine.evaluate.metric import (
    Floats,
    Ints,
    Kpi,
    Ranked,
    checked,
    combine,
    defined,
    is_ranking,
    limits,
    mean_defined,
    rankings,
    terms,
    value,
)
from tidemill.spec.model import Metric
from tidemill.spec.split import BLOCK

MIN_BLOCKS = 3  # fewer give no interval
MAX_BLOCKS = 512  # more are merged with their neighbours, which keeps the work bounded and the runs long
RESAMPLES = 1000
_KPI_RESAMPLES = 400  # a KPI is a function of rows and is computed afresh for every draw
_ENOUGH = 0.9  # share of draws on which the metric must be defined


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its uncertainty: two-sided, of the stated ``confidence``.

    ``low`` and ``high`` are None when there are fewer than three blocks or the metric is not defined on most draws;
    ``value`` is None when it is not defined at all. ``blocks`` counts the blocks (days) that have rows.
    """

    value: float | None
    low: float | None
    high: float | None
    confidence: float
    rows: int
    blocks: int

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
            "rows": self.rows,
            "blocks": self.blocks,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Interval:
        """Return the interval that ``as_json`` wrote."""
        return Interval(**data)

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        ends = "" if self.low is None or self.high is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{ends}"


@dataclass(frozen=True, slots=True)
class Paired:
    """Two predictions of the same rows, and ``difference``: candidate minus rival, in the metric's own unit."""

    candidate: Interval
    rival: Interval
    difference: Interval


def interval(
    metric: Metric | Kpi,
    truth: npt.ArrayLike,
    prediction: npt.ArrayLike,
    times: npt.ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    block: int = BLOCK,
) -> Interval:
    """Return ``metric`` (or a KPI: a function of truth and prediction) with its interval.

    ``times``: when each row was asked, in microseconds; rows of the same ``block`` microseconds (counted from the
    epoch) are drawn together. The same ``seed`` and rows give the same interval. Raises TidemillError as
    ``metric.value`` does, and when ``confidence`` does not lie between 0 and 1.
    """
    actual, predicted = _arrays(metric, truth, prediction)
    blocks, count = _blocks(times, block, len(actual))
    draws, runs = _draws(count, seed)
    replicates = _replicates(metric, actual, predicted, blocks, draws)
    point = _point(metric, actual, predicted)
    return _interval(point, replicates, confidence, len(actual), count, runs, _limits(metric))


def paired(
    metric: Metric | Kpi,
    truth: npt.ArrayLike,
    candidate: npt.ArrayLike,
    rival: npt.ArrayLike,
    times: npt.ArrayLike,
    *,
    seed: int,
    confidence: float = 0.95,
    block: int = BLOCK,
) -> Paired:
    """Return ``metric`` of both predictions of the same rows and of their difference, on the same draws.

    Arguments and errors as for ``interval``.
    """
    actual, first = _arrays(metric, truth, candidate)
    _, second = _arrays(metric, truth, rival)
    blocks, count = _blocks(times, block, len(actual))
    draws, runs = _draws(count, seed)
    points = [_point(metric, actual, each) for each in (first, second)]
    replicates = [_replicates(metric, actual, each, blocks, draws) for each in (first, second)]
    of_first, of_second = (
        _interval(point, replicate, confidence, len(actual), count, runs, _limits(metric))
        for point, replicate in zip(points, replicates, strict=True)
    )
    gap = None if points[0] is None or points[1] is None else points[0] - points[1]
    apart = _interval(gap, replicates[0] - replicates[1], confidence, len(actual), count, runs)
    return Paired(of_first, of_second, apart)


def _arrays(metric: Metric | Kpi, truth: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[Floats, Floats]:
    if isinstance(metric, str):
        return checked(metric, truth, prediction)
    return np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)


def _point(metric: Metric | Kpi, truth: Floats, prediction: Floats) -> float | None:
    if isinstance(metric, str):
        return value(metric, truth, prediction)
    return defined(metric(truth, prediction)) if len(truth) else None


def _limits(metric: Metric | Kpi) -> tuple[float, float]:
    return limits(metric) if isinstance(metric, str) else (-math.inf, math.inf)


def _blocks(times: npt.ArrayLike, block: int, rows: int) -> tuple[Ints, int]:
    """Return each row's block, numbered in order of time, and how many blocks have rows."""
    asked = np.asarray(times, dtype=np.int64)
    if len(asked) != rows:
        raise TidemillError(f"an interval needs one time for each of the {rows} rows, not {len(asked)}.")
    found, number = np.unique(asked // block, return_inverse=True)
    count = min(len(found), MAX_BLOCKS)
    return (number * count // len(found) if len(found) else number).astype(np.int64), count


def _draws(blocks: int, seed: int) -> tuple[Floats, float]:
    """Return how often each draw takes each block, shape (draws, blocks), and the number of independent runs.

    With fewer than ``MIN_BLOCKS`` there are no draws.
    """
    if blocks < MIN_BLOCKS:
        return np.zeros((0, blocks)), 1.0
    run = math.ceil(math.sqrt(blocks))
    starts = np.random.default_rng(seed).integers(0, blocks, size=(RESAMPLES, -(-blocks // run)))
    taken = ((starts[:, :, None] + np.arange(run)) % blocks).reshape(RESAMPLES, -1)[:, :blocks]
    cells = (taken + blocks * np.arange(RESAMPLES)[:, None]).ravel()
    counts = np.bincount(cells, minlength=RESAMPLES * blocks).reshape(RESAMPLES, blocks)
    return counts.astype(np.float64), blocks / run


def _replicates(metric: Metric | Kpi, truth: Floats, prediction: Floats, blocks: Ints, draws: Floats) -> Floats:
    """Return the metric on every draw; NaN where it is not defined."""
    count = draws.shape[1]
    if not len(draws):
        return np.zeros(0)
    if not isinstance(metric, str):
        some = draws[:_KPI_RESAMPLES].astype(np.int64)
        rows = (np.repeat(np.arange(len(truth)), each[blocks]) for each in some)
        return np.array([metric(truth[each], prediction[each]) for each in rows], dtype=np.float64)
    if metric == "roc_auc":
        return mean_defined(np.column_stack([_auc(each, blocks, draws) for each in rankings(truth, prediction)]))
    if is_ranking(metric):
        ranked = rankings(truth, prediction)
        return mean_defined(np.column_stack([_average_precision(each, blocks, draws) for each in ranked]))
    columns = terms(metric, truth, prediction)
    sums = np.stack([np.bincount(blocks, weights=column, minlength=count) for column in columns.T], axis=1)
    return combine(metric, np.einsum("db,bk->dk", draws, sums))


def _auc(ranked: Ranked, blocks: Ints, draws: Floats) -> Floats:
    """Return the area under the curve on every draw, from how pairs of blocks compare.

    ``wins[a, b]`` counts the pairs of a positive of block a and a negative of block b that are in order, ties half. A
    draw that takes block a ``c[a]`` times has ``c @ wins @ c`` such pairs. These are multiples of 1/2 far below 2**52,
    so every sum is exact in any order.
    """
    count = draws.shape[1]
    block = blocks[ranked.order]
    stops = np.append(ranked.starts[1:], len(block))
    start = np.repeat(ranked.starts, stops - ranked.starts)
    stop = np.repeat(stops, stops - ranked.starts)
    start, stop, home = start[ranked.positive], stop[ranked.positive], block[ranked.positive]
    wins = np.empty((count, count))
    for other in range(count):
        negatives = np.concatenate(([0], np.cumsum(~ranked.positive & (block == other))))
        wins[:, other] = np.bincount(home, weights=0.5 * (negatives[start] + negatives[stop]), minlength=count)
    positives = np.bincount(home, minlength=count).astype(np.float64)
    negatives = np.bincount(block[~ranked.positive], minlength=count).astype(np.float64)
    pairs = (draws @ positives) * (draws @ negatives)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs > 0, ((draws @ wins) * draws).sum(axis=1) / pairs, np.nan)


def _average_precision(ranked: Ranked, blocks: Ints, draws: Floats) -> Floats:
    """Return ``Ranked.average_precision`` on every draw, looking at thresholds where a positive lies only."""
    start = np.repeat(ranked.starts, np.diff(np.append(ranked.starts, len(ranked.order))))
    block = blocks[ranked.order][::-1]  # from the highest score down
    positive = np.flatnonzero(ranked.positive[::-1])
    # a threshold takes a whole group of equal scores: down to the group's first row in ascending order
    last = len(ranked.order) - 1 - start[::-1][positive]
    found_by = np.searchsorted(positive, last, side="right") - 1
    home = block[positive]
    scores = np.full(len(draws), np.nan)
    for number, draw in enumerate(draws):
        weight = draw[home]
        found = np.cumsum(weight)
        if len(found) and found[-1] > 0:
            taken = np.cumsum(draw[block])[last]
            precision = np.divide(found[found_by], taken, out=np.zeros(len(found)), where=taken > 0)
            scores[number] = float(np.add.reduce(weight * precision)) / float(found[-1])
    return scores


def _interval(
    point: float | None,
    replicates: Floats,
    confidence: float,
    rows: int,
    blocks: int,
    runs: float,
    ends: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    if not 0 < confidence < 1:
        raise TidemillError(f"confidence must lie between 0 and 1, not {confidence}.")
    usable = replicates[np.isfinite(replicates)]
    low = high = None
    if point is not None and len(usable) >= max(_ENOUGH * len(replicates), 1):
        reach = float(np.std(usable)) * math.sqrt(runs / (runs - 1)) * -float(stdtrit(runs, (1 - confidence) / 2))
        low, high = max(point - reach, ends[0]), min(point + reach, ends[1])
    return Interval(point, low, high, confidence, rows, blocks)
