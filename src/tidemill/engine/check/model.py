"""Checks of models: the question, the label, the estimator and how it is judged."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import polars as pl

from tidemill.base.clock import format_duration
from tidemill.base.errors import Fault, FingerprintError
from tidemill.base.fingerprint import describe_code
from tidemill.base.schema import nearest
from tidemill.engine.check.column import Schemas, expression, kind, mismatch, missing, title
from tidemill.engine.check.feature import plain_faults, request_faults
from tidemill.engine.check.fingerprint import known_at
from tidemill.engine.check.table import bad_name
from tidemill.spec.feature import Aggregation, Latest, OnDemand
from tidemill.spec.model import Metric, Model, offers, stated_task
from tidemill.spec.source import Source, Table
from tidemill.spec.split import ByTime
from tidemill.spec.time import Offset

_PROBABILITY = ("log_loss", "brier", "roc_auc", "average_precision")
_SUITS = {
    "classification": (*_PROBABILITY, "accuracy", "f1"),
    "regression": ("mae", "rmse", "mape", "r2"),
}

#: Distinct values of string columns, where known: table, then column, then count.
Categories = Mapping[str, Mapping[str, int]]


def model_faults(model: Model, schemas: Schemas, categories: Categories) -> Iterator[Fault]:
    """Yield everything wrong with a model, its views apart from how it asks them."""
    where = f"model '{model.name}'"
    yield from bad_name(where, model.name)
    yield from _question(where, model, schemas)
    yield from _label(where, model, schemas)
    yield from _features(where, model, schemas)
    yield from _estimator(where, model, categories)
    yield from _judging(where, model, schemas)


def _question(where: str, model: Model, schemas: Schemas) -> Iterator[Fault]:
    examples, asked = model.examples, model.asked_at
    column = asked.column if isinstance(asked, Offset) else asked
    yield from missing(where, (column,), examples, schemas)
    dtype = schemas.get(examples.name, {}).get(column)
    if dtype is not None and kind(dtype) != "time":
        yield Fault(where, f"asked_at reads '{column}', which is {dtype}, not a time.")
    known = _offset(known_at(examples))
    moment = _offset(asked)
    if known is not None and moment is not None and known.column == moment.column and moment.micros <= known.micros:
        yield Fault(
            where,
            f"is asked {_say(moment)}, but a row of {title(examples)} is known {_say(known)}: no example can exist.",
            f"Ask later than that, or declare an earlier known_at of {title(examples)}.",
        )


def _offset(moment: str | Offset | None) -> Offset | None:
    return Offset(moment, 0) if isinstance(moment, str) else moment


def _say(moment: Offset) -> str:
    if moment.micros == 0:
        return f"at '{moment.column}'"
    return f"{format_duration(abs(moment.micros))} {'before' if moment.micros < 0 else 'after'} '{moment.column}'"


def _label(where: str, model: Model, schemas: Schemas) -> Iterator[Fault]:
    label, examples = model.label, model.examples
    inside = f"{where}, label"
    if label.table.static:
        what = f"{title(label.table)} has no event time, so no row of it can count."
        yield Fault(inside, what, "Declare event_time= of the table.")
    if label.within <= 0:
        yield Fault(inside, "within= is zero, so no row can count.", "Write within='2d'.")
    for _, ours in label.on:
        if ours not in examples.key:
            what = f"on= names '{ours}', which is not in the key of {title(examples)}."
            yield Fault(inside, what, nearest(ours, examples.key).strip() or "Labels share the example's key.")
    theirs = {ours: column for column, ours in label.on}
    pairs = [(theirs.get(column, column), column) for column in examples.key]
    for column, ours in pairs:
        for fault in missing(inside, (column,), label.table, schemas):
            do = f"Labels share the key of {title(examples)}: write on={{'its column': '{ours}'}}."
            yield Fault(inside, fault.what, do)
    yield from mismatch(inside, pairs, label.table, examples, schemas)
    dtype, faults = expression(inside, "its value", label.value, label.table, schemas)
    yield from faults
    if dtype is not None:
        yield from _label_type(inside, model, dtype)
    if isinstance(label.otherwise, float) and not math.isfinite(label.otherwise):
        yield Fault(inside, f"otherwise={label.otherwise} is not a number.", "Write None to leave such examples out.")
    yield from _leak(where, model)


def _label_type(inside: str, model: Model, dtype: pl.DataType) -> Iterator[Fault]:
    if model.task == "regression" and not dtype.is_numeric():
        what = f"its value is {dtype}, and a regression needs numbers."
        yield Fault(inside, what, "Give a number, or use a classifier (task='classification').")
    if model.task == "classification" and kind(dtype) not in ("boolean", "string", "integer"):
        what = f"its value is {dtype}, and a classification needs classes."
        yield Fault(inside, what, "Compare it with a bound (pl.col('delay') > 15), or use a regressor.")
    otherwise = model.label.otherwise
    fits = {
        "boolean": bool, "string": str, "integer": int, "decimal number": int | float,
    }.get(kind(dtype))  # fmt: skip
    wrong = fits is not None and (not isinstance(otherwise, fits) or (isinstance(otherwise, bool) and fits is not bool))
    if otherwise is not None and wrong:
        yield Fault(inside, f"otherwise={otherwise!r} does not fit its value, which is {dtype}.")


def _leak(where: str, model: Model) -> Iterator[Fault]:
    """A label read from the example's own row must not be read as a feature of that row too."""
    label = model.label
    if label.table.name != model.examples.name:
        return
    told = set(label.value.columns)
    read = {column: f"the feature '{column}'" for column in model.plain}
    for view in model.views:
        if isinstance(view, OnDemand):
            read.update(dict.fromkeys(view.request_columns, f"feature view '{view.name}'"))
    for column in sorted(told & set(read)):
        what = f"{read[column]} gives the label away: the label is computed from '{column}' of the same row."
        yield Fault(where, what, "Remove it from the features.")


