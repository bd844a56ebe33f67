from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.adapters.memory_lake import MemoryLake
from tidemill.adapters.row_reader import RowReader
from tidemill.base.clock import DAY, HOUR, parse_time, to_datetime
from tidemill.base.errors import DeclarationError
from tidemill.engine.table.derive import Derivation, by_row, cut_test, evaluate, replay
from tidemill.engine.table.ingest import Intake
from tidemill.engine.table.table import visible
from tidemill.spec.source import Source, Table, files, rows
from tidemill.spec.time import after

T0 = parse_time("2013-01-01")
TICK = parse_time("2014-01-01")
TIME = pl.Datetime("us", "UTC")


class Free:
    epoch = 1

    def check(self) -> None:
        pass


flights = Source("flights", files("*"), key="id", event_time="at", known_at="seen", tombstone="gone")


def frame(*data: tuple[Any, ...]) -> pl.DataFrame:
    """Rows (id, hours of event, hours of known-at, x[, tombstone])."""
    full = [(*row, False) if len(row) == 4 else row for row in data]
    whole = dict.fromkeys(("id", "at", "seen", "x"), pl.Int64)
    made = pl.DataFrame(full, {**whole, "gone": pl.Boolean}, orient="row")
    made = made.with_columns((pl.col("at", "seen") * HOUR + T0).cast(TIME))
    return made.with_columns(
        pl.col("seen").alias("_known_at"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("_seq"),
        pl.col("gone").alias("_tombstone"),
        pl.col("seen").alias("_tick"),
        pl.lit(value=True).alias("_history"),
    )


def table(function: Any, **more: Any) -> Table:
    declared: dict[str, Any] = {
        "key": ("id",), "event_time": "at", "known_at": "seen", "by_row": False, "sources": (flights,), **more
    }  # fmt: skip
    return Table("made", function, **declared)


def running(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Honest: each row reads rows known up to its own known-at."""
    return flights.sort("seen", "id").select("id", "at", "seen", pl.col("x").cum_sum().alias("total"))


def whole_year(flights: pl.LazyFrame) -> pl.LazyFrame:
    return flights.select("id", "at", "seen", (pl.col("x") - pl.col("x").mean()).alias("centred"))


def double(flights: pl.LazyFrame) -> pl.LazyFrame:
    return flights.filter(pl.col("x") > 0).select("id", "at", y=pl.col("x") * 2, note=pl.lit("n"))


# The function's rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda f: f.select("at", "seen"), "no column 'id', which is declared"),
        (lambda f: f.select("id", "seen", att="at"), "no column 'at'.*Did you mean 'att'"),
        (lambda f: pl.concat([f, f]), r"more than one row with the key \{'id': 1\}"),
        (lambda f: f.with_columns(id=pl.lit(None, pl.Int64)), "null in their key"),
        (lambda f: f.with_columns(at="x"), "'at' is declared as a time"),
        (lambda f: f.select(pl.col("nothing")), "its function failed: ColumnNotFoundError"),
        (lambda f: 3, "returned a int"),
    ],
)
def test_faulty_functions_are_named(function: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=f"table 'made': .*{message}"):
        evaluate(table(function), {"flights": frame((1, 0, 1, 5))})


def test_functions_see_user_columns_only() -> None:
    seen: list[list[str]] = []

    def spy(flights: pl.LazyFrame) -> pl.LazyFrame:
        seen.append(flights.collect_schema().names())
        return flights

    evaluate(table(spy), {"flights": frame((1, 0, 1, 5))})
    assert seen == [["id", "at", "seen", "x", "gone"]]


# Whole tables -----------------------------------------------------------------------------------------------------


def feed(data: list[dict[str, Any]]) -> tuple[Intake, Derivation, MemoryLake]:
    lake = MemoryLake()
    source = Source("flights", rows(lambda _: []), key="id", event_time="at", known_at="seen", tombstone="gone")
    mill = Intake([source], {"flights": RowReader(lambda done: data[done:])}, lake, Free())
    return mill, Derivation(lake, Free()), lake


def shown(lake: MemoryLake, made: Table, t: int, *columns: str) -> list[Any]:
    return sorted(visible(pl.DataFrame(lake.scan("made")), made, t).select(*columns).rows())


def row(id: int, hour: int, x: int, *, seen: int | None = None, gone: bool = False) -> dict[str, Any]:
    known = to_datetime(T0 + (hour if seen is None else seen) * HOUR)
    return {"id": id, "at": to_datetime(T0 + hour * HOUR), "seen": known, "x": x, "gone": gone}


def test_each_tick_appends_the_differences_only() -> None:
    made = table(running)
    data = [row(1, 0, 1), row(2, 1, 10)]
    mill, keep, lake = feed(data)
    list(mill.take("flights", tick=TICK, history=True))
    first = keep.update(made, tick=TICK, code="a", history=True)
    assert first is not None
    assert first.rows["_known_at"].dt.epoch("us").to_list() == [T0, T0 + HOUR]
    assert first.rows["_history"].all()
    assert keep.update(made, tick=TICK + 1, code="a") is None

    data += [row(3, 2, 100), row(1, 0, 2), row(2, 1, 0, gone=True)]
    list(mill.take("flights", tick=TICK + DAY))
    second = keep.update(made, tick=TICK + DAY, code="a")
    assert second is not None
    assert sorted(second.rows.select("id", "total", "_tombstone").rows()) == [
        (1, 2, False), (2, 11, True), (3, 102, False)
    ]  # fmt: skip
    assert set(second.rows["_known_at"].dt.epoch("us")) == {TICK + DAY}
    assert json.loads(second.commit.entry) == {
        "table": "made", "rows": 3, "quarantined": 0, "first_seq": 2, "next_seq": 5, "tick": TICK + DAY
    }  # fmt: skip
    assert shown(lake, made, TICK + DAY, "id", "total") == [(1, 1), (2, 11)]
    assert shown(lake, made, TICK + DAY + 1, "id", "total") == [(1, 2), (3, 102)]


def test_rows_known_in_the_future_wake_the_table() -> None:
    made = table(running)
    data = [row(1, 0, 1), row(2, 1, 10, seen=(TICK - T0) // HOUR + 24)]
    mill, keep, lake = feed(data)
    list(mill.take("flights", tick=TICK, history=True))
    keep.update(made, tick=TICK, code="a", history=True)
    assert keep.update(made, tick=TICK + DAY - 1, code="a") is None
    woken = keep.update(made, tick=TICK + DAY, code="a")
    assert woken is not None
    assert woken.rows["id"].to_list() == [2]
    assert shown(lake, made, TICK + DAY + 1, "id", "total") == [(1, 1), (2, 11)]


def test_a_later_declared_known_at_is_kept_and_not_appended_twice() -> None:
    made = table(running, known_at=after("at", "900d"))
    data = [row(1, 0, 1)]
    mill, keep, _ = feed(data)
    list(mill.take("flights", tick=TICK))
    first = keep.update(made, tick=TICK, code="a")
    assert first is not None
    assert first.rows["_known_at"].dt.epoch("us").to_list() == [T0 + 900 * DAY]
    again = keep.update(made, tick=TICK + 1, code="b")
    assert again is not None
    assert again.rows.is_empty()


def test_changed_columns_ask_for_a_new_name() -> None:
    mill, keep, _ = feed([row(1, 0, 1)])
    list(mill.take("flights", tick=TICK))
    keep.update(table(running), tick=TICK, code="a")
    with pytest.raises(DeclarationError, match=r"have changed: .*centred.*new name"):
        keep.update(table(whole_year), tick=TICK, code="b")


_versions = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(6, 12), st.integers(0, 3), st.booleans()), max_size=8
)


def _first_versions_live(data: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """In order of known-at, and no tombstone before its key."""
    seen: set[int] = set()
    kept = []
    for each in sorted(data, key=lambda each: each[2]):
        if each[4] and each[0] not in seen:
            continue
        seen.add(each[0])
        kept.append(each)
    return kept


@settings(deadline=None, max_examples=80)
@given(_versions, st.integers(5, 14))
def test_history_replayed_is_the_function_of_the_inputs_at_every_time(data: list[tuple[Any, ...]], hour: int) -> None:
    """Rule 8, at any t, corrections included."""
    made, inputs = table(_by_time), {"flights": frame(*_first_versions_live(data))}
    built = replay(made, inputs, tick=TICK)
    built = built.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("_seq"))
    for t in (T0 + hour * HOUR, T0 + hour * HOUR + 1):
        expected = evaluate(made, {"flights": visible(inputs["flights"], flights, t)})
        got = visible(built, made, t).select(expected.columns)
        assert sorted(got.rows()) == sorted(expected.rows())


def _by_time(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Honest, ties included: x summed over the rows known no later than the row; rows of x = 0 are left out."""
    ties = flights.group_by("seen").agg(pl.col("x").sum()).sort("seen")
    totals = ties.select("seen", pl.col("x").cum_sum().alias("total"))
    return flights.filter(pl.col("x") > 0).join(totals, on="seen").select("id", "at", "seen", "total")


# Row by row -------------------------------------------------------------------------------------------------------


def test_row_by_row_runs_on_new_rows_and_keeps_their_known_at() -> None:
    counted: list[int] = []

    def counting(flights: pl.LazyFrame) -> pl.LazyFrame:
        counted.append(flights.select(pl.len()).collect().item())
        return double(flights)

    made = table(counting, by_row=True, known_at=None)
    data = [row(1, 0, 1, seen=5), row(2, 1, 2, seen=3)]
    mill, keep, lake = feed(data)
    list(mill.take("flights", tick=TICK, history=True))
    first = keep.update(made, tick=TICK, code="a", history=True)
    assert first is not None
    assert first.rows["_known_at"].dt.epoch("us").to_list() == [T0 + 5 * HOUR, T0 + 3 * HOUR]
    data += [row(1, 0, -1), row(2, 1, 0, gone=True), row(3, 0, 7), row(3, 0, 8)]
    list(mill.take("flights", tick=TICK + DAY))
    keep.update(made, tick=TICK + DAY, code="a")
    assert counted == [2, 2, 1]
    assert shown(lake, made, TICK, "id", "y") == [(1, 2), (2, 4)]
    assert shown(lake, made, TICK + DAY + 1, "id", "y") == [(3, 16)]


@settings(deadline=None, max_examples=60)
@given(_versions, st.integers(5, 14), st.integers(0, 8))
def test_row_by_row_is_the_function_at_every_time(data: list[tuple[Any, ...]], hour: int, split: int) -> None:
    made, versions = table(double, by_row=True, known_at=None), frame(*data)
    parts = [by_row(made, versions.head(split)), by_row(made, versions.slice(split))]
    built = pl.concat(parts).with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("_seq"))
    t = T0 + hour * HOUR
    expected = evaluate(made, {"flights": visible(versions, flights, t)})
    assert sorted(visible(built, made, t).select(expected.columns).rows()) == sorted(expected.rows())


def test_row_by_row_takes_the_later_of_the_two_known_ats() -> None:
    made = table(double, by_row=True, known_at=after("at", "4h"))
    built = by_row(made, frame((1, 0, 6, 1), (2, 5, 6, 1)))
    assert built["_known_at"].dt.epoch("us").to_list() == [T0 + 6 * HOUR, T0 + 9 * HOUR]


def test_row_by_row_keeps_the_key() -> None:
    with pytest.raises(DeclarationError, match="key of that input"):
        by_row(table(double, by_row=True, key=("at",)), frame((1, 0, 1, 5)))
    moved = table(lambda f: f.with_columns(id=pl.col("id") + 1), by_row=True)
    with pytest.raises(DeclarationError, match="a row comes of no input row"):
        by_row(moved, frame((1, 0, 1, 5)))


# The cut test -----------------------------------------------------------------------------------------------------

CUTS = [T0 + hour * HOUR for hour in range(12)]
DATA = frame((1, 0, 1, 5), (2, 1, 2, 7), (3, 2, 4, 1), (4, 3, 9, 8))


def test_honest_functions_pass() -> None:
    assert cut_test(table(running), {"flights": DATA}, CUTS) is None
    assert cut_test(table(double, by_row=True, known_at=None), {"flights": DATA}, CUTS) is None
    late = table(running, known_at=after("at", "8h"))
    assert cut_test(late, {"flights": DATA}, CUTS) is None


def test_whole_year_encodings_are_caught_with_an_example() -> None:
    fault = cut_test(table(whole_year), {"flights": DATA}, CUTS)
    assert fault is not None
    assert fault.where == "table 'made'"
    assert "at 2013-01-01T02:00:00Z 'centred' of the row id=1 is 0.0, but -0.25 once more is known" in fault.what

    def centred(flights: pl.LazyFrame) -> pl.LazyFrame:
        return whole_year(flights).drop("seen")

    assert cut_test(table(centred, by_row=True, known_at=None), {"flights": DATA}, CUTS) is not None


def test_a_known_at_earlier_than_the_inputs_is_caught() -> None:
    fault = cut_test(table(running, known_at="at"), {"flights": DATA}, CUTS)
    assert fault is not None
    assert "is missing" in fault.what


def test_rows_that_come_and_go_are_caught() -> None:
    def newest(flights: pl.LazyFrame) -> pl.LazyFrame:
        return flights.filter(pl.col("seen") == pl.col("seen").max())

    fault = cut_test(table(newest), {"flights": DATA}, CUTS)
    assert fault is not None
    assert "is gone" in fault.what


def test_corrections_between_cuts_do_not_count_against_the_function() -> None:
    corrected = frame((1, 0, 1, 5), (2, 1, 2, 7), (1, 0, 3, 50), (3, 2, 5, 1))
    assert cut_test(table(_by_time), {"flights": corrected}, CUTS) is None
