"""Work in threads of this process: for functions that spend their time outside of Python's interpreter."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import threadpoolctl

from tidemill.adapters.process_child import describe, find
from tidemill.base.errors import TidemillError, TrainingError
from tidemill.base.hashing import canonical
from tidemill.ports.executor import Progress

Named = TypeVar("Named", str, str | Callable[..., Any])


class Worker(Protocol):
    """Does payloads one after another."""

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the result of ``payload``. Raises TidemillError when it failed."""
        ...

    def stop(self) -> None:
        """Make the call under way end soon, if that can be done."""
        ...


class ThreadExecutor:
    """Runs ``tasks`` (name to function, or ``"module:function"``) in at most ``workers`` threads.

    Payload and result pass through JSON, as between processes. ``threads`` is the number of threads that numerical
    libraries may use in each; None where tasks use none: finding those libraries takes ten milliseconds. A thread
    cannot be stopped: what a cancelled one still does is thrown away.
    """

    def __init__(self, tasks: Mapping[str, str | Callable[..., Any]], *, threads: int | None, workers: int) -> None:
        self._tasks = dict(tasks)
        self._threads, self._workers = threads, workers

    def submit(self, task: str, payload: dict[str, Any]) -> ThreadJob:
        """Start ``task`` in a thread of its own. Raises TidemillError when there is no such task."""
        return ThreadJob(task, self._function(task), json.loads(canonical(payload)), self._threads)

    def map(self, task: str, payloads: Sequence[dict[str, Any]]) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Run ``task`` on each of ``payloads`` in ``workers`` threads; yield (place, result) as each is done."""
        function = self._function(task)
        if self._threads is not None:
            _libraries(len(sys.modules))  # once, and not by each thread as it begins
        return spread(lambda: _Caller(task, function, self._threads), payloads, self._workers)

    def close(self) -> None:
        """Do nothing: nothing is kept."""

    def _function(self, task: str) -> Callable[..., Any]:
        named = task_named(task, self._tasks)
        return find(named) if isinstance(named, str) else named


class ThreadJob:
    """One task in its thread."""

    def __init__(self, task: str, function: Callable[..., Any], payload: dict[str, Any], threads: int | None) -> None:
        self._task, self._threads = task, threads
        self._progress = Progress(0, 1, "starting")
        self._outcome: dict[str, Any] | TrainingError | None = None
        self._ended = threading.Event()
        self._settling = threading.Lock()
        threading.Thread(target=self._run, args=(function, payload), daemon=True).start()

    def finished(self) -> bool:
        """Tell whether ``result`` would return at once."""
        return self._ended.is_set()

    def progress(self) -> Progress:
        """Return the last progress reported."""
        return self._progress

    def result(self) -> dict[str, Any]:
        """Wait for the task and return its result. Raises TrainingError with its message when it failed."""
        self._ended.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, TrainingError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Give up the task: its result will not be waited for. No-op when it has finished."""
        self._settle(TrainingError(f"Task {self._task!r} was cancelled."))

    def _run(self, function: Callable[..., Any], payload: dict[str, Any]) -> None:
        try:
            with threadpoolctl.threadpool_limits(self._threads):
                self._settle(json.loads(canonical(dict(function(payload, self._report)))))
        except Exception as error:
            failure = TrainingError(f"Task {self._task!r} failed: {describe(error)}")
            failure.__cause__ = error
            self._settle(failure)

    def _report(self, done: int, total: int, doing: str) -> None:
        self._progress = Progress(done, total, doing)

    def _settle(self, outcome: dict[str, Any] | TrainingError) -> None:
        with self._settling:
            if self._outcome is None:
                self._outcome = outcome
                self._ended.set()


class _Caller:
    """A worker that calls a function in the thread that calls it."""

    def __init__(self, task: str, function: Callable[..., Any], threads: int | None) -> None:
        self._task, self._function, self._threads = task, function, threads

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        if self._threads is None:
            return call(self._task, self._function, payload)
        # OpenMP counts its threads for each thread that calls it, so each limits its own.
        with _libraries(len(sys.modules)).limit(limits=self._threads):
            return call(self._task, self._function, payload)

    def stop(self) -> None:
        """Do nothing: a thread cannot be stopped."""


@lru_cache(maxsize=1)
def _libraries(modules: int) -> threadpoolctl.ThreadpoolController:
    """Return the numerical libraries that are loaded. Finding them takes milliseconds, so only as ``modules`` grow."""
    return threadpoolctl.ThreadpoolController()


def task_named(task: str, tasks: Mapping[str, Named]) -> Named:
    """Return the entry of ``task``. Raises TidemillError, naming the known ones, when there is none."""
    if task not in tasks:
        raise TidemillError(f"There is no task {task!r}. The tasks are: {', '.join(sorted(tasks))}.")
    return tasks[task]


def call(task: str, function: Callable[..., Any], payload: dict[str, Any]) -> dict[str, Any]:
    """Return what ``function`` makes of ``payload``, both through JSON. Raises TidemillError with its message."""
    try:
        answer = canonical(dict(function(json.loads(canonical(payload)), lambda *_: None)))
    except TidemillError:
        raise
    except Exception as error:
        raise TidemillError(f"Task {task!r} failed: {describe(error)}") from error
    result: dict[str, Any] = json.loads(answer)
    return result


def _taken(place: int, result: dict[str, Any] | BaseException) -> tuple[int, dict[str, Any]]:
    if isinstance(result, BaseException):
        raise result
    return place, result


def spread(
    worker: Callable[[], Worker], payloads: Sequence[dict[str, Any]], workers: int
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Share ``payloads`` out among ``workers`` threads, each with a worker of its own; yield (place, result) as done.

    At the first failure, or when the generator is closed, the workers are stopped and the threads waited for.
    """
    done: queue.SimpleQueue[tuple[int, dict[str, Any] | BaseException]] = queue.SimpleQueue()
    places = iter(range(len(payloads)))
    taking, stop = threading.Lock(), threading.Event()
    active: list[Worker] = []

    def work() -> None:
        mine: Worker | None = None
        while not stop.is_set():
            with taking:
                place = next(places, None)
            if place is None:
                return
            try:
                if mine is None:
                    mine = worker()
                    active.append(mine)
                    if stop.is_set():  # nobody may have seen this worker when the others were stopped
                        return
                done.put((place, mine(payloads[place])))
            except BaseException as error:  # whatever it is, the caller must hear of it
                done.put((place, error))
                return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(payloads)))]
    try:
        for thread in threads:
            thread.start()
        for _ in payloads:
            yield _taken(*done.get())
    except BaseException:  # also GeneratorExit: the caller wants no more
        stop.set()
        for each in tuple(active):
            each.stop()
        raise
    finally:
        for thread in threads:
            thread.join()
