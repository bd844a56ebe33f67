"""``tidemill backtest`` straight from source files: policies compared, trainings shared, nothing known too early."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from tidemill.base.clock import DAY, HOUR, parse_time, to_datetime
from tidemill.base.errors import WorkspaceError
from tidemill.cli.main import main
from tidemill.rehearsal import stretch

SYSTEM = """
import polars as pl
import tidemill as tm
from sklearn.tree import DecisionTreeClassifier

orders = tm.Source("orders", tm.files("orders.csv"), key="id", event_time="at", known_at=tm.before("at", "2d"))
results = tm.Source("results", tm.files("results.csv"), key="id", event_time="done", known_at="reported")
hints = tm.Source("hints", tm.files("hints.csv"), key="id", event_time="seen", known_at="told")


@tm.table("told", key="id", event_time="seen", known_at="told", rows=True)
def told(hints):
    return hints.filter(pl.col("hint").is_not_null())


hint = tm.Latest("hint", told, by="id", columns=["hint"], within="2d")
late = tm.Model(
    "late", examples=orders, asked_at="at", label=tm.Label(results, "late", within="1d"),
    features=["x", hint], estimator=DecisionTreeClassifier(max_depth=2, min_samples_leaf=40, random_state=0),
    metrics=["log_loss", "roc_auc"], kpis={"mean": lambda truth, prediction: float(prediction.mean())},
    split=tm.by_time(test="8d", blocks=1), gate=tm.Gate("log_loss", margin=1.0, min_rows=50),
)
system = tm.System("orders", late, policy=tm.Policy(retrain=[tm.every("10d")], takes="12h"), tick="12h")
"""
START = parse_time("2024-05-01")
DAYS, TURN = 70, 36  # on the day TURN, what makes an order late turns round
A_DAY = 30


def moments(values: list[int]) -> pl.Series:
    return pl.Series([to_datetime(value) for value in values]).dt.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a maker of projects with source files in which hints, which are the labels, are told ``after`` seen."""

    def make(after: int) -> Path:
        folder = tmp_path_factory.mktemp("orders")
        rng = random.Random(7)
        rows = range(DAYS * A_DAY)
        at = [START + number * DAY // A_DAY for number in rows]
        x = [rng.random() for _ in rows]
        late = [
            (each > 0.5) == (moment < START + TURN * DAY) and rng.random() < 0.6
            for each, moment in zip(x, at, strict=True)
        ]
        ids = [f"o{number}" for number in rows]
        seen, done = [each - 13 * HOUR for each in at], [each + HOUR for each in at]
        pl.DataFrame({"id": ids, "at": moments(at), "x": x}).write_csv(folder / "orders.csv")
        pl.DataFrame(
            {"id": ids, "done": moments(done), "late": late, "reported": moments([each + HOUR for each in done])}
        ).write_csv(folder / "results.csv")
        hints = {"id": ids, "seen": moments(seen), "hint": [float(each) for each in late]}
        pl.DataFrame({**hints, "told": moments([each + after for each in seen])}).write_csv(folder / "hints.csv")
        (folder / "system.py").write_text(SYSTEM)
        return folder

    return make


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["backtest", "-p", str(folder), *arguments])


def found(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run(folder, "--json", *arguments)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


PERIOD = ("--from", "2024-06-01", "--to", "2024-07-05")


def test_policies_are_compared(project: Callable[[int], Path]) -> None:
    policies = ("never", "again=every 10d", "recent=every 10d, window 15d")
    said = found(project(10 * DAY), *PERIOD, *(word for each in policies for word in ("--policy", each)))
    never, again, recent = said["policies"]
    assert (never["trainings"], never["promotions"]) == (1, 1)
    assert again["trainings"] == recent["trainings"] == 4
    assert again["promotions"] + again["refusals"] + again["waits"] == 3 + 1
    assert said["distinct_trainings"] == 1 + 3 + 4  # the first is shared by those of one window
    assert never["predictions"] == again["predictions"] > 1000
    assert never["mature"] < never["predictions"]
    assert never["against_first"] is None
    assert set(never["figures"]) == {"log_loss", "roc_auc", "mean"}
    # What makes orders late turned round on the way, so a model that learns from the last days must be the better one.
    difference = recent["against_first"]["log_loss"]
    assert difference["high"] < 0
    assert recent["figures"]["log_loss"]["value"] < never["figures"]["log_loss"]["value"]


def test_default_is_the_declared_policy_against_never(project: Callable[[int], Path]) -> None:
    said = found(project(10 * DAY), "--tick", "1d")
    assert [each["policy"] for each in said["policies"]] == ["declared", "never"]
    assert [each["trainings"] for each in said["policies"]] == [3, 1]


def test_by_default_the_last_third_is_rehearsed_until_the_live_run_is_long_enough() -> None:
    asked = pl.Series([START + day * DAY for day in range(91)])
    end = START + 90 * DAY
    third = (START + 60 * DAY, end)
    assert stretch(asked, ()) == third
    assert stretch(asked, (end, end + HOUR)) == third
    assert stretch(asked, (end, end + 3 * DAY)) == (end, end + 3 * DAY)
    assert stretch(asked, (end - 30 * DAY,)) == (START + 40 * DAY, START + 60 * DAY)  # what comes later is no past
    assert stretch(asked.clear(), (end, end + HOUR)) == (end, end + HOUR)
    with pytest.raises(WorkspaceError, match="no question in the past"):
        stretch(asked.clear(), ())


def test_planted_future_does_not_leak(project: Callable[[int], Path]) -> None:
    """Hints that are told ten days late must be worth nothing; told in time, the same hints are worth everything."""

    def auc(after: int) -> float:
        period = ("--from", "2024-05-24", "--to", "2024-06-05")
        said = found(project(after), *period, "--policy", "never", "--policy", "every 30d")
        return float(said["policies"][0]["figures"]["roc_auc"]["value"])

    assert auc(0) > 0.99
    assert auc(10 * DAY) < 0.92


def test_table_is_for_people(project: Callable[[int], Path]) -> None:
    done = run(project(10 * DAY), *PERIOD, "--tick", "1d", "--policy", "fast=every 7d")
    assert done.exit_code == 0, done.output
    assert "2024-06-01 00:00 to 2024-07-05 00:00, 2 policies" in done.stdout
    assert "difference to declared" in done.stdout
    assert "fast" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "sometimes"), "'sometimes' is not understood"),
        (("--policy", "every now"), "'now' is not a duration"),
        (("--policy", "a=never", "--policy", "a=every 3d"), "given twice"),
        (("--from", "2024-06-01", "--to", "2024-06-01"), "not two ticks"),
        (("--record", "--tick", "1d"), "replays the whole live run"),
        (("--record",), "Nothing has run here yet"),
    ],
)
def test_faults_say_what_to_do(project: Callable[[int], Path], arguments: tuple[str, ...], said: str) -> None:
    done = run(project(10 * DAY), *arguments)
    assert done.exit_code == 2
    assert said in done.output
