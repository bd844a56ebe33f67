"""``tidemill predictions``: read the prediction log with features, labels and routes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import polars as pl

from tidemill.base.errors import TidemillError
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, grid, open_running
from tidemill.cli.words import answer
from tidemill.engine.example.answered import column_of
from tidemill.engine.predict.live import jsonable
from tidemill.project import Project

_SHOWN = 20


@click.command(name="predictions", short_help="Read the prediction log with features, labels and routes.")
@click.argument("model", required=False)
@click.option("--since", metavar="TIME", help="Asked at this time or later: 2013-10-01 or 2013-10-01T06:00Z.")
@click.option("--until", metavar="TIME", help="Asked before this time.")
@click.option("--version", "versions", type=int, multiple=True, help="Only by these versions; repeatable.")
@click.option("--route", "routes", multiple=True, help="Only by these routes: champion, canary, shadow, …; repeatable.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write a .parquet or .csv file.")
@click.option("--limit", "-n", type=click.IntRange(0), default=0, help="The newest so many; 0: all (but 20 on screen).")
@project_option
@json_option
def command(
    model: str | None, since: str | None, until: str | None, versions: tuple[int, ...], routes: tuple[str, ...],
    output: Path | None, limit: int, path: Path, as_json: bool,
) -> None:  # fmt: skip
    """Read the predictions of MODEL (of the only one, if there is one) that have reached the lake, oldest first.

    Each with its question, features, prediction, route and version, and the label that came true, as known now. What
    shadows said is left out unless --route shadow asks for it. With --json each is one line.
    """
    project = open_running(path)
    if model is None:
        if len(project.system.models) > 1:
            raise TidemillError(f"Which model? There are {', '.join(each.name for each in project.system.models)}.")
        model = project.system.models[0].name
    if output is not None and output.suffix not in (".parquet", ".csv"):
        raise TidemillError(f"{output} is neither .parquet nor .csv.")
    if output is not None and not output.parent.is_dir():
        raise TidemillError(f"There is no folder {output.parent}. Make it first.")
    found = project.predictions(model, since=since, until=until, versions=versions, routes=routes)
    found = found.tail(limit) if limit else found
    if output is not None:
        if output.suffix == ".parquet":
            found.write_parquet(output)
        else:
            _flat(found).write_csv(output)
        if as_json:
            echo_json({"file": str(output), "rows": found.height})
        else:
            click.echo(f"{output}: {found.height:,} rows")
    elif as_json:
        for row in found.iter_rows(named=True):
            click.echo(json.dumps({name: jsonable(value) for name, value in row.items()}, ensure_ascii=False))
    else:
        _show(found, project, model)


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with lists as JSON text, which a file of comma-separated values can hold."""
    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]
    return frame.with_columns(
        pl.Series(name, [None if each is None else json.dumps(each.to_list()) for each in frame[name]])
        for name in lists
    )


def _show(found: pl.DataFrame, project: Project, model: str) -> None:
    out, key, known = console(), project.declared_model(model).examples.key, project.state().model(model)
    classes = {version.number: project.classes(version.training) for version in known.versions}
    table = grid("asked", *key, "prediction", "label", "version", "route", "id", right=(len(key) + 1,))
    for row in found.tail(_SHOWN).iter_rows(named=True):
        said = answer(row["prediction"], classes.get(row["version"], ()))
        label = str(row["label"]) if row["label_status"] == "known" else row["label_status"]
        asked = str(jsonable(row["asked"]))[:19].replace("T", " ")
        keys = [str(jsonable(row[column_of(name)])) for name in key]
        table.add_row(asked, *keys, said, label, f"v{row['version']}", row["route"], row["id"][:12])
    out.print(table)
    if found.height > _SHOWN:
        out.print(f"The newest {_SHOWN} of {found.height:,}; all of them with --output or --json.", style="dim")
    if not found.height:
        out.print("No such prediction has reached the lake; it does at the worker's next tick.", style="dim")
