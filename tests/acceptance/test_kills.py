"""Two hundred kills (-9) of a whole turning mill: fifty each in ingest, training, promotion and serving.

A story is one workspace turned from its first load to its last tick, with four kills on the way, one in each phase. Two
of the four fall between two named writes, the others at a moment of their own. Everything is decided by the story's
number. In the end a story must have come to what a story without a kill comes to: the same rows in the same order with
the same known-at, the same predictions, the same entries in each tick. Every second story compacts and cleans up its
tables whenever it can; the one without a kill never does.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tidemill import project as projects
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.adapters.sql_journal import SqlJournal
from tidemill.base.clock import DAY, HOUR, format_time, parse_time
from tidemill.base.hashing import canonical
from tidemill.engine.feature.lookup import Lookup
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.predict.records import FEEDBACK, PREDICTIONS
from tidemill.engine.predict.state import State, fold
from tidemill.testing.histories import reading

SYSTEM = """
import polars as pl
import tidemill as tm
from sklearn.tree import DecisionTreeClassifier

visits = tm.Source("visits", tm.files("visits/*.csv"), key="id", event_time="at", known_at=tm.before("at", "3d"),
                   checks=[tm.between("amount", 0, 100)])
outcomes = tm.Source("outcomes", tm.files("outcomes/*.csv"), key="id", event_time="told")
notes = tm.Source("notes", tm.push(), key="id", event_time="at")

@tm.table("large", key="id", event_time="at", rows=True)
def large(visits):
    return visits.filter(pl.col("amount") > 30)

@tm.table("places", key=("place", "day"), event_time="day", known_at="known")
def places(visits):
    days = visits.group_by("place", pl.col("at").dt.truncate("1d").alias("day")).agg(pl.len().alias("visits"))
    return days.with_columns((pl.col("day") + pl.duration(days=1)).alias("known"))

recent = tm.Aggregation("recent", large, by="place", features={
    "n": tm.count(over="7d"), "mean": tm.mean("amount", over="7d"),
})
note = tm.Latest("note", notes, by="place", columns=["score"], within="20d")
busy = tm.Latest("busy", places, by="place", columns=["visits"], within="5d")

good = tm.Model(
    "good", examples=visits, asked_at="at", label=tm.Label(outcomes, "good", within="1d"),
    features=[recent, note, busy, "amount"],
    estimator=DecisionTreeClassifier(max_depth=3, min_samples_leaf=10),
    split=tm.by_time(test="10d"), gate=tm.Gate("brier", margin=1.0, min_rows=20),
)
system = tm.System(
    "small", good, tick="2d",
    monitor=tm.Monitor(drift=tm.psi(over=0.2), performance=tm.worse_than(0.2), every="4d"),
    policy=tm.Policy(retrain=[tm.every("6d")], takes="2d"),
)
"""
START = parse_time("2020-03-01")
TICK = 2 * DAY
TICKS = 12  # at each third one a training starts, at the next it is promoted, and nothing is decided at the third
PLACES = "abc"
PHASES = ("ingest", "training", "promotion", "serving")
STORIES = 50


def deliver(folder: Path, number: int) -> None:
    """Add what is known at tick ``number`` to the files: the history at 0, then two days a tick."""
    visits, outcomes = [], []
    for window in range(-15, 1) if number == 0 else (number - 1, number):
        draw = random.Random(window)
        for place in range(40):
            at = START + window * TICK + HOUR + place * HOUR
            amount = draw.randrange(100)
            good = "true" if amount + draw.gauss(0, 10) > 50 else "false"
            if window == number or number == 0:  # a visit is known before it happens, its outcome after
                visits.append(f"v{window}-{place},{format_time(at)},{draw.choice(PLACES)},{amount}")
            if window < number:
                outcomes.append(f"v{window}-{place},{format_time(at + 4 * HOUR)},{good}")
    moment = format_time(START + number * TICK + HOUR)
    visits.insert(3, f"bad{number}-a,{moment},a,900")  # beyond the check
    visits.insert(9, f"bad{number}-b,{moment},a,{'much' if number else 101}")  # not a number
    if number:  # a correction of an older outcome
        outcomes.append(f"v-{number}-{number},{format_time(START - number * TICK + DAY)},true")
    for name, header, lines in (
        ("visits", "id,at,place,amount", visits),
        ("outcomes", "id,told,good", outcomes),
    ):
        path = folder / name / f"{number // 4}.csv"  # a file grows three times, then comes the next
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            if not file.tell():
                file.write(header + "\n")
            file.write("\n".join(lines) + "\n")
    broken = folder / "outcomes" / "broken.csv"
    if number == 5:  # the whole source stands still for a tick
        broken.write_text("id,id\n1,2\n")
    elif number == 6:
        broken.unlink()


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: of the "work" or the "serve" process, at ``tick`` or, where it does not come to it, at a later one.

    ``later``: seconds after the named write has been reached; None: just ``when``, before or after it.
    """

    phase: str
    role: str
    tick: int
    at: str
    when: str = "before"
    after: str | None = None
    nth: int = 1
    later: float | None = None

    def order(self) -> dict[str, Any]:
        how = "kill" if self.later is None else "tell"
        return {"after": self.after, "at": self.at, "when": self.when, "nth": self.nth, "how": how}


