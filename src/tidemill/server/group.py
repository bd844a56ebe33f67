"""Several server processes on one port: ``python -m tidemill.server.group --workers 4 --port 8321 --system flights``.

Each worker has a socket of its own on the port, bound and kept here, so that what waits to be accepted outlives a
worker that dies: the one started in its place takes it up. This process answers nothing and holds little. It prints the
line of its workers, ``{"port": …}``, once all of them take requests; SIGTERM and SIGINT drain them all.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from tidemill.base.errors import TidemillError
from tidemill.server.listen import bind_all

#: Seconds within which a worker must take requests.
START = 60.0


class Group:
    """The workers of one port."""

    def __init__(self, sockets: Sequence[socket.socket], command: Sequence[str], folder: Path) -> None:
        self._sockets, self._command, self._folder = list(sockets), list(command), folder
        self._workers: list[subprocess.Popen[bytes]] = []
        self.stopping = threading.Event()

    def start(self) -> None:
        """Start every worker; returns when all of them take requests. Raises TidemillError when one does not."""
        for number in range(len(self._sockets)):
            self._workers.append(self._begin(number))
        for number in range(len(self._sockets)):
            self._ready(number)

    def keep(self) -> None:
        """Start a worker in the place of each that dies, until stopped.

        Raises TidemillError when one cannot be started.
        """
        while not self.stopping.wait(0.05):
            for number, worker in enumerate(self._workers):
                if worker.poll() is not None and not self.stopping.is_set():
                    print(json.dumps({"level": "error", "event": "a worker has ended", "worker": number,
                                      "code": worker.returncode}), file=sys.stderr, flush=True)  # fmt: skip
                    self._workers[number] = self._begin(number)
                    self._ready(number)

    def stop(self) -> int:
        """Drain every worker; return 0 when all ended well. Idempotent."""
        for one in self._sockets:
            one.close()
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        codes = [worker.wait() for worker in self._workers]
        return max((abs(code) for code in codes), default=0)

    def _begin(self, number: int) -> subprocess.Popen[bytes]:
        handle = self._sockets[number].fileno()
        own = ["--socket", str(handle), "--worker", str(number), "--peers", str(self._folder), "--supervised"]
        return subprocess.Popen(
            [sys.executable, "-m", "tidemill.server.main", *self._command, *own],
            stdin=subprocess.PIPE,  # its end tells the worker that this process is gone
            stdout=subprocess.PIPE,
            pass_fds=[handle],
        )

    def _ready(self, number: int) -> None:
        worker = self._workers[number]
        assert worker.stdout is not None
        late = threading.Timer(START, worker.kill)
        late.start()
        try:
            if not worker.stdout.readline() and not self.stopping.is_set():
                raise TidemillError(f"Worker {number} of the server did not start; it ended with {worker.wait()}.")
        finally:
            late.cancel()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a group from the command line; ends with 2 and a message when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m tidemill.server.group", description="Serve with several workers.")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--system", default=".", help="folder with system.py, or the declared file")
    parser.add_argument("--workspace", help="the workspace; by default .tidemill beside the declared file")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, required=True, help="0 for a free one")
    parser.add_argument("--supervised", action="store_true", help="drain and end when standard input ends")
    given = parser.parse_args(arguments)
    command = ["--system", given.system, *(["--workspace", given.workspace] if given.workspace else [])]
    with tempfile.TemporaryDirectory(prefix="tidemill-") as folder:
        try:
            sockets = bind_all(given.host, given.port, given.workers)
        except TidemillError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        group = Group(sockets, command, Path(folder))
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: group.stopping.set())
        if given.supervised:
            threading.Thread(target=_follow_supervisor, args=(group,), daemon=True).start()
        try:
            group.start()
            print(json.dumps({"port": sockets[0].getsockname()[1]}), flush=True)
            group.keep()
        except TidemillError as error:
            print(error, file=sys.stderr)
            group.stop()
            sys.exit(2)
        sys.exit(group.stop())


def _follow_supervisor(group: Group) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    group.stopping.set()


if __name__ == "__main__":
    main()
