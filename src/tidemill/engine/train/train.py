"""Train and judge: from tables to a fitted estimator and a verdict on it.

A candidate is judged before it is made: each block of the test period is predicted by an estimator fitted on the rows
that were mature before it (rolling origin, time rule 10), and compared with the champion on rows newer than what the
champion was fitted on. Then the estimator is fitted once more on all mature rows; that one is kept.
"""

from __future__ import annotations

import copy
import warnings as python_warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from tidemill.base.errors import TidemillError, TrainingError
from tidemill.base.hashing import seed
from tidemill.engine.evaluate import baseline, gate, leak
from tidemill.engine.evaluate.gate import Case, Verdict
from tidemill.engine.evaluate.interval import Interval, interval
from tidemill.engine.evaluate.metric import Floats
from tidemill.engine.evaluate.profile import Profile
from tidemill.engine.evaluate.split import DataWarning, doubts, folds, times
from tidemill.engine.example.example import ASKED_AT, LABEL, TrainingSet, training_set
from tidemill.engine.parity.prove import Proof, prove
from tidemill.engine.predict.encode import Encoding, learn
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.form import Forms, choose, restore
from tidemill.ports.executor import Progress
from tidemill.ports.models import Models
from tidemill.spec.model import Model

Report = Callable[[Progress], None]

_SLICES = 12  # most frequent values of a slice column that are judged by themselves
_SLICE_ROWS = 100


@dataclass(frozen=True, slots=True)
class Order:
    """A training to be carried out.

    It reads the first ``next_seq`` rows of each table as known before ``as_of`` (microseconds), and learns from
    examples asked at most ``window`` microseconds earlier (None: all). ``rival``: the training of the champion, None in
    the case "first".
    """

    model: str
    training: str
    case: Case
    as_of: int
    window: int | None
    next_seq: Mapping[str, int]
    rival: str | None


@dataclass(frozen=True, slots=True)
class Rival:
    """The champion as the candidate's judge needs it: how it predicts, and up to when it has learned."""

    predictor: Predictor
    as_of: int


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted predictor, the profile of what it was fitted on, and how it was judged (plain data for the journal).

    ``stored``: the reference under which the estimator was kept; None when it was not. ``served``: the form in which it
    is served and why, as plain data (see ``compiled.Served``).
    """

    predictor: Predictor
    profile: Profile
    judged: dict[str, Any]
    stored: str | None = None
    served: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Tested:
    """Predictions on test blocks by models that had not seen them; ``rows`` are positions in the frame."""

    rows: np.ndarray[Any, np.dtype[np.int64]]
    candidate: Floats
    baseline: Floats


def train(
    model: Model,
    tables: Mapping[str, pl.DataFrame],
    order: Order,
    rival: Rival | None,
    report: Report,
    models: Models | None = None,
    forms: Forms | None = None,
    made: TrainingSet | None = None,
) -> Trained:
    """Carry out ``order`` on ``tables`` (all versions of each, by name). Raises TrainingError saying what is missing.

    The estimator is stored in ``models``, and what is loaded back from there is part of the proof (see ``prove``); a
    candidate that fails it is refused, whatever the gate says. With ``forms`` it is served, and proved, in the form
    that ``compiled.choose`` picks.

    ``made`` is the training set where it has been built already; ``tables`` are then not read.

    The same order on the same rows gives the same result: seeds come from its fingerprint, rows are sorted by (asked
    at, key), and no figure depends on the number of threads.
    """
    if made is None:
        report(Progress(0, 1, "building the training set"))
        made = training_set(model, tables, order.as_of, order.window)
    frame = made.frame
    if frame.is_empty():
        raise TrainingError(f"model {model.name!r}: no mature example with a label. {_left_out(made)}")
    parts = folds(
        model.split,
        frame,
        key=model.examples.key,
        within=model.label.within,
        settle=model.label.settle,
        window=order.window,
    )
    parts = tuple(part for part in parts if len(part.train) >= 2)
    total = len(parts) + 3
    report(Progress(1, total, f"{frame.height:,} rows"))
    encoding = learn(frame.select(model.learned_columns), frame[LABEL], classify=model.task == "classification")
    truth = encoding.truth(frame[LABEL])
    found = _doubtful(model, frame, truth, parts)
    tested = []
    for number, part in enumerate(parts, 1):
        report(Progress(number, total, f"judging block {number} of {len(parts)}: {len(part.train):,} rows"))
        tested.append(_test(model, frame, encoding, truth, part.train, part.test, order.training))
    report(Progress(total - 2, total, f"fitting on all {frame.height:,} rows"))
    predictor = Predictor(encoding, _fit(model, encoding, frame, truth, order.training))
    report(Progress(total - 1, total, "proving that it answers alike however it is asked"))
    stored = load = served = None
    if models is not None:
        stored = models.save(predictor.estimator)
        if forms is not None:
            chosen = choose(predictor, frame.select(encoding.columns), forms, tolerance=model.tolerance)
            predictor, served = chosen.predictor, chosen.store(models)
        load = partial(restore, encoding, stored, served, load=models.load, form=models.load_form, forms=forms)
    proof = prove(predictor, frame, model.examples.key, order.training, load)
    pooled = _pool(tested)
    judged = {
        "rows": frame.height,
        "first": int(times(frame)[0]),
        "last": int(times(frame)[-1]),
        "left_out": made.counts,
        "dropped": list(encoding.dropped),
        "warnings": [each.as_json() for each in found],
        "proof": proof.as_json(),
        **_judge(model, frame, truth, order, rival, pooled),
    }
    judged["verdict"] = _proved(judged["verdict"], proof)
    profile = Profile.of(frame.select(encoding.columns))
    if pooled is not None:
        # Predictions of rows by models that had not learned from them, as live ones are.
        predicted = Profile.of(pl.DataFrame(), pooled.candidate)
        profile = Profile(profile.rows, {**profile.features, **predicted.features})
    return Trained(predictor, profile, judged, stored, served)


def _proved(verdict: dict[str, Any], proof: Proof) -> dict[str, Any]:
    """Return the gate's ``verdict``, or a refusal that begins with what the proof found."""
    if not proof.failures:
        return verdict
    return {**verdict, "outcome": "refuse", "reasons": [*proof.failures, *verdict["reasons"]]}


