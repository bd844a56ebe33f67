"""``tidemill parity`` as a user sees it: sound at first, then with a row lost on its way into the online state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, MINUTE, format_time, parse_time
from tidemill.base.schema import SEQ
from tidemill.cli.main import main
from tidemill.server.main import serving

SYSTEM = """
import polars as pl
from sklearn.tree import DecisionTreeRegressor

import tidemill as tm

jobs = tm.Source("jobs", tm.files("jobs/*.csv"), key="job", event_time="at")
results = tm.Source("results", tm.files("results/*.csv"), key="job", event_time="ended")
load = tm.Aggregation("load", results, by="site", features={"took": tm.mean("took", over=("1h", "6h")),
                                                            "n": tm.count(over="1h")})
last = tm.Latest("last", results, by="site", columns=["took"])
took = tm.Model(
    "took", examples=jobs, asked_at=tm.after("at", "1m"), label=tm.Label(results, "took", within="1h"),
    features=[load, last, tm.OnDemand("sized", {"third": pl.col("size") / 3}), "size"],
    estimator=DecisionTreeRegressor(max_depth=5), task="regression",
    split=tm.by_time(test="6d", gap="1h"), metrics=["mae"], gate=tm.Gate("mae", min_rows=50),
)
system = tm.System("shop", took, policy=tm.Policy(takes="10m"), tick="10m")
"""
OPENS = parse_time("2024-05-20")
SITES = ("a", "b", "c")
STEP, TICKS, BREAKS = 10 * MINUTE, 24, 12


@dataclass(frozen=True)
class Served:
    folder: Path
    broken_from: int  # microseconds
    lost: str  # the job whose result never came to the online state


def lines(first: int, count: int, start: int, step: int) -> tuple[list[str], list[str]]:
    """Return ``count`` jobs and their results as lines of CSV, from job ``first`` on, ``step`` apart."""
    rng = np.random.default_rng(first)
    jobs, results = ["job,at,site,size"], ["job,ended,site,took"]
    for number in range(first, first + count):
        at, site, size = start + (number - first) * step, SITES[number % 3], rng.uniform(1, 9)
        jobs.append(f"j{number},{format_time(at)},{site},{size:.3f}")
        results.append(f"j{number},{format_time(at + 5 * MINUTE)},{site},{size * 2 + rng.normal():.3f}")
    return jobs, results


def write(folder: Path, name: str, tables: tuple[list[str], list[str]]) -> None:
    for kind, rows in zip(("jobs", "results"), tables, strict=True):
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / f"{name}.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "system.py").write_text(SYSTEM)
    write(folder, "0", lines(0, 900, OPENS - 13 * DAY, 20 * MINUTE))
    project = projects.open(folder)
    lease = project.workspace.journal.acquire()
    mill, answering = project.mill(lease), serving(project)
    lost: list[str] = []
    apply = mill._online.apply

    def losing(tick: int, rows: Mapping[str, pl.DataFrame], next_seq: Mapping[str, int], journal: int) -> None:
        given = dict(rows)
        if tick == broken and "results" in rows:
            lost.append(rows["results"]["job"][0])
            given["results"] = rows["results"].filter(pl.col(SEQ) != rows["results"][SEQ][0])
        apply(tick, given, next_seq, journal)

    mill._online.apply = losing  # type: ignore[method-assign]
    broken = OPENS + BREAKS * STEP
    try:
        mill.start()
        mill.tick(OPENS - 2 * STEP)
        mill.tick(OPENS - STEP)  # the champion takes effect
        for number in range(TICKS):
            tick = OPENS + number * STEP
            write(folder, str(number + 1), lines(1000 + 6 * number, 6, tick - 9 * MINUTE, 30_000_000))
            mill.tick(tick)
            answering.refresh()
            rows = [{"job": f"q{number}{site}", "site": site, "size": 2.5 + number} for site in SITES]
            answering.predict("took", json.dumps({"rows": rows}).encode(), nonce=str(tick))
        answering.close()
        mill.tick(OPENS + TICKS * STEP)
    finally:
        mill.stop()
        lease.release()
    return Served(folder, broken, lost[0])


def run(served: Served, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["parity", *arguments, "--project", str(served.folder)])


def test_what_was_answered_before_agrees(served: Served) -> None:
    result = run(served, "took", "--until", format_time(served.broken_from), "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert (found["rows"], found["mismatched"], found["findings"]) == (3 * BREAKS, 0, [])
    assert found["predictions"] == 3 * TICKS
    assert "agree bit for bit" in run(served, "--until", format_time(served.broken_from)).output


def test_the_lost_row_is_named(served: Served) -> None:
    result = run(served, "--json")
    assert result.exit_code == 1, result.output
    (found,) = json.loads(result.stdout)
    assert found["rows"] == 3 * TICKS  # so few that all are compared
    (finding,) = found["findings"]
    assert (finding["kind"], finding["where"], finding["fails"]) == ("lost row", "results", True)
    assert f"(job {served.lost})" in finding["detail"]
    assert found["by_cause"] == {"lost row": finding["predictions"]} == {"lost row": found["mismatched"]}
    assert finding["predictions"] == TICKS - BREAKS  # one site of three
    assert finding["columns"]["load__took_6h"] == finding["predictions"]
    trace = CliRunner().invoke(main, ["trace", finding["examples"][0]["id"], "--project", str(served.folder), "--json"])
    assert json.loads(trace.stdout)["derived_again"]["match"] is False


def test_the_report_in_words(served: Served) -> None:
    result = run(served)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert f"lost row in results: {TICKS - BREAKS} predictions" in said
    assert f"(job {served.lost})" in said
    assert "tidemill trace" in said


def test_a_share_is_the_same_every_time_and_a_period_is_kept_to(served: Served) -> None:
    one, again = (json.loads(run(served, "--share", "0.3", "--json").stdout) for _ in range(2))
    assert one == again
    assert 0 < one[0]["rows"] < 3 * TICKS
    hour = run(served, "--since", format_time(OPENS + HOUR), "--until", format_time(OPENS + 2 * HOUR), "--json")
    assert json.loads(hour.stdout)[0]["rows"] == 3 * 6
    assert json.loads(run(served, "--limit", "5", "--json").stdout)[0]["rows"] == 5


def test_the_libraries_of_a_version_and_its_proof_are_on_record(served: Served) -> None:
    project = projects.open(served.folder)
    (version,) = project.state().model("took").versions
    step = project.workspace.journal.step(version.training)
    assert step is not None
    assert set(step["libraries"]) == {"python", "numpy", "polars", "scikit-learn", "tidemill"}
    proof = version.judged["proof"]
    assert set(proof) == {"repeat", "row against batch", "order", "dtype", "save and load"}
    assert {each["outcome"] for each in proof.values()} == {"same bits"}
