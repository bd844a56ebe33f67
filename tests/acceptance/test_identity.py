"""A live run, with real processes and a faster clock, and the replay of its record: the same journal, byte for byte."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, MINUTE, VirtualClock, parse_time, to_datetime
from tidemill.cli.main import main
from tidemill.engine.mill.rehearse import content
from tidemill.loop.supervisor import ServerProcess
from tidemill.rehearsal import recorded, replay_record

pytestmark = pytest.mark.slow

SYSTEM = '''
"""Will a delivery be late? Asked when its van leaves."""
import polars as pl
import tidemill as tm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer

orders = tm.Source(
    "orders", tm.files("orders/*.csv"), key="id", event_time="leaves", known_at=tm.before("leaves", "1d"),
)
arrivals = tm.Source(
    "arrivals", tm.files("arrivals/*.csv"), key="id", event_time="arrived", known_at="reported",
    checks=[tm.not_null("depot"), tm.between("minutes", 0, 600)],
)
traffic = tm.Source("traffic", tm.push(), key=("depot", "seen"), event_time="seen")
depots = tm.Source("depots", tm.files("depots.csv"), key="depot")


@tm.table("slow", key="id", event_time="arrived", known_at="reported", rows=True)
def slow(arrivals):
    return arrivals.filter(pl.col("minutes") > 30).select("id", "depot", "arrived", "reported", "minutes")


recent = tm.Aggregation("recent", arrivals, by="depot", features={
    "minutes": tm.mean("minutes", over=("6h", "2d")), "number": tm.count(over="1d")})
slows = tm.Aggregation("slows", slow, by="depot", features={"number": tm.count(over="2d")})
jam = tm.Latest("jam", traffic, by="depot", columns=["speed"], within="12h")
depot = tm.Latest("depot_", depots, by="depot", columns=["vans"])

late = tm.Model(
    "late", examples=orders, asked_at="leaves",
    label=tm.Label(arrivals, pl.col("minutes") > 30, within="1d"),
    features=[recent, slows, jam, depot, "depot", "distance"],
    estimator=make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["depot"]),
            remainder=make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()),
        ),
        LogisticRegression(),
    ),
    split=tm.by_time(test="10d", blocks=2),
    gate=tm.Gate("log_loss", margin=0.2, min_rows=50),
)
system = tm.System(
    "vans", late,
    monitor=tm.Monitor(drift=tm.psi(over=0.2), performance=tm.worse_than(0.02), every="1d", window="4d"),
    policy=tm.Policy(retrain=[tm.every("14d"), tm.on_drift(cooldown="6d")], takes="12h"),
    tick="12h",
)
'''

START = parse_time("2024-03-01")
DAYS = 20
ORDERS_A_DAY = 60
SHIFT = 10  # the day from which everything is farther and slower
TICK = 12 * HOUR


def text(micros: int) -> str:
    return to_datetime(micros).strftime("%Y-%m-%dT%H:%M:%SZ")


class World:
    """What happens, drawn from ``seed``; ``until`` writes down what becomes known, in the order in which it does."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self._done = 0
        rng = random.Random(seed)
        self.orders: list[dict[str, Any]] = []
        events: list[tuple[int, str, dict[str, Any]]] = []
        for number in range(-40 * ORDERS_A_DAY, DAYS * ORDERS_A_DAY):
            leaves = START + number * DAY // ORDERS_A_DAY + rng.randrange(MINUTE)
            moved = number >= SHIFT * ORDERS_A_DAY
            place, distance = rng.choice("NSEW"), round(rng.uniform(1, 20) + (12 if moved else 0), 1)
            order = {"id": f"o{number}", "leaves": text(leaves), "depot": place, "distance": distance}
            minutes = round(distance * 1.6 + (8 if place == "N" else 0) + rng.gauss(0, 6) + (9 if moved else 0), 1)
            arrived = leaves + int(max(minutes, 1.0) * MINUTE)
            late = rng.choice((0, 0, 5, 90)) * MINUTE  # some reports come late
            report = {"id": order["id"], "depot": place, "arrived": text(arrived), "minutes": max(minutes, 0.0)}
            events.append((leaves - DAY, "orders", order))
            events.append((arrived + late, "arrivals", {**report, "reported": text(arrived + late)}))
            if rng.random() < 0.02:  # some are corrected
                when = arrived + late + rng.randrange(1, 4) * DAY
                events.append((when, "arrivals", {**report, "minutes": 45.0, "reported": text(when)}))
            if rng.random() < 0.02:  # some are refused: a check, a type, a key
                bad = rng.choice(
                    ({"minutes": -5}, {"minutes": "soon" if number > 0 else -1}, {"id": ""}, {"depot": ""})
                )
                events.append((arrived + late, "arrivals", {**report, "reported": text(arrived), **bad}))
            self.orders.append({**order, "_asked": leaves})
        self.events = sorted(events, key=lambda event: event[0])
        (folder / "depots.csv").write_text("depot,vans\nN,3\nS,5\nE,8\n")

    def until(self, now: int) -> None:
        lines: dict[Path, list[dict[str, Any]]] = {}
        while self._done < len(self.events) and self.events[self._done][0] <= now:
            known, name, row = self.events[self._done]
            lines.setdefault(self.folder / name / f"{text(known)[:7]}.csv", []).append(row)
            self._done += 1
        for path, rows in lines.items():
            path.parent.mkdir(exist_ok=True)
            fresh = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                if fresh:
                    writer.writeheader()
                writer.writerows(rows)

    def asked(self, after: int, until: int) -> list[dict[str, Any]]:
        return [
            {name: order[name] for name in ("id", "depot", "distance")}
            for order in self.orders
            if after < order["_asked"] <= until
        ]