def plan(story: int) -> tuple[Kill, ...]:
    """Return the four kills of a story, by tick."""
    draw = random.Random(f"story {story}")
    kills = []
    for cycle, phase in enumerate(draw.sample(PHASES, 4)):
        named = (story + PHASES.index(phase)) % 2 == 0
        when = draw.choice(("before", "after"))
        match phase:
            case "ingest":
                tick = 3 * cycle + (2 if cycle else draw.choice((0, 2)))
                tables = ["visits__quarantine", "visits", "outcomes", "large", "places"]
                names = [f"lake.append:{table}" for table in tables] + [f"lake.publish:{table}" for table in tables]
                if tick:
                    names += ["lake.append:notes", "lake.append:notes__pushes", "journal.append", "online.apply"]
                    names += ["journal.end_tick", "log.trim", *(["lake.compact", "lake.cleanup"] if story % 2 else [])]
                kill = Kill(phase, "work", tick, draw.choice(names), when)
                if not named:
                    kill = Kill(phase, "work", tick, "lake.append:outcomes", later=draw.uniform(0, 0.15))
            case "training":
                names = ["journal.append:train", "executor.submit", "models.save", "journal.record_step"]
                kill = Kill(phase, "work", 3 * cycle, draw.choice(names), when)
                if not named:
                    kill = Kill(phase, "work", 3 * cycle, "executor.submit", later=draw.uniform(0, 0.4))
            case "promotion":
                server = draw.random() < 0.4
                name = draw.choice(("journal.append:alias", "online.apply", "journal.end_tick", "log.trim"))
                after = None if name == "journal.append:alias" else "journal.append:alias"
                kill = Kill(phase, "work", 3 * cycle + 1, name, when, after)
                if server:
                    kill = Kill(phase, "serve", 3 * cycle + 1, "load_predictor", when)
                if not named:
                    at = "load_predictor" if server else "journal.append:alias"
                    kill = Kill(phase, kill.role, 3 * cycle + 1, at, later=draw.uniform(0, 0.05))
            case _:
                tick = 3 * cycle + (draw.choice((1, 2)) if cycle < 3 else 1)
                worker = draw.random() < 0.4
                name = draw.choice(("lake.append:predictions", "lake.publish:predictions", "lake.append:feedback"))
                kill = Kill(phase, "work", tick + 1, name, when)
                if not worker:
                    kill = Kill(phase, "serve", tick, "log.append", when, nth=draw.randrange(1, 12))
                if not named:
                    at = name if worker else "log.append"
                    kill = Kill(phase, kill.role, kill.tick, at, nth=kill.nth, later=draw.uniform(0, 0.03))
        kills.append(kill)
    return tuple(sorted(kills, key=lambda kill: kill.tick))


