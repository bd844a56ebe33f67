"""What became of predictions: logged rows joined with the labels that came true (time rule 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import polars as pl

from tidemill.base.schema import SYSTEM_COLUMNS
from tidemill.engine.evaluate.metric import Floats
from tidemill.engine.example.example import ASKED_AT, LABEL, STATUS, labels
from tidemill.engine.example.ledger import key_frame
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.table.plain import stored
from tidemill.spec.model import Model


def label_columns(model: Model) -> tuple[str, ...]:
    """Return the columns of the label's table that ``outcomes`` reads."""
    table = model.label.table
    times = (table.event_time,) if table.event_time else ()
    return tuple(dict.fromkeys((*SYSTEM_COLUMNS, *table.key, *model.label.value.columns, *times)))


def outcomes(
    model: Model,
    logged: pl.DataFrame,
    label_rows: pl.DataFrame,
    schema: Mapping[str, pl.DataType],
    now: int,
    feedback: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return the mature predictions whose label is known at ``now`` (microseconds), one for each key.

    Of several predictions for one key the last that was answered before the label's event counts. ``logged``: rows of
    the ledger for this model, with ``key`` and ``asked``; their other columns are kept. ``schema``: types of the
    examples' table. ``feedback`` as ``example.labels`` takes it. Adds the key's columns, ``_asked_at`` and ``_label``;
    sorted by (asked at, key).
    """
    keys = key_frame(logged["key"], model.examples.key, schema)
    kept = logged.drop("key", "asked", *(name for name in keys.columns if name in logged.columns))
    asked = keys.with_columns(logged["asked"].alias(ASKED_AT), *kept.get_columns())
    known = labels(model, asked, label_rows, now, feedback).filter(pl.col(STATUS) == "ok").drop(STATUS)
    ordered = known.sort(ASKED_AT, *model.examples.key, maintain_order=True)
    return ordered.unique(model.examples.key, keep="last", maintain_order=True)


def truth(known: pl.DataFrame, encoding: Encoding) -> Floats:
    """Return the labels of ``outcomes`` as the metrics take them."""
    return encoding.truth(known[LABEL])


def feature_frame(texts: pl.Series, encoding: Encoding) -> pl.DataFrame:
    """Return logged features (JSON objects) as columns of the encoding: Float64, and String for categories."""
    rows = [msgspec.json.decode(text) for text in texts]
    return pl.DataFrame(
        [
            pl.Series(name, [row.get(name) for row in rows], dtype=pl.String)
            if name in encoding.categories
            else pl.Series(name, [_number(row.get(name)) for row in rows], dtype=pl.Float64)
            for name in encoding.columns
        ]
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(stored(value))


def predictions(texts: pl.Series) -> Floats:
    """Return logged predictions (JSON numbers or lists of them) as an array."""
    return np.array([msgspec.json.decode(text) for text in texts], dtype=np.float64)
