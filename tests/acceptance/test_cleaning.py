"""Dirty rows from files, cleaned on their way to a model, with what each step did on record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, format_time, parse_time
from tidemill.engine.mill.mill import Mill
from tidemill.engine.table.derive import cut_test
from tidemill.project import Project

START = parse_time("2024-03-01")
DAYS = 20

SYSTEM = """
import polars as pl
import tidemill as tm
from sklearn.linear_model import LinearRegression

parcels = tm.Source("parcels", tm.files("parcels/*.csv"), key="parcel", event_time="at", known_at="known",
                    checks=[tm.not_null("shop")])
rates = tm.Source("rates", tm.files("rates/*.csv"), key=("shop", "since"), event_time="since")

tidy = tm.clean("tidy", parcels, [
    tm.trim("shop", case="lower"),
    tm.cast("weight", "number", missing=["n/a"]),
    tm.convert("weight", unit="unit", to="kg", units={"g": 0.001}),
    tm.invalid(tm.between("weight", 0, None)),
])
judged = tm.clean("judged", tidy, [
    tm.outliers("weight", over="5d", by="shop", least=10, then="null"),
    tm.fill("weight", trailing="median", over="5d", by="shop"),
    tm.duplicates("shop", "label", within="1h"),
])

@tm.table("rated", key="parcel", event_time="at", known_at="known")
def rated(judged, rates):
    with_rate = tm.join_asof(judged, rates, on="shop", at="known", event_time="since", columns=["rate"])
    return tm.apply(with_rate, [tm.fill("rate", 1.0), tm.sample(0.8, weight="stands_for")], key="parcel")

