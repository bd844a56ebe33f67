"""What each declaration is made of, as plain JSON: the parts that fingerprints hash and that a plan compares.

One mechanism for both: ``of(x)`` is the hash of ``describe(x)``, so whatever changes a fingerprint can be named. A
table that another declaration reads enters by its name and fingerprint; feature views and labels enter with all their
parts. Where rows come from (the reader) belongs to a source, not to what is built on it: moving files retrains nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from tidemill.base.clock import format_duration
from tidemill.base.fingerprint import describe_code
from tidemill.base.hashing import fingerprint
from tidemill.spec.clean import MEANING
from tidemill.spec.expression import Expression
from tidemill.spec.feature import Aggregate, Aggregation, Latest, OnDemand, View
from tidemill.spec.model import Label, Model
from tidemill.spec.source import Files, Rows, Source, Table
from tidemill.spec.split import ByTime, Split
from tidemill.spec.system import Policy, System
from tidemill.spec.time import Offset

Parts = dict[str, Any]

#: How an undeclared known-at is spelled among a source's parts.
INGEST = "time of ingest"


def of(declaration: Source | Table | View | Label) -> str:
    """Return the fingerprint of a table, feature view or label: the hash of its parts.

    Raises FingerprintError when a function in it reads a value that cannot be hashed.
    """
    return fingerprint(describe(declaration))


def recipe_fingerprint(model: Model, policy: Policy) -> str:
    """Return the fingerprint of what decides a fitted model, its data apart. ``base.hashing.seed`` makes it a seed."""
    return fingerprint(recipe(model, policy))


def describe(declaration: Source | Table | View | Label) -> Parts:
    """Return the parts of a table, feature view or label as plain JSON. Raises FingerprintError as ``of``."""
    match declaration:
        case Source():
            return {"reader": _reader(declaration), **_rows(declaration)}
        case Table():
            return _rows(declaration)
        case Aggregation():
            features = {name: _aggregate(aggregate) for name, aggregate in declaration.features}
            return {
                "kind": "aggregation",
                "table": _table(declaration.table),
                "by": list(declaration.by),
                "on": dict(declaration.on),
                "features": features,
                "order": list(features),
            }
        case Latest():
            return {
                "kind": "latest",
                "table": _table(declaration.table),
                "by": list(declaration.by),
                "on": dict(declaration.on),
                "columns": list(declaration.values),
                "within": _duration(declaration.within),
                "ahead": declaration.ahead,
            }
        case OnDemand():
            return {
                "kind": "on-demand",
                "features": {name: _expression(expression) for name, expression in declaration.features},
                "order": [name for name, _ in declaration.features],
            }
        case Label():
            return {
                "table": _table(declaration.table),
                "value": _expression(declaration.value),
                "within": _duration(declaration.within),
                "settle": _duration(declaration.settle),
                "otherwise": declaration.otherwise,
                "on": dict(declaration.on),
            }


def origins(model: Model) -> dict[str, str]:
    """Return, for each of the model's columns, the hash of what computes it. Raises FingerprintError as ``of``.

    Tables enter by name alone: a new check or a mended derived table changes rows, not what a feature means.
    """
    found = {}
    for feature in model.features:
        if isinstance(feature, str):
            found[feature] = fingerprint("column", model.examples.name)
            continue
        parts = describe(feature)
        if not isinstance(feature, OnDemand):
            parts["table"] = feature.table.name
        found |= dict.fromkeys(feature.columns, fingerprint(parts))
    return found


def recipe(model: Model, policy: Policy) -> Parts:
    """Return what decides a fitted model, its data apart: the question, the label, the features, the estimator.

    The split and the policy's window belong to it; the name, metrics, KPIs, slices and the gate do not, so that two
    policies or two names share their trainings. Raises FingerprintError as ``of``.
    """
    return {
        "examples": _table(model.examples),
        "asked_at": _moment(model.asked_at),
        "label": describe(model.label),
        "columns": list(model.learned_columns),  # in the order in which the estimator sees them
        "feature views": {view.name: describe(view) for view in model.learned if not isinstance(view, str)},
        "estimator": describe_code(model.estimator),
        "task": model.task,
        "split": _split(model.split),
        "window": _duration(policy.window) or "all",
    }


def judging(model: Model) -> Parts:
    """Return how a model is judged: metrics, KPIs, slices and the gate. Raises FingerprintError as ``of``."""
    return {
        "metrics": list(model.metrics),
        "kpis": {name: describe_code(function) for name, function in model.kpis},
        "slices": list(model.slices),
        "gate": dataclasses.asdict(model.gate),
    }


def operations(system: System) -> Parts:
    """Return how a system is served, watched and retrained, with durations as text."""
    monitor, policy = system.monitor, system.policy
    return {
        "endpoint": dataclasses.asdict(system.endpoint),
        "monitor": {
            "drift": None if monitor.drift is None else dataclasses.asdict(monitor.drift),
            "performance": None if monitor.performance is None else dataclasses.asdict(monitor.performance),
            "every": _duration(monitor.every),
            "window": _duration(monitor.window),
        },
        "policy": {
            "retrain": [
                {"trigger": type(trigger).__name__, **{k: _duration(v) for k, v in dataclasses.asdict(trigger).items()}}
                for trigger in policy.retrain
            ],
            "window": _duration(policy.window) or "all",
            "takes": _duration(policy.takes),
        },
        "tick": _duration(system.tick),
    }


def known_at(table: Source | Table) -> str | Offset | None:
    """Return the effective known-at: as declared, else the event time for files, else None (the time of ingest).

    For a derived table without a declared one, None: it is the latest of its inputs'.
    """
    if table.known_at is None and isinstance(table, Source) and isinstance(table.reader, Files):
        return table.event_time
    return table.known_at


def _rows(table: Source | Table) -> Parts:
    """Describe what the rows of a table mean, wherever they come from."""
    known = known_at(table)
    parts: Parts = {
        "key": list(table.key),
        "event_time": table.event_time,
        "known_at": _moment(known) if known is not None else INGEST,
        "checks": [_check(check) for check in table.checks],
    }
    if isinstance(table, Source):
        if isinstance(table.reader, Rows) and table.reader.history:  # of files it goes without saying
            parts["history"] = True
        return {"kind": "source", **parts, "corrected_at": table.corrected_at, "tombstone": table.tombstone}
    if known is None:
        parts["known_at"] = "latest of its inputs"
    if table.steps:
        parts["steps"] = {"meaning": MEANING, "steps": [_step(step) for step in table.steps]}
    return {
        "kind": "table",
        **parts,
        "inputs": [_table(source) for source in table.sources],
        "by_row": table.by_row,
        "function": describe_code(table.function),
    }


def _step(part: Any) -> Any:
    """Describe a cleaning step, or a part of one."""
    if isinstance(part, Expression):
        return _expression(part)
    if dataclasses.is_dataclass(part):
        fields = {field.name: _step(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {"kind": type(part).__name__, **fields}
    if isinstance(part, float) and not math.isfinite(part):
        return repr(part)
    return [_step(each) for each in part] if isinstance(part, tuple) else part


def _table(table: Source | Table) -> Parts:
    return {"name": table.name, "rows": fingerprint(_rows(table))}


def _reader(source: Source) -> Parts:
    match source.reader:
        case Files(pattern):
            return {"files": pattern}
        case Rows(function=function):
            return {"rows": describe_code(function)}
        case _:
            return {"push": True}


def _check(check: Any) -> Parts:
    parts = {
        field.name: getattr(check, field.name) for field in dataclasses.fields(check) if field.name != "expression"
    }
    if hasattr(check, "expression"):
        parts["expression"] = _expression(check.expression)
    return {
        "check": type(check).__name__,
        **{name: list(part) if isinstance(part, tuple) else part for name, part in parts.items()},
    }


def _aggregate(aggregate: Aggregate) -> Parts:
    return {
        "function": aggregate.function,
        "value": None if aggregate.value is None else _expression(aggregate.value),
        "windows": [window.text for window in aggregate.over],
        **({} if aggregate.q is None else {"q": aggregate.q}),
    }


def _split(split: Split) -> Parts:
    if isinstance(split, ByTime):
        return {"by": "time", "test": _duration(split.test), "gap": _duration(split.gap), "blocks": split.blocks}
    return {"by": "key", "test": split.test, "seed": split.seed}


def _expression(expression: Expression) -> Parts:
    return {"expression": json.loads(expression.tree)}


def _moment(moment: str | Offset) -> str:
    return moment if isinstance(moment, str) else str(moment)


def _duration(micros: int | None) -> str | None:
    return None if micros is None else format_duration(micros)
