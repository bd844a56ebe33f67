"""Work in a fresh process each: a crash, a leak or an abort of a training stays there.

The child is a new interpreter, never a fork: forking a process with threads, an open LMDB or a held lease goes wrong in
ways that show late. Parent and child share a directory with ``payload.json``, ``result.json`` and ``log.txt``; progress
comes as lines of JSON on the child's standard output. The child's standard input is a pipe that nothing is written to:
when the parent dies, however it dies, the pipe ends and the child kills itself and what it started.

``map`` gives a few such children one payload after another, as lines of JSON on that same pipe, and keeps them for the
next time until ``close``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tidemill.adapters.thread_executor import spread, task_named
from tidemill.adapters.work_folder import KEEP, fresh
from tidemill.base.errors import (
    NotFoundError,
    RequestError,
    SourceError,
    TidemillError,
    TrainingError,
    WorkspaceError,
)
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


#: Errors of ours that come out of ``map`` as what they are.
_OURS: dict[str, type[TidemillError]] = {
    each.__name__: each for each in (NotFoundError, RequestError, SourceError, WorkspaceError)
}


class ProcessExecutor:
    """Runs the functions of ``tasks`` (name to ``"module:function"``), each in its own process.

    A function takes the payload and ``report(done, total, doing)`` and returns a dict of JSON data. Jobs work in
    subdirectories of ``directory``: deleted after success, kept with their log after failure. ``threads`` is the number
    of threads that numerical libraries may use; ``environment`` is added to this process's own. ``workers`` is the
    number of processes among which ``map`` shares its payloads out.
    """

    def __init__(
        self,
        tasks: Mapping[str, str],
        directory: Path,
        *,
        threads: int,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._tasks = dict(tasks)
        self._directory = directory
        self._workers = workers
        self._idle: list[_Child] = []
        # A fixed hash seed: iteration over sets of strings must not differ between a run and its backtest.
        self._environment = {
            **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
            "PYTHONHASHSEED": "0",
            **(environment or {}),
        }

    def submit(self, task: str, payload: dict[str, Any]) -> ProcessJob:
        """Start ``task`` with ``payload`` and return at once. Raises TidemillError when there is no such task."""
        path = task_named(task, self._tasks)
        work, handle = fresh(self._directory, task)
        (work / "payload.json").write_bytes(canonical(payload))
        return ProcessJob(task, work, handle, self._start(path, work))

    def map(self, task: str, payloads: Sequence[dict[str, Any]]) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Run ``task`` on each of ``payloads`` in ``workers`` processes; yield (place, result) as each is done."""
        path = task_named(task, self._tasks)
        children = [each for each in self._idle if each.task == task]
        self._idle = [each for each in self._idle if each not in children]
        kept, taking = list(children), threading.Lock()

        def child() -> _Child:
            with taking:
                if not kept:
                    work, handle = fresh(self._directory, task)
                    children.append(_Child(task, work, handle, self._start(path, work, "--many")))
                    kept.append(children[-1])
                return kept.pop()

        try:
            yield from spread(child, payloads, self._workers)
            self._idle += children
            children = []
        finally:
            for each in children:
                each.close()

    def close(self) -> None:
        """End the processes that ``map`` keeps. Idempotent."""
        while self._idle:
            self._idle.pop().close()

    def _start(self, path: str, work: Path, *how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "tidemill.adapters.process_child"]
        with open(work / "log.txt", "wb") as log:
            return subprocess.Popen(
                [*command, path, str(work), *how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environment},
                process_group=0,  # so that Ctrl-C reaches only us, and cancelling reaches the child's children
            )


class ProcessJob:
    """One task in its process. Safe to share between threads."""

    def __init__(self, task: str, work: Path, handle: int, process: subprocess.Popen[bytes]) -> None:
        self._task, self._work, self._handle, self._process = task, work, handle, process
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
            _kill(self._process)
            shutil.rmtree(self._work, ignore_errors=True)
            self._close()
            self._outcome = TrainingError(f"Task {self._task!r} was cancelled.")

    def _listen(self, lines: IO[bytes]) -> None:
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # the last line of a killed child may be torn
                self._progress = Progress(*json.loads(line))

    def _settle(self) -> dict[str, Any] | TrainingError:
        try:
            return self._read()
        finally:
            self._close()

    def _read(self) -> dict[str, Any] | TrainingError:
        self._listener.join()
        log = self._work / "log.txt"
        try:
            answer = json.loads((self._work / "result.json").read_bytes())
        except FileNotFoundError:  # it died before it could say why
            message = _died(self._process, log)
        else:
            if "result" in answer:
                shutil.rmtree(self._work, ignore_errors=True)
                return dict(answer["result"])
            message = answer["error"]
        (self._work / KEEP).touch()
        return TrainingError(f"Task {self._task!r} failed: {message}\nThe whole log is in {log}")

    def _close(self) -> None:
        self._listener.join()
        _close_pipes(self._process)
        os.close(self._handle)


class _Child:
    """A process that does one payload after another, for one thread of ``map``."""

    def __init__(self, task: str, work: Path, handle: int, process: subprocess.Popen[bytes]) -> None:
        self.task = task
        self._work, self._handle, self._process = work, handle, process
        self._failed = self._stopped = False

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the result of one payload. Raises TidemillError when it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it has died: then there is no answer either
            self._process.stdin.write(canonical(payload) + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        log = self._work / "log.txt"
        if line.endswith(b"\n"):
            answer = json.loads(line)
            if "result" in answer:
                return dict(answer["result"])
            if answer["ours"]:
                raise _OURS.get(answer["ours"], TidemillError)(answer["error"])
            message = answer["error"]
        else:
            self._process.wait()
            message = _died(self._process, log)
        self._failed = not self._stopped
        raise TidemillError(f"Task {self.task!r} failed: {message}\nThe whole log is in {log}")

    def stop(self) -> None:
        """Kill the process and what it started, whatever it is doing."""
        self._stopped = True
        _kill(self._process)

    def close(self) -> None:
        """End the process; its log stays if it has failed."""
        _kill(self._process)
        _close_pipes(self._process)
        if self._failed:
            (self._work / KEEP).touch()
        else:
            shutil.rmtree(self._work, ignore_errors=True)
        os.close(self._handle)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # bytes for a child that has died
                pipe.close()


def _died(process: subprocess.Popen[bytes], log: Path) -> str:
    said = log.read_text(errors="replace").strip().splitlines()
    return f"{_ending(process.returncode)}{'; its log says: ' + said[0] if said else ''}"


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code}"
    name = signal.Signals(-code).name
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
