"""Writers of the lake are killed (-9) at random instants and between all steps; what they acknowledged must stand."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tidemill.adapters.lance_lake import LanceLake
from tidemill.ports.lake import Commit
from tidemill.testing.lake_suite import GivenFence, append, check_content, make_commit

FENCE = GivenFence()


class Nursery:
    """A process that forks writers, which start faster than an interpreter with its imports."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def live_and_die(self, *orders: object, kill_after: float | None = None) -> list[int]:
        """Run one writer until it dies, by our signal ``kill_after`` seconds past its first commit or by its own hand.

        Returns the ``next_seq`` of the commits that it acknowledged.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, orders)) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        acknowledged = []
        if kill_after is not None:
            acknowledged.append(int(self._process.stdout.readline()))
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        while (line := self._process.stdout.readline()) != "dead\n":
            acknowledged.append(int(line))
        return acknowledged


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


def check(root: Path, before: Commit | None, acknowledged: list[int]) -> Commit | None:
    """Assert that the lake is whole: each row before the cursor once, nothing acknowledged lost."""
    lake = LanceLake(root)
    head = lake.head("arrivals")
    if head is None:
        assert before is None
        assert acknowledged == []
        return None
    check_content(lake, head)  # the rows numbered up to next_seq, each once
    assert head.cursor == make_commit(0, head.next_seq).cursor
    assert head.next_seq >= max([0 if before is None else before.next_seq, *acknowledged])
    recorded = lake.commits("arrivals")
    assert recorded[-1] == head
    for older, newer in itertools.pairwise(recorded):
        assert older.version < newer.version
        assert newer.next_seq - newer.rows >= older.next_seq  # a killed cleanup may leave gaps
    return head


def test_kills_at_random_instants(tmp_path: Path, nursery: Nursery) -> None:
    """Thirty lives on one lake; a third compact and clean up between their appends."""
    draw = random.Random(2013)
    head = None
    for life in range(30):
        upkeep = life % 3 == 2
        acknowledged = nursery.live_and_die("run", tmp_path, life, int(upkeep), kill_after=draw.uniform(0, 0.08))
        head = check(tmp_path, head, acknowledged)
    assert head is not None
    assert head.next_seq > 300
    _check_that_cleanup_leaves_no_garbage(tmp_path)


@pytest.mark.parametrize("action", ["create", "append", "empty", "compact", "restore"])
def test_kills_between_all_steps(tmp_path: Path, nursery: Nursery, action: str) -> None:
    """Wherever an action is cut off, the state is either the one before it or the one after it."""
    outcomes = []
    for point in range(100):
        root = tmp_path / str(point)
        lake = LanceLake(root)
        before = None
        if action != "create":
            first = append(lake, 5, FENCE)
            before = append(lake, 3, FENCE)
        acknowledged = nursery.live_and_die(action, root, point)
        head = LanceLake(root).head("arrivals")
        check_content(LanceLake(root), head)
        if action == "restore":
            assert head in (before, first)
            done = head == first
        elif action == "compact":
            assert head == before
            done = lake.scan("arrivals", columns=["_seq"])["_seq"].num_chunks == 1
        else:
            done = head != before
            assert head is None or not done or head.next_seq == {"create": 4, "append": 12, "empty": 8}[action]
        assert done or not acknowledged
        outcomes.append(done)
        lake = LanceLake(root)
        check_content(lake, append(lake, 2, FENCE))  # the next writer goes on
        _check_that_cleanup_leaves_no_garbage(root)
        if acknowledged:
            break
    assert outcomes == sorted(outcomes)  # once done, it stays done
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert len(outcomes) >= 5


def _check_that_cleanup_leaves_no_garbage(root: Path) -> None:
    lake = LanceLake(root)
    head = lake.head("arrivals")
    lake.cleanup("arrivals", keep=1, fence=FENCE)
    check_content(lake, head)
    table = root / "arrivals.lance"
    fragments = lake._found("arrivals").get_fragments()
    named = {file.path for fragment in fragments for file in fragment.metadata.files}
    assert {path.name for path in table.glob("data/*")} == named
    assert len(list(table.glob("_versions/*"))) == 2  # the manifest and Lance's hint


# What runs in the writers


def _run(root: Path, seed: int, *, upkeep: bool) -> NoReturn:
    draw = random.Random(seed)
    lake = LanceLake(root)
    while True:
        acknowledge(append(lake, draw.choice((0, 1, 7, 40)), FENCE))
        if upkeep and draw.random() < 0.3:
            lake.compact("arrivals", FENCE)
        if upkeep and draw.random() < 0.3:
            lake.cleanup("arrivals", keep=draw.randint(1, 4), fence=FENCE)


@contextmanager
def dying_at(point: int) -> Iterator[None]:
    """Kill this process at the ``point``-th step from here: it begins or ends a sync or a publishing."""
    fsync, publish = os.fsync, LanceLake._publish
    steps = itertools.count()

    def step() -> None:
        if next(steps) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def step_and_fsync(handle: Any) -> None:
        step()
        fsync(handle)
        step()

    def step_and_publish(*args: Any) -> Any:
        step()
        published = publish(*args)
        step()
        return published

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", step_and_fsync)
        patch.setattr(LanceLake, "_publish", step_and_publish)
        yield


def _act(action: str, root: Path, point: int) -> None:
    lake = LanceLake(root)
    head = lake.head("arrivals")
    with dying_at(point):
        if action == "compact":
            lake.compact("arrivals", FENCE)
        elif action == "restore":
            lake.restore("arrivals", 1, FENCE)
        else:
            head = append(lake, 0 if action == "empty" else 4, FENCE)
    assert head is not None
    acknowledge(head)


def acknowledge(commit: Commit) -> None:
    os.write(1, b"%d\n" % commit.next_seq)


def _serve_writers() -> None:
    while words := sys.stdin.readline().split():
        action, root, numbers = words[0], Path(words[1]), [int(word) for word in words[2:]]
        child = os.fork()
        if child == 0:
            os.write(1, b"%d\n" % os.getpid())
            try:
                if action == "run":
                    _run(root, numbers[0], upkeep=bool(numbers[1]))
                _act(action, root, numbers[0])
            finally:
                sys.stderr.flush()
                os._exit(1)
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    _serve_writers()
