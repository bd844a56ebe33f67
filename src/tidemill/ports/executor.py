"""Executors: work elsewhere, with progress. One long job at a time (a training), or many alike (partitions)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: ``done`` of ``total`` parts, and what it is doing now."""

    done: int
    total: int
    doing: str


class Job(Protocol):
    """One piece of work under way."""

    def finished(self) -> bool:
        """Tell whether ``result`` would return at once."""
        ...

    def progress(self) -> Progress:
        """Return the last progress reported."""
        ...

    def result(self) -> dict[str, Any]:
        """Wait for the work and return what it returned. Raises TrainingError with its message when it failed."""
        ...

    def cancel(self) -> None:
        """Stop the work. No-op when it has finished."""
        ...


class Executor(Protocol):
    """Runs named functions of the package on JSON data.

    A function takes the payload and ``report(done, total, doing)`` and returns a dict of JSON data. Rows are never in
    a payload: it says where they lie.
    """

    def submit(self, task: str, payload: dict[str, Any]) -> Job:
        """Start ``task`` (a name from the executor's table of tasks) with ``payload`` and return at once."""
        ...

    def map(self, task: str, payloads: Sequence[dict[str, Any]]) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Run ``task`` on each of ``payloads``, a bounded number at a time; yield (place, result) as each is done.

        Work goes on while the caller holds what was yielded. Closing the generator stops what is under way and starts
        nothing more. Raises TidemillError with the first failure's message, having stopped the rest.
        """
        ...

    def close(self) -> None:
        """Let go of what ``map`` keeps for the next time. Idempotent; the executor can be used again."""
        ...