def _features(where: str, model: Model, schemas: Schemas) -> Iterator[Fault]:
    if not model.learned:
        yield Fault(where, "has no features.", "List feature views and columns of the examples.")
    for column, count in Counter(model.columns).items():
        if count > 1:
            yield Fault(
                where,
                f"{count} of its features are named '{column}'.",
                "Rename a feature view, or remove what is listed twice; '__' joins a view's name and a feature's.",
            )
    for feature in model.features:
        if isinstance(feature, str):
            yield from plain_faults(where, feature, model.examples, schemas)
        else:
            yield from request_faults(where, feature, model.examples, schemas)


def _estimator(where: str, model: Model, categories: Categories) -> Iterator[Fault]:
    estimator = model.estimator
    if isinstance(estimator, type) or not all(offers(estimator, each) for each in ("fit", "predict")):
        do = "Pass an object such as HistGradientBoostingClassifier()."
        yield Fault(where, f"its estimator {estimator!r} has no fit and predict of its own.", do)
        return
    try:
        describe_code(estimator)
    except FingerprintError as error:
        yield Fault(where, f"its estimator cannot be fingerprinted: {error}")
    stated = stated_task(estimator)
    if stated is not None and stated != model.task:
        yield Fault(
            where, f"the task is {model.task}, but its estimator does {stated}.", "Remove task=, or change one."
        )
    limit = getattr(estimator, "max_bins", None)
    if type(estimator).__name__.startswith("HistGradientBoosting") and isinstance(limit, int):
        for column, count in _string_columns(model, categories):
            if count > limit:
                yield Fault(
                    where,
                    f"the feature '{column}' has {count:,} different values; {type(estimator).__name__} takes {limit}.",
                    "Encode it first, in a pipeline: make_pipeline(TargetEncoder(), …), or group rare values.",
                )
    if type(estimator).__name__.startswith("LGBM"):
        for column, count in _string_columns(model, categories):
            if count:
                yield Fault(
                    where,
                    f"the feature '{column}' is text; LightGBM, given it as a category, ends the whole process.",
                    "Encode it first, in a pipeline: make_pipeline(make_column_transformer((OrdinalEncoder("
                    "handle_unknown='use_encoded_value', unknown_value=-1), "
                    f"['{column}']), remainder='passthrough'), {type(estimator).__name__}()).",
                )


