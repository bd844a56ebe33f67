"""What a rehearsed policy earned: its decisions counted, its predictions judged, and both held against another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tidemill.base.hashing import seed
from tidemill.engine.evaluate.interval import Interval, interval, paired
from tidemill.engine.example.example import ASKED_AT, LABEL
from tidemill.engine.example.outcome import outcomes, predictions, truth
from tidemill.engine.predict.encode import Encoding
from tidemill.ports.journal import Entry
from tidemill.spec.model import Model

_PREDICTED = "_predicted"


@dataclass(frozen=True, slots=True)
class Decisions:
    """How often a model was trained, and what became of it. ``waits``: verdicts for which there were too few rows."""

    trainings: int
    promotions: int
    refusals: int
    waits: int
    failures: int


def decisions(model: str, entries: Iterable[Entry]) -> Decisions:
    """Count what was decided about ``model``."""
    own = [entry for entry in entries if entry.body.get("model") == model]
    verdicts = [entry.body["judged"]["verdict"]["outcome"] for entry in own if entry.kind == "judge"]
    return Decisions(
        sum(entry.kind == "train" for entry in own),
        sum(entry.kind == "alias" for entry in own),
        verdicts.count("refuse"),
        verdicts.count("wait"),
        sum(entry.kind == "fail" for entry in own),
    )


def mature(
    model: Model, logged: pl.DataFrame, label_rows: pl.DataFrame, schema: Mapping[str, pl.DataType], now: int
) -> pl.DataFrame:
    """Return the predictions of ``logged`` (rows of the ledger) whose label is known at ``now``, for the figures."""
    known = outcomes(model, logged.filter(pl.col("model") == model.name), label_rows, schema, now)
    return known.select(*model.examples.key, ASKED_AT, LABEL, pl.col("prediction").alias(_PREDICTED))


def figures(model: Model, known: pl.DataFrame, encoding: Encoding) -> dict[str, Interval]:
    """Return the gate's metric, the other metrics and the KPIs on ``known``, as ``mature`` gave it."""
    actual, predicted = truth(known, encoding), predictions(known[_PREDICTED])
    times = known[ASKED_AT].to_physical().to_numpy()
    return {name: interval(each, actual, predicted, times, seed=seed(name)) for name, each in _measures(model).items()}


def differences(model: Model, known: pl.DataFrame, rival: pl.DataFrame, encoding: Encoding) -> dict[str, Interval]:
    """Return each figure of ``known`` less that of ``rival``, on the questions that both have answered."""
    identity = [*model.examples.key, ASKED_AT]
    theirs = rival.select(*identity, pl.col(_PREDICTED).alias("_theirs"))
    both = known.join(theirs, on=identity, maintain_order="left")
    actual, times = truth(both, encoding), both[ASKED_AT].to_physical().to_numpy()
    mine, other = predictions(both[_PREDICTED]), predictions(both["_theirs"])
    if np.array_equal(mine, other):
        return {name: _nothing(both.height) for name in _measures(model)}
    return {
        name: paired(each, actual, mine, other, times, seed=seed(name)).difference
        for name, each in _measures(model).items()
    }


def _nothing(rows: int) -> Interval:
    return Interval(0.0, 0.0, 0.0, 0.95, rows, 0)


def _measures(model: Model) -> dict[str, Any]:
    metrics = dict.fromkeys((model.gate.metric, *model.metrics))
    return {**{metric: metric for metric in metrics}, **dict(model.kpis)}
