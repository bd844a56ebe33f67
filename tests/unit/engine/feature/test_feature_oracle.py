"""The engine gives the oracle's answers, bit for bit, on small nasty histories asked about at their edges."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.base.clock import HOUR
from tidemill.engine.example.example import training_set
from tidemill.engine.feature.feature import compute
from tidemill.engine.table.table import visible
from tidemill.spec.feature import View
from tidemill.spec.source import Source
from tidemill.testing.histories import FAR, ORIGIN, STEP, TIME, edges, frame, histories, questions, request_frame
from tidemill.testing.oracle import Oracle, Row, plain, timeless

EXAMPLES = int(os.environ.get("TIDEMILL_ORACLE_EXAMPLES", "12"))
quickly = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

FLIGHT: dict[str, pl.DataType] = {
    "id": pl.String(),
    "landed": TIME,
    "carrier": pl.String(),
    "origin": pl.String(),
    "delay": pl.Float64(),
    "seats": pl.Int64(),
    "ok": pl.Boolean(),
}
ARRIVALS = tm.Source("arrivals", tm.files("*"), key="id", event_time="landed", known_at="reported")
#: The event time and the group are part of the key, as for weather.
WEATHER = tm.Source("weather", tm.files("*"), key=("origin", "landed"), event_time="landed", known_at="reported")
PLANES = tm.Source("planes", tm.files("*"), key="id")
PRICES = tm.Source("prices", tm.files("*"), key="id", known_at="published")
PLANE = {name: dtype for name, dtype in FLIGHT.items() if name != "landed"}

OVER = ("30m", "150m", "1d")
#: Of no length, of the shortest, and longer than any history.
EDGE = ("0s", "1us", "3652500d")
FEATURES = {
    "n": tm.count(over=OVER),
    **{
        f"{function}_{column}": getattr(tm, function)(column, over=OVER)
        for function in ("sum", "mean", "std", "min", "max", "first", "last", "n_unique")
        for column in ("delay", "seats", "ok")
    },
    **{
        f"quantile_{column}_{place}": tm.quantile(column, q, over=OVER)
        for column in ("delay", "seats", "ok")
        for place, q in enumerate((0, 0.1, 0.5, 0.9, 1))
    },
    "since": tm.since_last(over=OVER),
    "ok_share": tm.share("ok", over=OVER),
    "late_share": tm.share(pl.col("delay") > 0.2, over=OVER),
    **{f"{function}_id": getattr(tm, function)("id", over=OVER) for function in ("first", "last", "n_unique")},
    "late": tm.mean(pl.col("delay") > 0.2, over="1h"),
    "scaled": tm.sum(pl.col("delay") / 3 + pl.col("seats"), over="1h"),
}

SOURCES = {source.name: source for source in (ARRIVALS, WEATHER, PLANES, PRICES)}
VIEWS: dict[str, View] = {
    "windows": tm.Aggregation("v", ARRIVALS, by="carrier", features=FEATURES),
    "windows of two columns": tm.Aggregation("v", ARRIVALS, by=("carrier", "ok"), features=FEATURES),
    "windows by the key": tm.Aggregation("v", ARRIVALS, by="id", features=FEATURES),
    "windows on another column": tm.Aggregation(
        "v", ARRIVALS, by="carrier", features={"n": tm.count(over=OVER)}, on={"carrier": "origin"}
    ),
    "windows of edge lengths": tm.Aggregation(
        "v",
        ARRIVALS,
        by="carrier",
        features={
            "n": tm.count(over=EDGE),
            **{
                function: getattr(tm, function)("delay", over=EDGE)
                for function in ("sum", "mean", "std", "min", "max", "first", "last", "n_unique")
            },
            "median": tm.quantile("delay", 0.5, over=EDGE),
            "since": tm.since_last(over=EDGE),
        },
    ),
    "windows by a number": tm.Aggregation("v", ARRIVALS, by="delay", features={"n": tm.count(over=OVER)}),
    "windows of a table keyed by time": tm.Aggregation("v", WEATHER, by="origin", features=FEATURES),
    "latest": tm.Latest("v", ARRIVALS, by="carrier", columns=["id", "delay", "seats", "ok", "landed"]),
    "latest within": tm.Latest("v", ARRIVALS, by="carrier", columns=["id", "delay"], within="1h"),
    "latest within nothing": tm.Latest("v", ARRIVALS, by="carrier", columns=["id", "delay"], within="0s"),
    "latest within ten thousand years": tm.Latest(
        "v", ARRIVALS, by="carrier", columns=["id", "delay"], within="3652500d"
    ),
    "latest of two columns": tm.Latest("v", ARRIVALS, by=("carrier", "ok"), columns=["id", "delay"], within="1h"),
    "latest of a table keyed by time": tm.Latest("v", WEATHER, by="origin", columns=["delay"], within="90m"),
    "ahead": tm.Latest("v", ARRIVALS, by="carrier", columns=["id", "delay"], ahead=True),
    "ahead on another column": tm.Latest(
        "v", ARRIVALS, by="carrier", columns=["id", "delay"], ahead=True, on={"landed": "departs"}
    ),
    "static": tm.Latest("v", PLANES, by="id", columns=["carrier", "delay"]),
    "static by another column": tm.Latest("v", PLANES, by="carrier", columns=["id", "delay"]),
    "static with a known-at": tm.Latest("v", PRICES, by="id", columns=["carrier", "delay"]),
    "static with a known-at by another column": tm.Latest("v", PRICES, by="carrier", columns=["id", "delay"]),
    "on demand": tm.OnDemand(
        "v",
        {
            "tenth": pl.col("delay") / 10,
            "third": pl.col("seats") / 3,
            "hour": tm.local("landed", "America/New_York").dt.hour(),
            "late": pl.col("delay") > 0.2,
            "filled": pl.col("delay").fill_null(0.0),
            "copy": "carrier",
        },
    ),
}


def table_of(view: View) -> Source | None:
    table = getattr(view, "table", None)
    return table if isinstance(table, Source) else None


def types_of(source: Source) -> dict[str, pl.DataType]:
    return dict(PLANE if source.static else FLIGHT)


def exact(value: Any) -> tuple[str, Any]:
    """Return a value that is equal only to that of the same type and, for a float, the same bits."""
    return type(value).__name__, struct.pack("<d", value) if isinstance(value, float) else value


def same(ours: Sequence[Row], theirs: Sequence[Row]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert {name: exact(value) for name, value in mine.items()} == {
            name: exact(value) for name, value in other.items()
        }


def rows_of(answer: pl.DataFrame) -> list[dict[str, Any]]:
    return [plain(row) for row in answer.iter_rows(named=True)]


@pytest.mark.parametrize("name", SOURCES)
@given(data=st.data())
@quickly
def test_visible(name: str, data: st.DataObject) -> None:
    source = SOURCES[name]
    rows = data.draw(histories(source, types_of(source)))
    latest = tm.Latest("v", source, by="carrier", columns="delay")
    t = data.draw(edges(rows, latest))
    answer = visible(frame(rows, types_of(source)), source, t)
    oracle = Oracle({source.name: rows}, {source.name: types_of(source)})
    same(rows_of(answer.sort("_seq").select(list(rows[0]) if rows else answer.columns)), oracle.visible(source, t))


@pytest.mark.parametrize("name", VIEWS)
@given(data=st.data())
@quickly
def test_view(name: str, data: st.DataObject) -> None:
    view = VIEWS[name]
    source = table_of(view)
    rows: list[dict[str, Any]] = []
    if source is not None:
        rows = data.draw(histories(source, types_of(source), max_rows=16))
    types = {column: FLIGHT.get(column, TIME) for column in view.request_columns}
    asks = data.draw(st.lists(questions(rows, view, types), min_size=1, max_size=6))
    oracle = Oracle({}) if source is None else Oracle({source.name: rows}, {source.name: types_of(source)})
    answer = compute(
        view,
        None if source is None else frame(rows, types_of(source)),
        request_frame([request for request, _ in asks], types),
        np.array([t for _, t in asks], dtype=np.int64),
    )
    assert tuple(answer.columns) == view.columns
    same(rows_of(answer), [oracle.view(view, request, t, types=types) for request, t in asks])


SCHEDULE: dict[str, pl.DataType] = {
    "id": pl.String(),
    "scheduled": TIME,
    "carrier": pl.String(),
    "origin": pl.String(),
    "distance": pl.Float64(),
}
SCHEDULES = tm.Source(
    "schedules",
    tm.files("*"),
    key="id",
    event_time="scheduled",
    known_at=tm.before("scheduled", "30d"),
    corrected_at="changed",
)
MODELS = {
    "none otherwise": tm.Label(ARRIVALS, pl.col("delay") > 0.2, within="3h", settle="30m"),
    "false otherwise": tm.Label(ARRIVALS, pl.col("delay") > 0.2, within="2h", otherwise=False),
    "a number otherwise": tm.Label(ARRIVALS, "delay", within="150m", settle="1us", otherwise=-1.5),
    "a ratio, much later": tm.Label(ARRIVALS, pl.col("delay") / 3, within="4h", settle="90m"),
    "within no time": tm.Label(WEATHER, "ok", within="0s", on={"origin": "id"}),
    "on another column": tm.Label(WEATHER, "seats", within="90m", on={"origin": "id"}),
}


def model_of(label: tm.Label, asked_at: Any) -> tm.Model:
    return tm.Model(
        "late",
        examples=SCHEDULES,
        asked_at=asked_at,
        label=label,
        features=[
            tm.Aggregation(
                "w", ARRIVALS, by="carrier", features={"n": tm.count(over="1h"), "m": tm.mean("delay", over="1h")}
            ),
            "carrier",
            tm.Latest("p", PLANES, by="id", columns=["seats"]),
            tm.OnDemand("o", {"hour": pl.col("scheduled").dt.hour()}),
            "distance",
        ],
        estimator=LogisticRegression(),
    )


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
@quickly
def test_training_set(name: str, data: st.DataObject) -> None:
    label = MODELS[name]
    model = model_of(label, data.draw(st.sampled_from(("scheduled", tm.before("scheduled", "1h")))))
    shapes: Mapping[str, tuple[Source, dict[str, pl.DataType]]] = {
        source.name: (source, types)
        for source, types in ((SCHEDULES, SCHEDULE), (ARRIVALS, FLIGHT), (PLANES, PLANE), (WEATHER, FLIGHT))
    }
    near = (0, -1, -STEP, -3 * STEP, -5 * STEP, -5 * STEP, STEP)
    tables = {
        table: data.draw(
            histories(source, types, max_rows=8, offsets=near)
            if source is SCHEDULES
            else histories(source, types, max_rows=16)
        )
        for table, (source, types) in shapes.items()
    }
    now = data.draw(
        st.one_of(st.sampled_from((FAR, FAR + 1, ORIGIN + 12 * HOUR)), edges(tables["arrivals"], VIEWS["windows"]))
    )
    window = data.draw(st.one_of(st.none(), st.integers(0, 16).map(lambda steps: now - ORIGIN + (8 - steps) * STEP)))
    if window is not None and window < 0:
        window = None
    training = Oracle(tables, {table: types for table, (_, types) in shapes.items()}).training_set(model, now, window)
    frames = {table: frame(rows, shapes[table][1]) for table, rows in tables.items()}
    got = training_set(model, frames, now, window)
    assert got.frame.columns == [*dict.fromkeys((*SCHEDULES.key, "_asked_at", *model.columns, "_label"))]
    same(rows_of(got.frame), training.rows)
    assert dict(got.counts) == training.counts
    # What became known since changes nothing: the set that was made then is the one made now, as of then.
    then = {
        table: rows if timeless(shapes[table][0]) else rows.filter(pl.col("_known_at") < pl.lit(now).cast(TIME))
        for table, rows in frames.items()
    }
    made = training_set(model, then, now, window)
    same(rows_of(made.frame), training.rows)
    assert made.counts == got.counts
