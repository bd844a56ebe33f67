"""``tidemill journal``: what was committed and decided, and why."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from rich.text import Text

from tidemill.base.clock import format_time, parse_time
from tidemill.base.hashing import canonical
from tidemill.cli.common import json_option, project_option
from tidemill.cli.layout import console, grid, open_running
from tidemill.cli.words import decisions, sentence, when
from tidemill.engine.predict.state import KINDS
from tidemill.ports.journal import Entry

_FOLLOW_SECONDS = 0.5


@click.command(name="journal", short_help="Show what was committed and decided, and why.")
@project_option
@json_option
@click.option("--kind", "kinds", multiple=True, type=click.Choice(sorted(KINDS)), help="Only these kinds; repeatable.")
@click.option("--model", help="Only what concerns this model.")
@click.option("--since", metavar="TIME", help="Only from this time on: 2013-10-01 or 2013-10-01T06:00Z.")
@click.option("--limit", "-n", default=30, show_default=True, help="The newest so many; 0: all.")
@click.option("--follow", "-f", is_flag=True, help="Wait for new entries until Ctrl-C.")
def command(
    path: Path, as_json: bool, kinds: tuple[str, ...], model: str | None, since: str | None, limit: int, follow: bool
) -> None:
    """Show the newest entries of the journal, oldest first: what was committed and decided, and why.

    With --json each entry is one line: number, tick (microseconds), kind, and the body as it is stored.
    """
    project = open_running(path)
    journal = project.workspace.journal
    if model is not None and model not in project.state().models:
        project.declared_model(model)
    start = parse_time(since) if since else None
    last = journal.last()

    def wanted(entries: Iterable[Entry]) -> Iterator[Entry]:
        return (
            entry
            for entry in entries
            if (model is None or entry.body.get("model") == model) and (start is None or entry.tick >= start)
        )

    found = list(wanted(journal.read(kinds=kinds or None)))
    left_out = max(len(found) - limit, 0) if limit else 0
    if as_json:
        for entry in found[left_out:]:
            click.echo(_line(entry))
    else:
        _show(found[left_out:])
        if not found:
            console().print("No such entry.", style="dim")
        elif left_out:
            console().print(f"\n{left_out:,} older; see more with --limit, or choose with --kind.", style="dim")
    while follow:
        for entry in wanted(journal.read(after=last, kinds=kinds or None)):
            click.echo(_line(entry)) if as_json else _show([entry])
        last = journal.last()
        threading.Event().wait(_FOLLOW_SECONDS)


def _line(entry: Entry) -> str:
    head = f'"number":{entry.number},"tick":{entry.tick},"time":"{format_time(entry.tick)}","kind":"{entry.kind}"'
    return f'{{{head},"body":{canonical(entry.body).decode()}}}'


def _show(entries: Iterable[Entry]) -> None:
    out, table = console(), grid("", "", "", "", right=(0,))
    for entry in entries:
        said = decisions(entry)
        style = said[0][0] if said else ""
        table.add_row(
            Text(str(entry.number), style="dim"),
            when(entry.tick) if entry.tick else Text("before the first", style="dim"),
            Text(entry.kind, style="dim"),
            Text(sentence(entry), style=style),
        )
    if table.row_count:
        out.print(table)
