"""Examples, labels and training sets (time rules 6 and 7)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from tidemill.base.errors import NotFoundError
from tidemill.base.schema import KNOWN_AT, SEQ, TOMBSTONE
from tidemill.engine.example.ledger import feedback_by_key
from tidemill.engine.expression.expression import evaluate
from tidemill.engine.feature.feature import features
from tidemill.engine.predict.records import FEEDBACK, PREDICTIONS
from tidemill.engine.table.table import LONE, TIME, lone, timeless, version_order, visible
from tidemill.spec.model import Model
from tidemill.spec.time import Offset

ASKED_AT = "_asked_at"
LABEL = "_label"
STATUS = "_status"


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What a model may learn from.

    ``frame``: the example's key, the model's slices, ``_asked_at``, the model's columns and ``_label``, by (asked at,
    key).
    ``counts``: how many were left out, by reason: "no_example" (keys), and of examples "outside_window", "immature",
    "no_label", "null_label".
    """

    frame: pl.DataFrame
    counts: dict[str, int]


def asked_at(model: Model) -> pl.Expr:
    """Return when a row of the model's examples is asked about: a time, null where its column is."""
    when = model.asked_at
    if isinstance(when, Offset):
        return pl.col(when.column).cast(TIME) + pl.duration(microseconds=when.micros)
    return pl.col(when).cast(TIME)


def in_order(model: Model) -> list[str]:
    """Return the columns by which examples are sorted: (asked at, key), and sequence where keys have nulls."""
    return [ASKED_AT, *model.examples.key, SEQ]


def examples(model: Model, rows: pl.DataFrame, now: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the examples known before ``now`` (microseconds), and how many keys have none, as "no_example".

    A key's example is its newest version that was known before its own asked-at, unless a tombstone after it was, too.
    ``rows``: all versions of the examples' table. Columns: those of the rows, and ``_asked_at``; sorted by (asked at,
    key). An example asked about after ``now`` is there as well; it may still change.
    """
    table = model.examples
    always = timeless(table)
    known = rows if always else rows.filter(pl.col(KNOWN_AT) < pl.lit(now, dtype=TIME))
    ordered = known.with_columns(lone(table), asked_at(model).alias(ASKED_AT)).sort(version_order(table))
    identity = [*table.key, LONE]
    # Versions are in order; a row's place in it tells which is newer.
    ordered = ordered.with_row_index("_place")
    in_time = pl.col(ASKED_AT).is_not_null() if always else pl.col(KNOWN_AT) < pl.col(ASKED_AT)
    newest = ordered.filter(~pl.col(TOMBSTONE) & in_time).unique(identity, keep="last", maintain_order=True)
    withdrawn = newest.join(
        ordered.filter(pl.col(TOMBSTONE)).select(*identity, "_place", KNOWN_AT),
        on=identity,
        suffix="_of_tombstone",
    ).filter(
        (pl.col("_place_of_tombstone") > pl.col("_place"))
        & (pl.lit(always) | (pl.col(f"{KNOWN_AT}_of_tombstone") < pl.col(ASKED_AT)))
    )
    found = newest.join(withdrawn, on="_place", how="anti").drop("_place", LONE).sort(in_order(model))
    return found, {"no_example": ordered.select(identity).n_unique() - found.height}


def labels(
    model: Model, examples: pl.DataFrame, label_rows: pl.DataFrame, now: int, feedback: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Return ``examples`` with ``_label`` and ``_status``, as far as known at ``now`` (microseconds).

    Status: "immature" unless asked-at + within + settle is earlier than ``now``; else "none" when no row came and there
    is no ``otherwise``; "null" when the last row's value is null (or not finite); else "ok". ``_label`` is null unless
    it is "ok". ``label_rows``: all versions of the label's table. ``feedback``: what people said came true, as
    ``ledger.feedback_by_key`` gives it; it counts where the table has no row for the example. The order of ``examples``
    is kept.
    """
    label = model.label
    rows = visible(label_rows, label.table, now)
    value = evaluate(rows, {LABEL: label.value}).to_series()
    if value.dtype.is_float():
        value = value.set(~value.is_finite(), None)
    theirs = {ours: column for column, ours in label.on}
    key = {f"_key_{place}": column for place, column in enumerate(model.examples.key)}
    happened = pl.lit(None, dtype=TIME) if label.table.event_time is None else pl.col(label.table.event_time).cast(TIME)
    came = rows.with_columns(value).select(
        *(
            pl.col(theirs.get(column, column)).cast(examples.schema[column], strict=False).alias(name)
            for name, column in key.items()
        ),
        happened.alias("_happened"), KNOWN_AT, SEQ, LABEL,
    )  # fmt: skip
    asked = (
        examples.select(pl.col(column).alias(name) for name, column in key.items())
        .with_columns(examples[ASKED_AT])
        .with_row_index("_row")
    )

    def newest(answers: pl.DataFrame) -> pl.DataFrame:
        """Return the last of ``answers`` that counts for each example that has one."""
        return (
            asked.join(answers, on=list(key))
            .filter(
                pl.col("_happened") > pl.col(ASKED_AT),
                pl.col("_happened") <= pl.col(ASKED_AT) + pl.duration(microseconds=label.within),
            )
            .sort("_row", "_happened", KNOWN_AT, SEQ)
            .unique("_row", keep="last", maintain_order=True)
            .select("_row", LABEL, pl.lit(True).alias("_came"))
        )

    last = newest(came)
    if feedback is not None and feedback.height:
        heard = feedback.filter(pl.col(KNOWN_AT) < pl.lit(now, dtype=TIME))
        said = pl.Series(LABEL, [json.loads(text) for text in heard["value"]], dtype=value.dtype, strict=False)
        columns = [pl.col(column).cast(examples.schema[column]).alias(name) for name, column in key.items()]
        heard = heard.select(*columns, pl.col(KNOWN_AT).alias("_happened"), KNOWN_AT, SEQ).with_columns(said)
        last = pl.concat([last, newest(heard).join(last, on="_row", how="anti")])
    ripe = pl.col(ASKED_AT) + pl.duration(microseconds=label.within + label.settle) < pl.lit(now, dtype=TIME)
    status = (
        pl.when(~ripe)
        .then(pl.lit("immature"))
        .when(pl.col("_came").is_null())
        .then(pl.lit("none" if label.otherwise is None else "ok"))
        .when(pl.col(LABEL).is_null())
        .then(pl.lit("null"))
        .otherwise(pl.lit("ok"))
    )
    otherwise = pl.lit(label.otherwise).cast(value.dtype)
    outcome = (
        asked.join(last, on="_row", how="left", maintain_order="left")
        .with_columns(status.alias(STATUS))
        .with_columns(pl.when(pl.col("_came").is_null()).then(otherwise).otherwise(LABEL).alias(LABEL))
        .select(pl.when(pl.col(STATUS) == "ok").then(LABEL).alias(LABEL), STATUS)
    )
    return examples.with_columns(outcome.get_columns())


