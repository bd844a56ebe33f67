"""The mill over memory adapters: what a tick does, and that whatever was cut off is mended by the next start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl
import pytest
from sklearn.tree import DecisionTreeClassifier

import tidemill as tm
from tidemill.adapters.log_reader import LogReader
from tidemill.adapters.memory_journal import MemoryJournal, MemoryLease
from tidemill.adapters.memory_lake import MemoryLake
from tidemill.adapters.memory_log import MemoryLog
from tidemill.adapters.memory_models import MemoryModels
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.adapters.row_reader import RowReader
from tidemill.base.clock import DAY, HOUR, format_time, parse_time, to_datetime
from tidemill.base.errors import FencedError, SourceError, TrainingError, WorkspaceError
from tidemill.engine.example.ledger import prediction_rows
from tidemill.engine.feature.lookup import Lookup, features_at
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.mill import mill as mills
from tidemill.engine.mill.decider import tables_of
from tidemill.engine.mill.mill import Mill, Ports, Turned
from tidemill.engine.predict.predict import Logged
from tidemill.engine.predict.records import PREDICTIONS, RESERVED_TABLES
from tidemill.engine.predict.state import fold
from tidemill.engine.table import ingest
from tidemill.engine.train.train import Order
from tidemill.ports.executor import Progress
from tidemill.ports.online import Change
from tidemill.ports.reader import Batch
from tidemill.project import carry_out
from tidemill.spec.source import Table
from tidemill.spec.system import System

START = parse_time("2020-03-01")
VISITS, OUTCOMES = "visits", "outcomes"


def per_day(visits: pl.LazyFrame) -> pl.LazyFrame:
    days = visits.group_by("place", pl.col("at").dt.truncate("1d").alias("day")).agg(pl.len().alias("visits"))
    return days.with_columns((pl.col("day") + pl.duration(days=1)).alias("known"))


def declare(**policy: Any) -> System:
    visits = tm.Source(
        VISITS, tm.files("visits.csv"), key="id", event_time="at", known_at=tm.before("at", "3d"),
        checks=[tm.between("amount", 0, 100)],
    )  # fmt: skip
    outcomes = tm.Source(OUTCOMES, tm.files("outcomes.csv"), key="id", event_time="told")
    notes = tm.Source("notes", tm.push(), key="id", event_time="at")
    recent = tm.Aggregation("recent", outcomes, by="place", features={"n": tm.count(over="7d")})
    days = Table("days", per_day, ("place", "day"), "day", "known", by_row=False, sources=(visits,))
    busy = tm.Latest("busy", days, by="place", columns=["visits"], within="5d")
    note = tm.Latest("note", notes, by="place", columns=["score"], within="20d")
    good = tm.Model(
        "good", examples=visits, asked_at="at", label=tm.Label(outcomes, "good", within="1d"),
        features=[recent, note, busy, "amount"], estimator=DecisionTreeClassifier(max_depth=2, min_samples_leaf=5),
        split=tm.by_time(test="8d"), gate=tm.Gate("brier", margin=1.0, min_rows=10), metrics=["brier"],
    )  # fmt: skip
    return tm.System("small", good, tick="1d", policy=tm.Policy(takes="1d", **policy))


def visit(number: int, day: float, amount: int | None = None) -> dict[str, Any]:
    at = format_time(START + int(day * DAY) + HOUR)
    return {
        "id": f"v{number}",
        "at": at,
        "place": "ab"[number % 2],
        "amount": number % 100 if amount is None else amount,
    }


def told(number: int, day: float, good: bool | None = None) -> dict[str, Any]:
    good = number % 100 > 50 if good is None else good
    return {
        "id": f"v{number}",
        "told": format_time(START + int(day * DAY) + 3 * HOUR),
        "place": "ab"[number % 2],
        "good": good,
    }


@dataclass
class Inputs:
    """What the sources hold; a ``fault`` is raised once everything has been read."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {VISITS: [], OUTCOMES: []})
    faults: dict[str, str] = field(default_factory=dict)

    def load(self, days: int = 20) -> None:
        """Add a history of ``days`` days before START, seven visits a day."""
        for number in range(7 * days):
            day = number / 7 - days
            self.rows[VISITS].append(visit(number * 13, day))
            self.rows[OUTCOMES].append(told(number * 13, day))


