"""The ledger of predictions and feedback: drained from the servers' logs into two tables of the lake.

Both tables have the same few columns for every model and recipe; requests and features are JSON, in which a float64
reads back as the same number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa

from tidemill.base.clock import to_datetime
from tidemill.base.hashing import canonical, fingerprint
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.predict.predict import Logged
from tidemill.engine.predict.records import PREDICTIONS, Feedback
from tidemill.engine.table.ingest import IDEMPOTENCY_PERIOD
from tidemill.ports.lake import Commit, Fence, Lake
from tidemill.ports.log import Log, Record
from tidemill.spec.model import Model

_READ = 10_000  # records of the log read at a time

_TIME = pl.Datetime("us", "UTC")
_SYSTEM = {KNOWN_AT: _TIME, SEQ: pl.Int64(), TOMBSTONE: pl.Boolean(), TICK: _TIME, HISTORY: pl.Boolean()}

PREDICTION_SCHEMA = pl.Schema(
    {
        "id": pl.String(),
        "model": pl.String(),
        "version": pl.Int64(),
        "route": pl.String(),
        "asked": _TIME,
        "journal": pl.Int64(),
        "nonce": pl.String(),
        "applied": pl.String(),
        "key": pl.String(),
        "request": pl.String(),
        "features": pl.String(),
        "prediction": pl.String(),
        **_SYSTEM,
    }
)
FEEDBACK_SCHEMA = pl.Schema(
    {
        "id": pl.String(),
        "model": pl.String(),
        "prediction": pl.String(),
        "key": pl.String(),
        "value": pl.String(),
        **_SYSTEM,
    }
)


@dataclass(frozen=True, slots=True)
class Drained:
    """New rows of one ledger table and the commit that brought them; None when there was nothing new."""

    rows: pl.DataFrame
    commit: Commit


def key_text(key: Sequence[Any]) -> str:
    """Return the key's values as canonical JSON: how both tables spell it."""
    return canonical(list(key)).decode()


def prediction_rows(records: Iterable[bytes]) -> pl.DataFrame:
    """Return logged predictions (JSON of ``Logged``) as rows without system columns, by (asked, id)."""
    rows = [
        {
            "id": one.id,
            "model": one.model,
            "version": one.version,
            "route": one.route,
            "asked": one.asked,
            "journal": one.journal,
            "nonce": one.nonce,
            "applied": canonical(one.applied).decode(),
            "key": key_text(one.key),
            "request": msgspec.json.encode(one.request).decode(),
            "features": msgspec.json.encode(one.whole()).decode(),
            "prediction": msgspec.json.encode(one.prediction).decode(),
        }
        for one in map(_decode_logged, records)
    ]
    schema = {name: dtype for name, dtype in PREDICTION_SCHEMA.items() if name not in _SYSTEM}
    frame = pl.DataFrame(rows, schema={**schema, "asked": pl.Int64()}, orient="row")
    return (
        frame.with_columns(pl.col("asked").cast(_TIME))
        .sort("asked", "id")
        .unique("id", keep="first", maintain_order=True)
    )


_decode_logged = msgspec.json.Decoder(Logged).decode
_decode_feedback = msgspec.json.Decoder(Feedback).decode


def feedback_rows(records: Iterable[bytes]) -> pl.DataFrame:
    """Return feedback (JSON of ``Feedback``) as rows without system columns, once for each id."""
    rows = [
        {
            "id": one.id,
            "model": one.model,
            "prediction": one.prediction,
            "key": None if one.key is None else key_text(one.key),
            "value": json.dumps(one.value),
        }
        for one in {each.id: each for each in map(_decode_feedback, records)}.values()
    ]
    schema = {name: dtype for name, dtype in FEEDBACK_SCHEMA.items() if name not in _SYSTEM}
    return pl.DataFrame(rows, schema=schema, orient="row")