def mature(
    model: Model,
    example_rows: pl.DataFrame,
    label_rows: pl.DataFrame,
    now: int,
    window: int | None,
    feedback: pl.DataFrame | None = None,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the mature examples with a label, and how many were left out (see ``TrainingSet``).

    Columns: those of ``examples`` and ``_label``; in its order. ``window`` (microseconds) keeps examples asked at
    ``now - window`` or later. ``feedback`` as for ``labels``.
    """
    found, counts = examples(model, example_rows, now)
    recent = found if window is None else found.filter(pl.col(ASKED_AT) >= pl.lit(now - window, dtype=TIME))
    counts["outside_window"] = found.height - recent.height
    judged = labels(model, recent, label_rows, now, feedback)
    for reason, status in (("immature", "immature"), ("no_label", "none"), ("null_label", "null")):
        counts[reason] = judged.filter(pl.col(STATUS) == status).height
    return judged.filter(pl.col(STATUS) == "ok").drop(STATUS), counts


def own_columns(model: Model, columns: Iterable[str]) -> list[str]:
    """Return what a training set keeps of its examples beside the features; ``columns``: those of the examples."""
    there = set(columns)
    return list(dict.fromkeys((*model.examples.key, *(name for name in model.slices if name in there), ASKED_AT)))


def complete(rows: pl.DataFrame, columns: pl.DataFrame, own: Iterable[str]) -> pl.DataFrame:
    """Return the frame of a training set: ``own`` columns of its examples, their features, and ``_label``.

    A key column or slice that is a feature, too, is there once.
    """
    return rows.select(own).with_columns(columns.get_columns()).with_columns(rows[LABEL])


def training_set(model: Model, tables: Mapping[str, pl.DataFrame], now: int, window: int | None = None) -> TrainingSet:
    """Return what ``model`` may learn from at ``now``: mature examples with a label, and their features.

    ``tables``: all versions of the tables that the model reads, by name, and of the ledger's if there is feedback.
    ``window`` (microseconds) keeps examples asked at ``now - window`` or later. No example is left out because a
    feature is missing. Raises NotFoundError when a table is missing.
    """
    for table in (model.examples, model.label.table):
        if table.name not in tables:
            raise NotFoundError(f"model {model.name!r} reads table {table.name!r}, which was not given")
    own = tables[model.examples.name]
    feedback = None
    if FEEDBACK in tables and PREDICTIONS in tables:
        feedback = feedback_by_key(tables[FEEDBACK], tables[PREDICTIONS], model, own.schema)
    rows, counts = mature(model, own, tables[model.label.table.name], now, window, feedback)
    columns = features(model, tables, rows, rows[ASKED_AT].to_physical().to_numpy())
    return TrainingSet(complete(rows, columns, own_columns(model, own.columns)), counts)
