"""Asking the worker for something by hand, and waiting until it has been answered."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from tidemill.base.clock import format_duration
from tidemill.cli.words import decisions, when
from tidemill.project import Project

_LOOK_SECONDS = 0.25


def ask(project: Project, kind: str, body: dict[str, Any]) -> tuple[str, str]:
    """Ask the worker; return the request's id and what happens next, in words."""
    id = project.workspace.journal.request(kind, body)
    tick = format_duration(project.system.tick)
    return id, f"The worker takes it up at its next tick (one every {tick}), or when one is started: tidemill up"


def wait(project: Project, id: str, model: str, out: Console) -> None:
    """Return once the request ``id`` has been answered, printing what was decided about ``model`` since."""
    journal = project.workspace.journal
    last = journal.last()
    while any(request.id == id for request in journal.requests()):
        time.sleep(_LOOK_SECONDS)
    for entry in journal.read(after=last):
        if entry.body.get("model") == model:
            for style, text in decisions(entry):
                out.print(f"{when(entry.tick)}  {text}", style=style, markup=False)