def fit(model: Model, tables: Mapping[str, pl.DataFrame], as_of: int, *, seed_text: str = "") -> Predictor:
    """Return a predictor fitted on all examples mature at ``as_of`` (microseconds), unjudged: for comparisons.

    Raises TrainingError as ``train`` does. ``seed_text`` decides the seeds that the estimator leaves open.
    """
    frame = training_set(model, tables, as_of).frame
    encoding = learn(frame.select(model.learned_columns), frame[LABEL], classify=model.task == "classification")
    return Predictor(encoding, _fit(model, encoding, frame, encoding.truth(frame[LABEL]), seed_text))


def _left_out(made: TrainingSet) -> str:
    reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in made.counts.items() if count)
    return f"Left out: {reasons or 'nothing, there are no examples'}."


def _doubtful(model: Model, frame: pl.DataFrame, truth: Floats, parts: tuple[Any, ...]) -> tuple[DataWarning, ...]:
    where = f"model {model.name!r}"
    found = [*leak.label_used(model)]
    if parts:
        sides = {"train": parts[-1].train, "test": parts[-1].test}
        time = ASKED_AT if parts[-1].origin is not None else None
        found += doubts(frame, sides, key=model.examples.key, label=LABEL, time=time or ASKED_AT, where=where)
    found += leak.giveaways(frame, truth, features=model.learned_columns, task=model.task, where=where)
    return tuple(found)


def _fit(model: Model, encoding: Encoding, frame: pl.DataFrame, truth: Floats, training: str) -> Any:
    """Return a fresh copy of the declared estimator fitted on ``frame``; its seeds come from the training's id."""
    estimator = _fresh(model.estimator, training)
    target = truth.astype(np.int64) if encoding.classes else truth
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        try:
            return estimator.fit(encoding.frame(frame), target)
        except TidemillError:
            raise
        except Exception as error:
            raise TrainingError(
                f"model {model.name!r}: {type(estimator).__name__}.fit failed on {frame.height:,} rows and "
                f"{len(encoding.columns)} columns (a Polars frame of Float64 and Enum): {error}"
            ) from error