@dataclass
class Reader:
    inputs: Inputs
    name: str

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        rows = RowReader(lambda taken: self.inputs.rows[self.name][taken : taken + 40])
        while batch := next(rows.poll(cursor), None):
            yield batch
            cursor = batch.cursor
        if self.name in self.inputs.faults:
            raise SourceError(self.inputs.faults[self.name])


@dataclass
class Job:
    outcome: dict[str, Any] | TrainingError
    cancelled: bool = False

    def finished(self) -> bool:
        return True

    def progress(self) -> Progress:
        return Progress(1, 2, "fitting")

    def result(self) -> dict[str, Any]:
        if isinstance(self.outcome, TrainingError):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Executor:
    """Trains at once, unless told to fail, and remembers what it was asked for."""

    def __init__(self, system: System, lake: MemoryLake) -> None:
        self.orders: list[Order] = []
        self.fault: str | None = None
        self.jobs: list[Job] = []
        self._system, self._lake, self._models = system, lake, MemoryModels()

    def submit(self, task: str, payload: dict[str, Any]) -> Job:
        assert task == "train"
        order = Order(**json.loads(json.dumps(payload)))
        self.orders.append(order)
        outcome: dict[str, Any] | TrainingError
        if self.fault is not None:
            outcome = TrainingError(self.fault)
        else:
            (model,) = self._system.models
            frames = {
                name: pl.DataFrame(self._lake.scan(name)).head(order.next_seq[name])
                for name in tables_of(model)
                if self._lake.head(name) is not None
            }
            outcome = carry_out(model, order, frames, None, lambda _: None, self._models)
        self.jobs.append(Job(outcome))
        return self.jobs[-1]


class Stage:
    """One system in memory, whose worker can die and start again."""

    def __init__(self, system: System | None = None) -> None:
        self.system = system or declare()
        self.inputs = Inputs()
        self.lake, self.journal, self.online = MemoryLake(), MemoryJournal(), MemoryOnline()
        self.executor = Executor(self.system, self.lake)
        self.logs = {name: MemoryLog() for name in RESERVED_TABLES}
        self.pushed = MemoryLog()
        self.push = self.pushed.writer()
        self.note(0)
        self.mill, self.lease = self.worker()

    def note(self, number: int) -> None:
        row = {"id": f"n{number}", "at": format_time(START - DAY), "place": "a", "score": number / 3}
        self.push.append(json.dumps({"rows": [row], "idempotency_key": f"k{number}"}).encode())

    def worker(self, **ports: Any) -> tuple[Mill, MemoryLease]:
        """Return a mill that has taken over the lease, over these parts or those given."""
        lease = self.journal.take_over()
        readers = {name: Reader(self.inputs, name) for name in self.inputs.rows}
        given: dict[str, Any] = {
            "lake": self.lake, "journal": self.journal, "online": self.online, "executor": self.executor,
            "readers": {**readers, "notes": LogReader(self.pushed)}, "logs": self.logs,
            "pushed": {"notes": self.pushed}, "scratch": lambda: nullcontext(MemoryScratch()), **ports,
        }  # fmt: skip
        return Mill(self.system, Ports(**given), lease), lease

    def restart(self) -> None:
        self.mill, self.lease = self.worker()
        self.mill.start()
        assert fold(self.journal.read()) == self.mill.state

    def tick(self, number: int) -> Turned:
        turned = self.mill.tick(START + number * DAY)
        assert fold(self.journal.read()) == self.mill.state
        return turned

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.journal.read()]

    def rows(self, table: str) -> pl.DataFrame:
        return pl.DataFrame(self.lake.scan(table))


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.inputs.load()
    made.mill.start()
    return made


