"""Rehearsal: the past comes when it was known, and the record of a run writes the same entries again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import polars as pl
import pytest
from sklearn.tree import DecisionTreeClassifier

import tidemill as tm
from tidemill.base.clock import DAY, HOUR, VirtualClock, parse_time, to_datetime
from tidemill.base.errors import SourceError
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.mill.rehearse import (
    Asked,
    Difference,
    PastReader,
    Record,
    RecordReader,
    Taken,
    content,
    past_questions,
    record,
    rehearse,
    seed,
)
from tidemill.engine.predict import records
from tidemill.ports.journal import Entry
from tidemill.rehearsal import Stage, Trainings, replay_record
from tidemill.spec.system import System

TIME = pl.Datetime("us", "UTC")
START = parse_time("2024-01-20")
TICK_LENGTH = 6 * HOUR

things = tm.Source("things", tm.files("things/*.csv"), key="id", event_time="at", known_at=tm.before("at", "1d"))
results = tm.Source("results", tm.push(), key="id", event_time="at", known_at="reported")
kinds = tm.Source("kinds", tm.files("kinds.csv"), key="kind")
weight = tm.Latest("weight", kinds, by="kind", columns=["kilos"])
seen = tm.Aggregation("seen", results, by="kind", features={"bad": tm.mean("bad", over="2d")})
risk = tm.Model(
    "risk",
    examples=things,
    asked_at="at",
    label=tm.Label(results, pl.col("bad") > 0, within="1d"),
    features=[weight, seen, "x"],
    estimator=DecisionTreeClassifier(max_depth=2, random_state=0),
    split=tm.by_time(test="6d", blocks=1),
    gate=tm.Gate("log_loss", margin=1.0, min_rows=20),
)


def system(*triggers: Any) -> System:
    return tm.System(
        "rehearsal",
        risk,
        monitor=tm.Monitor(drift=tm.psi(), performance=tm.worse_than(0.01)),
        policy=tm.Policy(retrain=triggers, takes="6h"),
        tick="6h",
    )


def times(values: Sequence[int | None]) -> pl.Series:
    return pl.Series([None if value is None else to_datetime(value) for value in values], dtype=TIME)


def versions(known: Sequence[int | None], tick: Sequence[int], *, history: bool, **columns: Any) -> pl.DataFrame:
    height = len(known)
    return pl.DataFrame(
        {
            KNOWN_AT: times(known),
            SEQ: pl.Series(range(height), dtype=pl.Int64),
            TOMBSTONE: [False] * height,
            TICK: times(tick),
            HISTORY: [history] * height,
            **columns,
        }
    )


def past(days: int = 40, a_day: int = 12) -> dict[str, pl.DataFrame]:
    """Return things for ``days`` from ten days before START on, with results half a day later."""
    numbers = range(days * a_day)
    at = [START - 10 * DAY + number * DAY // a_day for number in numbers]
    ids, kind = [f"t{number}" for number in numbers], ["ab"[number % 2] for number in numbers]
    x = [float(number * 7 % 10) for number in numbers]
    bad = [int(each > 4) for each in x]
    done = [each + 12 * HOUR for each in at]
    return {
        "things": versions([each - DAY for each in at], at, history=True, id=ids, at=times(at), kind=kind, x=x),
        "results": versions(
            done, [each + HOUR for each in done], history=False,
            id=ids, at=times(done), reported=times(done), kind=kind, bad=bad,
        ),
        "kinds": versions([START + 99 * DAY] * 2, [START] * 2, history=True, kind=["a", "b"], kilos=[1.5, 2.5]),
    }  # fmt: skip


def test_past_comes_when_it_was_known() -> None:
    clock = VirtualClock(START)
    known = [START + 2 * HOUR, START, START + HOUR, None]
    rows = versions(known, [START + 9 * DAY] * 4, history=True, id=["late", "now", "next", "?"])
    reader = PastReader(things, rows, START, clock)
    assert list(reader.poll(None)) == []  # what is due by the start is there already
    clock.advance_to(START + HOUR)
    (batch,) = reader.poll(None)
    assert batch.rows["id"].to_pylist() == ["next"]
    assert batch.rows.column_names == ["id"]
    clock.advance_to(START + DAY)
    (batch,) = reader.poll(batch.cursor)
    assert batch.rows["id"].to_pylist() == ["late"]
    assert list(reader.poll(batch.cursor)) == []


def test_rows_of_a_live_run_come_when_they_were_ingested() -> None:
    clock = VirtualClock(START)
    known_ahead = versions([START + 5 * DAY], [START + HOUR], history=False, id=["a"])
    reader = PastReader(things, known_ahead, START, clock)
    clock.advance_to(START + HOUR)
    assert len(list(reader.poll(None))) == 1


def test_rows_without_times_are_there_from_the_first() -> None:
    reader = PastReader(kinds, past()["kinds"], START, VirtualClock(START + 100 * DAY))
    assert list(reader.poll(None)) == []


def test_questions_are_answered_as_of_the_tick_before() -> None:
    at = [START - 1, START, START + 7, START + TICK_LENGTH - 1, START + TICK_LENGTH, START + 2 * TICK_LENGTH]
    rows = versions(
        [each - HOUR for each in at], at, history=True, id=list("abcdef"), at=times(at), kind=["a"] * 6, x=[0.0] * 6
    )
    asked = past_questions(risk, rows, [START, START + TICK_LENGTH])
    assert {tick: each.requests["id"].to_list() for tick, each in asked.items()} == {
        START: ["b", "c", "d"],
        START + TICK_LENGTH: ["e"],
    }
    assert asked[START].requests.columns == list(risk.request_columns)


def test_seed_keeps_what_was_known_and_when() -> None:
    stage = Stage(system(), {}, Trainings())
    rows = past()
    seed(stage.mill.system, rows, START, lake=stage.lake, journal=stage.journal, fence=stage.fence)
    stage.mill.start()
    there = stage.rows("things")
    before = rows["things"].filter(pl.col(KNOWN_AT) <= pl.lit(to_datetime(START), dtype=TIME))
    assert there.drop(SEQ, TICK).equals(before.drop(SEQ, TICK))
    assert stage.mill.state.rows["results"] == stage.rows("results").height > 0
    assert stage.mill.state.loaded == {"things", "kinds"}
    with stage.mill.ports.online.snapshot() as snapshot:
        assert snapshot.mark() is not None


def rehearsed(stage: Stage, clock: VirtualClock, ticks: Sequence[int], rows: pl.DataFrame, trainings: Trainings) -> Any:
    asked = {
        tick: Asked(each.model, each.requests, [f"{tick}:{place}" for place in range(each.requests.height)])
        for tick, each in past_questions(risk, rows, ticks).items()
    }
    writer = stage.logs[records.PREDICTIONS].writer()
    return rehearse(stage.mill, clock, ticks, [asked], trainings.load, writer)


def test_only_what_was_delivered_is_in_the_lake() -> None:
    rows, clock, trainings = past(), VirtualClock(START), Trainings()
    readers = {source.name: PastReader(source, rows[source.name], START, clock) for source in (things, results, kinds)}
    stage = Stage(system(tm.every("5d")), readers, trainings)
    seed(stage.mill.system, rows, START, lake=stage.lake, journal=stage.journal, fence=stage.fence)
    stage.mill.start()
    for turned in rehearsed(stage, clock, range(START, START + 12 * DAY, TICK_LENGTH), rows["things"], trainings):
        assert stage.rows("results").filter(pl.col("reported").dt.epoch("us") > turned.tick).is_empty()
        assert stage.rows("things").filter(pl.col("at").dt.epoch("us") > turned.tick + DAY).is_empty()
    assert len(stage.mill.state.model("risk").versions) >= 2
    assert stage.rows(records.PREDICTIONS).height > 100


@pytest.fixture(scope="module")
def live() -> tuple[System, Record]:
    """The record of a run in memory: rows, questions, a call repeated, feedback, requests, and a stand-still."""
    rows, clock, trainings = past(), VirtualClock(START), Trainings()
    ever = -(2**62) - 1
    readers: dict[str, Any] = {
        source.name: PastReader(source, rows[source.name], ever, clock) for source in (things, results, kinds)
    }
    readers["results"] = Halting(readers["results"], clock)
    stage = Stage(system(tm.every("5d")), readers, trainings)
    stage.mill.start()
    feedback = stage.logs[records.FEEDBACK].writer()
    again = stage.logs[records.PREDICTIONS].writer()
    ticks = range(START, START + 14 * DAY, TICK_LENGTH)
    for number, _ in enumerate(rehearsed(stage, clock, ticks, rows["things"], trainings)):
        if number == 20:
            stage.journal.request("retrain", {"model": "risk", "reason": "why not"})
            stage.journal.request("retrain", {"model": "nobody", "reason": "why not"})
        if number == 30:
            back = {"model": "risk", "alias": "champion", "version": 1, "reason": "why not"}
            stage.journal.request("rollback", back)
            stage.journal.request("rollback", {**back, "version": "v77"})
        if number in (10, 33):
            said = records.Feedback(id="same", model="risk", prediction=None, key=["t150"], value=True)
            feedback.append(msgspec.json.encode(said))
    newest = [each.payload for each in stage.logs[records.PREDICTIONS].read({}, limit=10**6)][-1]
    clock.advance_to(ticks[-1] + TICK_LENGTH)
    stage.mill.tick(ticks[-1] + TICK_LENGTH)
    again.append(newest)  # a client that asks again after an answer was lost
    clock.advance_to(ticks[-1] + 2 * TICK_LENGTH)
    stage.mill.tick(ticks[-1] + 2 * TICK_LENGTH)
    return stage.mill.system, record(stage.mill.system, stage.lake, stage.journal)


class Halting:
    """A reader that stands still for a day, saying why in two ways."""

    def __init__(self, inner: Any, clock: VirtualClock) -> None:
        self.inner, self.clock = inner, clock

    def poll(self, cursor: str | None) -> Any:
        day = (self.clock.now() - START) // DAY
        yield from self.inner.poll(cursor)
        if day == 3:
            raise SourceError(f"it is unreadable {'still' if self.clock.now() % DAY else 'now'}")


def last(found: Sequence[tuple[int, Difference | None]]) -> Difference | None:
    return found[-1][1]


def test_replay_writes_the_same_entries(live: tuple[System, Record]) -> None:
    ours, run = live
    seen = [entry.kind for entry in run.entries]
    assert {"halt", "resume", "request", "train", "version", "alias", "watch"} <= set(seen)
    assert seen.count("halt") == 2
    assert [entry.body["refused"] is None for entry in run.entries if entry.kind == "request"].count(False) == 2
    assert any(entry.kind == "commit" and entry.body["rows"] == 0 for entry in run.entries)
    found = list(replay_record(ours, run))
    assert found == [(tick, None) for tick in run.ticks]


def test_replay_names_the_first_difference(live: tuple[System, Record]) -> None:
    ours, run = live
    number = next(entry.number for entry in run.entries if entry.kind == "watch")
    entries = [
        dataclasses.replace(entry, body={**entry.body, "version": 5}) if entry.number == number else entry
        for entry in run.entries
    ]
    found = list(replay_record(ours, dataclasses.replace(run, entries=entries)))
    difference = last(found)
    assert difference is not None
    assert difference.live == entries[number - 1]
    assert difference.replayed == run.entries[number - 1]
    assert [each for _, each in found[:-1]] == [None] * (len(found) - 1)


def test_replay_misses_entries_of_the_live_run(live: tuple[System, Record]) -> None:
    ours, run = live
    extra = Entry(len(run.entries) + 1, run.ticks[-1], "halt", {"source": "things", "reason": "?"})
    difference = last(list(replay_record(ours, dataclasses.replace(run, entries=[*run.entries, extra]))))
    assert difference == Difference(extra, None)


def test_replay_finds_entries_too_many(live: tuple[System, Record]) -> None:
    ours, run = live
    difference = last(list(replay_record(ours, dataclasses.replace(run, entries=run.entries[:-1]))))
    assert difference == Difference(None, run.entries[-1])


def test_replay_notices_another_declaration(live: tuple[System, Record]) -> None:
    _, run = live
    difference = last(list(replay_record(system(tm.every("6d")), run)))
    assert difference is not None
    assert difference.live is not None
    assert difference.live.kind == "declare"


def test_record_reader_brings_each_commit_at_its_tick() -> None:
    clock = VirtualClock(START)
    rows = versions([START] * 3, [START] * 3, history=False, id=["a", "b", "c"])
    taken = [
        Taken(START, rows[:2], ()),
        Taken(START + HOUR, rows[2:], (('{"id": 1}', "it is bad"),)),
    ]
    reader = RecordReader(taken, [(START + HOUR, "broken"), (START + 2 * HOUR, None)], clock)
    (first,) = reader.poll(None)
    assert (first.rows["id"].to_pylist(), first.broken) == (["a", "b"], ())
    clock.advance_to(START + HOUR)
    batches = reader.poll(first.cursor)
    second = next(batches)
    assert (second.rows["id"].to_pylist(), second.broken) == (["c"], (('{"id": 1}', "it is bad"),))
    with pytest.raises(SourceError, match=r"^broken$"):
        next(batches)
    clock.advance_to(START + 2 * HOUR)
    assert list(reader.poll(second.cursor)) == []


def test_content_leaves_out_what_is_not_decided() -> None:
    one = Entry(1, 2, "commit", {"b": 1, "a": [0.1, None]}, {"version": 7})
    assert content(one) == b'[1,2,"commit",{"a":[0.1,null],"b":1}]'
