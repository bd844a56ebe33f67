"""``tidemill predict``: predictions for the rows of files or of a table of the lake."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from tidemill import batch
from tidemill.base.errors import TidemillError
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, count, open_running
from tidemill.ports import executor as ports


@click.command(name="predict", short_help="Predict for the rows of files or of a table.")
@click.argument("model")
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option("--table", help="Predict for the rows of this table of the lake, as seen at --as-of (or now).")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write to this .parquet or .csv file.")
@click.option("--into", metavar="TABLE", help="Append to this table of the lake. No worker may be running.")
@click.option("--as-of", metavar="TIME", help="Ask every row at this time (ISO 8601, UTC).")
@click.option("--keep", multiple=True, metavar="COLUMN", help="Carry this column over, instead of the key. Repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace the output file if it is there.")
@click.option("--workers", type=click.IntRange(1), help="Chunks worked on at a time.  [default: cores, at most 4]")
@click.option("--processes", is_flag=True, help="Work in processes, not in threads: for estimators that hold the GIL.")
@project_option
@json_option
def command(
    model: str,
    inputs: tuple[str, ...],
    table: str | None,
    output: Path | None,
    into: str | None,
    as_of: str | None,
    keep: tuple[str, ...],
    overwrite: bool,
    workers: int | None,
    processes: bool,
    path: Path,
    as_json: bool,
) -> None:
    """Predict with MODEL (late, late@champion, late@v2) for the rows of each INPUT: a file, a folder, or a glob.

    INPUT is Parquet, CSV or NDJSON with the columns that the model asks for. Each row is asked at --as-of, else at the
    time in its column asked_at, else at the model's own asked-at, else now. The features are those that were known
    then, and the predictor is the one that serves. Without --output or --into, predictions go to MODEL.parquet here.
    Interrupted, the same command goes on where it was.
    """
    if inputs and table is not None:
        raise TidemillError("Predict for files or for a table (--table), not both.")
    if not inputs and table is None:
        raise TidemillError("Name the files to predict for, or a table with --table. See: tidemill predict --help")
    if output is not None and into is not None:
        raise TidemillError("Write to a file (--output) or into a table (--into), not both.")
    if output is None and into is None:
        output = Path(f"{model.replace('@', '-')}.parquet")
    project = open_running(path)
    began = time.monotonic()
    with _Bar(console()) as bar:
        try:
            made = batch.predict(
                project,
                model,
                inputs,
                table=table,
                output=output,
                into=into,
                as_of=as_of,
                keep=keep or None,
                overwrite=overwrite,
                workers=workers,
                executor="processes" if processes else "threads",
                report=bar.show,
            )
        except KeyboardInterrupt:
            bar.stop()
            done = f" after {bar.done} of {bar.total} steps" if bar.total else ""
            click.echo(f"Interrupted{done}. What was predicted is kept; the same command goes on from there.", err=True)
            raise click.exceptions.Exit(130) from None
    seconds = time.monotonic() - began
    if as_json:
        echo_json({**asdict(made), "seconds": round(seconds, 3)})
        return
    pace = f"{made.rows / seconds:,.0f} rows/s" if seconds else ""
    out = console()
    out.print(f"[bold]{count(made.rows, 'row')}[/] predicted by {made.model} in {seconds:.1f} s ({pace})")
    out.print(f"They are in {made.output}", style="dim", soft_wrap=True)


class _Bar:
    """The progress of a run: a bar on a terminal, nothing elsewhere."""

    def __init__(self, out: Console) -> None:
        self.done = self.total = 0
        shown = out.is_terminal and not os.environ.get("CI")
        columns = (SpinnerColumn(), BarColumn(30), TaskProgressColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away. Idempotent."""
        self._progress.stop()

    def show(self, progress: ports.Progress) -> None:
        """Show how far it is."""
        self.done, self.total = progress.done, progress.total
        self._progress.update(self._task, total=progress.total, completed=progress.done, description=progress.doing)