# Ticks ----------------------------------------------------------------------------------------------------------------


def test_the_first_load_keeps_known_at_and_what_comes_later_does_not(stage: Stage) -> None:
    stage.tick(0)
    stage.inputs.rows[VISITS].append(visit(900, -10))  # late by ten days
    stage.tick(1)
    rows = stage.rows(VISITS)
    assert rows["_history"].to_list() == [True] * 140 + [False]
    assert rows["_known_at"][0] == to_datetime(START - 20 * DAY + HOUR - 3 * DAY)
    assert rows["_known_at"][-1] == to_datetime(START + DAY)
    assert [entry.body["source"] for entry in stage.journal.read(kinds=["loaded"])] == [OUTCOMES, VISITS]


def called(*, history: bool) -> System:
    """Return the system with visits from a function."""
    system = declare()
    object.__setattr__(system.models[0].examples, "reader", tm.rows(lambda taken: [], history=history))
    return system


@pytest.mark.parametrize("history", [False, True])
def test_the_first_load_of_a_function_is_history_where_that_is_declared(history: bool) -> None:
    stage = Stage(called(history=history))
    stage.inputs.load()
    stage.mill.start()
    stage.tick(0)
    stage.inputs.rows[VISITS].append(visit(900, -10))
    stage.tick(1)
    rows = stage.rows(VISITS)
    assert rows["_history"].to_list() == [history] * 140 + [False]
    assert rows["_known_at"][0] == to_datetime(START - 23 * DAY + HOUR if history else START)
    assert rows["_known_at"][-1] == to_datetime(START + DAY)
    assert (VISITS in stage.mill.state.loaded) == history
    # Rows taken in live would have come as history from now on, and the other way round.
    stage.system = called(history=not history)
    with pytest.raises(WorkspaceError, match=r"under another declaration \(history"):
        stage.restart()


def test_a_tick_with_nothing_new_writes_nothing_but_its_end(stage: Stage) -> None:
    for number in range(3):
        stage.tick(number)
    number = stage.journal.last()
    versions = {table: stage.lake.head(table) for table in stage.lake.tables()}
    turned = stage.tick(3)
    assert turned.entries == ()
    assert dict(turned.rows) == {}
    assert stage.journal.last() == number
    assert {table: stage.lake.head(table) for table in stage.lake.tables()} == versions
    assert stage.journal.ticks()[-1] == START + 3 * DAY
    assert stage.mill._online.applied() is not None
    stage.restart()  # neither does a start
    assert stage.journal.last() == number


def test_a_model_is_trained_judged_and_promoted_when_its_time_has_come(stage: Stage) -> None:
    assert [entry.kind for entry in stage.tick(0).entries][-1] == "train"
    assert stage.mill.progress()["good"].doing == "fitting"
    assert [entry.kind for entry in stage.tick(1).entries] == ["judge", "version", "alias"]
    assert stage.mill.progress() == {}
    state = stage.mill.state.model("good")
    assert state.aliases == {"champion": 1}
    assert state.training is None
    assert stage.executor.orders[0].as_of == START + 1
    assert stage.journal.step(state.versions[0].training) is not None


def test_a_model_says_what_it_waits_for() -> None:
    stage = Stage()
    stage.mill.start()
    awaited: list[str] = []
    for number, (name, row) in enumerate([(VISITS, visit(0, 4)), (OUTCOMES, told(0, 0)), (VISITS, visit(1, 6))]):
        stage.tick(number)
        awaited += stage.mill.waits(START + number * DAY).values()
        stage.inputs.rows[name].append(row)
    assert awaited == [
        f"the first rows of {VISITS}, its examples",
        f"the first rows of {OUTCOMES}, its labels",
        f"an example that is old enough to have its label; the first is due at {format_time(START + 5 * DAY + HOUR)}",
    ]


