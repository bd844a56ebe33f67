"""``tidemill parity``: logged predictions derived again from the lake and compared bit for bit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from tidemill.base.clock import parse_time, to_datetime
from tidemill.base.errors import NotFoundError
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, count, grid, open_running, section
from tidemill.cli.rederive import Rederiving, Tell
from tidemill.engine.parity.parity import BOUND, CAUSES, Parity, enough, sample
from tidemill.engine.predict import records
from tidemill.project import Project

_TIME = "2013-10-01 or 2013-10-01T06:00Z"


@click.command(name="parity", short_help="Derive logged predictions again and compare them bit for bit.")
@click.argument("model", required=False)
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), show_default=f"enough for a bound of {BOUND:.1%}",
              help="Compare this share of the predictions, chosen by their ids; 1: all.")  # fmt: skip
@click.option("--since", metavar="TIME", help=f"Only predictions answered at this time or later: {_TIME}.")
@click.option("--until", metavar="TIME", help="Only predictions answered before this time.")
@click.option("--limit", type=click.IntRange(1), help="Compare at most the newest so many of each model.")
@project_option
@json_option
def command(
    model: str | None, share: float | None, since: str | None, until: str | None, limit: int | None,
    path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Derive logged predictions of MODEL (or of every model) again from the lake and compare them bit for bit.

    Each is derived from exactly the rows that had been applied when it was answered. What differs is looked into: which
    row was lost or counted twice, since when a view stood still, and so on. Exits with 1 when one differs by a fault,
    or for no known reason; what late rows and other library versions explain is reported and exits with 0.
    """
    project = open_running(path)
    names = [project.declared_model(model).name] if model else [each.name for each in project.system.models]
    if records.PREDICTIONS not in project.workspace.lake.tables():
        raise NotFoundError("No prediction has reached the lake yet. They are taken in at the worker's next tick.")
    rows = project.rows(records.PREDICTIONS)
    found: list[dict[str, Any]] = []
    with _progress(quiet=as_json) as tell:
        for name in names:
            whole = rows.filter(pl.col("model") == name).sort("asked", "id")
            found.append(_compare(project, name, whole, _chosen(whole, share, since, until, limit), tell))
    if as_json:
        echo_json(found)
    else:
        for each in found:
            _show(each)
    if any(each["fails"] for each in found):
        sys.exit(1)


def _chosen(
    rows: pl.DataFrame, share: float | None, since: str | None, until: str | None, limit: int | None
) -> pl.DataFrame:
    """Return the rows to compare: of the period, by the hashes that their ids are, and of these the newest."""
    if since is not None:
        rows = rows.filter(pl.col("asked") >= to_datetime(parse_time(since)))
    if until is not None:
        rows = rows.filter(pl.col("asked") < to_datetime(parse_time(until)))
    if limit is not None and share is None:
        return rows.tail(limit)
    ids = rows["id"].to_list()
    rows = rows.filter(pl.Series(enough(ids) if share is None else sample(ids, share), dtype=pl.Boolean))
    return rows if limit is None else rows.tail(limit)


def _compare(project: Project, name: str, whole: pl.DataFrame, own: pl.DataFrame, tell: Tell) -> dict[str, Any]:
    rederiving, compared, skipped = Rederiving(project, name), Parity(), 0
    for number in own["version"].unique().sort().to_list():
        part = own.filter(pl.col("version") == number)
        if not rederiving.possible(number):
            skipped += part.height
            continue
        compared += rederiving.explained(number, part, whole, partial(_tell, tell, f"{name} v{number}"))
    return {"model": name, "predictions": whole.height, "skipped": skipped, **_plain(compared)}


def _tell(tell: Tell, about: str, doing: str, done: int, total: int) -> None:
    tell(f"{about}: {doing}", done, total)


def _plain(parity: Parity) -> dict[str, Any]:
    findings = sorted(parity.findings, key=lambda each: (not each.fails, -each.predictions, each.kind, each.where))
    by_cause: dict[str, int] = {}
    for each in findings:
        by_cause[each.kind] = by_cause.get(each.kind, 0) + each.predictions
    return {
        "rows": parity.rows,
        "mismatched": parity.mismatched,
        "rate": parity.rate,
        "rate_below": parity.bound,
        "rounded": parity.rounded,
        "fails": any(each.fails for each in findings),
        "by_cause": by_cause,
        "by_value": dict(parity.by_value),
        "examples": [asdict(each) for each in parity.examples],
        "findings": [{**asdict(each), "fails": each.fails} for each in findings],
    }


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Tell]:
    """Show how far it is with the time left; nothing for JSON."""
    if quiet:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, Any] = {}

        def tell(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = shown.add_task(doing)
            shown.update(tasks[doing], completed=done, total=total)

        yield tell


def _show(each: dict[str, Any]) -> None:
    out = console()
    if not each["rows"]:
        out.print(f"[bold]{each['model']}[/]   no prediction to compare")
    elif not each["mismatched"]:
        who = f"all {each['rows']:,} predictions agree" if each["rows"] > 1 else "the one prediction agrees"
        out.print(f"[bold]{each['model']}[/]   [bold green]{who} bit for bit[/]")
        out.print(f"The rate of mismatches is below {each['rate_below']:.2%} at 95 % confidence.", style="dim")
    else:
        style = "red" if each["fails"] else "yellow"
        out.print(
            f"[bold]{each['model']}[/]   [bold {style}]{each['mismatched']:,} of {each['rows']:,} predictions differ"
            f"[/]: {each['rate']:.2%}, below {each['rate_below']:.2%} (95 % confidence)"
        )
    if each["findings"]:
        _show_findings(out, each["findings"])
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


def _show_findings(out: Console, findings: list[dict[str, Any]]) -> None:
    for each in findings:
        body = grid("", "")
        body.add_row(Text("means", style="dim"), CAUSES[each["kind"]])
        if each["detail"]:
            body.add_row(Text("which", style="dim"), Text(each["detail"]))
        if each["against"]:
            agree = f"{count(each['against'], 'prediction')} that it would have changed, had it lasted"
            body.add_row(Text("agree", style="dim"), Text(f"{agree}: it was mended, or something else did it"))
        columns = sorted(each["columns"].items(), key=lambda pair: (-pair[1], pair[0]))
        body.add_row(Text("columns", style="dim"), Text(", ".join(f"{name} ({number:,})" for name, number in columns)))
        for one in each["examples"]:
            said = f"{one['what']}: logged {one['logged']!r}, derived {one['derived']!r}"
            body.add_row(Text("example", style="dim"), Text(f"{said}   tidemill trace {one['id'][:12]}"))
        where = f" in {each['where']}" if each["where"] else ""
        section(out, f"{each['kind']}{where}: {count(each['predictions'], 'prediction')}", body)
