"""The worker on a disk that is full for a while."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from rich.console import Console

from tidemill.adapters.system_file import load_system
from tidemill.cli import up
from tidemill.engine.mill.mill import Mill, Turned
from tidemill.project import Project
from tidemill.workspace import Workspace

SYSTEM = """
import tidemill as tm
from sklearn.linear_model import LinearRegression

asked = tm.Source("asked", tm.files("asked.csv"), key="id", event_time="at")
came = tm.Source("came", tm.files("came.csv"), key="id", event_time="at")
model = tm.Model("m", examples=asked, asked_at="at", label=tm.Label(came, "y", within="1d"), features=["x"],
                 estimator=LinearRegression())
system = tm.System("s", model, tick="1s")
"""


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "system.py"
    file.write_text(SYSTEM)
    (tmp_path / "asked.csv").write_text("id,at,x\n1,2024-01-01,1.5\n")
    project = Project(file, load_system(file), Workspace(tmp_path / ".tidemill"))
    lease = project.workspace.journal.acquire()
    out = Console(record=True, width=200, file=(tmp_path / "said.txt").open("w"))
    run = up._Run(project, lease, out)
    ticks: list[int] = []
    whole = Mill.tick

    def tick(mill: Mill, at: int) -> Turned:
        ticks.append(at)
        if len(ticks) in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        if len(ticks) == 5:
            run._stop.set()
        return whole(mill, at)

    monkeypatch.setattr(Mill, "tick", tick)
    monkeypatch.setattr(up, "_RETRY", 0.1)
    assert run.keep_turning()
    lease.release()
    said = out.export_text()
    assert said.count("The disk cannot be written: No space left on device.") == 2
    assert said.count("The disk takes writes again.") == 2
    assert len(project.workspace.journal.ticks()) == 3
    assert project.rows_so_far("asked").height == 1

    def broken(mill: Mill, at: int) -> Turned:
        raise FileNotFoundError(errno.ENOENT, "gone")

    project = Project(file, load_system(file), Workspace(tmp_path / ".tidemill"))
    lease = project.workspace.journal.acquire()
    run = up._Run(project, lease, out)
    monkeypatch.setattr(Mill, "tick", broken)
    with pytest.raises(FileNotFoundError):
        run.keep_turning()
    run.close()
    lease.release()
