"""A zygote for tests that kill processes, and the small system that those processes turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


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