def _fresh(declared: Any, training: str) -> Any:
    """Return an unfitted copy of an estimator, with every ``random_state`` that is None set from the training's id."""
    estimator = copy.deepcopy(declared)
    if hasattr(estimator, "get_params"):
        unset = {
            name: seed(f"{training}/{name}")
            for name, value in sorted(estimator.get_params(deep=True).items())
            if name.rpartition("__")[2] == "random_state" and value is None
        }
        if unset:
            estimator.set_params(**unset)
    return estimator


def _test(
    model: Model, frame: pl.DataFrame, encoding: Encoding, truth: Floats, learns: Any, judges: Any, training: str
) -> _Tested:
    rows, labels = frame[learns], truth[learns]
    own = learn(rows.select(model.learned_columns), rows[LABEL], classify=model.task == "classification")
    if own.classes != encoding.classes:
        raise TrainingError(
            f"model {model.name!r}: the {rows.height:,} rows before a test block lack classes that come later "
            f"({own.classes} of {encoding.classes}). Load more history, or make the test period shorter."
        )
    predictor = Predictor(own, _fit(model, own, rows, labels, training))
    constant = baseline.fit(model.task, labels, metric=model.gate.metric, classes=max(2, len(encoding.classes)))
    return _Tested(judges, predictor.predict(frame[judges]), constant.predict(len(judges)))


def _pool(tested: list[_Tested]) -> _Tested | None:
    if not tested:
        return None
    return _Tested(
        *(np.concatenate([getattr(each, name) for each in tested]) for name in ("rows", "candidate", "baseline"))
    )


def _judge(
    model: Model, frame: pl.DataFrame, truth: Floats, order: Order, rival: Rival | None, tested: _Tested | None
) -> dict[str, Any]:
    number = seed(order.training)
    if tested is None:
        tested = _Tested(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    asked, actual = times(frame)[tested.rows], truth[tested.rows]

    def figure(metric: Any, prediction: Floats, chosen: Any = slice(None)) -> Interval:
        return interval(metric, actual[chosen], prediction[chosen], asked[chosen], seed=number)

    return {
        "verdict": _verdict(model, frame, truth, order, rival, tested, asked, actual, number).as_json(),
        "metrics": {metric: figure(metric, tested.candidate).as_json() for metric in model.metrics},
        "gate_metric": figure(model.gate.metric, tested.candidate).as_json(),
        "baseline": {metric: figure(metric, tested.baseline).as_json() for metric in model.metrics},
        "kpis": {name: figure(kpi, tested.candidate).as_json() for name, kpi in model.kpis},
        "slices": {
            column: {
                str(value): {metric: figure(metric, tested.candidate, chosen).as_json() for metric in model.metrics}
                for value, chosen in _slices(frame[column].gather(tested.rows))
            }
            for column in model.slices
        },
    }


def _verdict(
    model: Model, frame: pl.DataFrame, truth: Floats, order: Order, rival: Rival | None, tested: _Tested,
    asked: Any, actual: Floats, number: int,
) -> Verdict:  # fmt: skip
    if rival is None:
        return gate.decide(
            model.gate,
            "first",
            truth=actual,
            candidate=tested.candidate,
            rival=tested.baseline,
            times=asked,
            seed=number,
        )
    # Rows that were not mature when the champion was fitted: newer than what either has learned from.
    newer = asked + (model.label.within + model.label.settle) >= rival.as_of
    rows = tested.rows[newer]
    theirs = rival.predictor.predict(frame[rows]) if len(rows) else np.zeros(0)
    return gate.decide(
        model.gate,
        order.case,
        truth=actual[newer],
        candidate=tested.candidate[newer],
        rival=theirs,
        times=asked[newer],
        seed=number,
    )


def _slices(column: pl.Series) -> list[tuple[Any, Any]]:
    counted = (
        column.drop_nulls().alias("value").value_counts(sort=False).sort(["count", "value"], descending=[True, False])
    )
    kept = counted.filter(pl.col("count") >= _SLICE_ROWS).head(_SLICES)["value"].sort().to_list()
    return [(value, (column == value).fill_null(value=False).to_numpy()) for value in kept]