def _string_columns(model: Model, categories: Categories) -> Iterator[tuple[str, int]]:
    """Yield (feature, different values) where the count is known."""

    def count(table: Source | Table, column: str | None) -> int:
        return 0 if column is None else categories.get(table.name, {}).get(column, 0)

    for feature in model.learned:
        match feature:
            case str():
                yield feature, count(model.examples, feature)
            case Latest():
                for name, column in zip(feature.columns, feature.values, strict=True):
                    yield name, count(feature.table, column)
            case OnDemand():
                for name, (_, value) in zip(feature.columns, feature.features, strict=True):
                    yield name, count(model.examples, value.column)
            case Aggregation():
                for name, aggregate in feature.features:
                    if aggregate.value is not None and aggregate.function in ("first", "last", "min", "max"):
                        found = count(feature.table, aggregate.value.column)
                        yield from ((f"{feature.name}__{name}_{window.text}", found) for window in aggregate.over)


def _judging(where: str, model: Model, schemas: Schemas) -> Iterator[Fault]:
    if not model.metrics:
        yield Fault(where, "has no metrics.", f"Name some of {', '.join(_SUITS[model.task])}.")
    for metric, role in (*((each, "metric") for each in model.metrics), (model.gate.metric, "gate's metric")):
        yield from _metric(where, metric, role, model)
    for name, function in model.kpis:
        yield from _kpi(where, name, function)
    for metric, count in Counter(model.metrics).items():
        if count > 1:
            yield Fault(where, f"names the metric '{metric}' {count} times.")
    for name, _ in model.kpis:
        if name in get_args(Metric):
            yield Fault(where, f"the KPI '{name}' has the name of a metric.", "Rename it.")
    available = {*model.columns, *schemas.get(model.examples.name, ())}
    for column in model.slices:
        if model.examples.name in schemas and column not in available:
            hint = nearest(column, available).strip()
            yield Fault(where, f"slices by '{column}', which is not in its training frame.", hint)
    gate, split = model.gate, model.split
    if not 0.5 < gate.confidence < 1:
        do = "It lies above 0.5 and below 1."
        yield Fault(f"{where}, gate", f"confidence={gate.confidence} is out of bounds.", do)
    if not 0 <= gate.margin < math.inf:
        yield Fault(f"{where}, gate", f"margin={gate.margin} is out of bounds.", "It is zero or more.")
    if gate.min_rows < 1:
        yield Fault(f"{where}, gate", f"min_rows={gate.min_rows} is out of bounds.", "It is at least 1.")
    if isinstance(split, ByTime):
        if split.test <= 0:
            yield Fault(f"{where}, split", "test= is zero, so nothing judges.", "Write test='30d'.")
        if split.blocks < 1:
            yield Fault(f"{where}, split", f"blocks={split.blocks} is out of bounds.", "It is at least 1.")
    elif not 0 < split.test < 1:
        yield Fault(f"{where}, split", f"test={split.test} is out of bounds.", "It lies between 0 and 1.")


def _metric(where: str, name: str, role: str, model: Model) -> Iterator[Fault]:
    known: tuple[str, ...] = get_args(Metric)
    if name not in known:
        hint = nearest(name, known).strip()
        yield Fault(where, f"the {role} '{name}' is not known.", hint or f"Known are {', '.join(known)}.")
    elif name not in _SUITS[model.task]:
        do = f"Use one of {', '.join(_SUITS[model.task])}."
        yield Fault(where, f"the {role} '{name}' does not suit a {model.task}.", do)
    elif name in _PROBABILITY and not offers(model.estimator, "predict_proba"):
        do = "Use accuracy or f1, or an estimator with predict_proba."
        yield Fault(where, f"the {role} '{name}' needs probabilities, which its estimator does not give.", do)


def _kpi(where: str, name: str, function: Any) -> Iterator[Fault]:
    yield from bad_name(where, name, "KPI name")
    if not callable(function):
        yield Fault(where, f"the KPI '{name}' is not a function.")
        return
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        yield Fault(where, f"the KPI '{name}' does not take (truth, prediction).")
    except ValueError:
        pass  # a compiled function that does not tell its parameters
    try:
        describe_code(function)
    except FingerprintError as error:
        yield Fault(where, f"the KPI '{name}' cannot be fingerprinted: {error}")