@dataclass
class Story:
    """One workspace from its first load to its last tick."""

    zygote: Any
    folder: Path
    kills: list[Kill]
    tidy: bool
    executor: str = "inline"
    done: list[Kill] = field(default_factory=list)
    predicted: Counter[str] = field(default_factory=Counter)
    pushed: set[str] = field(default_factory=set)
    fed_back: set[str] = field(default_factory=set)

    def run(self) -> None:
        self.folder.mkdir()
        (self.folder / "system.py").write_text(SYSTEM)
        for tick in range(TICKS):
            deliver(self.folder, tick)
            if tick == 0:
                self.worker = self._start_worker(tick)
                self._start_server(tick)
                self._use(-1)
            self._arm(tick)
            self._turn(tick)
            self._follow(tick)
            if tick < TICKS - 1:  # what is asked after the last tick would not be drained
                self._use(tick)
        self._make_up()
        self.zygote.kill_all()
        self.watcher.join()

    def _make_up(self) -> None:
        """Make the kills whose write had passed when their turn came, after a timed kill that took its time."""
        late, self.kills = self.kills, []
        for kill in late:
            (self.worker if kill.role == "work" else self.server).kill()
            self.done.append(kill)
            if kill.role == "work":
                self.worker = self._start_worker(TICKS - 1)

    # The worker

    def _next(self, role: str, tick: int) -> Kill | None:
        kill = self.kills[0] if self.kills else None
        return kill if kill is not None and kill.role == role and kill.tick <= tick else None

    def _start_worker(self, tick: int) -> Any:
        """Start a worker, as often as it takes: it may die in its recovery."""
        while True:
            due = self._next("work", tick)
            worker = self.zygote.fork(
                "work", self.folder, death=due and due.order(), tidy=self.tidy, executor=self.executor
            )
            answer = self._hear(worker, due)
            if answer is not None:
                assert answer["folds"]
                self.ended = answer["ticks"]
                return worker

    def _hear(self, process: Any, due: Kill | None) -> dict[str, Any] | None:
        """Return the process's answer; None when it died, as ``due`` said."""
        answer: dict[str, Any] | None = process.receive()
        if answer is not None and "reached" in answer:
            assert due is not None
            assert due.later is not None
            time.sleep(due.later)
            process.kill()
            while answer is not None:  # it may have ended what it was at, and have said so
                answer = process.receive()
        if answer is None:
            assert due is not None, "a process died by itself"
            assert not process.alive()
            self.done.append(self.kills.pop(0))
        return answer

    def _turn(self, tick: int) -> None:
        moment = START + tick * TICK
        while moment not in self.ended:
            due = self._next("work", tick)
            self.worker.send({"tick": moment, "death": due and due.order()})
            answer = self._hear(self.worker, due)
            if answer is None:
                self.worker = self._start_worker(tick)
            else:
                assert answer["folds"]
                self.ended.append(moment)

    # The server, and its clients

    def _start_server(self, tick: int) -> None:
        self.armed: Kill | None = self._next("serve", tick)
        self.server = self.zygote.fork("serve", self.folder, death=self.armed and self.armed.order())
        answer = self.server.receive()
        assert answer is not None
        self.port = answer["port"]
        self.ready = threading.Event()
        self.watcher = threading.Thread(target=self._watch, args=(self.server,), daemon=True)
        self.watcher.start()

    def _watch(self, server: Any) -> None:
        """Kill ``server`` at the moment that was drawn, once it reports that it got there."""
        while (message := server.receive(timeout=None)) is not None:
            if "reached" in message:
                assert self.kills[0].later is not None
                time.sleep(self.kills[0].later)
                server.kill()
            else:
                self.ready.set()

    def _arm(self, tick: int) -> None:
        """Tell the running server where to die, if it is its turn."""
        due = self._next("serve", tick)
        if due is not None and self.armed != due:
            self.armed = due
            self.server.send({"death": due.order()})
            assert self.ready.wait(60)

    def _ask(self, tick: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """Send one request until it is answered, over as many servers as it takes."""
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request(method, path, body and json.dumps(body), headers or {})
                answer = connection.getresponse()
                data = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                assert self._next("serve", tick) is not None, "the server died by itself"
                self.watcher.join(60)
                assert not self.server.alive()
                self.done.append(self.kills.pop(0))
                self._start_server(tick)
                continue
            finally:
                connection.close()
            assert 200 <= answer.status < 300, data
            return data

    def _follow(self, tick: int) -> None:
        journal = SqlJournal(self.folder / ".tidemill" / "journal.db")
        last = journal.last()
        journal.close()
        while self._ask(tick, "GET", "/v1/health")["journal"] < last:
            time.sleep(0.002)

    def _use(self, tick: int) -> None:
        """Push, ask and feed back as clients do: once more where no answer came, and twice now and then."""
        draw = random.Random(f"use {tick}")
        moment = format_time(START + tick * TICK - HOUR)
        for number in range(2):
            rows = [
                {"id": f"n{tick}-{number}-{place}", "at": moment, "place": place, "score": draw.random()}
                for place in PLACES
            ]
            self._push(tick, f"p{tick}-{number}", rows)
        self._push(tick, f"p{tick}-0", [{"id": "again", "at": moment, "place": "a", "score": 0.0}])
        if tick >= 0:  # an answer that got lost on the way: the client sends again what was drained long since
            self._push(tick, f"p{tick - 1}-1", [{"id": "again", "at": moment, "place": "a", "score": 0.0}])
        if tick < 1:  # there is no champion yet
            return
        for number in range(4):
            rows = [
                {
                    "id": f"q{tick}-{number}-{each}",
                    "place": draw.choice(PLACES),
                    "amount": draw.randrange(100),
                }
                for each in range(1 + number)
            ]
            for _ in range(1 + (number == 1)):
                self._predict(tick, f"r{tick}-{number}", rows)
        for number in range(2):
            self._feed_back(tick, f"f{tick}-{number}", f"q{tick}-{number}-0")
        self._feed_back(tick, f"f{tick}-0", f"q{tick}-0-0")
        if tick > 1:
            self._feed_back(tick, f"f{tick - 1}-0", f"q{tick - 1}-0-0")

    def _push(self, tick: int, key: str, rows: list[dict[str, Any]]) -> None:
        answer = self._ask(tick, "POST", "/v1/tables/notes", {"rows": rows}, {"Idempotency-Key": key})
        assert answer["rows"] == len(rows)
        self.pushed.update(row["id"] for row in rows if row["id"] != "again")

    def _predict(self, tick: int, nonce: str, rows: list[dict[str, Any]]) -> None:
        answer = self._ask(tick, "POST", "/v1/models/good/predict", {"rows": rows}, {"X-Request-Id": nonce})
        self.predicted.update(each["id"] for each in answer["predictions"])

    def _feed_back(self, tick: int, key: str, id: str) -> None:
        body = {"model": "good", "key": {"id": id}, "value": True}
        self.fed_back.add(self._ask(tick, "POST", "/v1/feedback", body, {"Idempotency-Key": key})["feedback"])


@dataclass(frozen=True)
class Outcome:
    """What a story came to: the rows of every table, the entries of each tick, and the state."""

    tables: dict[str, pl.DataFrame]
    entries: dict[int, list[tuple[str, str]]]
    state: State


def examine(story: Story) -> Outcome:
    """Check what must hold in a workspace whatever happened to it, and return what came of it."""
    project = projects.open(story.folder)
    workspace = project.workspace
    entries = list(workspace.journal.read())
    state = fold(entries)
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    assert list(workspace.journal.ticks()) == [START + tick * TICK for tick in range(TICKS)]
    tables = {name: pl.DataFrame(workspace.lake.scan(name)) for name in workspace.lake.tables()}
    for name, rows in tables.items():
        assert rows["_seq"].to_list() == list(range(rows.height))
        told = [entry.body for entry in entries if entry.kind == "commit" and entry.body["table"] == name]
        if not name.endswith(("__quarantine", "__pushes")):  # those are announced by the commit they belong to
            assert [0, *(body["next_seq"] for body in told)][:-1] == [body["first_seq"] for body in told]
            assert sum(body["rows"] for body in told) == rows.height == state.rows[name]
    for source in ("visits", "outcomes", "notes"):
        told = [entry.body for entry in entries if entry.kind == "commit" and entry.body["table"] == source]
        refused = tables.get(f"{source}__quarantine")
        assert sum(body["quarantined"] for body in told) == (0 if refused is None else refused.height)
    # Whatever a client was told is there, once.
    for ids, known in (
        (tables[PREDICTIONS]["id"], story.predicted),
        (tables[FEEDBACK]["id"], story.fed_back),
        (tables["notes"]["id"], story.pushed),
    ):
        assert ids.is_unique().all()
        assert set(known) == set(ids)
    # Online state answers as one made anew from the lake does.
    online = OnlineState(project.system.views, workspace.online)
    applied = online.applied()
    assert applied is not None
    assert applied.journal == state.number
    assert applied.tick == START + (TICKS - 1) * TICK
    assert dict(applied.next_seq) == dict(state.rows)
    anew = MemoryOnline()
    OnlineState(project.system.views, anew).rebuild(
        applied.tick, reading(tables), state.rows, state.number, MemoryScratch()
    )
    asked = tables["visits"].head(40)
    model = project.declared_model("good")
    found, _ = Lookup(model, workspace.online).features(asked)
    assert_frame_equal(found, Lookup(model, anew).features(asked)[0], check_exact=True)
    workspace.online.close()
    workspace.journal.close()  # type: ignore[attr-defined]
    by_tick: dict[int, list[tuple[str, str]]] = {}
    for entry in entries:
        by_tick.setdefault(entry.tick, []).append((entry.kind, canonical(entry.body).decode()))
    return Outcome(tables, {tick: sorted(each) for tick, each in by_tick.items()}, state)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nursery: Any) -> Outcome:
    """What comes of it all when nobody is killed and no table is tidied."""
    story = Story(nursery, tmp_path_factory.mktemp("undisturbed") / "small", [], tidy=False)
    story.run()
    outcome = examine(story)
    # The story is as eventful as the kills need it: everything that can be interrupted happens.
    kinds = Counter(kind for entries in outcome.entries.values() for kind, _ in entries)
    assert kinds["train"] == kinds["judge"] == kinds["version"] == kinds["alias"] == 4
    assert kinds["halt"] == kinds["resume"] == 1
    assert kinds["loaded"] == 2
    assert kinds["watch"] > 2
    assert outcome.tables["visits__quarantine"].height == 2 * TICKS
    assert outcome.tables["visits"]["_history"].sum() == 16 * 40
    assert outcome.tables["large"]["_history"].any()
    return outcome


