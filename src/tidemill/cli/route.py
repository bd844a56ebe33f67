"""``tidemill route``: share a model's questions out among its versions, while it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tidemill.base.clock import format_time
from tidemill.base.errors import TidemillError
from tidemill.cli.asking import ask, wait
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, grid, open_running, section
from tidemill.cli.words import when
from tidemill.engine.monitor.canary import asked_for
from tidemill.engine.predict.route import CANARY, CHAMPION


@click.group(name="route", short_help="Share a model's questions out: canary, A/B, shadow.")
def command() -> None:
    """Share a model's questions out among its versions: canary, A/B, shadow. Servers follow without a failed request.

    A key stays with its version while the route stands. What no arm takes, the champion answers. Pointing the champion
    at another version (tidemill rollback) ends the arms.
    """


@command.command(name="set", short_help="Set a model's route, in place of the one before.")
@click.argument("model")
@click.option("--canary", metavar="VERSION", help="This version answers --share of the keys, by the route “canary”.")
@click.option("--share", type=float, default=0.1, show_default=True, help="Of the keys, for --canary; up to 1.")
@click.option(
    "--arm", "arms", multiple=True, metavar="NAME=VERSION:SHARE", help="An arm of an A/B test: b=v4:0.5. Repeatable."
)
@click.option(
    "--shadow",
    "shadows",
    multiple=True,
    metavar="VERSION",
    help="Mirror every question to it, unseen. Repeatable.",
)
@click.option("--reason", required=True, help="Why, in words: it goes into the journal.")
@click.option("--wait", "waits", is_flag=True, help="Return when the worker has done it.")
@project_option
@json_option
def set_route(
    model: str, canary: str | None, share: float, arms: tuple[str, ...], shadows: tuple[str, ...],
    reason: str, waits: bool, path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Set the route of MODEL: a canary, the arms of an A/B test, shadows. Versions are v3, 3 or an alias."""
    given: list[dict[str, Any]] = [] if canary is None else [{"name": CANARY, "version": canary, "share": share}]
    given += [_arm(text) for text in arms]
    if not given and not shadows:
        raise TidemillError("Nothing to set: give --canary, --arm or --shadow, or end the route: tidemill route end")
    _ask(model, {"arms": given, "shadows": list(shadows), "reason": reason}, waits, path, as_json)


@command.command(name="end", short_help="Give everything to the champion again.")
@click.argument("model")
@click.option("--reason", required=True, help="Why, in words: it goes into the journal.")
@click.option("--wait", "waits", is_flag=True, help="Return when the worker has done it.")
@project_option
@json_option
def end(model: str, reason: str, waits: bool, path: Path, as_json: bool) -> None:
    """End the route of MODEL: the champion answers everything, and nothing is mirrored."""
    _ask(model, {"arms": [], "shadows": [], "reason": reason}, waits, path, as_json)


@command.command(name="show", short_help="Show the routes.")
@click.argument("model", required=False)
@project_option
@json_option
def show(model: str | None, path: Path, as_json: bool) -> None:
    """Show who answers the questions to MODEL, or to every model."""
    project = open_running(path)
    names = [each.name for each in project.system.models] if model is None else [project.declared_model(model).name]
    state = project.state()
    if as_json:
        echo_json(
            {
                name: {
                    CHAMPION: state.model(name).aliases.get(CHAMPION),
                    "route": state.model(name).route.as_json(),
                    "since": None if (at := state.model(name).routed_at) is None else format_time(at),
                }
                for name in names
            }
        )
        return
    table = grid("model", "champion", "route", "since")
    for name in names:
        known = state.model(name)
        champion = known.aliases.get(CHAMPION)
        since = when(known.routed_at) if known.routed_at is not None else ""
        table.add_row(name, f"v{champion}" if champion else "none", str(known.route), since)
    section(console(), "Routes", table)


def _arm(text: str) -> dict[str, Any]:
    name, equals, rest = text.partition("=")
    version, colon, share = rest.rpartition(":")
    try:
        part = float(share) if equals and colon else 0.0
    except ValueError:
        part = 0.0
    if not part:
        raise TidemillError(f"--arm {text!r} is not NAME=VERSION:SHARE, such as b=v4:0.5.")
    return {"name": name, "version": version, "share": part}


def _ask(model: str, body: dict[str, Any], waits: bool, path: Path, as_json: bool) -> None:
    project = open_running(path)
    project.declared_model(model)
    known = project.state().model(model)
    new = asked_for(model, known, body)  # what cannot be is refused here, not at the worker's next tick
    id, then = ask(project, "route", {"model": model, **body})
    if as_json:
        echo_json({"request": id, "model": model, **body, "previous": known.route.as_json(), "then": then})
    else:
        console().print(f"Asked for the route of [bold]{model}[/]: {new}, in place of: {known.route}. {then}")
        console().print("Servers follow within a second of that, without a failed request.", style="dim")
    if waits:
        wait(project, id, model, console())
