"""The prediction log as a table to look at: question, features, prediction, route, and what came true."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import polars as pl

from tidemill.base.schema import KNOWN_AT
from tidemill.engine.example.example import ASKED_AT, LABEL, STATUS, labels
from tidemill.engine.example.ledger import key_frame, request_frame
from tidemill.engine.table.plain import stored
from tidemill.spec.model import Model

#: What became of a prediction, in the words of the column ``label_status``.
STATUSES: Mapping[str, str] = {"ok": "known", "immature": "immature", "none": "none", "null": "null"}

_OWN = ("id", "asked", "version", "route", "known_at", "prediction", "label", "label_status")


def column_of(name: str) -> str:
    """Return what the request's column ``name`` is called beside those of the log: ``request__id`` for ``id``."""
    return f"request__{name}" if name in _OWN else name


def answered(
    model: Model,
    types: Mapping[str, pl.DataType],
    logged: pl.DataFrame,
    label_rows: pl.DataFrame | None,
    now: int,
    feedback: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return one row for each of ``logged`` (rows of the ledger for ``model``), in their order.

    Columns: ``id``, ``asked``, ``version``, ``route``, ``known_at`` (when it was drained), the request's columns (by
    ``column_of``), the features by their names (where a feature is a column of the request, once), ``prediction`` (a
    number; for more than two classes a list of probabilities), ``label`` and ``label_status`` ("known", "immature",
    "none": no label came in time, "null": it has no value). ``types``: of the examples' table. ``label_rows``: all rows
    of the label's table, None when there are none yet. ``now``: microseconds. ``feedback`` as ``example.labels`` takes
    it.
    """
    requests = request_frame(logged["request"], {name: types[name] for name in model.request_columns})
    rows = [{name: stored(value) for name, value in msgspec.json.decode(text).items()} for text in logged["features"]]
    names = dict.fromkeys(name for row in rows for name in row)
    features = pl.DataFrame(
        [pl.Series(name, [row.get(name) for row in rows], strict=False) for name in names if name not in requests]
    )
    predicted = [msgspec.json.decode(text) for text in logged["prediction"]]
    kind = pl.List(pl.Float64) if any(isinstance(each, list) for each in predicted) else pl.Float64()
    head = logged.select("id", "asked", "version", "route", pl.col(KNOWN_AT).alias("known_at"))
    truth = pl.DataFrame(
        {"label": [None] * logged.height, "label_status": ["immature"] * logged.height},
        schema={"label": pl.Null, "label_status": pl.String},
    )
    if label_rows is not None:
        asked = key_frame(logged["key"], model.examples.key, types).with_columns(logged["asked"].alias(ASKED_AT))
        found = labels(model, asked, label_rows, now, feedback)
        truth = found.select(
            pl.col(LABEL).alias("label"), pl.col(STATUS).cast(pl.String).replace(STATUSES).alias("label_status")
        )
    given = pl.DataFrame({"prediction": pl.Series(predicted, dtype=kind)})
    return pl.concat([head, requests.rename(column_of), features, given, truth], how="horizontal")