before = tm.Aggregation("before", rated, by="shop", features={"weight": tm.mean("weight", over="3d")})
weight = tm.Model(
    "weight", examples=parcels, asked_at=tm.after("known", "1m"), label=tm.Label(rated, "weight", within="6h"),
    features=[before], estimator=LinearRegression(), split=tm.by_time(test="5d"),
)
system = tm.System("parcels", weight, tick="1h")
"""


def write(folder: Path, first: int, last: int) -> dict[str, int]:
    """Write the parcels of the days ``first`` to ``last - 1``, one an hour; return how many are dirty in which way."""
    chance = np.random.default_rng(first)
    rows, dirty = [], dict.fromkeys(("missing", "grams", "negative", "odd", "twice", "upper"), 0)
    for hour in range(first * 24, last * 24):
        kilos, unit = 5 + float(chance.normal()) * 0.5, "kg"
        text, shop, label = f"{kilos:.3f}", "ab"[hour % 2], f"label {hour}"
        kind: str | None = None
        match hour % 24:
            case 3:
                text, kind = "n/a", "missing"
            case 5:
                text, unit, kind = f"{kilos * 1000:.0f}", "g", "grams"
            case 7:
                text, kind = "-1", "negative"
            case 9:
                text, kind = "900", "odd"
            case 11:
                shop, kind = f" {shop.upper()}", "upper"
        if kind:
            dirty[kind] += 1
        at = START + hour * HOUR
        rows.append((f"p{hour}", format_time(at), format_time(at + HOUR), shop, text, unit, label))
        if hour % 24 == 13:
            dirty["twice"] += 1
            rows.append(
                (f"p{hour}-again", format_time(at), format_time(at + HOUR + HOUR // 2), shop, text, unit, label)
            )
    columns = ["parcel", "at", "known", "shop", "weight", "unit", "label"]
    (folder / "parcels").mkdir(exist_ok=True)
    pl.DataFrame(rows, columns, orient="row").write_csv(folder / "parcels" / f"{first:03}.csv")
    return dirty


def tidemill(*arguments: str) -> str:
    """Run a command in a process of its own and return what it says."""
    run = [sys.executable, "-c", "from tidemill.cli.main import main; main()", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def turn(project: Project, *ticks: int) -> None:
    lease = project.workspace.journal.acquire()
    mill: Mill = project.mill(lease)
    mill.start()
    for tick in ticks:
        mill.tick(tick)
    mill.stop()
    lease.release()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, int], dict[str, int]]:
    """Twenty days of history and one live day, and how dirty each was."""
    folder = tmp_path_factory.mktemp("parcels")
    (folder / "system.py").write_text(SYSTEM)
    old = write(folder, 0, DAYS)
    (folder / "rates").mkdir()
    pl.DataFrame({"shop": ["a"], "since": [format_time(START + DAY)], "rate": [2.5]}).write_csv(folder / "rates/1.csv")
    tidemill("check", "--project", str(folder))
    project = projects.open(folder)
    turn(project, START + DAYS * DAY + 2 * HOUR)
    new = write(folder, DAYS, DAYS + 1)
    turn(project, START + (DAYS + 1) * DAY + 2 * HOUR)
    return project, old, new


def counted(project: Project, table: str) -> dict[str, dict[str, int]]:
    return {row.pop("step"): row for row in project.cleaning(table).to_dicts()}


def test_steps_of_one_row_are_counted_over_all_commits(ran: tuple[Project, dict[str, int], dict[str, int]]) -> None:
    project, old, new = ran
    steps = counted(project, "tidy")
    rows = (DAYS + 1) * 25
    assert list(steps) == ["trim shop", "cast weight", "convert weight", "invalid weight"]
    assert all(step["rows"] == rows for step in steps.values())
    assert steps["trim shop"]["changed"] == old["upper"] + new["upper"]
    assert steps["convert weight"]["changed"] == old["grams"] + new["grams"]
    assert steps["invalid weight"]["dropped"] == old["negative"] + new["negative"]
    tidy = project.table("tidy")
    assert tidy.height == rows - steps["invalid weight"]["dropped"]
    assert tidy["weight"].dtype == pl.Float64
    assert set(tidy["shop"]) == {"a", "b"}
    raw = project.table("parcels")  # what came is all there
    assert raw.height == rows
    assert (raw["weight"] == "n/a").sum() == old["missing"] + new["missing"]


def test_steps_that_look_back_are_counted_over_the_table(ran: tuple[Project, dict[str, int], dict[str, int]]) -> None:
    project, old, new = ran
    steps = counted(project, "judged")
    assert steps["duplicates shop, label"]["dropped"] == old["twice"] + new["twice"]
    odd = old["odd"] + new["odd"]
    assert odd - 2 <= steps["outliers weight"]["emptied"] <= odd + 40  # a fence of quartiles also flags the tails
    judged = project.table("judged")
    assert judged["weight"].null_count() == 0
    # history had no past at first; the live day came in at one tick, so that each of its rows is judged by the old ones
    assert judged.filter(pl.col("at") >= START + DAYS * DAY)["weight"].max() < 10  # type: ignore[operator]


def test_steps_and_joins_inside_a_function_are_counted(ran: tuple[Project, dict[str, int], dict[str, int]]) -> None:
    project, _, _ = ran
    steps = counted(project, "rated")
    judged = project.table("judged")
    assert steps["join shop"]["rows"] == judged.height
    assert steps["join shop"]["matched"] == judged.filter(
        (pl.col("shop") == "a") & (pl.col("known").dt.epoch("us") > START + DAY)
    ).height  # fmt: skip
    assert steps["fill rate"]["filled"] == judged.height - steps["join shop"]["matched"]
    rated = project.table("rated")
    assert rated.height == judged.height - steps["sample"]["dropped"]
    assert set(rated["rate"]) == {1.0, 2.5}
    assert rated["stands_for"].unique().to_list() == [1.25]


def test_cleaned_tables_hold_in_the_past(ran: tuple[Project, dict[str, int], dict[str, int]]) -> None:
    project, _, _ = ran
    for table in ("tidy", "judged", "rated"):
        declared = project.declared_table(table)
        inputs = {name: project.rows(name) for name in declared.inputs}  # type: ignore[union-attr]
        assert cut_test(declared, inputs, [START + day * DAY for day in range(1, DAYS)]) is None  # type: ignore[arg-type]
    then = project.table("judged", as_of=START + 10 * DAY)
    now = project.table("judged").filter(pl.col("known").dt.epoch("us") < START + 10 * DAY)
    assert then.sort("parcel").equals(now.sort("parcel"))


def test_status_shows_what_was_done(ran: tuple[Project, dict[str, int], dict[str, int]]) -> None:
    project, _, _ = ran
    found = json.loads(tidemill("status", "--project", str(project.path), "--json"))
    tables = {table["name"]: table["cleaned"] for table in found["tables"]}
    assert tables["parcels"] == []
    assert tables["tidy"] == project.cleaning("tidy").to_dicts()
    shown = tidemill("status", "--project", str(project.path))
    assert "Cleaning" in shown
    assert "invalid weight" in shown


def test_other_steps_make_the_table_anew_from_the_rows_as_they_came(tmp_path: Path) -> None:
    (tmp_path / "system.py").write_text(SYSTEM)
    (tmp_path / "rates").mkdir()
    pl.DataFrame({"shop": ["a"], "since": [format_time(START)], "rate": [2.5]}).write_csv(tmp_path / "rates/1.csv")
    dirty = write(tmp_path, 0, 3)
    turn(projects.open(tmp_path), START + 3 * DAY + 2 * HOUR)
    (tmp_path / "system.py").write_text(
        SYSTEM.replace('tm.between("weight", 0, None)', 'tm.between("weight", -2, 100)')
    )
    write(tmp_path, 3, 4)
    project = projects.open(tmp_path)
    turn(project, START + 4 * DAY + 2 * HOUR)
    (found,) = (step for step in project.cleaning("tidy").to_dicts() if step["step"] == "invalid weight")
    assert (found["rows"], found["dropped"]) == (100, 4)  # all rows again, by the new bounds: the 900s, not the -1s
    tidy = project.table("tidy")
    assert (tidy["weight"] == -1).sum() == dirty["negative"] + 1
    assert tidy["weight"].max() < 100  # type: ignore[operator]
