"""The prediction log and the routes from end to end: asked over HTTP, drained by the worker, read by the command."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from tidemill import project as projects
from tidemill.base.clock import HOUR, MINUTE, SECOND, SystemClock, format_time, parse_time
from tidemill.base.errors import NotFoundError
from tidemill.cli.main import main
from tidemill.loop.supervisor import ServerProcess
from tidemill.ports.journal import Draft
from tidemill.project import Project

SYSTEM = """
from sklearn.tree import DecisionTreeClassifier

import tidemill as tm

orders = tm.Source("orders", tm.files("orders.csv"), key="order", event_time="placed")
returns = tm.Source("returns", tm.files("returns.csv"), key="order", event_time="decided")
shop = tm.Aggregation("shop", orders, by="shop", features={"n": tm.count(over="1d")})
back = tm.Model(
    "back", examples=orders, asked_at=tm.after("placed", "1m"),
    label=tm.Label(returns, "back", within="1s", otherwise=False),
    features=[shop, "amount"], estimator=DecisionTreeClassifier(max_depth=2),
    split=tm.by_time(test="5d"), gate=tm.Gate("brier", min_rows=50, margin=1.0),
)
system = tm.System("shop", back, endpoint=tm.Endpoint(port=0), policy=tm.Policy(takes="1s"), tick="1s")
"""
NOW = SystemClock().now() // MINUTE * MINUTE
IDS = [f"n{number}" for number in range(40)]


def run(folder: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(main, [*arguments, "--project", str(folder)])
    assert result.exit_code in (0, 1), result.output
    return result


def again(project: Project) -> None:
    """Journal a second version of the same training, and promote it: the first can then be tried against it."""
    journal = project.workspace.journal
    tick, first = journal.ticks()[-1], project.state().model("back").version(1)
    body = {"model": "back", "version": 2, "training": first.training, "recipe": first.recipe, "as_of": first.as_of}
    alias = {"model": "back", "alias": "champion", "version": 2, "previous": 1, "reasons": []}
    lease = journal.acquire()
    journal.append([Draft(tick, "version", body), Draft(tick, "alias", alias)], lease)
    lease.release()


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a project with two versions and a canary, and what it answered to IDS."""
    folder = tmp_path_factory.mktemp("log")
    chance = random.Random(7)
    orders, returns = ["order,placed,shop,amount"], ["order,decided,back"]
    for number in range(30 * 24):
        placed = NOW - (30 * 24 - number) * HOUR
        amount = chance.uniform(5, 100)
        orders.append(f"o{number},{format_time(placed)},{'abc'[number % 3]},{amount:.2f}")
        if amount > 60:
            returns.append(f"o{number},{format_time(placed + MINUTE + 500_000)},true")
    (folder / "system.py").write_text(SYSTEM)
    (folder / "orders.csv").write_text("\n".join(orders) + "\n")
    (folder / "returns.csv").write_text("\n".join(returns) + "\n")
    assert "v1 is champion" in run(folder, "up", "--once").output
    again(projects.open(folder))
    run(folder, "route", "set", "back", "--canary", "v1", "--share", "0.5", "--shadow", "1", "--reason", "to see")
    assert "canary v1 0.5, shadow v1" in run(folder, "up", "--once").output
    [shown] = json.loads(run(folder, "route", "show", "--json").output).values()
    assert parse_time(shown["since"]) > NOW
    server = ServerProcess(folder / "system.py", 0, folder / "server.txt")
    try:
        rows = [{"order": id, "shop": "a", "amount": 5.0 * place} for place, id in enumerate(IDS)]
        said = server.call("POST", "/v1/models/back/predict", {"rows": rows})["predictions"]
    finally:
        server.stop()
    SystemClock().sleep_until(SystemClock().now() + 2 * SECOND)  # the answers get older than a label takes
    run(folder, "up", "--once")
    return folder, dict(zip(IDS, said, strict=True))


def test_it_reads_with_features_labels_and_routes(answered: tuple[Path, dict[str, Any]]) -> None:
    folder, said = answered
    project = projects.open(folder)
    found = project.predictions("back")
    assert found.columns == [
        "id", "asked", "version", "route", "known_at", "order", "shop", "amount", "shop__n_1d", "prediction", "label",
        "label_status",
    ]  # fmt: skip
    assert found.height == 40
    for row in found.iter_rows(named=True):
        answer = said[row["order"]]
        expected = (answer["id"], answer["prediction"], answer["version"], answer["route"])
        assert (row["id"], row["prediction"], row["version"], row["route"]) == expected
    assert set(found.select("route", "version").rows()) == {("champion", 2), ("canary", 1)}
    assert set(found["label_status"]) == {"known"}
    assert set(found["label"]) == {False}  # none came within a second, and that is declared to mean so


def test_it_is_filtered(answered: tuple[Path, dict[str, Any]]) -> None:
    folder, said = answered
    project = projects.open(folder)
    canaries = sum(answer["route"] == "canary" for answer in said.values())
    assert project.predictions("back", versions=[1]).height == canaries
    assert project.predictions("back", routes=["champion"]).height == 40 - canaries
    shadows = project.predictions("back", routes=["shadow"])
    assert (shadows.height, set(shadows["version"])) == (40 - canaries, {1})  # mirrored where it did not answer itself
    assert project.predictions("back", until=NOW - HOUR).height == 0
    assert project.predictions("back", since=format_time(NOW - HOUR)).height == 40
    with pytest.raises(NotFoundError, match="Did you mean 'back'"):
        project.predictions("bakc")


def test_the_command_prints_writes_and_lists(answered: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, said = answered
    shown = run(folder, "predictions")
    assert "The newest 20 of 40" in shown.output
    lines = [json.loads(line) for line in run(folder, "predictions", "back", "--json", "-n", "5").output.splitlines()]
    assert [line["order"] in said for line in lines] == [True] * 5
    for name in ("log.parquet", "log.csv"):
        run(folder, "predictions", "back", "--route", "champion", "--output", str(tmp_path / name))
    parquet, csv = pl.read_parquet(tmp_path / "log.parquet"), pl.read_csv(tmp_path / "log.csv")
    assert parquet["id"].to_list() == csv["id"].to_list()
    assert parquet["shop__n_1d"].to_list() == csv["shop__n_1d"].to_list()
    refused = CliRunner().invoke(main, ["predictions", "--output", "x.json", "--project", str(folder)])
    assert (refused.exit_code, "neither .parquet nor .csv" in refused.output) == (2, True)
    nowhere = str(tmp_path / "none" / "x.csv")
    refused = CliRunner().invoke(main, ["predictions", "--output", nowhere, "--project", str(folder)])
    assert (refused.exit_code, "Make it first" in refused.output) == (2, True)


def test_parity_and_trace_hold_for_every_route(answered: tuple[Path, dict[str, Any]]) -> None:
    folder, said = answered
    parity = run(folder, "parity", "--json")
    assert parity.exit_code == 0, parity.output
    canary = next(answer for answer in said.values() if answer["route"] == "canary")
    traced = json.loads(run(folder, "trace", canary["id"], "--json").output)
    assert traced["derived_again"]["match"] is True
    assert any(entry["kind"] == "route" for entry in traced["entries"])
