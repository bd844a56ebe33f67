"""Journal entries and figures in words, for every command that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.base.clock import SECOND, format_duration, format_time
from tidemill.engine.predict.route import Route
from tidemill.ports.journal import Entry


def figure(value: Mapping[str, Any] | None) -> str:
    """Return a figure with its interval, as ``Interval.as_json`` gives it: ``0.4612 [0.4510, 0.4713]``."""
    if value is None or value["value"] is None:
        return "not known"
    ends = "" if value["low"] is None else f" [{value['low']:.4f}, {value['high']:.4f}]"
    return f"{value['value']:.4f}{ends}"


def serving(served: Mapping[str, Any] | None) -> str:
    """Return in which form a version is served, what one row costs by it, and why, as ``Served.served`` gives it."""
    if served is None:
        return "not known: the result of its training is not in this workspace"
    form = {"compiled": "compiled", "onnx": "by ONNX Runtime", "estimator": "by the estimator itself"}[served["kind"]]
    costs = ""
    if "micros" in served:
        beside = "" if served["kind"] == "estimator" else f" (by the estimator {_micros(served['estimator_micros'])})"
        costs = f", {_micros(served['micros'])} a row{beside}"
    tried = ""
    if "rows" in served:
        probed = f" and {served['probed']:,} of {served['thresholds']:,} thresholds" if served.get("thresholds") else ""
        tried = f", tried on {served['rows']:,} rows{probed}"
    return f"{form}{costs}: {served['why']}{tried}"


def _micros(micros: float) -> str:
    return f"{micros:.1f} µs" if micros < 10 else f"{micros:,.0f} µs"


def doubtful(judged: Mapping[str, Any]) -> list[str]:
    """Return what is doubtful about a version, by the ``warnings`` and ``dropped`` of its judgement."""
    said = [f"{each['what']} {each['do']}".strip() for each in judged["warnings"]]
    if judged["dropped"]:
        said.append(f"Null on every training row, and so left out: {', '.join(judged['dropped'])}.")
    return said


def answer(prediction: float | Sequence[float], classes: Sequence[Any]) -> str:
    """Return what was answered: a number, or the likeliest of ``classes`` with its probability: ``fine (0.967)``."""
    if not isinstance(prediction, Sequence):
        return f"{prediction:.4g}"
    if len(classes) != len(prediction):
        return ", ".join(f"{each:.3g}" for each in prediction)
    best = max(prediction)
    return f"{classes[list(prediction).index(best)]} ({best:.3g})"


def rebuild(table: str, done: int, steps: int, left: float | None) -> str:
    """Return how far a rebuild of online state is; ``left``: seconds, None when that is not known yet."""
    time = "" if left is None else f", about {format_duration(max(round(left), 1) * SECOND)} left"
    return f"reading {table}: {done} of {steps} steps done{time}"


def when(tick: int) -> str:
    """Return a time to the minute, UTC."""
    return format_time(tick)[:16].replace("T", " ")


def decisions(entry: Entry) -> list[tuple[str, str]]:
    """Return what an entry decided as (style, sentence); empty for entries that only take note."""
    body = entry.body
    match entry.kind:
        case "train":
            return [("cyan", f"{body['model']}: training starts ({body['case']}): {'; '.join(body['reasons'])}")]
        case "judge":
            verdict = body["judged"]["verdict"]
            style = {"pass": "green", "refuse": "red", "wait": "yellow"}[verdict["outcome"]]
            word = {"pass": "passed the gate", "refuse": "refused by the gate", "wait": "not decided"}[
                verdict["outcome"]
            ]
            return [(style, f"{body['model']}: {word}: {'; '.join(verdict['reasons'])}")]
        case "alias":
            previous = f", in place of v{body['previous']}" if body["previous"] else ""
            return [("bold green", f"{body['model']}: v{body['version']} is {body['alias']}{previous}")]
        case "route":
            return [("bold cyan", f"{body['model']}: {Route.from_json(body['route'])}: {'; '.join(body['reasons'])}")]
        case "fail":
            return [("red", f"{body['model']}: the training failed: {body['reason']}")]
        case "halt":
            kind = "table" if body.get("derived") else "source"
            return [("red", f"{kind} {still(body['source'], body['reason'])}")]
        case "resume":
            name = body["source"]
            return [("green", f"table {name} goes on" if body.get("derived") else f"source {name} is read again")]
        case "watch":
            return _alarms(body)
    return []


def still(name: str, reason: str) -> str:
    """Return that a source or a table stands still, and why, without naming it again."""
    return f"{name} stands still: {reason.removeprefix(f'source {name!r}: ').removeprefix(f'table {name!r}: ')}"


def refused_rows(commit: Mapping[str, Any]) -> str:
    """Return how many rows of a commit went to quarantine, and how to see why."""
    number, name = commit["quarantined"], commit["table"]
    rows = f"{number:,} row{'' if number == 1 else 's'}"
    return f"{name}: {rows} refused; see why with: tidemill quarantine {name}"


def _alarms(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a report raised or cleared; reports that only repeat the last say nothing."""
    said = []
    drifted = [name for name in body["raised"] if name != "performance"]
    if drifted:
        psi = {shift["feature"]: shift["psi"] for shift in body["drift"]["shifts"]}
        worst = sorted(drifted, key=lambda name: -psi[name])
        named = ", ".join(f"{_spoken(name)} (PSI {psi[name]:.2f})" for name in worst[:3])
        more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
        said.append(("yellow", f"{body['model']}: drift: {named}{more}"))
    if "performance" in body["raised"]:
        said.append(("yellow", f"{body['model']}: quality dropped: {body['performance']['reason']}"))
    if "performance" in body["cleared"]:
        said.append(("green", f"{body['model']}: quality is back within its margin"))
    return said


def _spoken(feature: str) -> str:
    return "the prediction" if feature == "_prediction" else feature


def sentence(entry: Entry) -> str:
    """Return any entry in one line."""
    said = decisions(entry)
    if said:
        return "; ".join(text for _, text in said)
    body = entry.body
    match entry.kind:
        case "commit":
            bad = f", {body['quarantined']:,} quarantined" if body["quarantined"] else ""
            return f"{body['table']}: {body['rows']:,} row{'' if body['rows'] == 1 else 's'}{bad}"
        case "loaded":
            return f"{body['source']}: first load done"
        case "version":
            return f"{body['model']}: v{body['version']} made by training {body['training']}"
        case "declare":
            changed = "; ".join(body["changes"])
            return f"the declaration has changed: {changed}" if changed else "the declared system is new or has changed"
        case "watch":
            parts = [part["reason"] for part in (body["drift"], body["performance"]) if part]
            return f"{body['model']}: watched {body['predictions']:,} predictions: {' '.join(parts)}"
        case "judge":
            return f"{body['model']}: judged"
        case "request":
            refused = f", refused: {body['refused']}" if body["refused"] else ""
            return f"{body['body'].get('model', 'online state')}: {body['request']} asked for by hand{refused}"
    return entry.kind
