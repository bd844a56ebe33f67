"""Features that know the answer. Declared times prevent most of it; this catches what a declaration cannot show.

A feature that by itself orders the labels nearly right is seldom honest. Two rules, for classes, in the Gini of the
feature alone (2 · AUC − 1): at least 0.7 (AUC 0.85); or at least 0.5 (AUC 0.75) and twice that of the next best among
three or more, standing apart from all that is honestly known. On the flights of 2013, for "lands more than 15 minutes
late", the hour of departure is the best honest column with AUC 0.63; the delay of departure gives 0.90 and the mean
lateness of the same hour at the same airport 0.83. For a regression: R² of the feature alone of at least 0.8 (the delay
of departure explains 0.84 of the delay of arrival). Honest features can exceed this in easy problems, and the last
value of a smooth series will: hence a warning, not a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.engine.evaluate.metric import Floats, Ints, total, value
from tidemill.engine.evaluate.split import DataWarning
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model, Task

ALONE = 0.7
APART = 0.5
ALONE_R2 = 0.8

_BINS = 64
_ROWS = 100_000  # at most so many are looked at, evenly spaced


def label_used(model: Model) -> tuple[DataWarning, ...]:
    """Return a warning for each feature that reads a column of which the label is made, in the example's own row."""
    answers = set(model.label.value.columns)
    found = []
    for feature in model.learned:
        if isinstance(feature, str):
            read = {feature} & answers
            name = feature
        elif isinstance(feature, OnDemand):
            read = set(feature.request_columns) & answers
            name = feature.name
        else:
            continue  # windows and lookups see only rows known before the question
        if read:
            found.append(
                DataWarning(
                    "label_used",
                    f"model {model.name!r}",
                    f"feature {name!r} reads {', '.join(sorted(read))}, of which the label is made, in the example's "
                    "own row.",
                    "It is not known when the question is asked: leave it out, or reach it through a view.",
                )
            )
    return tuple(found)


def giveaways(
    frame: pl.DataFrame, truth: npt.ArrayLike, *, features: Sequence[str], task: Task, where: str = "training set"
) -> tuple[DataWarning, ...]:
    """Return a warning for each of the ``features`` (columns of ``frame``) that gives the label away by itself.

    ``truth``: the labels as for ``metric.value``. What a feature tells is measured out of sample: the mean label of its
    bins (64 quantiles, or its categories; nulls are a bin) among every other row predicts the rows between.
    """
    labels = np.asarray(truth, dtype=np.float64)
    step = max(1, -(-len(labels) // _ROWS))
    labels = labels[::step]
    skill = {name: strength(frame[name].gather_every(step), labels, task) for name in features}
    ranked = sorted(skill.items(), key=lambda each: (-each[1], each[0]))
    found = []
    for place, (name, alone) in enumerate(ranked):
        following = ranked[place + 1][1] if place + 1 < len(ranked) else 0.0
        if task == "regression":
            gives_away, said = alone >= ALONE_R2, f"explains {alone:.0%} of the label's variance"
        else:
            apart = place == 0 and len(ranked) > 2 and alone >= APART and alone >= 2 * following
            gives_away, said = alone >= ALONE or apart, f"orders the labels with an AUC of {(alone + 1) / 2:.3f}"
        if gives_away:
            next_best = (
                f", the next best {ranked[1][0]!r} far less" if place == 0 and alone >= 2 * following > 0 else ""
            )
            found.append(
                DataWarning(
                    "giveaway",
                    where,
                    f"feature {name!r} by itself {said}{next_best}.",
                    "Make sure that it is known when the question is asked, or leave it out.",
                )
            )
    return tuple(found)


def strength(feature: pl.Series, truth: Floats, task: Task) -> float:
    """Return what ``feature`` alone tells of ``truth``: Gini for classes, R² for a regression; 0 to 1.

    By the means of bins, out of sample. With more than two classes, the Gini of the class that it tells best; for a
    regression no less than its squared correlation, because the outer bins are too wide for heavy tails.
    """
    if not len(truth):
        return 0.0
    bins = _binned(feature)
    if task == "regression":
        return max(0.0, value("r2", truth, _told(bins, truth)) or 0.0, _squared_correlation(feature, truth))
    classes = range(1, 2) if truth.max() <= 1 else range(int(truth.max()) + 1)
    areas = [value("roc_auc", truth == each, _told(bins, (truth == each).astype(np.float64))) for each in classes]
    return max([0.0, *(2 * area - 1 for area in areas if area is not None)])


def _numbers(feature: pl.Series) -> Floats | None:
    """Return numbers and times as float64 with NaN for null, None for anything else."""
    if not feature.dtype.is_numeric() and not feature.dtype.is_temporal():
        return None
    numbers: Floats = feature.to_physical().cast(pl.Float64).to_numpy()
    return numbers


def _squared_correlation(feature: pl.Series, truth: Floats) -> float:
    """Return the share of variance that a line explains, nulls taken as the mean; 0 for what is no number."""
    numbers = _numbers(feature)
    known = None if numbers is None else np.isfinite(numbers)
    if numbers is None or known is None or not known.any():
        return 0.0
    x = np.where(known, _centred(numbers, known), 0.0)
    y = _centred(truth, np.isfinite(truth))
    spread = total(x * x) * total(y * y)
    return total(x * y) ** 2 / spread if spread > 0 else 0.0


def _centred(numbers: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    """Return ``numbers`` less the mean of the ``known``, all divided by their largest: squares then stay finite."""
    largest = np.abs(numbers[known]).max(initial=0.0)
    scaled = numbers / largest if largest > 0 else numbers
    centred: Floats = scaled - scaled[known].mean()
    return centred


def _binned(feature: pl.Series) -> Ints:
    """Return each row's bin: 0 for null, else one of 64 between quantiles of numbers, or one for each value."""
    numbers = _numbers(feature)
    if numbers is not None:
        known = numbers[np.isfinite(numbers)]
        if not len(known):
            return np.zeros(len(numbers), dtype=np.int64)
        edges = np.unique(np.quantile(known, np.arange(_BINS) / _BINS, method="inverted_cdf"))
        return np.where(np.isnan(numbers), 0, 1 + np.searchsorted(edges, numbers, side="left")).astype(np.int64)
    ranks: Ints = feature.cast(pl.String).rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
    return ranks


def _told(bins: Ints, truth: Floats) -> Floats:
    """Return the mean truth of each row's bin among the rows of the other half; the overall mean counts as one row."""
    told = np.empty(len(truth))
    size = int(bins.max()) + 1
    for half in (0, 1):
        learns = slice(half, None, 2)
        mean = float(truth[learns].mean()) if len(truth[learns]) else float(truth.mean())
        count = np.bincount(bins[learns], minlength=size) + 1.0
        summed = np.bincount(bins[learns], weights=truth[learns], minlength=size) + mean
        told[1 - half :: 2] = (summed / count)[bins[1 - half :: 2]]
    return told