def check(story: Story, undisturbed: Outcome) -> None:
    story.run()
    assert [kill.phase for kill in story.done] != []
    outcome = examine(story)
    assert outcome.tables.keys() == undisturbed.tables.keys()
    for name, rows in outcome.tables.items():
        assert_frame_equal(rows, undisturbed.tables[name], check_exact=True)
    assert outcome.entries == undisturbed.entries


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.slow] if number >= 5 else []) for number in range(STORIES)]
)
def test_a_story_with_four_kills_ends_as_one_without(
    number: int, tmp_path: Path, zygote: Any, undisturbed: Outcome
) -> None:
    kills = plan(number)
    print(f"story {number}: {kills}")  # shown when it fails
    story = Story(zygote, tmp_path / "small", list(kills), tidy=number % 2 == 1)
    check(story, undisturbed)
    assert story.done == list(kills)
    assert {kill.phase for kill in kills} == set(PHASES)
    assert sum(kill.later is None for kill in kills) == 2


def test_the_stories_have_two_hundred_kills() -> None:
    kills = list(itertools.chain.from_iterable(plan(number) for number in range(STORIES)))
    assert len(kills) == 200
    assert Counter(kill.phase for kill in kills) == dict.fromkeys(PHASES, 50)
    assert sum(kill.later is None for kill in kills) == 100
