"""``tidemill status``: tables, models, endpoint, the newest reports, and what is under way."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from tidemill.base.clock import MINUTE, SECOND, SystemClock, format_duration, format_time
from tidemill.base.errors import WorkspaceError
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, grid, open_running, probe, section
from tidemill.cli.words import figure, rebuild, sentence, serving, still, when
from tidemill.engine.feature.freshness import Freshness, freshness
from tidemill.engine.predict.records import RESERVED_TABLES
from tidemill.engine.predict.state import ModelState, State, fold
from tidemill.engine.table.tally import report
from tidemill.ports.journal import Entry
from tidemill.project import Project
from tidemill.spec.feature import OnDemand
from tidemill.spec.source import Source


@click.command(name="status", short_help="Show tables, models, endpoint and what is under way.")
@project_option
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show tables, models with their judged figures, the endpoint, the newest reports, and what is under way."""
    project = open_running(path)
    entries = list(project.workspace.journal.read())
    found = collect(project, entries)
    if as_json:
        echo_json(found)
    else:
        _show(console(), found, entries)


def collect(project: Project, entries: Iterable[Entry]) -> dict[str, Any]:
    """Return the status as plain data. Times are ISO 8601.

    Of a table: ``versions``, how many versions of rows are stored, corrections and withdrawals among them (how many
    rows are visible, only reading them could tell); ``age``, that of its newest commit.
    """
    entries = list(entries)
    state, now = fold(entries), SystemClock().now()
    cleaned = report(entry.body for entry in entries if entry.kind == "commit")
    newest: dict[str, int] = {}
    refused: dict[str, int] = {}
    for entry in entries:
        if entry.kind == "commit":
            name = entry.body["table"]
            newest[name] = entry.tick
            refused[name] = refused.get(name, 0) + entry.body["quarantined"]
    tables = []
    declared = {table.name: table for table in project.system.tables}
    for name in [*declared, *(each for each in RESERVED_TABLES if each in state.rows)]:
        table = declared.get(name)
        tables.append(
            {
                "name": name,
                "kind": "ledger" if table is None else "source" if isinstance(table, Source) else "table",
                "versions": state.rows.get(name, 0),
                "newest": format_time(newest[name]) if name in newest else None,
                "age": _age(now - newest[name]) if name in newest else None,
                "quarantined": refused.get(name, 0),
                "cleaned": cleaned.get(name, []),
                "halted": state.halted.get(name),
            }
        )
    served = probe(project.workspace)
    ticks = project.workspace.journal.ticks()
    return {
        "system": project.system.name,
        "tick": format_time(ticks[-1]) if ticks else None,
        "journal": state.number,
        "tables": tables,
        "online": _online(project, now),
        "models": [_model(project, model.name, state.model(model.name)) for model in project.system.models],
        "endpoint": {"url": served[0], **served[1]} if served else None,
        "requests": [{"kind": each.kind, **each.body} for each in project.workspace.journal.requests()],
        "undeclared": sorted(_undeclared(project, state)),
    }


def _online(project: Project, now: int) -> dict[str, Any]:
    """Return how fresh the online state and each feature view in it is; ``unread``: why that cannot be said, or None.

    The rest of the status does not depend on it: it is shown where nothing can be written, too.
    """
    unread = None
    try:
        store = project.workspace.online
    except WorkspaceError as error:
        found, unread = Freshness(), str(error)
    else:
        with closing(store):
            found = freshness(store)
    views = []
    for view in project.system.views:
        if not isinstance(view, OnDemand):
            fresh = found.views.get(view.name)
            times = (fresh.event_time, fresh.known_at) if fresh else (None, None)
            event_time, known_at = (None if time is None else format_time(time) for time in times)
            views.append(
                {"name": view.name, "table": view.table.name, "newest_event": event_time, "newest_known": known_at}
            )
    rebuilding = found.rebuilding
    return {
        "tick": format_time(found.applied.tick) if found.applied else None,
        "unread": unread,
        "lag": max(now - found.applied.t, 0) / SECOND if found.applied else None,
        "views": views,
        "rebuilding": None
        if rebuilding is None
        else {"table": rebuilding.table, "done": rebuilding.done, "steps": rebuilding.steps, "left": rebuilding.left},
    }


def _model(project: Project, name: str, model: ModelState) -> dict[str, Any]:
    champion = model.resolve("champion") if "champion" in model.aliases else None
    tenure = [
        at for at, alias, number in model.tenures if alias == "champion" and champion and number == champion.number
    ]
    training = model.training
    return {
        "name": name,
        "versions": len(model.versions),
        "champion": None
        if champion is None
        else {
            "version": champion.number,
            "since": format_time(tenure[-1]),
            "served": project.served(champion.training),
            "rows": champion.judged.get("rows"),
            "metrics": champion.judged.get("metrics", {}),
            "kpis": champion.judged.get("kpis", {}),
        },
        "training": None
        if training is None
        else {
            "id": training.id,
            "case": training.case,
            "started": format_time(training.started),
            "ready": format_time(training.ready),
        },
        "watched": None
        if model.watched is None or model.watched_at is None
        else {"at": format_time(model.watched_at), **model.watched},
    }


