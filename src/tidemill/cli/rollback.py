"""``tidemill rollback``: point an alias at an older version."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.base.errors import NotFoundError
from tidemill.cli.asking import ask, wait
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, open_running
from tidemill.engine.mill.refuse import check_champion


@click.command(name="rollback", short_help="Point an alias back at an older version.")
@click.argument("model")
@click.option("--to", required=True, metavar="VERSION", help="The version to point at: v2, 2, or another alias.")
@click.option("--reason", required=True, help="Why, in words: it goes into the journal.")
@click.option("--alias", default="champion", show_default=True, help="The alias to point.")
@click.option("--wait", "waits", is_flag=True, help="Return when the worker has done it.")
@project_option
@json_option
def command(model: str, to: str, reason: str, alias: str, waits: bool, path: Path, as_json: bool) -> None:
    """Point an alias of MODEL, the champion unless said otherwise, at another of its versions."""
    project = open_running(path)
    declared = project.declared_model(model)
    known = project.state().model(model)
    if not known.versions:
        raise NotFoundError(f"model {model!r} has no version yet.")
    version = known.resolve(to)
    if known.aliases.get(alias) == version.number:
        raise NotFoundError(f"model {model!r}: v{version.number} is {alias} already; there is nothing to point.")
    if alias == "champion":
        check_champion(declared, version.number, project.workspace.journal.step(version.training))
    body = {"model": model, "alias": alias, "version": version.number, "reason": reason}
    id, then = ask(project, "rollback", body)
    if as_json:
        echo_json({"request": id, **body, "previous": known.aliases.get(alias), "then": then})
    else:
        before = f", in place of v{known.aliases[alias]}" if alias in known.aliases else ""
        console().print(f"Asked to make [bold]v{version.number}[/] the {alias} of [bold]{model}[/]{before}. {then}")
        console().print("Servers follow within a second of that, without a failed request.", style="dim")
    if waits:
        wait(project, id, model, console())
