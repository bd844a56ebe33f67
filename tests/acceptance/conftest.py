"""A zygote for tests that kill processes, and a stage for those that ask a server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

import tidemill.project as projects
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Logged
from tidemill.engine.predict.records import PREDICTIONS
from tidemill.loop.supervisor import ServerProcess
from tidemill.ports.journal import Draft


class Process:
    """One forked process and the channel to it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it may have died; receive tells
            self._channel.send(json.dumps(message).encode())

    def receive(self, timeout: float | None = 120.0) -> dict[str, Any] | None:
        """Return its next message, or None once it is dead."""
        self._channel.settimeout(timeout)
        try:
            data = self._channel.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            self._wait()
            return None
        return dict(json.loads(data))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stopped(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _wait(self) -> None:
        """Return once the process is gone, and with it its locks."""
        deadline = time.monotonic() + 60
        while self.alive():
            assert time.monotonic() < deadline, f"process {self.pid} does not die"
            time.sleep(0.001)


class Zygote:
    """Forks workers and servers from a process that has imported everything."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: list[Process] = []

    def fork(self, role: str, project: Path, **order: Any) -> Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            message = json.dumps({"role": role, "project": str(project), **order}).encode()
            socket.send_fds(self._control, [message], [theirs.fileno()])
            pid = int(self._control.recv(64))
        self._children.append(Process(pid, ours))
        return self._children[-1]

    def kill_all(self) -> None:
        """Kill what this zygote forked and is still there."""
        for child in self._children:
            child.kill()
            child._channel.close()
        self._children.clear()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Zygote]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("kill_child.py")), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **dict.fromkeys(threads, "1"), "PYTHONHASHSEED": "0"},
    )
    theirs.close()
    ours.settimeout(120)
    yield Zygote(ours)
    ours.close()
    process.wait(60)


@pytest.fixture
def zygote(nursery: Zygote) -> Iterator[Zygote]:
    yield nursery
    nursery.kill_all()


# A served system whose journal is written by hand ---------------------------------------------------------------------

STAGE = """
import tidemill as tm
from sklearn.dummy import DummyClassifier

flights = tm.Source("flights", tm.push(), key="id", event_time="at")
landed = tm.Source("landed", tm.files("landed/*.csv"), key="id", event_time="at")
late = tm.Model(
    "late", examples=flights, asked_at="at", label=tm.Label(landed, "late", within="1d"),
    features=["distance", "origin"], estimator=DummyClassifier(),
)
system = tm.System("stage", late, endpoint=tm.Endpoint(ENDPOINT))
"""


class Stage:
    """A project with one model, ``late``, whose version n answers n / 100 to every row. It holds the lease."""

    schema: ClassVar = {"id": "String", "distance": "Float64", "origin": "String"}
    row: ClassVar = {"id": "a", "distance": 1.0, "origin": "EWR"}

    def __init__(self, folder: Path, endpoint: str) -> None:
        (folder / "system.py").write_text(STAGE.replace("ENDPOINT", endpoint))
        self.project = projects.open(folder)
        self.lease = self.project.workspace.journal.acquire()

    def version(self, number: int) -> Draft:
        """Store version ``number``; return its entry, to be written."""
        workspace = self.project.workspace
        labels = [1] * number + [0] * (100 - number)
        estimator = DummyClassifier(strategy="prior").fit(np.zeros((100, 2)), labels)
        encoding = Encoding(("distance", "origin"), {"origin": ("EWR", "JFK")}, (), (False, True))
        step = {"estimator": workspace.models.save(estimator), "encoding": encoding.as_json(), "request": self.schema,
                "example": self.row}  # fmt: skip
        workspace.journal.record_step(f"training-{number}", step, self.lease)
        made = {"model": "late", "version": number, "training": f"training-{number}", "recipe": "r", "as_of": 0}
        return Draft(0, "version", made)

    def champion(self, number: int) -> Draft:
        """Return the entry that makes ``number`` the champion."""
        body = {"model": "late", "alias": "champion", "version": number, "previous": None, "reasons": []}
        return Draft(0, "alias", body)

    def write(self, *drafts: Draft) -> int:
        """Write entries; return the number of the last."""
        return self.project.workspace.journal.append(drafts, self.lease)[-1].number

    def promote(self, number: int) -> int:
        """Make version ``number`` and have it answer; return the number of the entry that says so."""
        return self.write(self.version(number), self.champion(number))

    def apply(self, entry: int) -> None:
        """Say that the online state is as of journal entry ``entry``, at one second past the epoch."""
        OnlineState(self.project.system.views, self.project.workspace.online).apply(1_000_000, {}, {}, entry)

    @contextlib.contextmanager
    def serving(self, workers: int = 1) -> Iterator[ServerProcess]:
        """Serve as ``tidemill up`` does, in a process of its own or several."""
        server = ServerProcess(
            self.project.path, 0, self.project.workspace.root / "log" / "server.txt", workers=workers
        )
        try:
            yield server
        finally:
            server.stop()

    def logged(self) -> list[Logged]:
        """Return the predictions in the log."""
        records = self.project.workspace.log(PREDICTIONS).read({}, limit=10_000_000)
        return [msgspec.json.decode(each.payload, type=Logged) for each in records]


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Return a function from the arguments of ``tm.Endpoint`` to a stage that has no version yet."""
    with contextlib.ExitStack() as stack:

        def make(endpoint: str = "") -> Stage:
            made = Stage(tmp_path, endpoint)
            stack.callback(made.lease.release)
            return made

        yield make


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a stage whose version 1 is the champion, and which keeps an access log of everything."""
    made = make_stage('access_log="all"')
    made.apply(made.promote(1))
    return made
