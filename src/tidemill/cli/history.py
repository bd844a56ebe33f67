"""``tidemill history``: a model's versions, how they were judged and are served, and who was live when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from tidemill.base.clock import format_time, parse_time
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, count, grid, open_running, section
from tidemill.cli.words import doubtful, figure, serving, when
from tidemill.engine.predict.state import ModelState
from tidemill.project import Project


@click.command(name="history", short_help="Show a model's versions and who was live when.")
@click.argument("model")
@project_option
@json_option
@click.option("--at", metavar="TIME", help="Say only which version was live at this time: 2013-10-01T06:00Z.")
def command(model: str, path: Path, as_json: bool, at: str | None) -> None:
    """Show the versions of MODEL with their figures and doubts, how each is served, and the champion's tenures."""
    project = open_running(path)
    state = project.state()
    if model not in state.models:
        project.declared_model(model)
    known = state.model(model)
    if at is not None:
        moment = parse_time(at)
        number = known.at("champion", moment)
        if as_json:
            echo_json({"model": model, "at": format_time(moment), "champion": number})
        elif number is None:
            console().print(f"{model}: none was live at {when(moment)} UTC.")
        else:
            console().print(f"{model}: [bold]v{number}[/] was live at {when(moment)} UTC.")
        return
    found = collect(project, model, known)
    if as_json:
        echo_json(found)
        return
    out = console()
    if not found["versions"]:
        out.print(f"{model}: no version yet. See why with: tidemill journal --model {model}")
        return
    gate = found["versions"][-1]["verdict"]["metric"]
    names = [name for name in found["versions"][-1]["metrics"] if name != gate]
    table = grid("version", "made", "rows", gate, *names, "", right=(2, *range(4, 4 + len(names))))
    for each in found["versions"]:
        rows = f"{each['rows']:,}" if each["rows"] else ""
        others = [f"{value:.4f}" if (value := _value(each, name)) is not None else "" for name in names]
        mark = Text(" ".join(each["aliases"]), style="bold green")
        table.add_row(
            f"v{each['version']}", _minute(each["made"]), rows, figure(each["metrics"].get(gate)), *others, mark
        )
    out.print(f"[bold]{model}[/]   {count(len(found['versions']), 'version')}")
    section(out, "Versions", table)
    forms = grid("version", "served")
    for each in found["versions"]:
        forms.add_row(f"v{each['version']}", serving(each["served"]))
    section(out, "How each is served", forms)
    doubts = grid("version", "")
    for each in found["versions"]:
        for doubt in doubtful(each):
            doubts.add_row(f"v{each['version']}", doubt)
    if doubts.row_count:
        section(out, "What is doubtful", doubts)
    tenures = grid("champion", "from", "until")
    for each in found["tenures"]:
        tenures.add_row(
            f"v{each['version']}", _minute(each["from"]), _minute(each["until"]) if each["until"] else "now"
        )
    section(out, "Who was live when", tenures)


def collect(project: Project, name: str, model: ModelState) -> dict[str, Any]:
    """Return a model's history as plain data. A tenure of the champion ends where the next one begins."""
    champions = [(at, number) for at, alias, number in model.tenures if alias == "champion"]
    ends = [at for at, _ in champions[1:]] + [None] * bool(champions)
    return {
        "model": name,
        "versions": [
            {
                "version": version.number,
                "aliases": sorted(alias for alias, number in model.aliases.items() if number == version.number),
                "made": format_time(version.tick),
                "as_of": format_time(version.as_of),
                "training": version.training,
                "recipe": version.recipe,
                "rows": version.judged.get("rows"),
                "metrics": version.judged.get("metrics", {}),
                "kpis": version.judged.get("kpis", {}),
                "verdict": version.judged.get("verdict"),
                "warnings": version.judged.get("warnings", []),
                "dropped": version.judged.get("dropped", []),
                "served": project.served(version.training),
            }
            for version in model.versions
        ],
        "tenures": [
            {"version": number, "from": format_time(at), "until": format_time(end) if end is not None else None}
            for (at, number), end in zip(champions, ends, strict=True)
        ],
    }


def _value(version: dict[str, Any], metric: str) -> float | None:
    value: float | None = version["metrics"].get(metric, {}).get("value")
    return value


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
