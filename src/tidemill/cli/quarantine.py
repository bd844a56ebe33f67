"""``tidemill quarantine``: which rows a source refused, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import polars as pl
from rich.text import Text

from tidemill.base.clock import format_time
from tidemill.base.errors import NotFoundError
from tidemill.base.schema import TICK
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, count, grid, open_running, section
from tidemill.engine.table.ingest import quarantine_table
from tidemill.engine.table.quality import kind_of_reason
from tidemill.project import Project
from tidemill.spec.source import Table

_SHOWN = 2_000  # characters of a row on the screen


@click.command(name="quarantine", short_help="Show which rows a source refused, and why.")
@click.argument("source")
@click.option(
    "--limit", "-n", type=click.IntRange(0), default=10, show_default=True, help="The newest so many rows; 0: all."
)
@project_option
@json_option
def command(source: str, limit: int, path: Path, as_json: bool) -> None:
    """Show which rows SOURCE refused, and why: how many for each reason, and the newest, oldest first.

    A row is shown as it came: by its columns where they could be told, else as the line of the file. It is not loaded;
    bring it mended, as a new row.
    """
    found = collect(open_running(path), source, limit)
    if as_json:
        echo_json(found)
    else:
        _show(found)


def collect(project: Project, source: str, limit: int) -> dict[str, Any]:
    """Return what ``source`` refused as plain data: the reasons, commonest first, and the newest ``limit`` rows."""
    declared = project.declared_table(source)
    if isinstance(declared, Table):
        raise NotFoundError(
            f"{source!r} is a derived table, which refuses no row; its inputs are {', '.join(declared.inputs)}."
        )
    lake, name = project.workspace.lake, quarantine_table(source)
    head = lake.head(name)
    if head is None:
        return {"source": source, "rows": 0, "reasons": [], "newest": []}
    at = pl.col(TICK).dt.epoch("us")
    counted = (
        pl.DataFrame(lake.scan(name, columns=["reason", TICK]))
        .group_by(kind_of_reason(pl.col("reason")))
        .agg(pl.len().alias("rows"), at.max().alias("newest"))
        .sort(["rows", "reason"], descending=[True, False])
    )
    since = max(head.next_seq - limit, 0) if limit else 0
    newest = pl.DataFrame(lake.scan(name, since=since)).select(at.alias("at"), "reason", "row")
    return {
        "source": source,
        "rows": head.next_seq,
        "reasons": [{**row, "newest": format_time(row["newest"])} for row in counted.iter_rows(named=True)],
        "newest": [{**row, "at": format_time(row["at"])} for row in newest.iter_rows(named=True)],
    }


def _show(found: dict[str, Any]) -> None:
    out = console()
    if not found["rows"]:
        out.print(f"{found['source']} has refused no row.")
        return
    out.print(f"[bold]{found['source']}[/]   {count(found['rows'], 'row')} refused")
    reasons = grid("rows", "newest", "reason", right=(0,))
    for each in found["reasons"]:
        reasons.add_row(f"{each['rows']:,}", _minute(each["newest"]), each["reason"])
    section(out, "Reasons", reasons)
    rows = grid("taken in", "reason, and the row as it came")
    for each in found["newest"]:
        text = each["row"] if len(each["row"]) <= _SHOWN else f"{each['row'][:_SHOWN]}…"
        rows.add_row(_minute(each["at"]), Text.assemble(each["reason"], "\n", (text.strip(), "dim")))
    section(out, "Newest rows", rows)
    if older := found["rows"] - len(found["newest"]):
        out.print(f"\n{older:,} older; see more with --limit.", style="dim")


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
