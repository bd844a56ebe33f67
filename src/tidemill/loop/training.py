"""A training in its own process: opens the project, carries out the order, and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidemill import project as projects
from tidemill.engine.train.train import Order
from tidemill.ports.executor import Progress


def run(payload: dict[str, Any], report: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Carry out the training ordered by ``payload`` (the fields of ``Order``, and "project": the declared file)."""
    fields = dict(payload)
    project = projects.open(fields.pop("project"))

    def tell(progress: Progress) -> None:
        report(progress.done, progress.total, progress.doing)

    return project.carry_out(Order(**fields), tell)
