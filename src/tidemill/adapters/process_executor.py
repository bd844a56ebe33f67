"""Work in a fresh process each: a crash, a leak or an abort of a training stays there.

The child is a new interpreter, never a fork: forking a process with threads, an open LMDB or a held lease goes wrong in
ways that show late. Parent and child share a directory with ``payload.json``, ``result.json`` and ``log.txt``; progress
comes as lines of JSON on the child's standard output. The child's standard input is a pipe that nothing is written to:
when the parent dies, however it dies, the pipe ends and the child kills itself and what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tidemill.base.errors import TidemillError, TrainingError
from tidemill.base.hashing import canonical
from tidemill.ports.executor import Progress

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
)


class ProcessExecutor:
    """Runs the functions of ``tasks`` (name to ``"module:function"``), each in its own process.

    A function takes the payload and ``report(done, total, doing)`` and returns a dict of JSON data. Jobs work in
    subdirectories of ``directory``: deleted after success, kept with their log after failure. ``threads`` is the number
    of threads that numerical libraries may use; ``environment`` is added to this process's own.
    """

    def __init__(
        self, tasks: Mapping[str, str], directory: Path, *, threads: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self._tasks = dict(tasks)
        self._directory = directory
        # A fixed hash seed: iteration over sets of strings must not differ between a run and its backtest.
        self._environment = {
            **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
            "PYTHONHASHSEED": "0",
            **(environment or {}),
        }

    def submit(self, task: str, payload: dict[str, Any]) -> ProcessJob:
        """Start ``task`` with ``payload`` and return at once. Raises TidemillError when there is no such task."""
        if task not in self._tasks:
            raise TidemillError(f"There is no task {task!r}. The tasks are: {', '.join(sorted(self._tasks))}.")
        self._directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{task}-", dir=self._directory))
        (work / "payload.json").write_bytes(canonical(payload))
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "tidemill.adapters.process_child"]
        with open(work / "log.txt", "wb") as log:
            process = subprocess.Popen(
                [*command, self._tasks[task], str(work)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environment},
                process_group=0,  # so that Ctrl-C reaches only us, and cancelling reaches the child's children
            )
        return ProcessJob(task, work, process)


class ProcessJob:
    """One task in its process. Safe to share between threads."""

    def __init__(self, task: str, work: Path, process: subprocess.Popen[bytes]) -> None:
        self._task, self._work, self._process = task, work, process
        self._progress = Progress(0, 1, "starting")
        self._outcome: dict[str, Any] | TrainingError | None = None
        self._settling = threading.Lock()
        assert process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(process.stdout,), daemon=True)
        self._listener.start()

    def finished(self) -> bool:
        """Tell whether ``result`` would return at once."""
        return self._outcome is not None or self._process.poll() is not None

    def progress(self) -> Progress:
        """Return the last progress reported."""
        return self._progress

    def result(self) -> dict[str, Any]:
        """Wait for the task and return its result.

        Raises TrainingError with the task's own message and the path of its log when it failed.
        """
        self._process.wait()
        with self._settling:
            if self._outcome is None:
                self._outcome = self._settle()
        if isinstance(self._outcome, TrainingError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Kill the task and what it started. No-op when it has finished."""
        with self._settling:
            if self._outcome is not None or self._process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._close()
            shutil.rmtree(self._work, ignore_errors=True)
            self._outcome = TrainingError(f"Task {self._task!r} was cancelled.")

    def _listen(self, lines: IO[bytes]) -> None:
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # the last line of a killed child may be torn
                self._progress = Progress(*json.loads(line))

    def _settle(self) -> dict[str, Any] | TrainingError:
        self._close()
        log = self._work / "log.txt"
        try:
            answer = json.loads((self._work / "result.json").read_bytes())
        except FileNotFoundError:  # it died before it could say why
            said = log.read_text(errors="replace").strip().splitlines()
            message = f"{_ending(self._process.returncode)}{'; its log says: ' + said[0] if said else ''}"
        else:
            if "result" in answer:
                shutil.rmtree(self._work, ignore_errors=True)
                return dict(answer["result"])
            message = answer["error"]
        return TrainingError(f"Task {self._task!r} failed: {message}\nThe whole log is in {log}")

    def _close(self) -> None:
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code}"
    name = signal.Signals(-code).name
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
