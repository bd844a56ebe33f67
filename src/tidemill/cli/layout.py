"""How the commands look: one console, plain aligned tables, faults in blocks; and opening what has run."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tidemill import project as projects
from tidemill.base.errors import Fault, WorkspaceError
from tidemill.project import Project
from tidemill.workspace import Workspace

_WIDTH = 100
_PROBE_SECONDS = 0.5


def console() -> Console:
    """Return the console that commands print on: no colours of its own choosing, at most 100 columns."""
    made = Console(highlight=False)
    if not made.is_terminal or made.width > _WIDTH:
        made.width = _WIDTH
    return made


def open_running(path: Path) -> Project:
    """Open the project at ``path``, in whose workspace a worker has run. Raises WorkspaceError when none has."""
    project = projects.open(path)
    if not project.workspace.exists:
        raise WorkspaceError("Nothing has run here yet; start with: tidemill up")
    return project


class _Grid(Table):
    """A table whose texts are shown as they are: a key such as ``[/x]`` is no markup."""

    def add_row(self, *cells: Any, **how: Any) -> None:
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def grid(*headers: str, right: Iterable[int] = ()) -> Table:
    """Return an empty table without lines. ``right``: places of the columns that are aligned to the right."""
    made = _Grid(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0), show_header=any(headers))
    numbers = set(right)
    for place, header in enumerate(headers):
        last = place == len(headers) - 1
        made.add_column(header, justify="right" if place in numbers else "left", no_wrap=not last, overflow="fold")
    return made


def section(out: Console, title: str, body: Any) -> None:
    """Print ``body`` under ``title``, indented, with an empty line before."""
    out.print()
    out.print(Text(title, style="bold"))
    out.print(Padding(body, (0, 0, 0, 2), expand=False))


def print_faults(out: Console, faults: Sequence[Fault], *, style: str) -> None:
    """Print each fault as a block: where, what is wrong, and what to do."""
    for fault in faults:
        out.print()
        out.print(Text(fault.where, style=f"bold {style}"))
        out.print(Padding(Text(fault.what), (0, 0, 0, 2), expand=False))
        if fault.do:
            out.print(Padding(Text(fault.do, style="dim"), (0, 0, 0, 2), expand=False))


def faults_json(faults: Iterable[Fault]) -> list[dict[str, str]]:
    """Return faults as plain data."""
    return [{"where": fault.where, "what": fault.what, "do": fault.do} for fault in faults]


def count(number: int, noun: str) -> str:
    """Return "1 table", "2 tables", "3 entries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def endpoint_file(workspace: Workspace) -> Path:
    """Return the file in which ``tidemill up`` writes where its server listens."""
    return workspace.root / "endpoint"


def probe(workspace: Workspace) -> tuple[str, dict[str, Any]] | None:
    """Return the address of the server that ``tidemill up`` keeps and what it says of its health, or None."""
    try:
        url = endpoint_file(workspace).read_text().strip()
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_PROBE_SECONDS)
        try:
            connection.request("GET", "/v1/health")
            health = json.loads(connection.getresponse().read())
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return (url, health) if isinstance(health, dict) and "journal" in health else None
