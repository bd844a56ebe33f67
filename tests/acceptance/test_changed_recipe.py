"""A system whose file is edited while its champion serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from tidemill.adapters.system_file import load_system
from tidemill.base.clock import DAY, HOUR, parse_time
from tidemill.base.errors import WorkspaceError
from tidemill.cli.main import main
from tidemill.engine.predict.live import Answer
from tidemill.loop.supervisor import ServerProcess
from tidemill.ports.journal import Lease
from tidemill.project import Project
from tidemill.server.main import serving
from tidemill.workspace import Served, Workspace, open_served

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
    near = x + rng.normal(size=600) / 4
    asked = pl.DataFrame({"id": range(600), "at": times, "site": ["a", "b"] * 300, "x": x, "near": near})
    came = asked.select("id", pl.col("at") + pl.duration(hours=3), "site", y=3 * pl.col("x"))
    for name, frame in (("asked", asked), ("came", came)):
        frame.write_csv(folder / f"{name}.csv", datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")


def turned(file: Path, workspace: Workspace, lease: Lease, first: int, hours: int) -> Project:
    """Work by the declared ``file`` for some ticks, an hour apart, from ``first`` on (microseconds)."""
    project = Project(file, load_system(file), workspace)
    mill = project.mill(lease)
    mill.start()
    for hour in range(hours):
        mill.tick(first + hour * HOUR)
    mill.stop()
    return project


def test_a_better_recipe_is_promoted_and_one_that_robs_the_champion_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "system.py"
    file.write_text(SYSTEM)
    write(tmp_path)
    workspace = Workspace(tmp_path / ".tidemill")
    lease = workspace.journal.acquire()

    def turn(first: int, hours: int) -> Project:
        return turned(file, workspace, lease, START + 32 * DAY + first * HOUR, hours)

    # A constant beats no baseline, so the first verdict refuses; a real estimator is a changed recipe and is tried.
    assert turn(0, 2).state().model("size").versions == ()
    looked = CliRunner().invoke(main, ["history", "size", "--json", "--project", str(tmp_path)])
    assert json.loads(looked.stdout)["tenures"] == []
    promised = json.loads(CliRunner().invoke(main, ["plan", "--json", "--project", str(tmp_path)]).stdout)
    (item,) = [item for item in promised["items"] if item["what"] == "model 'size'"]
    assert item["action"] == "nothing"
    assert item["why"][0].startswith("no champion yet: ")
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
        with pytest.raises(WorkspaceError, match=r"champion v1 needs recent__n_1d.*retired="):
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


RETIRING = """
import polars as pl
import tidemill as tm
from sklearn.linear_model import LinearRegression

asked = tm.Source("asked", tm.files("asked.csv"), key="id", event_time="at", known_at=tm.before("at", "1h"))
came = tm.Source("came", tm.files("came.csv"), key="id", event_time="at")
recent = tm.Aggregation("recent", came, by="site", features={"n": tm.count(over="1d")})
wider = tm.Aggregation("wider", came, by="site", features={"n": tm.count(over="2d")})
model = tm.Model("size", examples=asked, asked_at="at", label=tm.Label(came, "y", within="1d"),
                 features=[recent, "near"], estimator=LinearRegression(),
                 split=tm.by_time(test="7d", blocks=2), gate=tm.Gate("mae", min_rows=50))
