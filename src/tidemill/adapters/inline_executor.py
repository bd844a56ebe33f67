"""Work in this process, before ``submit`` returns: for backtests, and for partitions within a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import threadpoolctl

from tidemill.adapters.process_child import describe, find
from tidemill.adapters.thread_executor import call, task_named
from tidemill.base.errors import TrainingError
from tidemill.base.hashing import canonical
from tidemill.ports.executor import Progress


class InlineExecutor:
    """Runs ``tasks`` (name to function, or ``"module:function"``) at once, on at most ``threads`` threads.

    Payload and result pass through JSON, as between processes.
    """

    def __init__(self, tasks: Mapping[str, str | Callable[..., Any]], *, threads: int) -> None:
        self._tasks = dict(tasks)
        self._threads = threads

    def submit(self, task: str, payload: dict[str, Any]) -> InlineJob:
        """Run ``task`` to its end. Raises TidemillError when there is no such task."""
        function = self._found(task)
        job = InlineJob(task)
        with threadpoolctl.threadpool_limits(self._threads):
            try:
                answer = canonical(dict(function(json.loads(canonical(payload)), job.report)))
            except Exception as error:
                job.outcome = TrainingError(f"Task {task!r} failed: {describe(error)}")
                job.outcome.__cause__ = error
            else:
                job.outcome = json.loads(answer)
        return job

    def map(self, task: str, payloads: Sequence[dict[str, Any]]) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Run ``task`` on each of ``payloads``, one after the other, each when the one before has been taken."""
        function = self._found(task)
        for place, payload in enumerate(payloads):
            with threadpoolctl.threadpool_limits(self._threads):
                result = call(task, function, payload)
            yield place, result

    def close(self) -> None:
        """Do nothing: nothing is kept."""

    def _found(self, task: str) -> Callable[..., Any]:
        # Found before the threads are limited: only libraries that are already loaded can be held to their number.
        named = task_named(task, self._tasks)
        return find(named) if isinstance(named, str) else named


class InlineJob:
    """A task that has run."""

    def __init__(self, task: str) -> None:
        self.outcome: dict[str, Any] | TrainingError = TrainingError(f"Task {task!r} has not run.")
        self._progress = Progress(0, 1, "starting")

    def report(self, done: int, total: int, doing: str) -> None:
        """Note the progress."""
        self._progress = Progress(done, total, doing)

    def finished(self) -> bool:
        """Tell whether ``result`` would return at once: always."""
        return True

    def progress(self) -> Progress:
        """Return the last progress reported."""
        return self._progress

    def result(self) -> dict[str, Any]:
        """Return what the task returned. Raises TrainingError with its message when it failed."""
        if isinstance(self.outcome, TrainingError):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        """Do nothing: the task has finished."""
