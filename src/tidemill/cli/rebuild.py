"""``tidemill rebuild``: ask the worker to make the online state anew from the lake."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.cli.asking import ask, wait
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, open_running


@click.command(name="rebuild", short_help="Ask the worker to make the online state anew from the lake.")
@click.option("--reason", required=True, help="Why, in words: it goes into the journal.")
@click.option("--wait", "waits", is_flag=True, help="Return when the worker has taken it up.")
@project_option
@json_option
def command(reason: str, waits: bool, path: Path, as_json: bool) -> None:
    """Ask the worker to make the online state anew from the lake.

    Servers answer from the old one until the new one is there; `tidemill status` shows how far it is. The worker does
    it by itself when feature views change and when the state is lost; by hand it is for a state that is damaged.
    """
    project = open_running(path)
    id, then = ask(project, "rebuild", {"reason": reason})
    if as_json:
        echo_json({"request": id, "then": then})
    else:
        console().print(f"Asked for a rebuild of the online state. {then}")
    if waits:
        wait(project, id, "", console())