def _undeclared(project: Project, state: State) -> set[str]:
    return set(state.models) - {model.name for model in project.system.models}


def _age(micros: int) -> str:
    """Return a span of time by its two largest units, from minutes up."""
    if micros < MINUTE:
        return "now"
    text = format_duration(micros // MINUTE * MINUTE)
    for unit in "dh":
        head, found, rest = text.partition(unit)
        if found:
            return f"{head}{unit}{rest.partition('h')[0]}h" if unit == "d" and "h" in rest else f"{head}{unit}{rest}"
    return text


def _show(out: Console, found: dict[str, Any], entries: list[Entry]) -> None:
    served = found["endpoint"]
    place = f"serving on [bold]{served['url']}[/]" if served else "not serving"
    out.print(f"[bold]{found['system']}[/]   newest tick {_minute(found['tick'])}   {place}")
    table = grid("table", "versions", "newest", "age", "quarantined", "", right=(1, 4))
    for each in found["tables"]:
        state = Text("stands still" if each["halted"] else "", style="red")
        bad = Text(f"{each['quarantined']:,}", style="yellow" if each["quarantined"] else "dim")
        quiet = "" if each["versions"] else "dim"
        table.add_row(
            Text(each["name"], style=quiet),
            f"{each['versions']:,}",
            _minute(each["newest"]),
            each["age"] or "",
            bad,
            state,
        )
    section(out, "Tables", table)
    for each in found["tables"]:
        if each["halted"]:
            why = Text(still(each["name"], each["halted"]), style="red")
            out.print(Padding(why, (0, 0, 0, 2), expand=False))
    if any(each["cleaned"] for each in found["tables"]):
        section(out, "Cleaning", _cleaning(found["tables"]))
    if found["online"]["views"]:
        section(out, "Feature views", _views(found["online"]))
    for model in found["models"]:
        section(out, f"Model {model['name']}", _model_lines(model, entries))
    for name in found["undeclared"]:
        out.print(f"\nModel {name} is no longer declared; its versions are kept.", style="dim")
    if found["requests"]:
        asked = grid("", "", "")
        for each in found["requests"]:
            asked.add_row(each["kind"], each.get("model", ""), each.get("reason", ""))
        section(out, "Waiting for the worker", asked)


def _views(online: dict[str, Any]) -> Any:
    lines = grid("view", "table", "newest event", "known")
    for each in online["views"]:
        lines.add_row(each["name"], each["table"], _minute(each["newest_event"]), _minute(each["newest_known"]))
    if online["unread"] is not None:
        return Group(Text(online["unread"], style="yellow"))
    lag = "" if online["lag"] is None else f", {_age(int(online['lag'] * SECOND))} ago".replace("now ago", "now")
    below = [Text(f"Online state as of {_minute(online['tick'])}{lag}.", style="dim")]
    if online["rebuilding"] is not None:
        below.append(Text(f"Rebuilding it: {rebuild(**online['rebuilding'])}.", style="cyan"))
    return Group(lines, *below)


def _cleaning(tables: Iterable[dict[str, Any]]) -> Any:
    lines = grid("table", "step", "rows", "did", right=(2,))
    for each in tables:
        for step in each["cleaned"]:
            did = [f"{number:,} {name}" for name, number in step.items() if name not in ("step", "rows") and number]
            lines.add_row(each["name"], step["step"], f"{step['rows']:,}", ", ".join(did) or "nothing")
    return lines


def _model_lines(model: dict[str, Any], entries: list[Entry]) -> Any:
    lines = grid("", "")
    champion, training = model["champion"], model["training"]
    if champion is None:
        lines.add_row("champion", "none yet")
    else:
        rows = f", fitted on {champion['rows']:,} rows" if champion["rows"] else ""
        lines.add_row("champion", f"v{champion['version']} since {_minute(champion['since'])}{rows}")
        lines.add_row("served", serving(champion["served"]))
        for name, value in (*champion["metrics"].items(), *champion["kpis"].items()):
            lines.add_row(Text(name, style="dim"), figure(value))
    if training is not None:
        about = (
            f"started {_minute(training['started'])} ({training['case']}), takes effect {_minute(training['ready'])}"
        )
        lines.add_row("training", Text(about, style="cyan"))
    elif champion is None:
        last = next(
            (e for e in reversed(entries) if e.kind in ("judge", "fail") and e.body["model"] == model["name"]), None
        )
        if last is not None:
            lines.add_row("newest", Text(f"{when(last.tick)}  {sentence(last)}", style="yellow"))
    watched = model["watched"]
    if watched is not None:
        about = " ".join(part["reason"] for part in (watched["drift"], watched["performance"]) if part)
        lines.add_row("watched", f"{_minute(watched['at'])}: {watched['predictions']:,} predictions. {about}")
    return lines


def _minute(time: str | None) -> str:
    return time[:16].replace("T", " ") if time else "never"