def test_a_source_that_stands_still_says_so_once_and_goes_on(stage: Stage) -> None:
    stage.tick(0)
    stage.inputs.faults[VISITS] = "visits.csv was rewritten"
    stage.inputs.rows[OUTCOMES].append(told(901, 0))
    turned = stage.tick(1)
    assert [(each.kind, each.body) for each in turned.entries if each.kind == "halt"] == [
        ("halt", {"source": VISITS, "reason": "visits.csv was rewritten"})
    ]
    assert turned.rows[OUTCOMES] == 1  # the others are not held up
    assert "halt" not in [each.kind for each in stage.tick(2).entries]
    stage.restart()
    assert "halt" not in [each.kind for each in stage.tick(3).entries]  # it is remembered over a start
    stage.inputs.faults[VISITS] = "another fault"
    assert [each.kind for each in stage.tick(4).entries] == ["halt"]
    del stage.inputs.faults[VISITS]
    stage.inputs.rows[VISITS].append(visit(901, 9))
    assert [each.kind for each in stage.tick(5).entries] == ["commit", "resume", "commit"]


def test_a_first_load_that_stood_still_goes_on_as_history(stage: Stage) -> None:
    later = stage.inputs.rows[VISITS][70:]
    del stage.inputs.rows[VISITS][70:]
    stage.inputs.faults[VISITS] = "the second file is damaged"
    stage.tick(0)
    assert stage.mill.state.loaded == {OUTCOMES}
    del stage.inputs.faults[VISITS]
    stage.inputs.rows[VISITS] += later
    stage.tick(1)
    assert stage.mill.state.loaded == {OUTCOMES, VISITS}
    assert stage.rows(VISITS)["_history"].all()
    check_online(stage)


def check_online(stage: Stage) -> None:
    """Assert that online state answers as the tables do."""
    (model,) = stage.system.models
    asked = stage.rows(VISITS).head(20)
    found, applied = Lookup(model, stage.online).features(asked)
    frames = {name: stage.rows(name) for name in tables_of(model)}
    assert dict(applied.next_seq) == dict(stage.mill.state.rows)
    assert found.equals(features_at(model, frames, asked, applied))
    assert found["recent__n_7d"].sum() > 0


# Requests -------------------------------------------------------------------------------------------------------------


def test_a_training_by_hand_waits_for_the_one_under_way(stage: Stage) -> None:
    stage.tick(0)
    stage.journal.request("retrain", {"model": "good", "reason": "because"})
    assert "train" not in [each.kind for each in stage.tick(0).entries]
    assert len(stage.journal.requests()) == 1
    turned = stage.tick(1)
    (train,) = [each for each in turned.entries if each.kind == "train"]
    assert train.body["reasons"] == ["asked for by hand: because"]
    assert stage.journal.requests() == ()


def test_an_alias_is_pointed_by_hand(stage: Stage) -> None:
    for number in range(2):
        stage.tick(number)
    stage.journal.request("rollback", {"model": "good", "alias": "trusted", "version": "1", "reason": "it is good"})
    stage.tick(2)
    assert stage.mill.state.model("good").aliases == {"champion": 1, "trusted": 1}
    assert stage.journal.requests() == ()


def test_a_request_for_what_there_is_not_is_refused_and_the_mill_turns_on(stage: Stage) -> None:
    stage.tick(0)
    stage.journal.request("rollback", {"model": "good", "alias": "champion", "version": "7", "reason": "x"})
    stage.journal.request("retrain", {"model": "gone", "reason": "x"})
    turned = stage.tick(1)
    assert stage.journal.requests() == ()
    said = [json.dumps(entry.body) for entry in turned.entries]
    assert any("There is no version 7" in each for each in said)
    assert any("There is no model 'gone'" in each for each in said)
    assert stage.tick(2).entries == ()


# Trainings ------------------------------------------------------------------------------------------------------------


