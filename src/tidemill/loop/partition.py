"""One step of work in partitions, in a process that does many: opens the project once and carries each step out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tidemill import batch
from tidemill import project as projects
from tidemill.adapters import adapter
from tidemill.engine.example.build import Partitions, Plan


def run(payload: dict[str, Any], _: object) -> dict[str, Any]:
    """Carry out the step of ``payload``, which also names the "project" (its file) and the "folder" of the pieces."""
    step = dict(payload)
    return _worker(step.pop("project"), step.pop("folder"))(step)


@lru_cache(maxsize=1)
def _worker(project: str, folder: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    opened, scratch = projects.open(project), adapter("scratch", "files")(Path(folder))
    note = scratch.note("run")
    if "version" in note:
        return batch.predictions(opened, scratch).run
    plan = Plan.from_data(note["plan"])
    return Partitions(opened.declared_model(note["model"]), opened.workspace.lake, scratch, plan).run
