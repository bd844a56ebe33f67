"""A system whose file is edited while its champion serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from tidemill.adapters.system_file import load_system
from tidemill.base.clock import DAY, HOUR, parse_time
from tidemill.base.errors import WorkspaceError
from tidemill.cli.main import main
from tidemill.loop.supervisor import ServerProcess
from tidemill.project import Project
from tidemill.workspace import Workspace, open_served

START = parse_time("2024-01-01")

SYSTEM = """
import polars as pl
import tidemill as tm
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression

asked = tm.Source("asked", tm.files("asked.csv"), key="id", event_time="at", known_at=tm.before("at", "1h"))
came = tm.Source("came", tm.files("came.csv"), key="id", event_time="at")
recent = tm.Aggregation("recent", came, by="site", features={"n": tm.count(over="1d")})
model = tm.Model("size", examples=asked, asked_at="at", label=tm.Label(came, "y", within="1d"),
                 features=[recent, "x"], estimator=DummyRegressor(),
                 split=tm.by_time(test="10d", blocks=2), gate=tm.Gate("mae", min_rows=50))
system = tm.System("sizes", model, tick="1h", policy=tm.Policy(takes="1h"))
"""


def write(folder: Path) -> None:
    rng = np.random.default_rng(3)
    at = START + np.sort(rng.integers(0, 30 * DAY, 600))
    x = rng.normal(size=600)
    times = pl.Series("at", at).cast(pl.Datetime("us", "UTC"))
    asked = pl.DataFrame({"id": range(600), "at": times, "site": ["a", "b"] * 300, "x": x})
    came = asked.select("id", pl.col("at") + pl.duration(hours=3), "site", y=3 * pl.col("x"))
    for name, frame in (("asked", asked), ("came", came)):
        frame.write_csv(folder / f"{name}.csv", datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")


def test_a_better_recipe_is_promoted_and_one_that_robs_the_champion_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "system.py"
    file.write_text(SYSTEM)
    write(tmp_path)
    workspace = Workspace(tmp_path / ".tidemill")
    lease = workspace.journal.acquire()

    def turn(first: int, hours: int) -> Project:
        project = Project(file, load_system(file), workspace)
        mill = project.mill(lease)
        mill.start()
        for hour in range(first, first + hours):
            mill.tick(START + 32 * DAY + hour * HOUR)
        mill.stop()
        return project

    # A constant beats no baseline, so the first verdict refuses; a real estimator is a changed recipe and is tried.
    assert turn(0, 2).state().model("size").versions == ()
    file.write_text(SYSTEM.replace("estimator=DummyRegressor()", "estimator=LinearRegression()"))
    state = turn(10, 2).state().model("size")
    assert state.aliases == {"champion": 1}
    reasons = [entry.body["reasons"] for entry in workspace.journal.read(kinds=["train"])]
    assert reasons[1] == ["the recipe has changed"]
    changed = [entry.body["changes"] for entry in workspace.journal.read(kinds=["declare"])]
    assert any("DummyRegressor" in each for each in changed[1])

    # A new check on a source changes rows, not features: the champion goes on.
    linear = SYSTEM.replace("estimator=DummyRegressor()", "estimator=LinearRegression()")
    file.write_text(linear.replace('event_time="at")', 'event_time="at", checks=[tm.between("y", -100, 100)])'))
    turn(20, 1)

    for edited in (
        linear.replace('features=[recent, "x"]', 'features=["x"]'),
        linear.replace('over="1d"', 'over="2d"'),
    ):
        file.write_text(edited)
        with pytest.raises(WorkspaceError, match=r"champion v1 needs recent__n_1d.*under a new name"):
            turn(30, 1)
        edit = Project(file, load_system(file), workspace)
        with pytest.raises(WorkspaceError, match=r"v1 of model 'size' needs recent__n_1d.*Put that declaration back"):
            edit.model("size").predict(edit.table("asked").head(1))
        with pytest.raises(WorkspaceError, match=r"needs recent__n_1d.*start again: tidemill up"):
            open_served(tmp_path).load_declared("size", edit.model("size").version.training)
        planned = CliRunner().invoke(main, ["plan", "--json", "--project", str(tmp_path)])
        assert planned.exit_code == 1
        assert "champion v1 needs recent__n_1d" in json.loads(planned.stdout)["refused"][0]
    # A server that starts on such a file says what ails it, and does not keep the worker waiting.
    server = ServerProcess(file, 0, tmp_path / "server.txt")
    try:
        ails = server.follow(1_000_000)
    finally:
        server.stop()
    assert "recent__n_1d, which is no longer declared" in ails["size"]
    lease.release()
