"""``tidemill trace``: the whole account of one prediction, and its features derived again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import polars as pl
from rich.console import Console
from rich.text import Text

from tidemill.base.clock import SECOND, format_time
from tidemill.base.errors import NotFoundError
from tidemill.cli.common import echo_json, json_option, project_option
from tidemill.cli.layout import console, grid, open_running, section
from tidemill.cli.rederive import Rederiving
from tidemill.cli.words import answer, sentence
from tidemill.engine.check.fingerprint import recipe_fingerprint
from tidemill.engine.example import ledger
from tidemill.engine.example.example import ASKED_AT, LABEL, STATUS, labels
from tidemill.engine.example.ledger import key_frame
from tidemill.engine.parity.trace import lineage
from tidemill.engine.predict import records
from tidemill.engine.table.plain import stored
from tidemill.engine.table.table import TIME
from tidemill.project import Project

_STATUS = {
    "immature": "not known yet",
    "none": "no label came in time",
    "null": "the label that came has no value",
}
_SHOWN = 60  # characters of a value


@click.command(name="trace", short_help="Account for one prediction: data, features, code, model, label.")
@click.argument("prediction")
@project_option
@json_option
def command(prediction: str, path: Path, as_json: bool) -> None:
    """Account for PREDICTION, an id or the beginning of one.

    Shows the question and the answer, the data's versions and the features that it saw, the model's version with its
    training and the fingerprint of its recipe, the entries of the journal that led there, and the label if it is known.
    Then derives it again from the lake at exactly that state; exits with 1 when a bit differs.
    """
    project = open_running(path)
    found = collect(project, _find(project, prediction))
    if as_json:
        echo_json(found)
    else:
        _show(console(), found)
    if found["derived_again"]["match"] is False:
        sys.exit(1)


def _find(project: Project, prefix: str) -> dict[str, Any]:
    """Return the row of the ledger whose id begins with ``prefix``. Raises NotFoundError unless there is one."""
    lake = project.workspace.lake
    waits = "A prediction reaches the lake at the worker's next tick."
    if records.PREDICTIONS not in lake.tables():
        raise NotFoundError(f"No prediction has reached the lake yet. {waits}")
    ids = pl.DataFrame(lake.scan(records.PREDICTIONS, columns=["id"])).with_row_index("_row")
    matching = ids.filter(pl.col("id").str.starts_with(prefix)).unique("id", keep="first")
    if matching.is_empty():
        raise NotFoundError(f"There is no prediction {prefix!r} in the lake. {waits}")
    if matching.height > 1:
        some = ", ".join(matching["id"].sort().head(3).to_list())
        raise NotFoundError(f"{matching.height:,} predictions begin with {prefix!r} ({some}, …). Give more of the id.")
    rows = pl.DataFrame(lake.scan(records.PREDICTIONS, since=int(matching["_row"][0])))
    return rows.row(0, named=True)


def collect(project: Project, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the account of a row of the ledger as plain data."""
    asked = int(pl.Series([row["asked"]], dtype=TIME).dt.epoch("us")[0])
    applied = json.loads(row["applied"])
    made = lineage(project.workspace.journal.read(), row, applied)
    known = project.state().model(row["model"])
    version = known.version(row["version"]) if row["version"] <= len(known.versions) else None
    declared = {model.name: model for model in project.system.models}.get(row["model"])
    return {
        "id": row["id"],
        "model": row["model"],
        "version": row["version"],
        "route": row["route"],
        "asked": format_time(asked),
        "t": asked,
        "prediction": json.loads(row["prediction"]),
        "classes": list(project.classes(version.training)) if version else [],
        "key": json.loads(row["key"]),
        "request": json.loads(row["request"]),
        "features": json.loads(row["features"]),
        "journal": row["journal"],
        "data": {
            name: {
                "rows": data.next_seq,
                "committed": format_time(data.tick) if data.tick is not None else None,
                "storage_version": data.version,
            }
            for name, data in made.data.items()
        },
        "training": version.training if version else None,
        "recipe": version.recipe if version else None,
        "recipe_is_declared": version is not None
        and declared is not None
        and recipe_fingerprint(declared, project.system.policy) == version.recipe,
        "entries": [
            {"number": entry.number, "tick": format_time(entry.tick), "kind": entry.kind, "says": sentence(entry)}
            for entry in made.entries
        ],
        "label": _label(project, row) if declared else {"status": "the model is no longer declared", "value": None},
        "derived_again": _derived_again(project, row, declared=declared is not None),
    }