system = tm.System("sizes", model, tick="1h", policy=tm.Policy(takes="1h"))
"""


def test_features_are_changed_and_dropped_by_retiring_them(tmp_path: Path) -> None:
    """The champion is asked with what it learned from until a version that does without it has taken its place."""
    file = tmp_path / "system.py"
    file.write_text(RETIRING)
    write(tmp_path)
    workspace = Workspace(tmp_path / ".tidemill")
    lease = workspace.journal.acquire()

    def turn(first: int, hours: int) -> Project:
        return turned(file, workspace, lease, START + 15 * DAY + first * HOUR, hours)

    def ask(**row: object) -> Answer:
        server = serving(Served(file, load_system(file), workspace))
        try:
            server.refresh()
            server.load("size", None)
            return server.predict("size", json.dumps({"id": 1, **row}).encode()).answers[0]
        finally:
            server.close()

    def plan() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            CliRunner().invoke(main, ["plan", "--json", "--project", str(tmp_path)]).stdout
        )
        return found

    assert turn(0, 2).state().model("size").aliases == {"champion": 1}
    first = ask(site="a", near=0.5)
    retiring = RETIRING.replace('features=[recent, "near"]', 'features=[wider, "x"], retired=[recent, "near"]')
    file.write_text(retiring)
    planned = plan()
    assert planned["refused"] == []
    assert any(each["what"].startswith("requests need not bring x yet") for each in planned["warnings"])
    assert [item["action"] for item in planned["items"] if item["what"] == "model 'size'"] == ["retrain"]
    project = turn(15 * 24, 1)  # by now there are newer rows to judge by
    second = ask(site="a", near=0.5)  # clients may send x from now on, and need not yet
    assert second.version == 1
    assert second.prediction == pytest.approx(first.prediction, rel=0.2)  # the windows have moved by some hours
    project = turn(15 * 24 + 1, 1)
    assert project.state().model("size").aliases == {"champion": 2}
    assert project.model("size").predictor.encoding.columns == ("wider__n_2d", "x")
    third = ask(site="a", x=0.5)  # nor what is retired any more
    assert third.version == 2
    assert third.prediction == pytest.approx(1.5, abs=0.01)
    turn(15 * 24 + 2, 1)

    compared = json.loads(CliRunner().invoke(main, ["parity", "size", "--json", "--project", str(tmp_path)]).stdout)
    assert [(each["rows"], each["skipped"], each["mismatched"]) for each in compared] == [(3, 0, 0)]
    listed = CliRunner().invoke(main, ["predictions", "size", "--json", "--project", str(tmp_path)])
    assert [json.loads(line)["version"] for line in listed.stdout.splitlines()] == [1, 1, 2]

    said = [each["what"] for each in plan()["warnings"]]
    assert sum("does not need the retired feature" in each for each in said) == 2
    file.write_text(retiring.replace(', retired=[recent, "near"]', ""))
    assert turn(15 * 24 + 9, 1).state().model("size").aliases == {"champion": 2}
    assert ask(site="a", x=0.5).prediction == pytest.approx(1.5, abs=0.01)
    compared = json.loads(CliRunner().invoke(main, ["parity", "size", "--json", "--project", str(tmp_path)]).stdout)
    assert [(each["rows"], each["skipped"]) for each in compared] == [(1, 2)]

    back = ["rollback", "size", "--to", "v1", "--reason", "x", "--project", str(tmp_path)]
    refused = CliRunner().invoke(main, back)
    assert refused.exit_code == 2
    assert "v1 of model 'size' needs recent__n_1d, near, which are no longer declared" in refused.output
    # The worker may hold another file than the one at hand.
    workspace.journal.request("rollback", {"model": "size", "alias": "champion", "version": 1, "reason": "x"})
    project = turn(15 * 24 + 10, 1)
    assert project.state().model("size").aliases == {"champion": 2}
    (asked,) = [entry.body for entry in workspace.journal.read(kinds=["request"])]
    assert "could not answer" in asked["refused"]
    # An arm is robbed as little as the champion.
    file.write_text(retiring)
    workspace.journal.request(
        "route", {"model": "size", "arms": [{"name": "b", "version": "v1", "share": 0.5}], "shadows": [], "reason": "x"}
    )
    assert [arm.version for arm in turn(15 * 24 + 11, 1).state().model("size").route.arms] == [1]
    file.write_text(retiring.replace(', retired=[recent, "near"]', ""))
    with pytest.raises(WorkspaceError, match=r"its arm 'b', v1 needs recent__n_1d, near"):
        turn(15 * 24 + 12, 1)
    lease.release()
