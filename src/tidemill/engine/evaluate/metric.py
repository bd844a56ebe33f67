"""Metrics: one number from what came true and what was predicted.

Truth is an array of n numbers: 0 or 1 for two classes, the class's position for more, the value for a regression.
A prediction is the probability of class 1 (n numbers), of every class in its order (n × k), or the predicted value.

Most metrics are functions of sums over rows (``terms`` and ``combine``): a bootstrap then resamples the sums of blocks
and never looks at rows again. ``roc_auc`` and ``average_precision`` compare rows with each other (``Ranked``). Sums are
taken over fixed blocks of rows and added with ``math.fsum``, and no BLAS is called, so that a metric depends neither
on the number of threads nor on how work was shared out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidemill.base.errors import TidemillError
from tidemill.spec.model import Metric

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: A business figure: a plain function of truth and prediction.
Kpi = Callable[[Floats, Floats], float]

_HIGHER = frozenset(("roc_auc", "average_precision", "accuracy", "f1", "r2"))
_RANKING = frozenset(("roc_auc", "average_precision"))
_REGRESSION = frozenset(("mae", "rmse", "mape", "r2"))

_CHUNK = 4096  # rows whose sum is taken at once
_TINY = float(np.finfo(np.float64).eps)  # probabilities are kept this far from 0 and 1 under a logarithm


def higher_is_better(metric: Metric) -> bool:
    """Tell whether a larger value of ``metric`` is better."""
    return metric in _HIGHER


def limits(metric: Metric) -> tuple[float, float]:
    """Return the smallest and the largest value that ``metric`` can take."""
    if metric == "r2":
        return -math.inf, 1.0
    return (0.0, 1.0) if metric in _HIGHER else (0.0, math.inf)


def worsening(metric: Metric, change: float) -> float:
    """Return a ``change`` of ``metric`` (new minus old) with the sign by which positive is worse."""
    return -change if metric in _HIGHER else change


def total(values: Floats) -> float:
    """Return the sum of ``values``: of fixed blocks of 4096, added without rounding between them."""
    return math.fsum(float(np.add.reduce(values[at : at + _CHUNK])) for at in range(0, len(values), _CHUNK))


def value(
    metric: Metric, truth: npt.ArrayLike, prediction: npt.ArrayLike, weight: npt.ArrayLike | None = None
) -> float | None:
    """Return ``metric``, each row counted ``weight`` times (once when None); None where it is not defined.

    Not defined is: any metric of no rows, ``roc_auc`` without both classes, ``average_precision`` without a positive,
    ``f1`` without a positive in truth or prediction, ``r2`` of a constant truth, ``mape`` when every true value is 0
    (rows with a true value of 0 have no relative error and are left out). A class is predicted above 0.5, or where its
    probability is the largest, the first of equals. With more than two classes ``f1``, ``roc_auc`` (one against the
    rest) and ``average_precision`` are averaged over the classes for which they are defined, and ``brier`` sums over
    classes (0 to 2). Raises TidemillError when the arrays do not fit the metric or hold NaN.
    """
    actual, predicted = checked(metric, truth, prediction)
    weights = None if weight is None else np.asarray(weight, dtype=np.float64)
    if len(actual) == 0:
        return None
    if metric in _RANKING:
        scores = [
            ranked.roc_auc(weights) if metric == "roc_auc" else ranked.average_precision(weights)
            for ranked in rankings(actual, predicted)
        ]
        return defined(mean_defined(np.array(scores)))
    columns = terms(metric, actual, predicted)
    if weights is not None:
        columns = columns * weights[:, None]
    return defined(combine(metric, np.array([total(column) for column in columns.T])))


def checked(metric: Metric, truth: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return both as float64 arrays; two columns of probabilities become the second one.

    Raises TidemillError when shapes differ, a number is not finite, a truth is not a class or a probability not one.
    """
    actual, predicted = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if actual.ndim != 1 or predicted.ndim not in (1, 2) or len(actual) != len(predicted):
        raise TidemillError(
            f"metric {metric!r}: truth of shape {actual.shape} does not go with predictions of shape "
            f"{predicted.shape}. Give one truth and one prediction (or one row of probabilities) for each row."
        )
    if not np.isfinite(actual).all() or not np.isfinite(predicted).all():
        missing = int((~np.isfinite(actual)).sum()), int((~np.isfinite(predicted)).sum())
        raise TidemillError(
            f"metric {metric!r}: {missing[0]} true values and {missing[1]} predictions of {len(actual)} rows are "
            "missing or infinite. Judge only rows whose label is known, and mend the estimator that predicts no number."
        )
    if metric in _REGRESSION:
        if predicted.ndim != 1:
            raise TidemillError(f"metric {metric!r} takes one predicted value a row, not {predicted.shape[1]}.")
        return actual, predicted
    classes = 2 if predicted.ndim == 1 else predicted.shape[1]
    if ((actual < 0) | (actual >= classes) | (actual != np.floor(actual))).any():
        raise TidemillError(f"metric {metric!r}: truth must be classes 0 to {classes - 1}.")
    if ((predicted < 0) | (predicted > 1)).any():
        raise TidemillError(f"metric {metric!r}: predictions must be probabilities between 0 and 1.")
    if predicted.ndim == 2 and (np.abs(predicted.sum(axis=1) - 1) > 1e-3).any():
        raise TidemillError(f"metric {metric!r}: the probabilities of a row's {classes} classes must add up to 1.")
    return actual, predicted[:, 1] if predicted.ndim == 2 and classes == 2 else predicted