def live(folder: Path, seed: int) -> None:
    """Run a system for some weeks: a worker here, a server process, a training process, files, pushes and requests."""
    (folder / "system.py").write_text(SYSTEM)
    world = World(folder, seed)
    world.until(START)
    project = projects.open(folder)
    rng = random.Random(seed + 1)
    clock = VirtualClock(START)
    lease = project.workspace.journal.acquire()
    mill = project.mill(lease)
    server = ServerProcess(project.path, 0, folder / "server.txt")
    broken = folder / "arrivals" / "broken.csv"
    try:
        mill.start()
        for number, tick in enumerate(range(START, START + DAYS * DAY, TICK)):
            clock.advance_to(tick)
            world.until(tick)
            _push(server, tick, number, rng)
            if number == 14:
                broken.write_text("id,depot\na,N\n")  # stands still at a file with other columns …
            if number == 16:
                broken.unlink()  # … until somebody takes it away
            if number == 20:
                mill.stop()  # the worker starts anew
                lease.release()
                lease = project.workspace.journal.acquire()
                mill = project.mill(lease)
                mill.start()
            turned = mill.tick(tick)
            if number % 2 or number < 4:  # else the server takes up a new champion whenever it comes to it
                server.follow(turned.entries[-1].number if turned.entries else 0)
            if "champion" in mill.state.model("late").aliases:
                _ask(server, world.asked(tick, tick + TICK), tick, rng)
            journal = project.workspace.journal
            if len(mill.state.model("late").versions) == 2 and not list(journal.read(kinds=["request"])):
                back = {"model": "late", "alias": "champion", "version": 1, "reason": "it felt better"}
                journal.request("rollback", back)
                journal.request("rollback", {**back, "version": 99})
                journal.request("retrain", {"model": "late", "reason": "just to see"})
    finally:
        mill.stop()
        server.stop()
        lease.release()


def _push(server: ServerProcess, tick: int, number: int, rng: random.Random) -> None:
    rows: list[dict[str, Any]] = [
        {"depot": each, "seen": text(tick), "speed": round(rng.uniform(10, 60), 1)} for each in "NSEW"
    ]
    if number % 7 == 1:
        rows.append({"depot": None, "seen": text(tick), "speed": 30.0})
    for _ in range(2 if number % 5 == 0 else 1):  # some are sent twice
        server.call("POST", "/v1/tables/traffic", {"rows": rows}, {"Idempotency-Key": str(tick)})


def _ask(server: ServerProcess, asked: list[dict[str, Any]], tick: int, rng: random.Random) -> None:
    for start in range(0, len(asked), 5):
        call = {"X-Request-Id": f"{tick}-{start}"} if rng.random() < 0.5 else {}
        rows = asked[start : start + 5]
        answers = server.call("POST", "/v1/models/late/predict", {"rows": rows}, call)["predictions"]
        if start == 0:
            said = {"model": "late", "prediction": answers[0]["id"], "value": True}
            server.call("POST", "/v1/feedback", said)


def kinds(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in projects.open(folder).workspace.journal.read():
        found[entry.kind] = found.get(entry.kind, 0) + 1
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of the live runs."""
    folder = tmp_path_factory.mktemp("vans")
    live(folder, seed=1)
    return folder


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_replay_writes_the_same_entries(seed: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Three live runs in a row, each with its replay."""
    if seed == 1:
        run: Path = request.getfixturevalue("run")
    else:
        run = tmp_path
        live(run, seed)
    project = projects.open(run)
    seen = kinds(run)
    assert {"commit", "loaded", "halt", "resume", "train", "judge", "version", "alias", "watch", "request"} <= set(seen)
    assert seen["train"] >= 3
    journal = list(project.workspace.journal.read())
    assert any(entry.kind == "commit" and entry.body["quarantined"] for entry in journal)
    assert any(entry.kind == "watch" and (entry.body["drift"] or {}).get("drifted") for entry in journal)
    assert any(entry.kind == "request" and entry.body["refused"] for entry in journal)

    recording = recorded(project)
    found = list(replay_record(project.system, recording))

    assert [tick for tick, difference in found if difference is None] == list(recording.ticks)
    assert found[-1][1] is None


def test_command_says_so(run: Path) -> None:
    done = CliRunner().invoke(main, ["backtest", "--record", "--json", "-p", str(run)])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["identical"]
    assert said["same"] == said["entries"] == sum(kinds(run).values())


def test_altered_record_is_found_out(run: Path) -> None:
    project = projects.open(run)
    recording = recorded(project)
    tick, questions = next((t, q) for t, q in sorted(recording.questions.items()) if t > START + 13 * DAY)
    asked = questions[0].asked
    moved = asked.requests.with_columns(distance=asked.requests["distance"] + 400)
    object.__setattr__(asked, "requests", moved)

    found = list(replay_record(project.system, recording))

    difference = found[-1][1]
    assert difference is not None
    assert difference.live is not None
    assert difference.replayed is not None
    assert difference.live.kind == difference.replayed.kind == "watch"
    assert difference.live.tick > tick
    assert content(difference.live) != content(difference.replayed)
