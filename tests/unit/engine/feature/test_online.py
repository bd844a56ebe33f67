"""The online state gives, tick by tick, what the offline path gives over the same rows, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.base.clock import HOUR
from tidemill.base.errors import DeclarationError, RequestError, WorkspaceError
from tidemill.engine.feature import online
from tidemill.engine.feature.freshness import Freshness, Rebuilding, ViewFreshness, freshness
from tidemill.engine.feature.layout import Applied
from tidemill.engine.feature.lookup import Lookup, features_at
from tidemill.engine.feature.online import OnlineState
from tidemill.spec.source import Source
from tidemill.testing.histories import ORIGIN, STEP, TIME, frame, histories, reading, request_frame

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
PLANES = tm.Source("planes", tm.files("*"), key="id")
PRICES = tm.Source("prices", tm.push(), key="id")
TABLES: dict[str, tuple[Source, dict[str, pl.DataType]]] = {
    "arrivals": (ARRIVALS, FLIGHT),
    "planes": (PLANES, PLANE),
    "prices": (PRICES, PLANE),
}

OVER = ("30m", "150m")
CARRIER = tm.Aggregation(
    "carrier",
    ARRIVALS,
    by="carrier",
    features={
        "n": tm.count(over=OVER),
        "sum": tm.sum("delay", over=OVER),
        "third": tm.mean(pl.col("delay") / 3, over=OVER),
        "std": tm.std("delay", over=OVER),
        "seats": tm.mean("seats", over=OVER),
        "low": tm.min("seats", over=OVER),
        "high": tm.max("delay", over=OVER),
        "ids": tm.n_unique("id", over=OVER),
        "first": tm.first("id", over=OVER),
        "last": tm.last("landed", over=OVER),
    },
)
MODEL = tm.Model(
    "late",
    examples=tm.Source("schedules", tm.files("*"), key="id", event_time="landed", known_at=tm.before("landed", "1d")),
    asked_at="landed",
    label=tm.Label(ARRIVALS, pl.col("delay") > 0.2, within="2h"),
    features=[
        CARRIER,
        tm.Aggregation("both", ARRIVALS, by=("carrier", "ok"), features={"n": tm.count(over="1h")}),
        tm.Latest("near", ARRIVALS, by="carrier", columns=["id", "delay", "seats", "ok", "landed"], within="1h"),
        tm.Latest("far", ARRIVALS, by="carrier", columns=["id", "delay"], on={"carrier": "origin"}),
        tm.Latest("ahead", ARRIVALS, by="carrier", columns=["id", "delay"], ahead=True),
        tm.Latest("plane", PLANES, by="id", columns=["carrier", "delay"]),
        tm.Latest("price", PRICES, by="carrier", columns=["id", "delay"]),
        tm.OnDemand("o", {"third": pl.col("seats") / 3}),
        "origin",
    ],
    estimator=LogisticRegression(),
)
REQUESTS = request_frame(
    [
        {"id": id, "landed": ORIGIN + step * STEP, "carrier": id, "origin": origin, "seats": 7, "ok": ok, "delay": None}
        for id, step, origin, ok in (
            ("a", 0, "a", True), ("b", 2, "c", False), ("c", 5, None, True), (None, 1, "b", None),
            ("never", 3, "a", True)
        )
    ],
    FLIGHT,
)  # fmt: skip


def by_tick(tables: Mapping[str, list[dict[str, Any]]]) -> dict[int, dict[str, list[dict[str, Any]]]]:
    ticks: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for name, rows in tables.items():
        for row in rows:
            ticks.setdefault(row["_tick"], {}).setdefault(name, []).append(row)
    return dict(sorted(ticks.items()))


def frames(tables: Mapping[str, list[dict[str, Any]]]) -> dict[str, pl.DataFrame]:
    return {name: frame(tables.get(name, []), types) for name, (_, types) in TABLES.items()}


def same(lookup: Lookup, everything: Mapping[str, pl.DataFrame], requests: pl.DataFrame = REQUESTS) -> Applied:
    got, applied = lookup.features(requests)
    want = features_at(MODEL, everything, requests, applied)
    assert got.schema == want.schema
    assert_frame_equal(got, want, check_exact=True)
    assert got.hash_rows().to_list() == want.hash_rows().to_list()
    return applied


@given(data=st.data(), sweep=st.sampled_from((0, 20_000)))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_parity_tick_by_tick(data: st.DataObject, sweep: int) -> None:
    tables = {
        name: data.draw(histories(source, types, live=True, max_rows=14)) for name, (source, types) in TABLES.items()
    }
    everything = frames(tables)
    store, other = MemoryOnline(), MemoryOnline()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "_SWEEP", sweep)
        state, lookup = OnlineState(MODEL.views, store), Lookup(MODEL, store)
        next_seq = dict.fromkeys(TABLES, 0)
        ticks = by_tick(tables)
        # Empty ticks in between let windows run empty and rows known in the future come into their time.
        times = sorted({*ticks, *(ORIGIN + step * STEP for step in range(0, 20, 4))})
        for number, tick in enumerate(times):
            rows = ticks.get(tick, {})
            next_seq = {name: next_seq[name] + len(rows.get(name, [])) for name in TABLES}
            arrived = frames(rows)
            state.apply(tick, arrived, next_seq, number)
            applied = same(lookup, everything)
            assert applied == Applied(tick, tick + 1, next_seq, number) == state.applied()
            # Made from all rows at once it answers the same.
            then = {name: rows.filter(pl.col("_seq") < next_seq[name]) for name, rows in everything.items()}
            OnlineState(MODEL.views, other).rebuild(tick, reading(then), next_seq, number, MemoryScratch())
            same(Lookup(MODEL, other), everything)


def arrival(id: str, minutes: int, known: int, seq: int, carrier: str | None = "a", **others: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"id": id, "landed": ORIGIN + minutes * 60_000_000, "carrier": carrier, "origin": "o"}
    row |= {"delay": 1.0, "seats": 5, "ok": True, "_known_at": known, "_seq": seq, "_tombstone": False}
    return {**row, "_tick": known, "_history": False, **others}


def test_a_correction_moves_a_row_to_another_group_and_what_is_past_is_dropped() -> None:
    store = MemoryOnline()
    state, lookup = OnlineState([CARRIER], store), Lookup(MODEL_OF_CARRIER, store)
    request = REQUESTS.head(2).with_columns(pl.Series("carrier", ["a", "b"]))
    rows = [arrival("x", 0, ORIGIN + 1, 0), arrival("x", 0, ORIGIN + 2, 1, carrier="b")]
    state.apply(ORIGIN + 1, {"arrivals": frame(rows[:1], FLIGHT)}, {"arrivals": 1}, 1)
    assert lookup.features(request)[0]["carrier__n_30m"].to_list() == [1, 0]
    state.apply(ORIGIN + 2, {"arrivals": frame(rows[1:], FLIGHT)}, {"arrivals": 2}, 2)
    assert lookup.features(request)[0]["carrier__n_30m"].to_list() == [0, 1]
    with store.snapshot() as snapshot:
        assert len(list(snapshot.items("shelf:carrier"))) == 1
        assert len(list(snapshot.items("key:arrivals"))) == 1
    gone = arrival("x", 0, ORIGIN + 3, 2, carrier=None, landed=None, _tombstone=True)
    state.apply(ORIGIN + 3, {"arrivals": frame([gone], FLIGHT)}, {"arrivals": 3}, 3)
    assert lookup.features(request)[0]["carrier__n_30m"].to_list() == [0, 0]
    with store.snapshot() as snapshot:
        assert not list(snapshot.items("shelf:carrier"))
        assert not list(snapshot.items("key:arrivals"))


MODEL_OF_PLANES = tm.Model(
    "planes", examples=MODEL.examples, asked_at="landed", label=MODEL.label,
    features=[tm.Latest("plane", PLANES, by="id", columns=["carrier", "delay"])], estimator=LogisticRegression(),
)  # fmt: skip
MODEL_OF_CARRIER = tm.Model(
    "late", examples=MODEL.examples, asked_at="landed", label=MODEL.label, features=[CARRIER],
    estimator=LogisticRegression(),
)  # fmt: skip


def test_a_sweep_drops_what_nothing_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "_SWEEP", 0)
    store = MemoryOnline()
    state = OnlineState([CARRIER], store)
    state.apply(ORIGIN + 1, {"arrivals": frame([arrival("x", 0, ORIGIN + 1, 0)], FLIGHT)}, {"arrivals": 1}, 1)
    later = ORIGIN + 9 * HOUR
    new = [arrival(f"y{place}", 540, later, 1 + place, carrier="b") for place in range(2)]
    state.apply(later, {"arrivals": frame(new, FLIGHT)}, {"arrivals": 3}, 2)
    with store.snapshot() as snapshot:
        assert len(list(snapshot.items("shelf:carrier"))) == 1
        assert len(list(snapshot.items("key:arrivals"))) == 2


def test_a_back_fill_other_views_and_going_back_need_a_rebuild() -> None:
    store = MemoryOnline()
    state = OnlineState([CARRIER], store)
    assert state.applied() is None
    with pytest.raises(WorkspaceError, match="empty"):
        Lookup(MODEL_OF_CARRIER, store).features(REQUESTS)
    first = frame([arrival("x", 0, ORIGIN, 0)], FLIGHT)
    state.apply(ORIGIN + HOUR, {"arrivals": first}, {"arrivals": 1}, 1)
    before = list(store._current.spaces.items()), store._current.mark()
    late = frame([arrival("y", 0, ORIGIN + 1, 1)], FLIGHT)
    with pytest.raises(WorkspaceError, match="back-fill"):
        state.apply(ORIGIN + 2 * HOUR, {"arrivals": late}, {"arrivals": 2}, 2)
    with pytest.raises(WorkspaceError, match="cannot go back"):
        state.apply(ORIGIN, {}, {"arrivals": 1}, 2)
    assert before == (list(store._current.spaces.items()), store._current.mark())
    wider = tm.Aggregation("carrier", ARRIVALS, by="carrier", features={"n": tm.count(over="5h")})
    other = OnlineState([wider], store)
    assert other.applied() is None
    with pytest.raises(WorkspaceError, match="rebuilt"):
        other.apply(ORIGIN + 2 * HOUR, {}, {"arrivals": 1}, 2)
    seen: list[Rebuilding] = []
    both = reading({"arrivals": pl.concat([first, late])})
    other.rebuild(ORIGIN + 2 * HOUR, both, {"arrivals": 2}, 2, MemoryScratch(), seen.append)
    assert other.applied() == Applied(ORIGIN + 2 * HOUR, ORIGIN + 2 * HOUR + 1, {"arrivals": 2}, 2)
    told = [(each.table, each.done, each.steps) for each in seen]
    assert told == [*(("arrivals", step, 5) for step in range(5)), ("", 5, 5)]
    with pytest.raises(WorkspaceError, match="another definition"):
        Lookup(MODEL_OF_CARRIER, store).features(REQUESTS)


def test_values_of_many_types_and_long_keys_survive() -> None:
    types: dict[str, pl.DataType] = {
        "id": pl.String(), "landed": TIME, "carrier": pl.String(), "small": pl.Float32(), "big": pl.UInt64(),
        "day": pl.Date(), "text": pl.String(), "kind": pl.Enum(["p", "q"]), "price": pl.Decimal(12, 2),
        "float": pl.Float64(),
    }  # fmt: skip
    table = tm.Source("things", tm.push(), key="id", event_time="landed")
    view = tm.Latest("v", table, by="id", columns=[*types])
    label = tm.Label(table, "float", within="1h")
    model = tm.Model(
        "m", examples=table, asked_at="landed", label=label, features=[view], estimator=LogisticRegression()
    )
    long = "x" * 1000
    base = pl.DataFrame(
        {
            "id": [long, long + "y", "z"], "landed": [ORIGIN] * 3, "carrier": ["é", None, ""],
            "small": [0.1, None, 3e38], "big": [2**64 - 1, None, 0], "day": [None, 1, 2], "text": ["ünï", "", None],
            "kind": ["p", None, "q"],
            "price": ["1.23", None, "-9.99"], "float": [float("nan"), -0.0, None],
        },
        schema_overrides={"big": pl.UInt64},
    ).with_columns(pl.col(name).cast(dtype) for name, dtype in types.items())  # fmt: skip
    system = frame([arrival(str(seq), 0, ORIGIN, seq) for seq in range(3)], FLIGHT).select(
        "_known_at", "_seq", "_tombstone", "_tick", "_history"
    )
    rows = base.hstack(system)
    store = MemoryOnline()
    OnlineState([view], store).apply(ORIGIN, {"things": rows}, {"things": 3}, 1)
    got, applied = Lookup(model, store).features(base)
    want = features_at(model, {"things": rows}, base, applied)
    assert got.schema == want.schema
    assert got["v__text"].to_list() == ["ünï", "", None]
    assert got.hash_rows().to_list() == want.hash_rows().to_list()
    anew = MemoryOnline()
    OnlineState([view], anew).rebuild(ORIGIN, reading({"things": rows}), {"things": 3}, 1, MemoryScratch())
    assert {name: pairs for name, pairs in anew._current.spaces.items() if pairs} == store._current.spaces
    with pytest.raises(DeclarationError, match="cannot hold"):
        OnlineState([view], MemoryOnline()).apply(
            ORIGIN, {"things": rows.with_columns(pl.lit([1]).alias("text"))}, {"things": 3}, 1
        )


def test_requests_before_any_row_and_without_a_column() -> None:
    store = MemoryOnline()
    state = OnlineState(MODEL.views, store)
    state.apply(ORIGIN, {}, {}, 0)
    got, _ = Lookup(MODEL, store).features(REQUESTS)
    assert tuple(got.columns) == MODEL.columns
    assert got["carrier__n_30m"].to_list() == [0] * 5
    assert got["near__id"].null_count() == 5
    with pytest.raises(RequestError, match="carrier"):
        Lookup(MODEL, store).features(REQUESTS.drop("carrier"))
    # Once the tables show their types, so does the answer.
    state.apply(ORIGIN + 1, frames({}), dict.fromkeys(TABLES, 0), 1)
    lookup = Lookup(MODEL, store)
    same(lookup, frames({}))
    empty = lookup.features(REQUESTS.head(0))[0]
    assert empty.schema == features_at(MODEL, frames({}), REQUESTS, Applied(0, 1, {}, 0)).schema


def test_a_row_is_asked_for_by_its_columns() -> None:
    store = MemoryOnline()
    OnlineState(MODEL.views, store).apply(ORIGIN, {}, {}, 0)
    lookup = Lookup(MODEL, store)
    request = dict(zip(REQUESTS.columns, REQUESTS.with_columns(pl.col("landed").to_physical()).row(0), strict=True))
    values, applied = lookup.row(request, REQUESTS.schema)
    assert len(values) == len(MODEL.columns)
    assert applied == Applied(ORIGIN, ORIGIN + 1, {}, 0)
    for column in ("carrier", "origin", "seats"):
        short = {name: value for name, value in request.items() if name != column}
        with pytest.raises(RequestError, match=column):
            lookup.row(short, REQUESTS.drop(column).schema)
    with pytest.raises(WorkspaceError, match="empty"):
        Lookup(MODEL, MemoryOnline()).row(request, REQUESTS.schema)


def test_it_says_how_fresh_it_is() -> None:
    store = MemoryOnline()
    assert freshness(store) == Freshness()
    state = OnlineState([CARRIER, *MODEL_OF_PLANES.views], store)
    rows = [arrival("x", 5, ORIGIN + 1, 0), arrival("y", 2, ORIGIN + 1, 1), arrival("z", 9, ORIGIN, 2, landed=None)]
    state.apply(ORIGIN + 1, {"arrivals": frame(rows, FLIGHT)}, {"arrivals": 3}, 1)
    newest = ViewFreshness(ORIGIN + 5 * 60_000_000, ORIGIN + 1)
    assert freshness(store) == Freshness(Applied(ORIGIN + 1, ORIGIN + 2, {"arrivals": 3}, 1), {"carrier": newest}, None)
    later = [arrival("w", 1, ORIGIN + 7, 3)]
    state.apply(ORIGIN + 7, {"arrivals": frame(later, FLIGHT), "planes": frame([], PLANE)}, {"arrivals": 4}, 2)
    assert freshness(store).views == {"carrier": ViewFreshness(newest.event_time, ORIGIN + 7)}
    plane = {**arrival("p", 0, ORIGIN + 8, 0), "landed": None}
    state.apply(ORIGIN + 8, {"planes": frame([plane], PLANE)}, {"arrivals": 4, "planes": 1}, 3)
    assert freshness(store).views["plane"] == ViewFreshness(None, ORIGIN + 8)
    # While it is made anew, readers have the old one and see how far the new one is.
    seen: list[Rebuilding | None] = []
    everything = {"arrivals": frame([*rows, *later], FLIGHT), "planes": frame([plane], PLANE)}
    before = freshness(store)

    def look(_: Rebuilding) -> None:
        seen.append(freshness(store).rebuilding)
        assert freshness(store).applied == before.applied or seen[-1] is None

    state.rebuild(ORIGIN + 9, reading(everything), {"arrivals": 4, "planes": 1}, 4, MemoryScratch(), look)
    assert [each and (each.table, each.done, each.steps) for each in seen] == [
        *[("arrivals", step, 10) for step in range(5)], *[("planes", step, 10) for step in range(5, 10)], None,
    ]  # fmt: skip
    assert freshness(store).views == before.views


def test_a_rebuild_that_did_not_end_is_forgotten() -> None:
    store = MemoryOnline()
    state = OnlineState([CARRIER], store)
    state.apply(ORIGIN, {}, {}, 0)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state.rebuild(ORIGIN, reading(frames({})), {"arrivals": 1}, 0, MemoryScratch(), stop)
    broken_off = freshness(store).rebuilding
    assert broken_off is not None
    assert (broken_off.table, broken_off.done, broken_off.steps, broken_off.left) == ("arrivals", 0, 5, None)
    state.apply(ORIGIN + 1, {}, {}, 1)
    assert freshness(store).rebuilding is None


def test_sweeps_go_round_a_stretch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "_SWEEP", 3)
    monkeypatch.setattr(online, "_STRETCH", 2)
    store = MemoryOnline()
    state = OnlineState([CARRIER], store)
    rows = [arrival(f"x{place}", 0, ORIGIN, place, carrier=f"c{place}") for place in range(40)]
    state.apply(ORIGIN, {"arrivals": frame(rows, FLIGHT)}, {"arrivals": 40}, 0)
    left = []
    for batch in range(10):
        tick = ORIGIN + (9 + batch) * HOUR
        new = [arrival("y", 540 + 60 * batch, tick, 40 + 4 * batch + place) for place in range(4)]
        state.apply(tick, {"arrivals": frame(new, FLIGHT)}, {"arrivals": 44 + 4 * batch}, 1 + batch)
        with store.snapshot() as snapshot:
            left.append((len(list(snapshot.items("shelf:carrier"))), len(list(snapshot.items("key:arrivals")))))
    assert left[0] == (33, 33)  # of 41, eight of the forty were swept
    assert left[-1] == (1, 1)
    assert all(before[0] - after[0] <= 8 for before, after in itertools.pairwise(left))


def test_applied_reads_back() -> None:
    applied = Applied(5, 6, {"b": 2, "a": 1}, 9)
    assert Applied.decode(applied.encode()) == applied
    assert applied.encode() == b'{"journal":9,"next_seq":{"a":1,"b":2},"tick":5}'