def feedback_by_key(
    feedback: pl.DataFrame, predictions: pl.DataFrame, model: Model, schema: Mapping[str, pl.DataType]
) -> pl.DataFrame:
    """Return the feedback about ``model`` with the columns of its examples' key (types from ``schema``).

    Feedback about a prediction takes that prediction's key; while the prediction is not there, it waits.
    """
    own = feedback.filter(pl.col("model") == model.name)
    asked = predictions.filter(pl.col("model") == model.name).select(pl.col("id").alias("prediction"), "key")
    by_id = own.filter(pl.col("key").is_null()).drop("key").join(asked, on="prediction")
    known = pl.concat([own.filter(pl.col("key").is_not_null()), by_id], how="diagonal").sort(SEQ)
    return known.with_columns(key_frame(known["key"], model.examples.key, schema).get_columns())


def key_frame(texts: pl.Series, key: Sequence[str], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return logged keys (JSON lists; times as microseconds) as columns of the examples' table."""
    rows = [msgspec.json.decode(text) for text in texts]
    columns = []
    for place, name in enumerate(key):
        dtype = schema[name]
        plain = pl.Int64() if isinstance(dtype, pl.Datetime) else dtype
        columns.append(pl.Series(name, [row[place] for row in rows], dtype=plain).cast(dtype))
    return pl.DataFrame(columns)


def request_frame(texts: Iterable[str], types: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return logged requests (JSON objects; times as microseconds) as columns of ``types``, null where one lacks it."""
    rows = [msgspec.json.decode(text) for text in texts]
    columns = []
    for name, dtype in types.items():
        stored = pl.Int64() if isinstance(dtype, pl.Datetime) else dtype
        columns.append(pl.Series(name, [row.get(name) for row in rows], dtype=stored).cast(dtype))
    return pl.DataFrame(columns)


def drain(table: str, log: Log, lake: Lake, fence: Fence, tick: int) -> Drained | None:
    """Commit what the log holds beyond the table's cursor, rows and cursor together; None when there is nothing.

    What came before under the same id is left out: a client asks again when a crash took its answer away.
    """
    head = lake.head(table)
    cursor: dict[str, int] = json.loads(head.cursor) if head and head.cursor else {}
    records: list[Record] = []
    while True:
        more = list(log.read(cursor, limit=_READ))
        records.extend(more)
        cursor = {**cursor, **{record.segment: record.end for record in more}}
        if len(more) < _READ:  # what is written meanwhile waits for the next tick, or this would never end
            break
    if not records:
        return None
    build = prediction_rows if table == PREDICTIONS else feedback_rows
    rows = build(record.payload for record in records)
    first = head.next_seq if head else 0
    if head is not None and not rows.is_empty():
        # A prediction's id hashes when it was asked, so the same one came no earlier than that.
        asked = rows["asked"].to_physical().min() if table == PREDICTIONS else None
        since = asked if isinstance(asked, int) else tick - IDEMPOTENCY_PERIOD
        rows = rows.filter(~pl.col("id").is_in(_ids(lake, head, since).implode()))
    stamped = rows.with_columns(
        pl.lit(tick).cast(_TIME).alias(KNOWN_AT),
        pl.int_range(first, first + rows.height, dtype=pl.Int64).alias(SEQ),
        pl.lit(value=False).alias(TOMBSTONE),
        pl.lit(tick).cast(_TIME).alias(TICK),
        pl.lit(value=False).alias(HISTORY),
    )
    body = {"table": table, "rows": rows.height, "quarantined": 0, "first_seq": first, "next_seq": first + rows.height}
    commit = Commit(
        table=table,
        version=0,
        tick=tick,
        batch=fingerprint(table, tick, first),
        rows=rows.height,
        next_seq=first + rows.height,
        cursor=canonical(cursor).decode(),
        entry=canonical(body).decode(),
    )
    arrow: pa.Table = stamped.to_arrow()
    return Drained(stamped, lake.append(table, arrow, commit, fence))


def _ids(lake: Lake, head: Commit, since: int) -> pl.Series:
    """Return the ids of the rows that came to the table of ``head`` at ``since`` (microseconds) or later."""
    moment = pl.lit(since, dtype=_TIME)
    reach = 1024  # rows looked back; more when they do not reach far enough
    while head.tick >= since:
        start = max(head.next_seq - reach, 0)
        rows = pl.DataFrame(lake.scan(head.table, columns=("id", TICK), since=start))
        if start == 0 or rows[TICK].item(0) < to_datetime(since):
            return rows.filter(pl.col(TICK) >= moment)["id"]
        reach *= 4
    return pl.Series("id", [], dtype=pl.String)
