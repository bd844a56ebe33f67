"""Journal entries and figures in words, for every command that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.base.clock import format_time
from tidemill.ports.journal import Entry


def figure(value: Mapping[str, Any] | None) -> str:
    """Return a figure with its interval, as ``Interval.as_json`` gives it: ``0.4612 [0.4510, 0.4713]``."""
    if value is None or value["value"] is None:
        return "not known"
    ends = "" if value["low"] is None else f" [{value['low']:.4f}, {value['high']:.4f}]"
    return f"{value['value']:.4f}{ends}"


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
        case "fail":
            return [("red", f"{body['model']}: the training failed: {body['reason']}")]
        case "halt":
            return [("red", f"source {body['source']} stands still: {body['reason']}")]
        case "resume":
            return [("green", f"source {body['source']} is read again")]
        case "watch":
            alarms = []
            if body["drift"] and body["drift"]["drifted"]:
                alarms.append(("yellow", f"{body['model']}: drift: {body['drift']['reason']}"))
            if body["performance"] and body["performance"]["drop"]:
                alarms.append(("yellow", f"{body['model']}: quality dropped: {body['performance']['reason']}"))
            return alarms
    return []


def sentence(entry: Entry) -> str:
    """Return any entry in one line."""
    said = decisions(entry)
    if said:
        return "; ".join(text for _, text in said)
    body = entry.body
    match entry.kind:
        case "commit":
            bad = f", {body['quarantined']:,} quarantined" if body["quarantined"] else ""
            return f"{body['table']}: {body['rows']:,} rows{bad}"
        case "loaded":
            return f"{body['source']}: first load done"
        case "version":
            return f"{body['model']}: v{body['version']} made by training {body['training']}"
        case "declare":
            return "the declared system is new or has changed"
        case "watch":
            parts = [part["reason"] for part in (body["drift"], body["performance"]) if part]
            return f"{body['model']}: watched {body['predictions']:,} predictions: {' '.join(parts)}"
        case "judge":
            return f"{body['model']}: judged"
    return entry.kind
