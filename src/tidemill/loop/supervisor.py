"""Starts a server beside the worker, and knows when it has followed a decision."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tidemill.base.errors import TidemillError

_START_SECONDS = 60
_STOP_SECONDS = 10


class ServerProcess:
    """The server of a project, on loopback: one process, or several on one port. Ends with this process."""

    def __init__(self, project: Path, port: int, log: Path, *, workers: int = 1) -> None:
        """Start the server of the declared file ``project`` on ``port`` (0: a free one), its messages into ``log``."""
        module = ["tidemill.server.main"] if workers == 1 else ["tidemill.server.group", "--workers", str(workers)]
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    *module,
                    "--system",
                    str(project),
                    "--port",
                    str(port),
                    "--supervised",
                ],
                stdin=subprocess.PIPE,  # its end tells the server that this process is gone
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches the worker, which then stops the server in order
            )
        self.port = self._read_port()

    def _read_port(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            port: int = json.loads(line)["port"]
        except (ValueError, KeyError, TypeError):
            self.stop()
            said = self._log.read_text(errors="replace").strip().splitlines()
            why = said[-1].rstrip(".") if said else "it said nothing"
            raise TidemillError(f"The server did not start: {why}. Its log is {self._log}.") from None
        return port

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def running(self) -> bool:
        """Tell whether the process is alive."""
        return self._process.poll() is None

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """Send one JSON request and return the JSON answer. Raises TidemillError when the answer is not 2xx."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            data = json.loads(answer.read() or b"null")
        except (OSError, http.client.HTTPException) as error:
            raise TidemillError(f"The server at {self.url} does not answer: {error}. Its log is {self._log}") from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise TidemillError(f"{method} {path} was answered {answer.status}: {json.dumps(data)}")
        return data

    def follow(self, number: int, *, timeout: float = 60.0, stopped: threading.Event | None = None) -> dict[str, str]:
        """Return once the server has applied journal entry ``number``, ails, or ``stopped`` is set.

        Returns what ails it, by model; the others are served. Raises TidemillError after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while (health := self.call("GET", "/v1/health"))["journal"] < number:
            troubles: dict[str, str] = health["troubles"]
            if troubles or (stopped is not None and stopped.is_set()):
                return troubles
            if time.monotonic() > deadline:
                raise TidemillError(f"The server at {self.url} has not followed journal entry {number}.")
            time.sleep(0.005)
        return {}

    def stop(self) -> None:
        """Let it finish what it has begun, and end it. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
