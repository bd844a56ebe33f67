"""A worker that is paused past the start of its successor commits nothing any more, wherever it was paused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, format_time, parse_time
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.predict.state import fold

SYSTEM = """
import tidemill as tm
from sklearn.dummy import DummyClassifier

visits = tm.Source("visits", tm.files("visits.csv"), key="id", event_time="at", checks=[tm.between("amount", 0, 100)])
outcomes = tm.Source("outcomes", tm.files("outcomes.csv"), key="id", event_time="told", known_at=tm.after("told", "1h"))
last = tm.Latest("last", visits, by="place", columns=["amount"], within="9d")
good = tm.Model(
    "good", examples=outcomes, asked_at=tm.after("told", "1d"), label=tm.Label(visits, "good", within="9999d"),
    features=[last, "place"], estimator=DummyClassifier(),
)
system = tm.System("small", good, tick="1d")
"""
START = parse_time("2020-03-01")
WRITES = [
    "lake.append:visits__quarantine",
    "lake.turn:visits__quarantine",
    "lake.append:visits",
    "lake.turn:visits",
    "lake.append:outcomes",
    "lake.turn:outcomes",
    "journal.append",
    "online.apply",
    "journal.end_tick",
]


def deliver(folder: Path, tick: int) -> None:
    """Add the rows of tick number ``tick`` to the files."""
    for name, header in (("visits", "id,at,place,amount,good"), ("outcomes", "id,told,place")):
        with (folder / f"{name}.csv").open("a") as file:
            if not file.tell():
                file.write(header + "\n")
            for number in range(5):
                moment = format_time(START + (tick - 1) * DAY + number * HOUR)
                amount = 900 if number == 3 else number
                rest = f",{amount},true" if name == "visits" else ""
                file.write(f"{tick}-{number},{moment},{'abc'[number % 3]}{rest}\n")


def make(folder: Path) -> Path:
    folder.mkdir()
    (folder / "system.py").write_text(SYSTEM)
    return folder


def start(zygote: Any, folder: Path, **more: Any) -> Any:
    return zygote.fork("work", folder, death=None, tidy=False, executor="process", **more)


def turn(worker: Any, tick: int, death: dict[str, Any] | None = None) -> None:
    worker.send({"tick": START + tick * DAY, "death": death})


def stopping(at: str, when: str) -> dict[str, Any]:
    return {"after": None, "at": at, "when": when, "nth": 1, "how": "stop"}


def wait_until_stopped(worker: Any) -> None:
    deadline = time.monotonic() + 60
    while not worker.stopped():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def outcome(folder: Path) -> tuple[dict[str, pl.DataFrame], list[tuple[int, str, str]]]:
    """Return the rows of every table and the entries in order within each tick, having checked the online state."""
    workspace = projects.open(folder).workspace
    tables = {name: pl.DataFrame(workspace.lake.scan(name)) for name in workspace.lake.tables()}
    entries = list(workspace.journal.read())
    online = OnlineState(projects.open(folder).system.views, workspace.online, epoch=10**6)
    applied = online.applied()
    assert applied is not None
    state = fold(entries)
    assert (applied.tick, applied.journal) == (workspace.journal.ticks()[-1], state.number)
    assert dict(applied.next_seq) == dict(state.rows)
    blobs = {}
    with workspace.online.snapshot() as snapshot:
        for space in ("key:visits", "shelf:place"):
            blobs[space] = list(snapshot.items(space))
    assert blobs["shelf:place"]
    workspace.online.close()
    workspace.journal.close()  # type: ignore[attr-defined]
    tables["online"] = pl.DataFrame([(space, *pair) for space, pairs in blobs.items() for pair in pairs], orient="row")
    return tables, sorted((entry.tick, entry.kind, str(entry.body)) for entry in entries)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nursery: Any) -> Any:
    folder = make(tmp_path_factory.mktemp("fencing") / "small")
    worker = start(nursery, folder)
    assert worker.receive()["folds"]
    for tick in range(4):
        deliver(folder, tick)
        turn(worker, tick)
        assert worker.receive()["folds"]
    nursery.kill_all()
    return outcome(folder)


@pytest.mark.parametrize(("at", "when"), [*((write, "before") for write in WRITES), (WRITES[-1], "after")])
def test_a_worker_paused_past_the_start_of_its_successor_cannot_commit(
    tmp_path: Path, zygote: Any, undisturbed: Any, at: str, when: str
) -> None:
    folder = make(tmp_path / "small")
    deliver(folder, 0)
    paused = start(zygote, folder)
    assert paused.receive()["folds"]
    turn(paused, 0)
    assert paused.receive()["folds"]
    deliver(folder, 1)
    turn(paused, 1, stopping(at, when))
    wait_until_stopped(paused)

    successor = start(zygote, folder, lock=str(tmp_path / "another.lock"))
    answer = successor.receive()
    assert answer["folds"]
    if START + DAY not in answer["ticks"]:  # else the paused one had ended it
        turn(successor, 1)
        assert successor.receive()["folds"]
    deliver(folder, 2)
    turn(successor, 2)
    assert successor.receive()["rows"] == {"visits": 4, "outcomes": 5}

    paused.wake()
    answer = paused.receive()
    if when == "after":  # all of its tick was written before; the next tick is refused
        assert "number" in answer
        turn(paused, 3)
        answer = paused.receive()
    assert answer["error"] == "FencedError"
    assert paused.receive() is None

    deliver(folder, 3)
    turn(successor, 3)  # which has noticed nothing
    assert successor.receive()["folds"]
    zygote.kill_all()
    tables, entries = outcome(folder)
    assert entries == undisturbed[1]
    for name, rows in tables.items():
        assert_frame_equal(rows, undisturbed[0][name], check_exact=True)


def test_a_successor_waits_for_a_commit_that_has_begun(tmp_path: Path, zygote: Any, undisturbed: Any) -> None:
    """Paused between its last look at the fence and its commit, a worker holds the table's lock."""
    folder = make(tmp_path / "small")
    deliver(folder, 0)
    paused = start(zygote, folder)
    assert paused.receive()["folds"]
    turn(paused, 0, stopping("lake.publish:outcomes", "before"))
    wait_until_stopped(paused)
    successor = start(zygote, folder, lock=str(tmp_path / "another.lock"))
    with pytest.raises(TimeoutError):
        successor.receive(timeout=2.0)
    paused.wake()
    assert paused.receive()["error"] == "FencedError"  # it ended that commit, and may make no other
    assert successor.receive()["folds"]
    for tick in range(4):
        if tick:
            deliver(folder, tick)
        turn(successor, tick)
        assert successor.receive()["folds"]
    zygote.kill_all()
    tables, entries = outcome(folder)
    assert entries == undisturbed[1]
    for name, rows in tables.items():
        assert_frame_equal(rows, undisturbed[0][name], check_exact=True)


def test_a_second_worker_is_refused_and_told_who_holds_the_lease(tmp_path: Path, zygote: Any) -> None:
    folder = make(tmp_path / "small")
    deliver(folder, 0)
    first = start(zygote, folder)
    assert first.receive()["folds"]
    answer = start(zygote, folder).receive()
    assert answer["error"] == "LeaseHeldError"
    assert f"process {first.pid} on" in answer["message"]
    assert "Stop it before starting a second one" in answer["message"]
    command = [sys.executable, "-c", "from tidemill.cli.main import main; main()", "up", "--project", str(folder)]
    up = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert up.returncode == 2
    assert f"process {first.pid} on" in up.stderr
    assert "Stop it before starting a second one" in up.stderr
    turn(first, 0)  # which has noticed nothing
    assert first.receive()["folds"]
    first.kill()
    assert start(zygote, folder).receive()["folds"]  # a dead worker's lease is free at once
