"""The trivial baseline that a first model must beat: it knows the labels of its training rows and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidemill.base.errors import TrainingError
from tidemill.engine.evaluate.metric import Floats
from tidemill.spec.model import Metric, Task


@dataclass(frozen=True, slots=True)
class Baseline:
    """One prediction for every row: a number, or one probability for each of more than two classes."""

    value: float | tuple[float, ...]

    def predict(self, rows: int) -> Floats:
        """Return the prediction of ``rows`` rows: shape (rows,), or (rows, classes) with more than two classes."""
        return np.tile(np.asarray(self.value, dtype=np.float64), (rows, 1) if isinstance(self.value, tuple) else rows)


def fit(task: Task, truth: npt.ArrayLike, *, metric: Metric, classes: int = 2) -> Baseline:
    """Return the best constant for the labels of a fold's training rows.

    Classification: the share of class 1, or of each of ``classes`` when there are more than two; half a row is added to
    every class, so that one never seen is not held impossible. Regression: the median for ``mae`` and ``mape``, else
    the mean. Raises TrainingError when there are no labels.
    """
    labels = np.asarray(truth, dtype=np.float64)
    if not len(labels):
        raise TrainingError("baseline: no labels to learn from. Wait for labels to mature, or move the test period.")
    if task == "regression":
        return Baseline(float(np.median(labels) if metric in ("mae", "mape") else labels.mean()))
    counts = np.bincount(labels.astype(np.int64), minlength=classes) + 0.5
    shares = [float(share) for share in counts / counts.sum()]
    return Baseline(shares[1] if classes == 2 else tuple(shares))