def defined(number: float | np.floating | Floats) -> float | None:
    """Return a plain float, or None in place of NaN and infinities: what canonical JSON can hold."""
    plain = float(number)
    return plain if math.isfinite(plain) else None


def mean_defined(scores: Floats) -> Floats:
    """Return the mean over the last axis of the scores that are not NaN; NaN when none is."""
    present = ~np.isnan(scores)
    count = present.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = np.asarray(np.where(present, scores, 0.0).sum(axis=-1) / count, dtype=np.float64)
    return mean


def is_ranking(metric: Metric) -> bool:
    """Tell whether ``metric`` compares rows with each other and so has no ``terms``."""
    return metric in _RANKING


def terms(metric: Metric, truth: Floats, prediction: Floats) -> Floats:
    """Return what each row adds to the sums from which ``combine`` makes ``metric``: shape (n, sums).

    For means of a loss the columns are the loss and 1. ``f1``: true positives, false positives and false negatives of
    each class. ``r2``: squared error, deviation from the mean of all rows, its square, 1.
    """
    ones = np.ones(len(truth))
    if metric in _REGRESSION:
        error = prediction - truth
        match metric:
            case "mae":
                return np.column_stack((np.abs(error), ones))
            case "rmse":
                return np.column_stack((error * error, ones))
            case "mape":
                counted = truth != 0
                relative = np.divide(np.abs(error), np.abs(truth), out=np.zeros(len(truth)), where=counted)
                return np.column_stack((relative, counted))
            case _:
                # a constant has no spread, not even that of rounding its mean
                constant = not len(truth) or truth.min() == truth.max()
                deviation = np.zeros(len(truth)) if constant else truth - total(truth) / len(truth)
                return np.column_stack((error * error, deviation, deviation * deviation, ones))
    binary = prediction.ndim == 1
    actual = truth.astype(np.int64)
    guess = (prediction > 0.5).astype(np.int64) if binary else prediction.argmax(axis=1)
    match metric:
        case "log_loss":
            of_truth = np.where(actual == 1, prediction, 1 - prediction) if binary else _picked(prediction, actual)
            return np.column_stack((-np.log(np.clip(of_truth, _TINY, 1 - _TINY)), ones))
        case "brier":
            if binary:
                return np.column_stack(((prediction - truth) ** 2, ones))
            hit = actual[:, None] == np.arange(prediction.shape[1])
            return np.column_stack((((prediction - hit) ** 2).sum(axis=1), ones))
        case "accuracy":
            return np.column_stack((guess == actual, ones)).astype(np.float64)
        case "f1":
            classes = (1,) if binary else range(prediction.shape[1])
            columns = [
                column
                for each in classes
                for column in (
                    (guess == each) & (actual == each),
                    (guess == each) & (actual != each),
                    (guess != each) & (actual == each),
                )
            ]
            return np.column_stack(columns).astype(np.float64)
    raise TidemillError(f"metric {metric!r} compares rows with each other; it has no terms of single rows.")