def _label(project: Project, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the label as known now: as tables and feedback have it."""
    model, lake = project.declared_model(row["model"]), project.workspace.lake
    found: dict[str, Any] = {"status": "not known yet", "value": None}
    logged = pl.DataFrame([dict(row)], schema=ledger.PREDICTION_SCHEMA)
    schema = pl.DataFrame(lake.schema(model.examples.name).empty_table()).schema
    if model.label.table.name in lake.tables():
        asked = key_frame(logged["key"], model.examples.key, schema).with_columns(logged["asked"].alias(ASKED_AT))
        feedback = None
        if records.FEEDBACK in lake.tables():
            feedback = ledger.feedback_by_key(project.rows(records.FEEDBACK), logged, model, schema)
        known = labels(model, asked, project.rows(model.label.table.name), project.now(), feedback)
        status, value = known[STATUS][0], known[LABEL][0]
        found = {"status": "known" if status == "ok" else _STATUS[status], "value": value}
    mature = int(logged["asked"].dt.epoch("us")[0]) + model.label.within + model.label.settle
    return {**found, "mature": format_time(mature - mature % SECOND)}


def _derived_again(project: Project, row: Mapping[str, Any], *, declared: bool) -> dict[str, Any]:
    rederiving = Rederiving(project, row["model"])
    if not declared or not rederiving.possible(row["version"]):
        return {"match": None, "why": "the features of this version are declared otherwise now", "differences": []}
    parity = rederiving.run(row["version"], pl.DataFrame([dict(row)], schema=ledger.PREDICTION_SCHEMA))
    return {"match": parity.mismatched == 0, "why": "", "differences": [asdict(each) for each in parity.examples]}


def _show(out: Console, found: dict[str, Any]) -> None:
    key = ", ".join(map(str, found["key"]))
    said = answer(found["prediction"], found["classes"])
    out.print(Text.assemble((found["model"], "bold"), " answered ", (said, "bold"), f" about {key}"))
    about = grid("", "")
    about.add_row(_dim("prediction"), found["id"])
    if found["classes"] and isinstance(found["prediction"], list):
        each = zip(found["classes"], found["prediction"], strict=True)
        about.add_row(_dim("probabilities"), ", ".join(f"{name} {share:.4g}" for name, share in each))
    about.add_row(_dim("asked"), f"{found['asked'].replace('T', ' ')} (t; sees what was known before)")
    about.add_row(
        _dim("model"), f"v{found['version']}, by the route {found['route']}, at journal entry {found['journal']}"
    )
    about.add_row(_dim("training"), str(found["training"]))
    same = "as declared now" if found["recipe_is_declared"] else "declared otherwise now"
    about.add_row(_dim("recipe"), f"{found['recipe']} ({same})")
    label = found["label"]
    mature = f", mature from {label['mature'][:16].replace('T', ' ')} on" if "mature" in label else ""
    said = f"{label['value']}" if label["status"] == "known" else f"{label['status']}{mature}"
    about.add_row(_dim("label"), said)
    section(out, "Answer", about)
    data = grid("table", "rows applied", "newest commit", "storage version", right=(1, 3))
    for name, each in found["data"].items():
        committed = each["committed"][:16].replace("T", " ") if each["committed"] else ""
        data.add_row(name, f"{each['rows']:,}", committed, str(each["storage_version"] or ""))
    section(out, "Data", data)
    features = grid("", "", "", "")
    pairs = [(_dim(name), _value(value)) for name, value in found["features"].items()]
    half = (len(pairs) + 1) // 2
    for place in range(half):
        right = pairs[half + place] if half + place < len(pairs) else (Text(), Text())
        features.add_row(*pairs[place], *right)
    section(out, "Features", features)
    entries = grid("", "", "", right=(0,))
    for entry in found["entries"]:
        entries.add_row(_dim(str(entry["number"])), entry["tick"][:16].replace("T", " "), Text(entry["says"]))
    section(out, "What led there", entries)
    again = found["derived_again"]
    out.print()
    if again["match"]:
        out.print("[bold green]Derived again from the lake at exactly that state: equal bit for bit.[/]")
    elif again["match"] is None:
        out.print(f"It cannot be derived again: {again['why']}.", style="yellow")
    else:
        out.print("[bold red]Derived again from the lake at exactly that state, it differs:[/]")
        table = grid("value", "logged", "derived")
        for each in again["differences"]:
            table.add_row(each["what"], _value(each["logged"]), _value(each["derived"]))
        section(out, "Differences", table)


def _dim(text: str) -> Text:
    return Text(text, style="dim")


def _value(value: Any) -> Text:
    value = stored(value)
    if isinstance(value, float):
        return Text(f"{value:.6g}")
    text = "null" if value is None else str(value)
    return Text(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…", style="dim" if value is None else "")
