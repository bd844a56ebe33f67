"""The ``tidemill`` command: a table of commands, each in its own module, loaded on first use."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import click

from tidemill.base.errors import DeclarationError, StorageError, TidemillError

#: command -> (module, one line of help). The module's ``command`` is the click command.
COMMANDS = {
    "demo": ("tidemill.cli.demo", "See the whole mill turn on a year of real flights."),
    "check": ("tidemill.cli.check", "Prove the declared file: every fault at once."),
    "plan": ("tidemill.cli.plan", "Show what would be built or changed, and why."),
    "up": ("tidemill.cli.up", "Build what is missing, serve, and keep the mill turning."),
    "status": ("tidemill.cli.status", "Show tables, models, endpoint and what is under way."),
    "journal": ("tidemill.cli.journal", "Show what was committed and decided, and why."),
    "quarantine": ("tidemill.cli.quarantine", "Show which rows a source refused, and why."),
    "history": ("tidemill.cli.history", "Show a model's versions and who was live when."),
    "trace": ("tidemill.cli.trace", "Account for one prediction: data, features, code, model, label."),
    "predictions": ("tidemill.cli.predictions", "Read the prediction log with features, labels and routes."),
    "retrain": ("tidemill.cli.retrain", "Ask the worker to train a model now."),
    "rebuild": ("tidemill.cli.rebuild", "Ask the worker to make the online state anew from the lake."),
    "rollback": ("tidemill.cli.rollback", "Point an alias back at an older version."),
    "route": ("tidemill.cli.route", "Share a model's questions out: canary, A/B, shadow."),
    "backtest": ("tidemill.cli.backtest", "Rehearse retraining policies on your own past."),
    "parity": ("tidemill.cli.parity", "Derive logged predictions again from the lake and compare bit for bit."),
    "predict": ("tidemill.cli.predict", "Predict for the rows of files or of a table."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TidemillError as error:
            if ctx.obj and ctx.obj.get("json"):
                faults = [
                    {"where": fault.where, "what": fault.what, "do": fault.do} for fault in getattr(error, "faults", ())
                ]
                click.echo(json.dumps({"error": type(error).__name__, "message": str(error), "faults": faults}))
            else:
                count = ""
                if isinstance(error, DeclarationError):
                    number = len(error.faults)
                    count = f"{number} fault{'' if number == 1 else 's'}\n"
                click.secho(f"{count}{error}", fg="red", err=True)
            sys.exit(2)
        except OSError as error:
            trouble = StorageError.of(error)
            if trouble is None:
                raise
            click.secho(f"{trouble} Then run it again; nothing that was stored is lost.", fg="red", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted. Nothing that is stored is lost; the command can be run again.", err=True)
            sys.exit(130)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tidemill")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Tidemill: a whole machine-learning system in one declared file."""
    ctx.ensure_object(dict)


if __name__ == "__main__":
    main()
