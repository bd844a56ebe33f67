"""``tidemill plan``: what ``tidemill up`` would build or change, and why. Does none of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from tidemill import project as projects
from tidemill.base.errors import DeclarationError, Fault
from tidemill.base.hashing import fingerprint
from tidemill.cli.check import inspect
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, faults_json, grid, print_faults, probe, section
from tidemill.cli.words import serving
from tidemill.engine.check.check import installation
from tidemill.engine.check.fingerprint import judging, recipe_fingerprint
from tidemill.engine.check.plan import Built, BuiltModel, BuiltTable, plan
from tidemill.engine.mill.refuse import refusals, transition_notes
from tidemill.engine.predict.state import State
from tidemill.project import Project
from tidemill.spec.source import Source

_STYLES = {"nothing": "dim", "serve": "green", "load": "cyan", "create": "cyan", "train": "cyan"}


@click.command(name="plan", short_help="Show what would be built or changed, and why.")
@project_option
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show what `tidemill up` would load, build, train or change, and why. Does none of it.

    Exits with 1 when `tidemill up` would refuse the file: it would change what stored rows or a champion's inputs mean.
    """
    project = projects.open(path)
    found = inspect(project)
    if found.faults:
        raise DeclarationError(found.faults)
    state = project.state()
    made = plan(project.system, built(project, state))
    refused = tuple(refusals(project.system, state, project.workspace.journal.step)) if state.declared else ()
    between = transition_notes(project.system, state, project.workspace.journal.step) if state.declared else ()
    notices = (*found.bare, *made.warnings, *between, *found.slow, *not_compiled(project), *installation())
    if as_json:
        items = [{"action": item.action, "what": item.what, "why": list(item.why)} for item in made.items]
        plain = {"idle": made.idle, "refused": refused, "items": items, "warnings": faults_json(notices)}
        echo_json(plain)
        sys.exit(1 if refused else 0)
    out = console()
    table = grid("", "", "")
    for item in made.items:
        style = _STYLES.get(item.action, "yellow")
        word = "·" if item.action == "nothing" else item.action
        quiet = "dim" if item.action == "nothing" else ""
        table.add_row(Text(word, style=style), Text(item.what, style=quiet), Text("; ".join(item.why), style=quiet))
    if refused:
        out.print("[bold red]Refused:[/] tidemill up would do none of it.")
        for reason in refused:
            out.print(Text(reason, style="red"))
    elif made.idle:
        out.print("[bold green]Nothing to do:[/] everything is as declared.")
    else:
        work = sum(item.action not in ("nothing", "serve") for item in made.items)
        out.print(f"[bold]{work} of {len(made.items)}[/] would be built or changed by: tidemill up")
    section(out, "Plan", table)
    print_faults(out, notices, style="yellow")
    if refused:
        sys.exit(1)


def built(project: Project, state: State) -> Built:
    """Return what exists in the workspace of ``project``. Reads only."""
    if not project.workspace.exists:
        return Built()
    declared = state.declared
    sources = {table.name: table for table in project.system.tables if isinstance(table, Source)}
    tables = {
        name: BuiltTable(parts, state.rows[name], pending=project.pending(sources[name]) if name in sources else None)
        for name, parts in declared.get("tables", {}).items()
        if name in state.rows
    }
    return Built(
        tables=tables,
        views={name: parts for name, parts in declared.get("views", {}).items() if parts},
        models=_models(project, state),
        undecided=dict(_undecided(project, state)),
        operations=declared.get("operations"),
        serving=probe(project.workspace) is not None,
    )


def _models(project: Project, state: State) -> dict[str, BuiltModel]:
    """Return the models that have a champion, with the recipe that it was trained by."""
    recipes, found = recipes_declared(project), {}
    for name, model in state.models.items():
        if "champion" in model.aliases:
            version = model.version(model.aliases["champion"])
            judging = state.declared["models"].get(name, {}).get("judging", {})
            found[name] = BuiltModel(f"v{version.number}", recipes.get(version.recipe, {}), judging)
    return found


def _undecided(project: Project, state: State) -> Iterator[tuple[str, str]]:
    """Yield the models whose last training, of what is declared, made no champion, and how it ended."""
    for model in project.system.models:
        known = state.model(model.name)
        judged = state.declared.get("models", {}).get(model.name, {}).get("judging")
        same = known.tried == recipe_fingerprint(model, project.system.policy) and judged == judging(model)
        if "champion" not in known.aliases and same and not known.rejudge:
            if known.training is not None:
                yield model.name, "a training is under way"
            else:
                verdict = known.judged["verdict"] if known.judged else {"reasons": ["its training failed"]}
                yield model.name, "; ".join(verdict["reasons"])


def not_compiled(project: Project) -> Iterator[Fault]:
    """Yield a note on each champion that is not served compiled: what a row costs, and why."""
    state = project.state()
    for model in project.system.models:
        known = state.model(model.name)
        if "champion" not in known.aliases:
            continue
        champion = known.resolve("champion")
        served = project.served(champion.training)
        if served is not None and served["kind"] != "compiled":
            what = f"v{champion.number} is served {serving(served)}."
            yield Fault(f"model '{model.name}'", what, "docs/predictors.md says what is compiled.")


def recipes_declared(project: Project) -> dict[str, dict[str, Any]]:
    """Return the parts of every recipe that was ever declared in the workspace, by their fingerprint."""
    return {
        fingerprint(parts["recipe"]): parts["recipe"]
        for entry in project.workspace.journal.read(kinds=["declare"])
        for parts in entry.body["declared"]["models"].values()
    }
