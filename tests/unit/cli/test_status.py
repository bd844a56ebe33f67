"""What ``tidemill status`` shows on narrow screens."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from tidemill.cli.status import _show

TABLE: dict[str, Any] = {
    "name": "orders", "versions": 1200, "newest": "2026-05-01T12:00:00Z", "age": "now", "quarantined": 0, "cleaned": [],
    "halted": "b.csv lacks the column 'size'. Give it the columns of the first load, or take it away.",
}  # fmt: skip
FOUND: dict[str, Any] = {
    "system": "shop", "tick": "2026-05-01T12:00:00Z", "endpoint": None, "tables": [TABLE], "models": [],
    "online": {"views": [], "lag": None, "rebuilding": None, "unread": None}, "undeclared": [], "requests": [],
}  # fmt: skip


def test_why_a_source_stands_still_is_said_whole_however_narrow_the_screen() -> None:
    out = io.StringIO()
    _show(Console(file=out, width=40), FOUND, [])
    assert "orders stands still: b.csv lacks the column 'size'." in " ".join(out.getvalue().split())


def test_what_is_stored_of_a_table_is_called_versions() -> None:
    out = io.StringIO()
    _show(Console(file=out, width=80), FOUND, [])
    assert [line.split() for line in out.getvalue().splitlines()[3:5]] == [
        ["table", "versions", "newest", "age", "quarantined"],
        ["orders", "1,200", "2026-05-01", "12:00", "now", "0", "stands", "still"],
    ]
