"""The online state gives the oracle's answers, tick by tick and bit for bit, however rows arrive.

First a load of history, then rows in ticks, in batches that hold a part of a tick or several ticks at once, and ticks
without rows, on the edges that rows make. After each batch the same questions are asked of the online state, of the
offline engine and of the oracle, each knowing the rows applied and no others.
"""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.adapters.lmdb_online import LmdbOnline
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.engine.feature import online, parts
from tidemill.engine.feature.layout import Applied
from tidemill.engine.feature.lookup import Lookup, features_at
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.table.plain import plain as as_json
from tidemill.ports.online import Online
from tidemill.spec.feature import OnDemand, View
from tidemill.spec.source import Source
from tidemill.testing.histories import (
    FAR,
    ORIGIN,
    STEP,
    TIME,
    edges,
    frame,
    histories,
    moments,
    reading,
    request_frame,
    requests,
)
from tidemill.testing.oracle import Oracle, Row, plain, timeless

EXAMPLES = int(os.environ.get("TIDEMILL_ORACLE_EXAMPLES", "12"))
quickly = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
on_disk = settings(quickly, max_examples=1 + EXAMPLES // 6)

FLIGHT: dict[str, pl.DataType] = {
    "id": pl.String(),
    "landed": TIME,
    "carrier": pl.String(),
    "origin": pl.String(),
    "delay": pl.Float64(),
    "seats": pl.Int64(),
    "ok": pl.Boolean(),
}
PLANE = {name: dtype for name, dtype in FLIGHT.items() if name != "landed"}
ARRIVALS = tm.Source("arrivals", tm.files("*"), key="id", event_time="landed", known_at="reported")
#: The event time and the group are part of the key, as for weather.
WEATHER = tm.Source("weather", tm.files("*"), key=("origin", "landed"), event_time="landed", known_at="reported")
PLANES = tm.Source("planes", tm.files("*"), key="id")
PRICES = tm.Source("prices", tm.push(), key="id")
TABLES: dict[str, tuple[Source, dict[str, pl.DataType]]] = {
    "arrivals": (ARRIVALS, FLIGHT),
    "weather": (WEATHER, FLIGHT),
    "planes": (PLANES, PLANE),
    "prices": (PRICES, PLANE),
}
EXAMPLES_TABLE = tm.Source(
    "schedules", tm.files("*"), key="id", event_time="landed", known_at=tm.before("landed", "1d")
)

OVER = ("30m", "150m")
NUMBERS = ("sum", "mean", "std", "min", "max", "first", "last", "n_unique")
WINDOWS = {
    "n": tm.count(over=("0s", "1us", *OVER, "3652500d")),
    **{f"{function}_delay": getattr(tm, function)("delay", over=OVER) for function in NUMBERS},
    **{f"{function}_seats": getattr(tm, function)("seats", over="1h") for function in NUMBERS},
    **{f"{function}_ok": getattr(tm, function)("ok", over="1h") for function in ("mean", "n_unique")},
    "third": tm.mean(pl.col("delay") / 3, over="1h"),
    "share": tm.share(pl.col("seats") > 1, over="1h"),
    "middle": tm.quantile("delay", 0.5, over=OVER),
    "high": tm.quantile("seats", 0.9, over="1h"),
    "since": tm.since_last(over=OVER),
    "last_id": tm.last("id", over="1h"),
    "last_landed": tm.last("landed", over="1h"),
}
FEW = {"n": tm.count(over="1h"), "m": tm.mean("delay", over="1h")}
VIEWS: tuple[View, ...] = (
    tm.Aggregation("windows", ARRIVALS, by="carrier", features=WINDOWS),
    tm.Aggregation("by_key", ARRIVALS, by="id", features=FEW),
    tm.Aggregation("by_two", ARRIVALS, by=("carrier", "ok"), features=FEW),
    tm.Aggregation("by_two_turned", ARRIVALS, by=("ok", "carrier"), features=FEW),
    tm.Aggregation("by_number", ARRIVALS, by=("seats", "delay"), features=FEW),
    tm.Aggregation("elsewhere", ARRIVALS, by="carrier", features=FEW, on={"carrier": "origin"}),
    tm.Aggregation("skies", WEATHER, by="origin", features=FEW),
    tm.Latest("latest", ARRIVALS, by="carrier", columns=["id", "delay", "seats", "ok", "landed"]),
    tm.Latest("within", ARRIVALS, by="carrier", columns=["id", "delay"], within="1h"),
    tm.Latest("within_two", ARRIVALS, by=("ok", "carrier"), columns=["id", "delay"], within="90m"),
    tm.Latest("sky", WEATHER, by="origin", columns=["delay", "id"], within="90m"),
    tm.Latest("ahead", ARRIVALS, by="carrier", columns=["id", "delay"], ahead=True),
    tm.Latest("plane", PLANES, by="id", columns=["carrier", "delay"]),
    tm.Latest("planes_of", PLANES, by="carrier", columns=["id", "delay"]),
    tm.Latest("price", PRICES, by="id", columns=["carrier", "delay"]),
    tm.Latest("prices_of", PRICES, by=("carrier", "ok"), columns=["id", "delay"]),
    tm.OnDemand("now", {"third": pl.col("seats") / 3, "hour": tm.local("landed", "America/New_York").dt.hour()}),
)


def model_of(views: Sequence[View]) -> tm.Model:
    return tm.Model(
        "late",
        examples=EXAMPLES_TABLE,
        asked_at="landed",
        label=tm.Label(ARRIVALS, pl.col("delay") > 0.2, within="2h"),
        features=[*views, "origin"],
        estimator=LogisticRegression(),
    )


@st.composite
def streams(draw: st.DrawFn, table: Source, types: dict[str, pl.DataType]) -> list[dict[str, Any]]:
    """Draw a first load of history, then live rows; numbered on from one to the other."""
    loaded = draw(histories(table, types, max_rows=5))
    for row in loaded:
        row["_tick"] = ORIGIN - STEP
    if timeless(table):
        loaded = []
    live = draw(histories(table, types, live=True, max_rows=10))
    return [{**row, "_seq": seq} for seq, row in enumerate([*loaded, *live])]


Batch = tuple[int, dict[str, list[dict[str, Any]]]]


@st.composite
def batches(draw: st.DrawFn, tables: dict[str, list[dict[str, Any]]], views: Sequence[View]) -> list[Batch]:
    """Cut all rows into batches, each with the tick it brings the state to; not before the ticks of its rows.

    A batch may end within a tick, hold several ticks (a worker that catches up), or be a tick without rows. What was
    loaded as history comes in one batch.
    """
    rows = sorted(
        ((row["_tick"], name, row) for name in tables for row in tables[name]),
        key=lambda each: (each[0], not each[2]["_history"], each[1]),
    )
    loaded = sum(row["_history"] for _, _, row in rows)
    if draw(st.booleans()):
        cuts = draw(st.lists(st.integers(0, len(rows)), max_size=8))
    else:  # a batch for each tick
        cuts = [place for place in range(1, len(rows)) if rows[place][0] != rows[place - 1][0]]
    places = sorted({0, len(rows), *(cut for cut in cuts if cut >= loaded)})
    found: list[Batch] = []
    for first, after in itertools.pairwise(places):
        of_table: dict[str, list[dict[str, Any]]] = {}
        for _, name, row in rows[first:after]:
            of_table.setdefault(name, []).append(row)
        found.append((rows[after - 1][0], of_table))
    edge = [edges(tables[view.table.name], view) for view in views if not isinstance(view, OnDemand)]
    for quiet in draw(st.lists(st.one_of(*edge, moments(), st.just(FAR)), max_size=5)):
        tick = max(quiet - 1, ORIGIN - 2 * STEP)
        # Rows may not come after a tick that is later than theirs.
        if not any(row["_tick"] < tick < at for at, arrived in found for each in arrived.values() for row in each):
            found.append((tick, {}))
    return sorted(found, key=lambda batch: batch[0])


def bits(row: Row) -> dict[str, tuple[str, Any]]:
    """Return values that are equal only to those of the same type and, for a float, the same bits."""
    return {
        name: (type(value).__name__, struct.pack("<d", value) if isinstance(value, float) else value)
        for name, value in row.items()
    }


def rows_of(answer: pl.DataFrame) -> list[dict[str, tuple[str, Any]]]:
    return [bits(plain(row)) for row in answer.iter_rows(named=True)]


def follow(data: st.DataObject, store: Online, other: Online) -> None:
    views = tuple(data.draw(st.lists(st.sampled_from(VIEWS), min_size=1, max_size=5, unique=True), label="views"))
    model = model_of(views)
    wanted = {view.table.name for view in views if not isinstance(view, OnDemand)}
    tables = {name: data.draw(streams(*TABLES[name]), label=name) for name in TABLES if name in wanted}
    types = {name: TABLES[name][1] for name in tables}
    everything = {name: frame(rows, types[name]) for name, rows in tables.items()}
    oracle = Oracle({**tables, "schedules": []}, {**types, "schedules": FLIGHT})
    asks = data.draw(st.lists(requests(FLIGHT), min_size=1, max_size=4), label="requests")
    for rows in tables.values():  # one that meets a row of each table
        if rows:
            row = data.draw(st.sampled_from(rows))
            asks.append({column: row.get(column, ORIGIN if column == "landed" else None) for column in FLIGHT})
    asked = request_frame(asks, FLIGHT)

    def check(lookup: Lookup, expected: Applied) -> None:
        got, applied = lookup.features(asked)
        assert applied == expected
        known = oracle.applied({name: number - 1 for name, number in applied.next_seq.items()})
        assert rows_of(got) == [bits(known.features(model, request, applied.t)) for request in asks]
        # One by one they are answered the same, and without the compiled kernel too.
        by_row = [lookup.row(request, asked.schema) for request in asks]
        assert [at for _, at in by_row] == [applied] * len(asks)
        listed = [dict(zip(model.columns, values, strict=True)) for values, _ in by_row]
        assert [bits(row) for row in listed] == [bits(row) for row in as_json(got).iter_rows(named=True)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIDEMILL_KERNELS", "plain")
            unpacked = Lookup(model, lookup._store)
            assert rows_of(unpacked.features(asked)[0]) == rows_of(got)
        then = features_at(model, everything, asked, applied)
        assert got.schema == then.schema or not all(applied.next_seq.values())  # types are unknown before any row
        assert rows_of(then) == rows_of(got)

    state, lookup = OnlineState(model.views, store), Lookup(model, store)
    next_seq = dict.fromkeys(tables, 0)
    plan = data.draw(batches(tables, views), label="batches")
    turn = data.draw(st.integers(0, len(plan)), label="rebuilt at")
    for number, (tick, batch) in enumerate(plan):
        next_seq = {name: next_seq[name] + len(batch.get(name, [])) for name in tables}
        arrived = {name: frame(new, types[name]) for name, new in batch.items()}
        if data.draw(st.integers(0, 3)) == 0:  # a restart: nothing is in memory
            state, lookup = OnlineState(model.views, store), Lookup(model, store)
        state.apply(tick, arrived, next_seq, number)
        expected = Applied(tick, tick + 1, next_seq, number)
        check(lookup, expected)
        if number == turn:
            # Made from all rows at once it answers the same, and goes on from there.
            then = {name: rows.filter(pl.col("_seq") < next_seq[name]) for name, rows in everything.items()}
            OnlineState(model.views, other).rebuild(tick, reading(then), next_seq, number, MemoryScratch())
        elif number > turn:
            OnlineState(model.views, other).apply(tick, arrived, next_seq, number)
        if number >= turn:
            check(Lookup(model, other), expected)


def test_a_correction_known_a_microsecond_after_the_tick_waits_for_the_next() -> None:
    row: dict[str, Any] = {"id": "x", "landed": ORIGIN, "carrier": "a", "origin": "a", "delay": 1.0, "seats": 1}
    row |= {"ok": True, "_known_at": ORIGIN, "_seq": 0, "_tombstone": False, "_tick": ORIGIN, "_history": False}
    rows = [row, {**row, "carrier": "b", "_known_at": ORIGIN + 1, "_seq": 1}]
    model = model_of([tm.Aggregation("v", ARRIVALS, by="carrier", features=FEW)])
    store = MemoryOnline()
    state, lookup = OnlineState(model.views, store), Lookup(model, store)
    asks = [{**row, "carrier": carrier} for carrier in "ab"]
    for tick, arrived, counts in ((ORIGIN, rows, [1, 0]), (ORIGIN + 1, [], [0, 1])):
        state.apply(tick, {"arrivals": frame(arrived, FLIGHT)}, {"arrivals": 2}, 0)
        got, applied = lookup.features(request_frame(asks, FLIGHT))
        assert got["v__n_1h"].to_list() == counts
        oracle = Oracle({"arrivals": rows}, {"arrivals": FLIGHT})
        assert rows_of(got) == [bits(oracle.features(model, ask, applied.t)) for ask in asks]


@given(data=st.data(), sweep=st.sampled_from((0, 20_000)), block=st.sampled_from((1, 2, 256)))
@quickly
def test_in_memory(data: st.DataObject, sweep: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "_SWEEP", sweep)
        patch.setattr(parts, "BLOCK", block)  # groups of more than twice as many rows are cut
        follow(data, MemoryOnline(), MemoryOnline())


@given(data=st.data())
@on_disk
def test_on_disk(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stores = [LmdbOnline(Path(directory) / name, map_size=1 << 16) for name in ("one", "other")]
        try:
            follow(data, *stores)
        finally:
            for store in stores:
                store.close()
