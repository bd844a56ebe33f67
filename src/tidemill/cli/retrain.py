"""``tidemill retrain``: ask the worker to train a model now."""

from __future__ import annotations

from pathlib import Path

import click

from tidemill.base.clock import format_duration
from tidemill.cli.asking import ask, wait
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, open_running


@click.command(name="retrain", short_help="Ask the worker to train a model now.")
@click.argument("model")
@click.option("--reason", required=True, help="Why, in words: it goes into the journal.")
@click.option("--wait", "waits", is_flag=True, help="Return when the worker has started the training.")
@project_option
@json_option
def command(model: str, reason: str, waits: bool, path: Path, as_json: bool) -> None:
    """Ask the worker to train MODEL now. The gate then judges it as any other candidate."""
    project = open_running(path)
    project.declared_model(model)
    id, then = ask(project, "retrain", {"model": model, "reason": reason})
    training = project.state().model(model).training
    if as_json:
        echo_json({"request": id, "model": model, "under_way": training.id if training else None, "then": then})
    else:
        out = console()
        out.print(f"Asked for a training of [bold]{model}[/]. {then}")
        if training is not None:
            out.print("A training of it is under way; this one starts when that has taken effect.")
        takes = format_duration(project.system.policy.takes)
        out.print(f"It takes effect {takes} after its start, if the gate lets it pass.", style="dim")
    if waits:
        wait(project, id, model, console())
