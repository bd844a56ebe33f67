"""``tidemill parity``: logged predictions derived again from the lake and compared bit for bit."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import polars as pl
from rich.text import Text

from tidemill.base.errors import NotFoundError
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, count, grid, open_running, section
from tidemill.cli.rederive import Rederiving
from tidemill.engine import ledger
from tidemill.engine.parity import Parity, sample


@click.command(name="parity", short_help="Derive logged predictions again and compare them bit for bit.")
@click.argument("model", required=False)
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="Compare this share of the predictions, chosen by their ids.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Compare at most the newest so many of each model.")
@project_option
@json_option
def command(model: str | None, share: float, limit: int | None, path: Path, as_json: bool) -> None:
    """Derive logged predictions of MODEL (or of every model) again from the lake and compare them bit for bit.

    Each is derived from exactly the rows that had been applied when it was answered. Exits with 1 when one differs.
    """
    project = open_running(path)
    names = [project.declared_model(model).name] if model else [each.name for each in project.system.models]
    if ledger.PREDICTIONS not in project.workspace.lake.tables():
        raise NotFoundError("No prediction has reached the lake yet. They are taken in at the worker's next tick.")
    rows = project.rows(ledger.PREDICTIONS)
    found: list[dict[str, Any]] = []
    for name in names:
        own = rows.filter(pl.col("model") == name)
        own = own.filter(pl.Series(sample(own["id"].to_list(), share), dtype=pl.Boolean)).sort("asked", "id")
        own = own if limit is None else own.tail(limit)
        rederiving, compared, skipped = Rederiving(project, name), Parity(), 0
        for number in own["version"].unique().sort().to_list():
            part = own.filter(pl.col("version") == number)
            if rederiving.possible(number):
                compared += rederiving.run(number, part)
            else:
                skipped += part.height
        found.append({"model": name, "skipped": skipped, **_plain(compared)})
    if as_json:
        echo_json(found)
    else:
        for each in found:
            _show(each)
    if any(each["mismatched"] for each in found):
        sys.exit(1)


def _plain(parity: Parity) -> dict[str, Any]:
    return {
        "rows": parity.rows,
        "mismatched": parity.mismatched,
        "rate": parity.rate,
        "rate_below": parity.bound,
        "rounded": parity.rounded,
        "by_value": dict(parity.by_value),
        "examples": [asdict(each) for each in parity.examples],
    }


def _show(each: dict[str, Any]) -> None:
    out = console()
    if not each["rows"]:
        out.print(f"[bold]{each['model']}[/]   no prediction to compare")
    elif not each["mismatched"]:
        out.print(
            f"[bold]{each['model']}[/]   [bold green]all {count(each['rows'], 'prediction')} agree bit for bit[/]"
        )
        out.print(f"The rate of mismatches is below {each['rate_below']:.2%} at 95 % confidence.", style="dim")
    else:
        out.print(
            f"[bold]{each['model']}[/]   [bold red]{each['mismatched']:,} of {each['rows']:,} predictions differ[/]: "
            f"{each['rate']:.2%}, below {each['rate_below']:.2%} (95 % confidence)"
        )
        table = grid("value", "rows that differ", right=(1,))
        for name, number in sorted(each["by_value"].items(), key=lambda pair: -pair[1]):
            table.add_row(name, f"{number:,}")
        section(out, "By value", table)
        examples = grid("prediction", "value", "logged", "derived")
        for one in each["examples"]:
            examples.add_row(one["id"], one["what"], Text(repr(one["logged"])), Text(repr(one["derived"])))
        section(out, "The first", examples)
    if each["rounded"]:
        out.print(
            f"{count(each['rounded'], 'prediction')} differ in the last digits only (1e-12, relative): the estimator's "
            "linear algebra rounds by the size of the batch.",
            style="dim",
        )
    if each["skipped"]:
        out.print(
            f"{count(each['skipped'], 'prediction')} left out: the features of their version are declared otherwise "
            "now.",
            style="yellow",
        )