def _picked(prediction: Floats, actual: Ints) -> Floats:
    """Return each row's probability of its true class."""
    picked: Floats = np.take_along_axis(prediction, actual[:, None], axis=1)[:, 0]
    return picked


def combine(metric: Metric, sums: Floats) -> Floats:
    """Return ``metric`` from sums of ``terms``, over the last axis; NaN where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric == "f1":
            hit, wrong, missed = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
            present = 2 * hit + wrong + missed
            return mean_defined(np.where(present > 0, 2 * hit / present, np.nan))
        if metric == "r2":
            squared, deviation, spread, count = (sums[..., each] for each in range(4))
            around_mean = spread - deviation * deviation / count
            return np.where(around_mean > 1e-12 * spread, 1 - squared / around_mean, np.nan)
        mean: Floats = np.asarray(sums[..., 0] / sums[..., 1])
        return np.sqrt(mean) if metric == "rmse" else mean


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows in ascending order of score, in groups of equal scores.

    ``order``: the rows. ``positive``: whether each, in that order, is of the class. ``starts``: where groups begin.
    """

    order: Ints
    positive: npt.NDArray[np.bool_]
    starts: Ints

    @staticmethod
    def of(positive: npt.NDArray[np.bool_], score: Floats) -> Ranked:
        """Sort rows by ``score``."""
        order = np.argsort(score, kind="stable")
        ascending = score[order]
        return Ranked(order, positive[order], np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]]))

    def groups(self, weight: Floats | None) -> tuple[Floats, Floats]:
        """Return the weight of positives and of negatives in each group; ``weight`` is by row as given, None is 1."""
        weights = np.ones(len(self.order)) if weight is None else weight[self.order]
        return (
            np.add.reduceat(np.where(self.positive, weights, 0.0), self.starts),
            np.add.reduceat(np.where(self.positive, 0.0, weights), self.starts),
        )

    def roc_auc(self, weight: Floats | None = None) -> float:
        """Return the share of (positive, negative) pairs that are in order, ties counted half; NaN without pairs.

        The Mann-Whitney statistic (Hanley & McNeil 1982); exact for unit weights.
        """
        positive, negative = self.groups(weight)
        below = np.cumsum(negative) - negative
        pairs = total(positive) * total(negative)
        return total(positive * (below + 0.5 * negative)) / pairs if pairs > 0 else math.nan

    def average_precision(self, weight: Floats | None = None) -> float:
        """Return the mean precision at each positive, equal scores taken together; NaN without a positive.

        The step-wise sum of scikit-learn, without interpolation.
        """
        positive, negative = (each[::-1] for each in self.groups(weight))
        found = np.cumsum(positive)
        taken = found + np.cumsum(negative)
        if len(found) == 0 or found[-1] <= 0:
            return math.nan
        precision = np.divide(found, taken, out=np.zeros(len(found)), where=taken > 0)
        return total(positive * precision) / float(found[-1])


def rankings(truth: Floats, prediction: Floats) -> list[Ranked]:
    """Return the ranking of class 1, or of every class against the rest when there are more than two."""
    if prediction.ndim == 1:
        return [Ranked.of(truth == 1, prediction)]
    return [Ranked.of(truth == each, prediction[:, each]) for each in range(prediction.shape[1])]
