from __future__ import annotations

import http.server
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from tidemill.base.errors import Fault, WorkspaceError
from tidemill.cli.layout import count, endpoint_file, grid, open_running, print_faults, probe
from tidemill.workspace import Workspace


def test_counts_read_as_english() -> None:
    assert (count(1, "table"), count(2_000, "row"), count(0, "entry")) == ("1 table", "2,000 rows", "0 entries")


def test_faults_stand_in_blocks() -> None:
    out = io.StringIO()
    print_faults(
        Console(file=out, width=60), [Fault("source 'a'", "has no column 'x'.", "Did you mean 'y'?")], style="red"
    )
    assert out.getvalue() == "\nsource 'a'\n  has no column 'x'.\n  Did you mean 'y'?\n"


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    out = io.StringIO()
    table = grid("key", "said")
    table.add_row("[/x]", "[red]a")
    Console(file=out, width=60).print(table)
    assert out.getvalue().splitlines()[1].split() == ["[/x]", "[red]a"]


def test_a_project_without_a_workspace_says_how_to_start(tmp_path: Path) -> None:
    (tmp_path / "system.py").write_text("import tidemill as tm\nsystem = tm.System('empty')\n")
    with pytest.raises(WorkspaceError, match="start with: tidemill up"):
        open_running(tmp_path)


@pytest.mark.parametrize(("answer", "up"), [(b'{"journal": 3}', True), (b"{}", False), (b"<html>", False)])
def test_the_endpoint_is_asked_whether_it_is_up(tmp_path: Path, answer: bytes, up: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None: ...

    workspace = Workspace(tmp_path)
    assert probe(workspace) is None
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint_file(workspace).write_text(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = probe(workspace)
        thread.join()
    assert (found is not None) is up
    assert probe(workspace) is None  # the file is left of a run that was killed
