"""Training sets built in partitions are those of one piece, bit for bit, on the oracle's nasty histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.adapters.inline_executor import InlineExecutor
from tidemill.adapters.memory_lake import MemoryLake
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.base.clock import HOUR
from tidemill.base.errors import NotFoundError, RequestError
from tidemill.engine.example.build import Pace, Partitions, Plan, build
from tidemill.engine.example.example import TrainingSet, training_set
from tidemill.engine.feature.partition import needs
from tidemill.ports.executor import Progress
from tidemill.ports.lake import Commit
from tidemill.spec.source import Source
from tidemill.testing.histories import ORIGIN, STEP, TIME, frame, histories
from tidemill.testing.lake_suite import GivenFence

quickly = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

FLIGHT: dict[str, pl.DataType] = {
    "id": pl.String(), "landed": TIME, "carrier": pl.String(), "delay": pl.Float64(), "seats": pl.Int64(),
    "ok": pl.Boolean(),
}  # fmt: skip
SCHEDULE: dict[str, pl.DataType] = {
    "id": pl.String(), "scheduled": TIME, "carrier": pl.String(), "seats": pl.Int64(), "unread": pl.Float64(),
}  # fmt: skip
PLANE: dict[str, pl.DataType] = {"id": pl.String(), "carrier": pl.String(), "delay": pl.Float64()}

ARRIVALS = tm.Source("arrivals", tm.files("*"), key="id", event_time="landed", known_at="known")
SCHEDULES = tm.Source("schedules", tm.files("*"), key="id", event_time="scheduled", known_at="known")
PLANES = tm.Source("planes", tm.files("*"), key="id")
SHAPES: Mapping[str, tuple[Source, dict[str, pl.DataType]]] = {
    "arrivals": (ARRIVALS, FLIGHT), "schedules": (SCHEDULES, SCHEDULE), "planes": (PLANES, PLANE),
}  # fmt: skip

MODEL = tm.Model(
    "late", examples=SCHEDULES, asked_at=tm.before("scheduled", "1h"),
    label=tm.Label(ARRIVALS, pl.col("delay") > 0.2, within="3h", otherwise=False),
    features=[
        tm.Aggregation("w", ARRIVALS, by="carrier", features={
            "n": tm.count(over=("1h", "3h")), "m": tm.mean("delay", over="3h"), "d": tm.std("delay", over="3h"),
            "u": tm.n_unique("seats", over="3h"), "x": tm.max("seats", over="1h"), "l": tm.last("id", over="3h"),
        }),
        "carrier",
        tm.Aggregation("s", ARRIVALS, by="seats", features={"n": tm.count(over="3h")}),
        tm.Latest("p", PLANES, by="carrier", columns=["delay"]),
        tm.Latest("q", ARRIVALS, by=("carrier", "ok"), columns=["delay", "id"], on={"ok": "known_to_nobody"}),
        tm.OnDemand("o", {"hour": pl.col("scheduled").dt.hour()}),
    ],
    estimator=LogisticRegression(), slices=["seats"],
)  # fmt: skip
#: Without the view that asks about a column which schedules do not have.
SOUND = tm.Model(
    "late", examples=SCHEDULES, asked_at=MODEL.asked_at, label=MODEL.label, slices=["seats"],
    features=[feature for feature in MODEL.features if getattr(feature, "name", "") != "q"],
    estimator=LogisticRegression(),
)  # fmt: skip


class Counting(InlineExecutor):
    """Runs steps here, and fails for good after ``patience`` of them."""

    def __init__(self, partitions: Partitions, patience: int = 1_000_000) -> None:
        super().__init__({"partition": lambda payload, _: self._run(partitions, payload)}, threads=1)
        self.steps: list[dict[str, Any]] = []
        self.patience = patience

    def _run(self, partitions: Partitions, payload: dict[str, Any]) -> dict[str, Any]:
        if len(self.steps) >= self.patience:
            raise KeyboardInterrupt
        self.steps.append(payload)
        return partitions.run(payload)


def lake_of(tables: Mapping[str, pl.DataFrame]) -> MemoryLake:
    lake = MemoryLake()
    for name, rows in tables.items():
        commit = Commit(name, 0, 0, "b", rows.height, rows.height, None, "")
        lake.append(name, rows.to_arrow(), commit, GivenFence())
    return lake


def partitions_of(model: tm.Model, tables: Mapping[str, pl.DataFrame], cells: int) -> Partitions:
    lake = lake_of(tables)
    rows = {name: frame.height for name, frame in tables.items()}
    schemas = {name: lake.schema(name) for name in lake.tables()}
    plan = Plan.of(needs(model, schemas, rows, learning=True), together=("schedules", "arrivals"), whole=0, cells=cells)
    return Partitions(model, lake, MemoryScratch(), Plan.from_data(plan.as_data()))


def built(partitions: Partitions, now: int, window: int | None = None, patience: int = 1_000_000) -> TrainingSet:
    executor = Counting(partitions, patience)
    return build(partitions, executor, now, window, lambda _: None, {})


def drawn(data: st.DataObject) -> dict[str, pl.DataFrame]:
    near = (0, -1, -STEP, -3 * STEP, -5 * STEP)
    return {
        name: frame(
            data.draw(
                histories(source, types, max_rows=12, offsets=near)
                if source is SCHEDULES
                else histories(source, types, max_rows=20)
            ),
            types,
        )
        for name, (source, types) in SHAPES.items()
    }


@given(data=st.data())
@quickly
def test_partitions_make_what_one_piece_makes(data: st.DataObject) -> None:
    tables = drawn(data)
    if not tables["schedules"].height or not tables["arrivals"].height:
        return
    now = ORIGIN + data.draw(st.sampled_from((6, 12, 400))) * HOUR
    window = data.draw(st.sampled_from((None, 8 * HOUR)))
    so_far = {name: rows if rows.height else pl.DataFrame() for name, rows in tables.items()}
    expected = training_set(SOUND, so_far, now, window)
    partitions = partitions_of(SOUND, tables, data.draw(st.sampled_from((8, 24, 70))))
    got = built(partitions, now, window)
    assert got.counts == expected.counts
    assert got.frame.schema == expected.frame.schema
    assert_frame_equal(got.frame, expected.frame, check_exact=True)


def days(count: int) -> dict[str, pl.DataFrame]:
    """Return a plain history of ``count`` flights, in which a flight now and then changes its carrier."""
    numbers = range(count)
    time = [ORIGIN + number * STEP // 4 for number in numbers]
    system = {"_seq": list(numbers), "_tombstone": [False] * count, "_tick": [0] * count, "_history": [True] * count}
    flights = {
        "id": [f"f{number // 5 * 5 if number % 5 == 4 else number}" for number in numbers],
        "landed": time,
        "carrier": [f"c{number % 7}" for number in numbers],
        "delay": [number % 11 / 3 for number in numbers],
        "seats": [number % 3 for number in numbers],
        "ok": [number % 2 == 0 for number in numbers],
        "_known_at": [at + STEP for at in time],
        **system,
    }
    schedules = {
        "id": [f"f{number}" for number in numbers],
        "scheduled": time,
        "carrier": [f"c{number % 7}" for number in numbers],
        "seats": [number % 3 for number in numbers],
        "unread": [0.0] * count,
        "_known_at": [at - 6 * HOUR for at in time],
        **system,
    }
    planes = {
        "id": ["a", "b"], "carrier": ["c1", "c2"], "delay": [1.0, 2.0],
        "_known_at": [0, 0], "_seq": [0, 1], "_tombstone": [False] * 2, "_tick": [0, 0], "_history": [True] * 2,
    }  # fmt: skip
    types = {name: {**shape[1]} for name, shape in SHAPES.items()}
    given: dict[str, dict[str, Any]] = {"arrivals": flights, "schedules": schedules, "planes": planes}
    return {name: frame(_rows(columns), types[name]) for name, columns in given.items()}


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


LATER = ORIGIN + 1000 * HOUR


def test_what_was_interrupted_goes_on_where_it_was() -> None:
    tables = days(300)
    expected = training_set(SOUND, tables, LATER)
    assert expected.frame.height > 200
    whole = Counting(partitions := partitions_of(SOUND, tables, 400))
    build(partitions, whole, LATER, None, lambda _: None, {})
    stages = [step["step"] for step in whole.steps]
    assert list(dict.fromkeys(stages)) == ["split", "spread", "examples", "deal", "answer", "gather"]
    partitions = partitions_of(SOUND, tables, 400)
    steps = 0
    for patience in (1, 2, 5, 11, 23, 1_000):
        executor = Counting(partitions, patience)
        try:
            got = build(partitions, executor, LATER, None, lambda _: None, {})
        except KeyboardInterrupt:
            assert len(executor.steps) == patience
        steps += len(executor.steps)
    assert steps == len(whole.steps)
    assert_frame_equal(got.frame, expected.frame, check_exact=True)


def test_only_the_columns_that_are_read_are_read() -> None:
    tables = days(60)
    read: list[tuple[str, tuple[str, ...], int | None]] = []

    class Watched(MemoryLake):
        def scan(self, table: str, **how: Any) -> Any:
            read.append((table, tuple(how["columns"]), how["limit"]))
            return super().scan(table, **how)

    lake = Watched()
    for name, rows in tables.items():
        lake.append(name, rows.to_arrow(), Commit(name, 0, 0, "b", rows.height, rows.height, None, ""), GivenFence())
    found = needs(SOUND, {name: lake.schema(name) for name in tables}, {"arrivals": 50, "schedules": 60, "planes": 2},
                  learning=True)  # fmt: skip
    plan = Plan.of(found, together=("schedules", "arrivals"), whole=0, cells=100)
    partitions = Partitions(SOUND, lake, MemoryScratch(), plan)
    got = build(partitions, Counting(partitions), LATER, None, lambda _: None, {})
    known = {"arrivals": tables["arrivals"].head(50), "schedules": tables["schedules"], "planes": tables["planes"]}
    assert_frame_equal(got.frame, training_set(SOUND, known, LATER).frame, check_exact=True)
    assert not any("unread" in columns or "_tick" in columns for _, columns, _ in read)
    assert max(limit or 0 for table, _, limit in read if table != "planes") <= 100 // 7
    assert sum(limit or 0 for table, _, limit in read if table == "arrivals") == 50


def test_small_tables_are_read_whole_and_little_data_in_one_piece() -> None:
    tables = days(60)
    lake = lake_of(tables)
    rows = {name: each.height for name, each in tables.items()}
    found = needs(SOUND, {name: lake.schema(name) for name in tables}, rows, learning=True)
    assert Plan.of(found).large == ()
    assert Plan.of(found, whole=10, cells=100).large == ("arrivals", "schedules")
    assert Plan.of(found, whole=10, cells=100_000).large == ()
    assert Plan.of(found, together=("arrivals", "planes"), whole=10, cells=100).large == (
        "arrivals", "planes", "schedules",
    )  # fmt: skip


def test_a_column_that_is_not_there_is_named() -> None:
    tables = days(20)
    with pytest.raises(NotFoundError, match=r"'schedules' has no column 'known_to_nobody'.*'late'"):
        partitions_of(MODEL, tables, 50)


def test_a_table_without_rows_is_named() -> None:
    tables = days(20)
    partitions = partitions_of(SOUND, {name: tables[name] for name in ("schedules", "planes")}, 50)
    with pytest.raises(NotFoundError, match="'arrivals', which has no rows yet"):
        built(partitions, LATER)


def test_questions_without_a_column_that_a_view_asks_by() -> None:
    tables = days(30)
    partitions = partitions_of(SOUND, tables, 100)
    partitions = Partitions(
        SOUND, partitions.lake, partitions.scratch, partitions.plan,
        lambda _: (pl.DataFrame({"id": ["a"], "carier": ["c"]}), pl.Series([0]).to_numpy()),
    )  # fmt: skip
    with pytest.raises(RequestError, match="Did you mean 'carier'"):
        partitions.run({"step": "deal", "number": 0})


def test_the_pace_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 30.0, 60.0, 90.0, 120.0))
    monkeypatch.setattr("tidemill.engine.example.build.time.monotonic", lambda: next(now))
    told: list[Progress] = []
    pace = Pace(told.append, 6)
    pace.pass_by(2)
    pace.step("looking")
    pace.more(1)
    pace.step("looking")
    pace.step("gathering")
    assert told[0] == Progress(3, 6, "looking, about 90s left") or told[0].done == 3
    assert [each.done for each in told] == [3, 4, 5]
    assert all("left" in each.doing for each in told)