def test_a_training_that_fails_is_journaled_and_tried_again_when_labels_have_matured() -> None:
    stage = Stage(declare(retrain=[]))
    stage.inputs.load()
    stage.mill.start()
    stage.executor.fault = "the estimator refused\nwith a long story"
    stage.tick(0)
    stage.executor.fault = None
    entries = stage.tick(1).entries
    failed = next(each for each in entries if each.kind == "fail")
    assert failed.body["reason"] == "the estimator refused"
    assert failed.meta == {"error": "the estimator refused\nwith a long story"}
    again = next(each for each in entries if each.kind == "train")
    assert again.body["reasons"] == ["there is no champion yet, and labels have matured since the last try"]
    assert "alias" in [each.kind for each in stage.tick(2).entries]


def test_a_training_under_way_is_taken_up_again(stage: Stage) -> None:
    stage.tick(0)
    stage.restart()
    assert len(stage.executor.orders) == 2
    assert stage.executor.orders[0] == stage.executor.orders[1]
    assert [each.kind for each in stage.tick(1).entries] == ["judge", "version", "alias"]


def test_a_training_whose_result_is_known_is_not_computed_again(stage: Stage) -> None:
    stage.tick(0)
    assert set(stage.mill.results()) == {"good"}
    stage.restart()
    assert len(stage.executor.orders) == 1
    assert [each.kind for each in stage.tick(1).entries] == ["judge", "version", "alias"]


def test_stopping_cancels_what_is_under_way(stage: Stage) -> None:
    stage.tick(0)
    stage.mill.stop()
    assert stage.executor.jobs[0].cancelled
    assert stage.mill.progress() == {}


# Recovery -------------------------------------------------------------------------------------------------------------


class CutError(Exception):
    """The process dies here."""


class Dying:
    """A part of the outside world; the process dies before or after the ``nth`` call of one of its methods."""

    def __init__(self, part: Any, method: str, nth: int, *, after: bool) -> None:
        self._part, self._method, self._left, self._after = part, method, nth, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name != self._method:
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise CutError
            result = found(*args, **kwargs)
            if self._left == 0:
                raise CutError
            return result

        return called


def story(stage: Stage, cut: Callable[[int], Mapping[str, Any]]) -> int:
    """Turn six eventful ticks. ``cut`` gives the parts that die at a tick; the worker then starts again.

    Returns the number of deaths.
    """
    deaths = 0
    for number in range(6):
        if number == 0:
            stage.inputs.load()
        else:
            stage.note(number)
            for place in range(4):
                stage.inputs.rows[VISITS].append(visit(1000 * number + place, number + place / 10))
                stage.inputs.rows[OUTCOMES].append(told(1000 * number + place, number - 1 + place / 10))
            stage.inputs.rows[VISITS].append(visit(1000 * number + 9, number, amount=900))  # to the quarantine
            log(stage, number)
        if number == 2:
            stage.journal.request("retrain", {"model": "good", "reason": "because"})
        parts = cut(number)
        if parts:
            stage.mill, stage.lease = stage.worker(**parts)
            try:
                stage.mill.start()
                stage.tick(number)
            except CutError:
                deaths += 1
            stage.restart()
        if START + number * DAY not in stage.journal.ticks():
            stage.tick(number)
    return deaths


def log(stage: Stage, number: int) -> None:
    """Log a prediction, twice, as a client has it that asks again."""
    one = Logged(
        id=f"p{number}", model="good", version=1, route="champion", asked=START + (number - 1) * DAY + 1, journal=1,
        nonce="x", applied={}, key=[f"v{number}"], request={}, features={"amount": 1.0}, prediction=0.5,
        columns=msgspec.Raw(b'["amount"]'),
    )  # fmt: skip
    for _ in range(2):
        stage.logs[PREDICTIONS].writer().append(msgspec.json.encode(one))


def remains(stage: Stage) -> tuple[dict[str, pl.DataFrame], list[tuple[int, str, str]]]:
    entries = sorted((entry.tick, entry.kind, json.dumps(entry.body)) for entry in stage.journal.read())
    return {table: stage.rows(table) for table in stage.lake.tables()}, entries


