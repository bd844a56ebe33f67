"""``tidemill check``: every fault of the declared file at once. Loads, trains and writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import polars as pl

from tidemill import project as projects
from tidemill.adapters import adapter
from tidemill.base.clock import SystemClock
from tidemill.base.errors import DeclarationError, Fault
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, count, faults_json, print_faults
from tidemill.engine.check.check import check, installation, uncompiled, warnings
from tidemill.engine.check.peek import Seen, cut_faults, expression_faults
from tidemill.engine.table.contract import contract_of
from tidemill.ports.lake import Commit
from tidemill.project import Project
from tidemill.spec.source import Files, Push, Source, Table


@dataclass(frozen=True, slots=True)
class Checked:
    """What ``inspect`` found.

    ``slow``: notes on expressions that stay in Polars, and ``bare``: on sources of files without a row; both are among
    the ``warnings``, too. ``looked``: tables whose columns are known from data. ``cut``: tables put to the test.
    """

    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    looked: tuple[str, ...]
    cut: tuple[str, ...]
    slow: tuple[Fault, ...] = ()
    bare: tuple[Fault, ...] = ()


@click.command(name="check", short_help="Prove the declared file: every fault at once.")
@project_option
@json_option
def command(path: Path, as_json: bool) -> None:
    """Prove the declared file: every fault at once, with what to do about it.

    Columns and types come from the data at hand: what is loaded, else the files. Derived tables are put to the cut
    test: at random times, their rows must not depend on what became known later. Nothing is loaded, trained or written.
    Exits with 1 when there is a fault.
    """
    out = console()
    try:
        project = projects.open(path)
        found = inspect(project)
    except DeclarationError as error:
        found, name = Checked(error.faults, (), (), ()), "the declared file"
    else:
        name = project.path.name
    if as_json:
        echo_json(
            {"ok": not found.faults, "faults": faults_json(found.faults), "warnings": faults_json(found.warnings)}
        )
    elif found.faults:
        out.print(f"[bold red]{count(len(found.faults), 'fault')}[/] in {name}")
        print_faults(out, found.faults, style="red")
    else:
        out.print(f"[bold green]All good:[/] {summary(project)}.")
        if found.looked:
            out.print(f"Columns were compared with the data of {', '.join(found.looked)}.", style="dim")
        if found.cut:
            out.print(f"The cut test passed: {', '.join(found.cut)}.", style="dim")
        print_faults(out, found.warnings, style="yellow")
    if found.faults:
        sys.exit(1)


def summary(project: Project) -> str:
    """Return what a system declares, counted."""
    system = project.system
    tables = sum(isinstance(table, Table) for table in system.tables)
    parts = [(len(system.sources), "source"), (tables, "table"), (len(system.views), "feature view")]
    return ", ".join(count(number, noun) for number, noun in [*parts, (len(system.models), "model")] if number)


def inspect(project: Project) -> Checked:
    """Return every fault of ``project``, by its file and by the data at hand. Reads only."""
    system, seen = project.system, Seen()
    lake = project.workspace.lake if project.workspace.exists else None
    loaded = set(lake.tables()) & {table.name for table in system.tables} if lake is not None else set()
    for table in system.tables:
        if lake is not None and table.name in loaded:
            schema = contract_of(lake.schema(table.name))
            wanted = [name for name in schema if schema[name] == pl.String or name in table.key]
            seen.count(table, schema, pl.DataFrame(lake.scan(table.name, columns=wanted)))
        elif isinstance(table, Source) and not isinstance(table.reader, Push):
            seen.look(table, project.reader(table))
    # A table already built knows its columns; one that is declared anew is run on empty frames by `check`.
    schemas = {name: schema for name, schema in seen.schemas.items() if name not in _derived(project)}
    faults = [*seen.faults]
    faults += check(system, schemas, repeated=seen.repeated, categories=seen.categories)
    if not faults:
        faults += expression_faults(system, seen, SystemClock().now())
    cut: tuple[str, ...] = ()
    if not faults and _derived(project):
        faults += _cut(project, seen, loaded)
        cut = tuple(sorted(_derived(project)))
    slow = () if faults else uncompiled(system, seen.schemas)
    bare = tuple(_bare(project, seen)) if not seen.faults else ()
    notes = (*bare, *warnings(system), *slow, *installation())
    return Checked(tuple(faults), notes, tuple(sorted(seen.schemas)), cut, slow, bare)


def _bare(project: Project, seen: Seen) -> Iterator[Fault]:
    """Yield a note on each source of files that has no row yet: its pattern may be misspelt."""
    for source in project.system.sources:
        if isinstance(source.reader, Files) and source.name not in seen.schemas:
            what = f"no file matches {source.reader.pattern!r} in {project.path.parent}, or none has a row."
            yield Fault(f"source '{source.name}'", what, "What reads it waits for its first rows.")


def _derived(project: Project) -> set[str]:
    return {table.name for table in project.system.tables if isinstance(table, Table)}


def _cut(project: Project, seen: Seen, loaded: set[str]) -> list[Fault]:
    memory, fence = adapter("lake", "memory")(), adapter("journal", "memory")().acquire()
    tick = SystemClock().now()
    for name in sorted(loaded - _derived(project)):
        rows = project.workspace.lake.scan(name)
        commit = Commit(name, 0, tick, "", rows.num_rows, rows.num_rows, None, "")
        memory.append(name, rows, commit, fence)
    return list(cut_faults(project.system, seen, memory, fence, tick))
