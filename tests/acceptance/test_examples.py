"""The examples run as their READMEs say, and give the figures that they state."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from tidemill import project as projects
from tidemill.base.clock import HOUR, parse_time, to_datetime
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ
from tidemill.engine.feature.feature import features
from tidemill.engine.feature.lookup import Lookup
from tidemill.engine.mill.decider import tables_of
from tidemill.project import Project

WIND = Path(__file__).parents[2] / "examples" / "wind"
MODEL = "wind_speed"


def laid_out(folder: Path) -> Path:
    for name in ("system.py", "feed.py"):
        shutil.copy(WIND / name, folder / name)
    return folder


def feed_of(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("wind_feed", folder / "feed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tidemill(folder: Path, *arguments: str) -> str:
    """Run a command as a user does, in the example's folder; return what it printed. Fails when it fails."""
    command = [sys.executable, "-c", "from tidemill.cli.main import main; main()", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, str]]:
    """Run the commands of the README; return the project and what each printed."""
    folder = laid_out(tmp_path_factory.mktemp("wind"))
    feeding = subprocess.run([sys.executable, "feed.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert feeding.returncode == 0, feeding.stderr
    said = {
        "check": tidemill(folder, "check"),
        "plan": tidemill(folder, "plan", "--json"),
        "up": tidemill(folder, "up", "--once"),
        "plan again": tidemill(folder, "plan", "--json"),
    }
    return projects.open(folder), said


@pytest.mark.slow
def test_the_commands_of_the_readme(run: tuple[Project, dict[str, str]]) -> None:
    _, said = run
    assert "All good: 3 sources, 1 table, 5 feature views, 1 model." in said["check"]
    assert "The cut test passed: trend." in said["check"]
    planned = {item["what"]: item["action"] for item in json.loads(said["plan"])["items"]}
    assert planned["source 'observations'"] == "load"
    assert planned["table 'trend'"] == "create"
    assert planned["model 'wind_speed'"] == "train"
    assert "v1 is champion" in said["up"]
    assert {item["action"] for item in json.loads(said["plan again"])["items"]} <= {"nothing", "serve"}


@pytest.mark.slow
def test_the_figures_of_the_readme(run: tuple[Project, dict[str, str]]) -> None:
    project, _ = run
    readme = (WIND / "README.md").read_text()
    judged = project.state().model(MODEL).version(1).judged
    mae = judged["metrics"]["mae"]
    assert mae["value"] == pytest.approx(3.53, abs=0.05)
    assert "| 3.53 (95 % interval 3.21 to 3.85) |" in readme
    assert judged["baseline"]["mae"]["value"] == pytest.approx(4.77, abs=0.02)
    assert "| 4.77 |" in readme
    assert judged["metrics"]["r2"]["value"] == pytest.approx(0.40, abs=0.03)
    assert judged["kpis"]["crane_cost"]["value"] == pytest.approx(1.05, abs=0.1)
    made = project.training_set(MODEL)
    recent = made.frame.filter(pl.col("_asked_at") > pl.col("_asked_at").max() - pl.duration(days=60))
    stays = recent.select((pl.col("now__wind_speed") - pl.col("_label")).abs().mean()).item()
    assert stays == pytest.approx(3.74, abs=0.005)
    assert mae["high"] < judged["baseline"]["mae"]["value"]
    assert mae["value"] < stays
    assert (made.counts["no_label"], made.counts["null_label"]) == (74, 4)
    assert judged["dropped"] == ["gust__strongest_6h"]
    assert not [each for each in judged["warnings"] if each["kind"] in ("giveaway", "label_used", "overlap")]


@pytest.mark.slow
def test_what_the_readme_says_of_the_data(run: tuple[Project, dict[str, str]]) -> None:
    project, _ = run
    (refused,) = project.rows("observations__quarantine").iter_rows(named=True)
    assert refused["reason"] == "'wind_speed' is 1048.36058, outside 0 to 150"
    observations, trend = project.rows("observations"), project.rows("trend")
    again = observations.filter(pl.col("corrected").is_not_null())
    assert again.height == 20
    assert (again[KNOWN_AT] == again["corrected"]).all()
    # Each correction changes the wind elsewhere of the two other airports at that hour, and of nothing else.
    changed = trend.filter(pl.col(SEQ) > pl.col(SEQ).min().over("origin", "observed"))
    assert changed.height == 40
    one = again.row(0, named=True)
    moved = changed.filter(pl.col("observed") == one["observed"])
    assert set(moved["origin"]) == {"EWR", "JFK", "LGA"} - {one["origin"]}
    assert (moved[KNOWN_AT] == one["corrected"]).all()


@pytest.mark.slow
def test_windows_hold_what_was_known(run: tuple[Project, dict[str, str]]) -> None:
    """A correction by 8 mph enters the mean of the day just after it became known."""
    project, _ = run
    model = project.model(f"{MODEL}@champion")
    soon = pl.col("corrected") - pl.col("observed") < pl.duration(hours=20)
    again = project.rows("observations").filter(soon).row(3, named=True)
    request = pl.DataFrame({"origin": [again["origin"]], "hour": [again["corrected"]]})
    moment = int(pl.Series([again["corrected"]]).to_physical()[0])
    before, after = (model.features(request, as_of=at)["wind__mean_1d"][0] for at in (moment, moment + 1))
    seen = project.table("observations", as_of=moment).filter(
        (pl.col("origin") == again["origin"])
        & (pl.col("observed") < again["corrected"])
        & (pl.col("observed") >= again["corrected"] - dt.timedelta(days=1))
    )
    assert before - after == pytest.approx(8 / seen["wind_speed"].count())


@pytest.mark.slow
def test_the_mill_turns_on(tmp_path: Path) -> None:
    """From October on under a virtual clock: files grow, gusts come in, and questions see what came before them."""
    folder = laid_out(tmp_path)
    start, days = parse_time("2013-10-06"), 3
    _keep_september(folder, start)
    project = projects.open(folder)
    lease = project.workspace.journal.acquire()
    mill = project.mill(lease)
    lookup = Lookup(project.declared_model(MODEL), project.workspace.online)
    columns = project.declared_model(MODEL).request_columns
    asked: list[tuple[int, pl.DataFrame, pl.DataFrame]] = []
    try:
        mill.start()
        for tick in range(start, start + days * 24 * HOUR, 6 * HOUR):
            _keep_september(folder, tick)
            mill.tick(tick)
            hour = to_datetime(tick + 3 * HOUR)
            request = pl.DataFrame({"origin": ["EWR", "JFK", "LGA"], "hour": [hour] * 3}).with_columns(
                pl.col("hour").dt.cast_time_unit("us")
            )
            online, applied = lookup.features(request.select(columns))
            asked.append((applied.t, request, online))
    finally:
        mill.stop()
        lease.release()
    gusts = project.rows("gusts")
    first = gusts[KNOWN_AT].min()
    assert first == to_datetime(start)  # the whole past of the function became known at the first tick
    assert not gusts[HISTORY].any()
    assert gusts[KNOWN_AT].n_unique() > 2
    strongest: list[Any] = []
    declared = project.declared_model(MODEL)
    tables = {name: project.rows(name) for name in tables_of(declared)}
    for t, request, online in asked:
        offline = features(declared, tables, request, np.full(3, t))
        assert offline.equals(online, null_equal=True)
        strongest += online["gust__strongest_6h"].drop_nulls().to_list()
    assert strongest, "gusts that came in were seen"


def _keep_september(folder: Path, until: int) -> None:
    """Lay down what was known before ``until``, of September and October only, so that training is quick."""
    feed_of(folder).lay_down(folder, to_datetime(until))
    for file in (folder / "observations").glob("2013-0[1-8].csv"):
        file.unlink()
    hours = pl.read_csv(folder / "hours.csv", try_parse_dates=True)
    kept = hours.filter(pl.col("hour").dt.month().is_in([9, 10]))
    kept.write_csv(folder / "hours.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