@pytest.fixture(scope="module")
def unbroken() -> tuple[dict[str, pl.DataFrame], list[tuple[int, str, str]]]:
    stage = Stage()
    stage.mill.start()
    story(stage, lambda _: {})
    assert [entry.body["version"] for entry in stage.journal.read(kinds=["alias"])] == [1, 2]
    return remains(stage)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("part", "method", "nth", "after"),
    [
        *(("lake", "append", nth, False) for nth in range(1, 9)),
        *(
            (part, method, 1, after)
            for part, method in (
                ("journal", "append"),
                ("journal", "record_step"),
                ("journal", "end_tick"),
                ("online", "apply"),
                ("executor", "submit"),
            )
            for after in (False, True)
        ),
    ],
)
def test_what_was_cut_off_is_mended_by_the_next_start(
    unbroken: tuple[dict[str, pl.DataFrame], Sequence[Any]], number: int, part: str, method: str, nth: int, after: bool
) -> None:
    stage = Stage()
    stage.mill.start()
    story(stage, lambda at: {part: Dying(getattr(stage, part), method, nth, after=after)} if at == number else {})
    tables, entries = remains(stage)
    assert entries == unbroken[1]
    assert tables.keys() == unbroken[0].keys()
    for name, rows in tables.items():
        assert rows.equals(unbroken[0][name], null_equal=True), name
    check_online(stage)


