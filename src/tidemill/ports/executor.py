"""Executors: long work in another process, with progress."""

from __future__ import annotations

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
    """Runs named functions of the package on JSON data."""

    def submit(self, task: str, payload: dict[str, Any]) -> Job:
        """Start ``task`` (a name from the executor's table of tasks) with ``payload`` and return at once."""
        ...
