"""``tidemill rebuild``: ask the worker to make the online state anew from the lake."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console

from tidemill.cli.asking import ask, wait
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, open_running
from tidemill.cli.words import rebuild as words
from tidemill.engine.feature.freshness import freshness
from tidemill.project import Project

_LOOK_SECONDS = 0.25


@click.command(name="rebuild", short_help="Ask the worker to make the online state anew from the lake.")
@click.option("--reason", required=True, help="Why, in words: it goes into the journal.")
@click.option("--wait", "waits", is_flag=True, help="Return when the new state is there, and show how far it is.")
@project_option
@json_option
def command(reason: str, waits: bool, path: Path, as_json: bool) -> None:
    """Ask the worker to make the online state anew from the lake.

    Servers answer from the old one until the new one is there; `tidemill status` shows how far it is and how long it
    will still take. The worker does it by itself when feature views change and when the state is lost; by hand it is
    for a state that is damaged.
    """
    project = open_running(path)
    before = project.workspace.journal.last()
    id, then = ask(project, "rebuild", {"reason": reason})
    if as_json:
        echo_json({"request": id, "then": then})
    else:
        console().print(f"Asked for a rebuild of the online state. {then}")
    if waits:
        wait(project, id, "", console())
        _follow(project, before, quiet=as_json)


def _follow(project: Project, before: int, *, quiet: bool) -> None:
    """Show how far it is, until there is a state of after the journal entry ``before``."""
    out = Console(stderr=True, quiet=quiet)
    store = project.workspace.online
    with out.status("rebuilding") as shown:
        while (found := freshness(store)).rebuilding or found.applied is None or found.applied.journal <= before:
            if found.rebuilding is not None:
                said = found.rebuilding
                shown.update(words(said.table, said.done, said.steps, said.left))
            time.sleep(_LOOK_SECONDS)
    store.close()