@pytest.mark.parametrize("source", [OUTCOMES, VISITS])
def test_a_first_load_of_several_commits_goes_on_as_history_after_a_crash(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(ingest, "COMMIT_ROWS", 50)  # of the 140 rows
    unbroken, cut = Stage(), Stage()
    for stage in (unbroken, cut):
        stage.inputs.load()
        stage.mill.start()
    unbroken.tick(0)
    cut.mill, cut.lease = cut.worker(lake=Dying(cut.lake, "append", 5 if source == OUTCOMES else 7, after=False))
    cut.mill.start()
    with pytest.raises(CutError):
        cut.tick(0)
    assert 0 < cut.rows(source).height < 140
    cut.restart()  # online state is brought up to what was loaded, and then has to go back
    cut.tick(0)
    check_online(cut)
    assert cut.mill.state.loaded == {OUTCOMES, VISITS}
    for name, rows in remains(unbroken)[0].items():
        assert rows.equals(cut.rows(name), null_equal=True), name


def test_online_state_ahead_of_the_journal_or_of_other_views_is_rebuilt(stage: Stage) -> None:
    stage.tick(0)
    ahead = {**stage.mill.state.rows, VISITS: 10_000}
    OnlineState(stage.system.views, stage.online, epoch=stage.lease.epoch).apply(START, {}, ahead, 99)
    stage.restart()
    check_online(stage)
    stage.online.clear(epoch=stage.lease.epoch)
    stage.restart()
    check_online(stage)


def test_a_rebuild_that_was_asked_for_is_carried_out(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage() -> None:
        with stage.online.snapshot() as snapshot:
            mark = snapshot.mark() or b""
            lost = [Change(space, key, None) for space in snapshot.spaces for key, _ in snapshot.items(space)]
        kept = [change for change in lost if change.space.startswith("shelf:")]
        assert kept
        stage.online.apply(kept, mark, epoch=stage.lease.epoch)

    stage.tick(0)
    damage()
    stage.journal.request("rebuild", {"reason": "it is damaged"})
    taken = [entry.body for entry in stage.tick(1).entries if entry.kind == "request"]
    assert taken == [{"request": "rebuild", "body": {"reason": "it is damaged"}, "refused": None}]
    assert stage.journal.requests() == ()
    check_online(stage)
    # One that a crash came before is made up for at the next start, once.
    damage()
    stage.journal.request("rebuild", {"reason": "again"})
    with monkeypatch.context() as patch:
        patch.setattr(OnlineState, "rebuild", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            stage.tick(2)
    stage.restart()
    check_online(stage)
    monkeypatch.setattr(OnlineState, "rebuild", _interrupt)
    stage.restart()


def test_online_state_takes_a_load_from_the_lake_and_few_rows_as_they_came(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mills, "HELD_ROWS", 30)
    taken: list[int | str] = []
    rebuild, apply = OnlineState.rebuild, OnlineState.apply

    def rebuilt(*given: Any, **named: Any) -> None:
        taken.append("rebuilt")
        rebuild(*given, **named)

    def applied(state: OnlineState, tick: int, rows: Mapping[str, pl.DataFrame], *given: Any) -> None:
        taken.append(sum(frame.height for frame in rows.values()))
        apply(state, tick, rows, *given)

    monkeypatch.setattr(OnlineState, "rebuild", rebuilt)
    monkeypatch.setattr(OnlineState, "apply", applied)
    assert stage.tick(0).rows[VISITS] == 140  # a first load
    check_online(stage)
    stage.inputs.rows[VISITS].append(visit(9_000, 1))
    assert stage.tick(1).rows == {VISITS: 1, "days": 1}
    check_online(stage)
    stage.inputs.rows[VISITS] += [visit(10_000 + number, 2) for number in range(40)]
    assert stage.tick(2).rows == {VISITS: 40, "days": 2}  # many, but fewer than there were
    check_online(stage)
    stage.inputs.rows[VISITS] += [visit(20_000 + number, 3) for number in range(400)]
    stage.tick(3)
    check_online(stage)
    assert taken == ["rebuilt", 2, 42, "rebuilt"]
    # At a start likewise: a load that a crash kept from online state.
    stage.online.clear(epoch=stage.lease.epoch)
    stage.restart()
    check_online(stage)
    assert taken[4:] == ["rebuilt"]


def test_rows_that_come_during_a_rebuild_are_taken_in_after_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.tick(0)
    rebuild = OnlineState.rebuild

    def slow(*given: Any, **named: Any) -> None:
        stage.inputs.rows[VISITS].append(visit(9_000, 1))
        stage.note(1)
        rebuild(*given, **named)

    stage.journal.request("rebuild", {"reason": "it is damaged"})
    with monkeypatch.context() as patch:
        patch.setattr(OnlineState, "rebuild", slow)
        assert stage.tick(1).rows == {}
    check_online(stage)
    assert stage.tick(2).rows == {VISITS: 1, "days": 1, "notes": 1}
    check_online(stage)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_source_whose_rows_get_another_meaning_is_refused(stage: Stage) -> None:
    stage.tick(0)
    other = Stage(declare())
    visits = tm.Source(VISITS, tm.files("visits.csv"), key="id", event_time="at", known_at=tm.before("at", "9d"))
    (model,) = other.system.models
    object.__setattr__(model, "examples", visits)
    mill = Mill(tm.System("small", model), stage.mill.ports, stage.journal.take_over())
    with pytest.raises(WorkspaceError, match=r"its 140 rows were taken in under another declaration .*Give the source"):
        mill.start()


def test_a_derived_table_whose_function_fails_stands_still_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.tick(0)
    before = stage.mill.state.rows["days"]
    (days,) = [table for table in stage.mill.system.tables if isinstance(table, Table)]
    whole = days.function

    def failing(visits: pl.LazyFrame) -> pl.LazyFrame:
        found: pl.LazyFrame = whole(visits).with_columns(pl.lit("n/a").cast(pl.Float64))
        return found

    object.__setattr__(days, "function", failing)
    stage.inputs.rows[VISITS].append(visit(900, 5))
    turned = stage.tick(1)
    halts = [entry.body for entry in turned.entries if entry.kind == "halt"]
    assert [(body["source"], body["derived"]) for body in halts] == [("days", True)]
    assert "its function failed: InvalidOperationError" in halts[0]["reason"]
    assert (turned.rows[VISITS], stage.mill.state.rows["days"]) == (1, before)
    assert not [entry for entry in stage.tick(2).entries if entry.kind == "halt"]  # nothing new to say
    object.__setattr__(days, "function", whole)
    stage.inputs.rows[VISITS].append(visit(901, 6))
    assert "resume" in [entry.kind for entry in stage.tick(3).entries]
    assert stage.mill.state.halted == {}
    assert stage.mill.state.rows["days"] > before


def test_a_lake_that_has_lost_rows_is_not_filled_anew(stage: Stage) -> None:
    """Loaded once more, they would be new rows of today, and the past would be empty."""
    stage.tick(0)
    del stage.lake._versions[OUTCOMES]
    with pytest.raises(WorkspaceError, match=r"'outcomes': the journal knows .* the lake has 0\. Restore"):
        stage.restart()


# Fencing --------------------------------------------------------------------------------------------------------------


def test_a_mill_that_lost_its_lease_changes_nothing(stage: Stage) -> None:
    stage.tick(0)
    old = stage.mill
    stage.restart()
    before = (remains(stage), stage.online._current, stage.journal.ticks())
    stage.inputs.rows[VISITS].append(visit(900, 5))
    with pytest.raises(FencedError):
        old.tick(START + DAY)
    with pytest.raises(FencedError):
        old._online.apply(START + DAY, {}, {}, 0)
    with pytest.raises(FencedError):
        old._online.clear()
    with pytest.raises(FencedError):
        old.start()
    after = (remains(stage), stage.online._current, stage.journal.ticks())
    assert after[1:] == before[1:]
    assert after[0][1] == before[0][1]
    assert all(rows.equals(before[0][0][name]) for name, rows in after[0][0].items())
    stage.tick(1)


# Upkeep ---------------------------------------------------------------------------------------------------------------


class Watched(MemoryLake):
    """A lake that remembers what was tidied."""

    def __init__(self) -> None:
        super().__init__()
        self.tidied: list[str] = []

    def compact(self, table: str, fence: Any) -> None:
        super().compact(table, fence)
        self.tidied.append(table)


def test_tables_with_many_new_versions_are_tidied_once_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mills, "TIDY_VERSIONS", 3)
    monkeypatch.setattr(mills, "KEPT_VERSIONS", 2)
    stage = Stage()
    stage.lake = Watched()
    stage.executor = Executor(stage.system, stage.lake)
    stage.mill, stage.lease = stage.worker()
    stage.mill.start()
    stage.inputs.rows[VISITS].append(visit(100, 30))
    for number in range(1, 13):  # one row every quarter of a day
        stage.inputs.rows[VISITS].append(visit(number, 31))
        stage.mill.tick(START + number * DAY // 4)
    # At the fifth and the ninth tick; at the first there was one version.
    assert stage.lake.tidied.count(VISITS) == 2
    assert stage.rows(VISITS)["_seq"].to_list() == list(range(13))
    assert len(stage.lake.commits(VISITS)) == 2 + 3


def test_no_table_is_tidied_while_a_training_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mills, "TIDY_VERSIONS", 0)
    stage = Stage()
    stage.lake = Watched()
    stage.executor = Executor(stage.system, stage.lake)
    stage.mill, stage.lease = stage.worker()
    stage.inputs.load()
    stage.mill.start()
    stage.tick(0)  # before the training that it starts
    stage.lake.tidied.clear()
    stage.mill.tick(START + DAY - 1)
    assert stage.lake.tidied == []
    stage.tick(1)
    assert stage.lake.tidied == []  # nothing new since
    stage.inputs.rows[VISITS].append(visit(900, 5))
    stage.tick(2)
    assert stage.lake.tidied == ["days", VISITS]


def test_logged_predictions_come_once_however_often_they_are_logged(stage: Stage) -> None:
    stage.tick(0)
    log(stage, 1)
    stage.tick(1)
    log(stage, 1)  # asked again after the first was drained, with online state where it was
    stage.tick(2)
    assert stage.rows(PREDICTIONS)["id"].to_list() == ["p1"]
    assert prediction_rows([]).is_empty()
