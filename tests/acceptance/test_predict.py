"""``tidemill predict`` on a small shop: files and tables in, the twin's predictions out, through kills and breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from tidemill import batch
from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, SECOND, SystemClock, parse_time
from tidemill.base.errors import LeaseHeldError, RequestError, SourceError, WorkspaceError
from tidemill.cli.main import main
from tidemill.engine.example import build
from tidemill.ports.executor import Progress
from tidemill.project import Project

START = parse_time("2024-03-01")
NOW = START + 20 * DAY + HOUR
TIME = pl.Datetime("us", "UTC")

SYSTEM = """
import polars as pl
import tidemill as tm
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline

orders = tm.Source("orders", tm.files("orders/*.csv"), key="order", event_time="placed",
                   known_at=tm.before("placed", "1m"))
paid = tm.Source("paid", tm.files("paid/*.csv"), key="order", event_time="at", known_at="known")
spent = tm.Aggregation("spent", paid, by="shop", features={
    "amount": tm.mean("amount", over=("1d", "7d")), "n": tm.count(over="1d")})
last = tm.Latest("last", paid, by="shop", columns=["amount"])

common = dict(examples=orders, asked_at="placed", features=[spent, last, "size"], split=tm.by_time(test="7d", gap="1h"))
amount = tm.Model("amount", label=tm.Label(paid, "amount", within="6h"), gate=tm.Gate("mae", min_rows=50),
                  estimator=make_pipeline(SimpleImputer(), LinearRegression()), **common)
level = pl.when(pl.col("amount") < 30).then(pl.lit("low")).when(pl.col("amount") < 60).then(pl.lit("mid"))
kind = tm.Model("kind", label=tm.Label(paid, level.otherwise(pl.lit("high")), within="6h"), metrics=["log_loss"],
                gate=tm.Gate("log_loss", min_rows=50),
                estimator=make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500)), **common)
system = tm.System("shop", amount, kind, tick="1h", policy=tm.Policy(retrain=[tm.every("10d")], takes="1h"))
"""


def orders(count: int) -> pl.DataFrame:
    """Return ``count`` orders, half an hour apart, as a model is asked about them."""
    numbers = range(count)
    return pl.DataFrame(
        {
            "order": [f"o{number}" for number in numbers],
            "placed": pl.Series([START + number * HOUR // 2 for number in numbers], dtype=pl.Int64).cast(TIME),
            "shop": [None if number % 50 == 9 else "abc"[number % 3] for number in numbers],
            "size": [number * 7 % 10 for number in numbers],
        }
    )


def write(frame: pl.DataFrame, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        frame.write_parquet(path, row_group_size=70)
    elif path.suffix == ".ndjson":
        frame.with_columns(pl.col(TIME).dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ")).write_ndjson(path)
    else:
        frame.write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The system after twenty days of history and a few ticks, with a champion of each model."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "system.py").write_text(SYSTEM)
    made = orders(960)
    write(made, folder / "orders" / "1.csv")
    amount = 10.0 * made["size"] + np.random.default_rng(1).normal(size=made.height)
    paid = made.select(
        "order", at=pl.col("placed") + pl.duration(hours=1), known=pl.col("placed") + pl.duration(hours=2), shop="shop"
    ).with_columns(amount=amount)
    corrected = paid[::40].with_columns(
        pl.col("amount") + 5, pl.col("known") + pl.duration(hours=9), shop=pl.lit("a")
    )  # and in another shop
    write(pl.concat([paid, corrected]), folder / "paid" / "1.csv")
    project = projects.open(folder)
    lease = project.workspace.journal.acquire()
    mill = project.mill(lease)
    mill.start()
    for hour in range(2):
        mill.tick(START + 20 * DAY + hour * HOUR)
    mill.stop()
    project.workspace.online.close()
    lease.release()
    return folder


@pytest.fixture
def project(shop: Path) -> Project:
    return projects.open(shop)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything large: chunks of 64 rows, tables in partitions."""
    monkeypatch.setattr(batch, "_CHUNK_ROWS", 64)
    monkeypatch.setattr(build, "WHOLE_CELLS", 500)
    monkeypatch.setattr(build, "PART_CELLS", 1_500)


def run(shop: Path, *arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["predict", *map(str, arguments), "--project", str(shop)])
    assert result.exit_code == code, result.output
    return result


def leftovers(project: Project) -> list[str]:
    return sorted(path.name for path in (project.workspace.root / "work").glob("*"))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".ndjson"])
def test_a_file_gets_what_the_twin_predicts(shop: Path, project: Project, tmp_path: Path, suffix: str) -> None:
    asked = orders(300)
    source, output = write(asked, tmp_path / f"in{suffix}"), tmp_path / "out.parquet"
    said = run(shop, "amount@champion", source, "--output", output, "--json")
    assert json.loads(said.stdout)["rows"] == 300
    got = pl.read_parquet(output)
    assert got.columns == ["order", "asked_at", "prediction"]
    assert got["order"].to_list() == asked["order"].to_list()
    assert got["asked_at"].to_list() == asked["placed"].to_list()
    np.testing.assert_array_equal(got["prediction"].to_numpy(), project.model("amount").predict(asked))
    assert leftovers(project) == []


def test_many_files_and_a_table_in_partitions(shop: Path, project: Project, tmp_path: Path, small: None) -> None:
    asked = orders(900)
    for number in range(3):
        write(asked[number * 300 : (number + 1) * 300], tmp_path / "in" / f"{number}.csv")
    expected = project.model("amount").predict(asked)
    run(shop, "amount", f"{tmp_path}/in/*.csv", "-o", tmp_path / "out.csv", "--keep", "order", "--keep", "size")
    got = pl.read_csv(tmp_path / "out.csv")
    assert got.columns == ["order", "size", "asked_at", "prediction"]
    assert got["order"].to_list() == asked["order"].to_list()
    np.testing.assert_array_equal(got["prediction"].to_numpy(), expected)
    run(shop, "amount", tmp_path / "in", "-o", tmp_path / "folder.csv", "--keep", "order", "--keep", "size")
    assert (tmp_path / "folder.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    run(shop, "amount@v1", "--table", "orders", "-o", tmp_path / "table.parquet")
    table = pl.read_parquet(tmp_path / "table.parquet").sort("asked_at")
    assert table["order"].to_list() == project.table("orders").sort("placed")["order"].to_list()
    np.testing.assert_array_equal(table["prediction"].to_numpy()[:900], expected)


def test_when_rows_are_asked(shop: Path, project: Project, tmp_path: Path) -> None:
    asked = orders(40)
    model = project.model("amount")
    as_of = "2024-03-10T00:00Z"
    cases = {
        "own": (asked, [], model.predict(asked)),
        "given": (asked, ["--as-of", as_of], model.predict(asked, as_of=as_of)),
        "column": (
            asked.with_columns(asked_at=pl.date(2024, 3, 10)), [], model.predict(asked, as_of=as_of),
        ),
        "now": (asked.drop("placed"), [], model.predict(asked, as_of=NOW + 1)),
        "ahead": (
            asked.with_columns(pl.col("placed") + pl.duration(days=900)), [], model.predict(asked, as_of=NOW + 1),
        ),
    }  # fmt: skip
    for name, (frame, options, expected) in cases.items():
        source = write(frame, tmp_path / f"{name}.csv")
        run(shop, "amount", source, "-o", tmp_path / f"{name}.parquet", *options)
        got = pl.read_parquet(tmp_path / f"{name}.parquet")
        np.testing.assert_array_equal(got["prediction"].to_numpy(), expected, err_msg=name)
    assert not np.array_equal(cases["own"][2], cases["given"][2])
    frame = asked.with_columns(asked_at=pl.date(2024, 3, 10))
    np.testing.assert_array_equal(model.predict(frame), cases["column"][2])


def test_more_than_two_classes_have_a_column_each(shop: Path, project: Project, tmp_path: Path) -> None:
    asked = orders(30)
    run(shop, "kind", write(asked, tmp_path / "in.parquet"), "-o", tmp_path / "out.parquet")
    got = pl.read_parquet(tmp_path / "out.parquet")
    assert got.columns[2:] == ["prediction_high", "prediction_low", "prediction_mid"]
    np.testing.assert_array_equal(got[:, 2:].to_numpy(), project.model("kind").predict(asked))


def test_into_the_lake(shop: Path, project: Project, tmp_path: Path, small: None) -> None:
    source = write(orders(200), tmp_path / "in.parquet")
    lease = project.workspace.journal.acquire()
    failed = run(shop, "amount", source, "--into", "scores", code=2)
    assert "holds the lease" in failed.output or "another worker" in failed.output.lower()
    assert len(leftovers(project)) == 1  # what was predicted is kept
    with pytest.raises(LeaseHeldError):
        batch.predict(project, "amount", [source], into="scores", executor="inline")
    lease.release()
    assert "table scores, version 1" in run(shop, "amount", source, "--into", "scores").output
    assert leftovers(project) == []
    assert "version 2" in run(shop, "amount", source, "--into", "scores").output
    rows = projects.open(shop).rows("scores")
    assert rows.height == 400
    assert rows["_seq"].to_list() == list(range(400))
    assert set(rows["model"]) == {"amount"}
    np.testing.assert_array_equal(rows["prediction"].to_numpy()[200:], project.model("amount").predict(orders(200)))
    entries = list(project.workspace.journal.read())
    again = project.workspace.journal.acquire()
    mill = project.mill(again)
    mill.start()  # nothing that the mill would journal
    mill.stop()
    project.workspace.online.close()
    again.release()
    assert list(project.workspace.journal.read()) == entries
    for name, message in (("orders", "system's own"), ("predictions", "system's own"), ("a-b", "cannot name")):
        with pytest.raises(RequestError, match=message):
            batch.predict(project, "amount", [source], into=name)


def test_an_interrupted_commit_appends_each_row_once(
    project: Project, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(orders(300), tmp_path / "in.parquet")
    monkeypatch.setattr(batch, "_COMMIT_ROWS", 100)
    lake, calls = project.workspace.lake, []
    real = lake.append

    def append(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(lake, "append", append)
    with pytest.raises(KeyboardInterrupt):
        batch.predict(project, "amount", [source], into="bits")
    assert project.rows("bits").height < 300
    batch.predict(project, "amount", [source], into="bits")
    assert project.rows("bits")["order"].to_list() == orders(300)["order"].to_list()


def test_wrong_inputs_are_named(shop: Path, project: Project, tmp_path: Path) -> None:
    good = orders(20)
    out = tmp_path / "out.parquet"
    (tmp_path / "torn.csv").write_text("order,placed,shop,size\no1,2024-03-01,a,1\no2,2024-03-01,a\n")
    (tmp_path / "empty.csv").write_text("order,placed,shop,size\n")
    (tmp_path / "void.csv").write_text("")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    write(good.rename({"size": "sise"}), tmp_path / "column.parquet")
    sizes = pl.when(pl.col("order") == "o13").then(pl.lit("many")).otherwise(pl.col("size").cast(pl.String))
    write(good.with_columns(size=sizes), tmp_path / "value.parquet")
    write(good.with_columns(size=sizes), tmp_path / "value.csv")
    write(good, tmp_path / "good.parquet")
    write(good.with_columns(order=pl.when(pl.col("order") != "o3").then("order")), tmp_path / "key.parquet")
    cases = {
        "key.parquet": "key.parquet, row 4: the key 'order' is null",
        "column.parquet": "has no column 'size' .*asks for order, shop, size.*Did you mean 'sise'",
        "value.parquet": "value.parquet, row 14: 'size': 'many' is not a whole number",
        "value.csv": "value.csv, row 14: 'size': 'many' is not a whole number",
        "torn.csv": "torn.csv, at or after row 1: 3 fields where the header has 4",
        "empty.csv": "has no rows",
        "void.csv": "not even a header line",
        "bad.parquet": "bad.parquet cannot be read",
        "goof.parquet": "There is no file .*Did you mean .*good.parquet",
    }
    for name, message in cases.items():
        with pytest.raises((RequestError, SourceError, LookupError), match=message):
            batch.predict(project, "amount", [tmp_path / name], output=out, executor="inline")
        assert "Error" in json.loads(run(shop, "amount", tmp_path / name, "-o", out, "--json", code=2).stdout)["error"]
        assert not out.exists()
    with pytest.raises(SourceError, match=r"columns of .*column.parquet are not those of .*good.parquet.*sise, size"):
        batch.predict(project, "amount", [tmp_path / "good.parquet", tmp_path / "column.parquet"], output=out)
    with pytest.raises(RequestError, match="no column 'colour'"):
        batch.predict(project, "amount", [tmp_path / "good.parquet"], output=out, keep=["colour"])
    out.write_bytes(b"")
    assert "--overwrite" in run(shop, "amount", tmp_path / "good.parquet", "-o", out, code=2).output
    run(shop, "amount", tmp_path / "good.parquet", "-o", out, "--overwrite")
    assert pl.read_parquet(out).height == 20
    assert "ends in .parquet or .csv" in run(shop, "amount", tmp_path / "good.parquet", "-o", "x.txt", code=2).output
    assert "Name the files" in run(shop, "amount", code=2).output
    assert "not both" in run(shop, "amount", tmp_path / "good.parquet", "--table", "orders", code=2).output
    with pytest.raises(RequestError, match="2124-03-01T00:00:00Z lies ahead"):
        batch.predict(project, "amount", [tmp_path / "good.parquet"], output=out, as_of="2124-03-01", overwrite=True)


def test_an_earlier_output_is_no_input(project: Project, tmp_path: Path) -> None:
    write(orders(20), tmp_path / "a.parquet")
    for _ in range(2):
        made = batch.predict(project, "amount", [tmp_path], output=tmp_path / "out.parquet", overwrite=True)
        assert made.rows == 20
    with pytest.raises(RequestError, match="written over the rows"):
        batch.predict(project, "amount", [tmp_path / "a.parquet"], output=tmp_path / "a.parquet", overwrite=True)


@pytest.mark.slow
def test_processes_predict_and_build_what_one_thread_does(project: Project, tmp_path: Path, small: None) -> None:
    source = write(orders(700), tmp_path / "in.parquet")
    told: list[Progress] = []
    for kind, workers in (("inline", 1), ("threads", 3), ("processes", 2)):
        batch.predict(
            project, "amount", [source], output=tmp_path / f"{kind}.parquet", executor=kind, workers=workers,
            report=told.append,
        )  # fmt: skip
    made = (tmp_path / "inline.parquet").read_bytes()
    assert (tmp_path / "threads.parquet").read_bytes() == made
    assert (tmp_path / "processes.parquet").read_bytes() == made
    assert told[-1].done == told[-1].total
    assert {"splitting tables by key", "predicting"} <= {each.doing.partition(",")[0] for each in told}
    model, window = project.declared_model("amount"), None
    plan = project.plan(model, {"orders": 960, "paid": 984})
    assert plan.large == ("orders", "paid")
    sets = [
        project.build(model, plan, NOW, window, {}, told.append, executor=kind, workers=2).frame
        for kind in ("inline", "processes")
    ]
    assert sets[0].equals(sets[1])
    assert sets[0].height > 900
    assert leftovers(project) == []


def test_a_failure_in_a_process_is_told_as_it_is(project: Project, tmp_path: Path) -> None:
    wrong = orders(20).with_columns(size=pl.lit("x"))
    with pytest.raises(RequestError, match="row 1: 'size': 'x' is not a whole number"):
        batch.predict(
            project, "amount", [write(wrong, tmp_path / "in.csv")], output=tmp_path / "o.csv", executor="processes"
        )


# Interruption -----------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tidemill import batch, project as projects
from tidemill.adapters.arrow_scratch import ArrowScratch
from tidemill.cli.main import main
from tidemill.engine.example import build
from tidemill.engine.example.batch import Predictions

what, folder, source, output, puts = sys.argv[1:]
batch._CHUNK_ROWS, build.WHOLE_CELLS, build.PART_CELLS = 64, 500, 1_500
real, left = ArrowScratch.put, [int(puts)]

def put(self, name, tables, note=None):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, name, tables, note)
    sys.stdout.write(name + "\\n")
    sys.stdout.flush()

ArrowScratch.put = put
if what == "slow":
    inner = Predictions.run
    Predictions.run = lambda self, step: (time.sleep(0.05), inner(self, step))[1]
    main(["predict", "amount", source, "-o", output, "--project", folder, "--workers", "2"])
elif what == "predict":
    batch.predict(projects.open(folder), "amount", [source], output=output, workers=2)
else:
    projects.open(folder).training_set("amount", workers=2).frame.write_ipc(output)
"""


def script(what: str, shop: Path, source: Path, output: Path, puts: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what, str(shop), str(source), str(output), str(puts)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", ["predict", "training"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    what: str, shop: Path, project: Project, tmp_path: Path
) -> None:
    source = write(orders(500), tmp_path / "in.parquet")
    output = tmp_path / ("whole.parquet" if what == "predict" else "whole.out")
    undisturbed = script(what, shop, source, output, 0)
    said, errors = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, errors
    pieces = said.split()
    made: list[str] = []
    again = output.with_stem("again")
    for puts in (5, 7, 11, 0):
        process = script(what, shop, source, again, puts)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == (-signal.SIGKILL if puts else 0), errors
        assert not puts or not again.exists()
        made += said.split()
    assert again.read_bytes() == output.read_bytes()
    done = [name for name in made if name != "run"]
    assert len(done) <= len(pieces) + 3 * 2  # at most what both threads were at was done again
    assert leftovers(project) == []


def test_an_interrupt_says_that_nothing_is_lost(shop: Path, project: Project, tmp_path: Path) -> None:
    source, output = write(orders(960), tmp_path / "in.parquet"), tmp_path / "out.parquet"
    process = script("slow", shop, source, output, 0)
    assert process.stdout is not None
    while "predicted-1" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Interrupted after " in said
    assert "goes on from there" in said
    assert "Traceback" not in said
    assert not output.exists()
    assert len(leftovers(project)) == 1
    process = script("slow", shop, source, output, 0)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    np.testing.assert_array_equal(
        pl.read_parquet(output)["prediction"].to_numpy(), project.model("amount").predict(orders(960))
    )
    assert leftovers(project) == []


def test_the_same_work_is_done_by_one_process_at_a_time(project: Project, tmp_path: Path, shop: Path) -> None:
    source = write(orders(960), tmp_path / "in.parquet")
    process = script("slow", shop, source, tmp_path / "out.parquet", 0)
    assert process.stdout is not None
    while "predicted-0" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch, "_CHUNK_ROWS", 64)
            with pytest.raises(WorkspaceError, match="Another process is doing this very work"):
                batch.predict(project, "amount", [source], output=tmp_path / "mine.parquet")
        lease = project.workspace.journal.acquire()
        project.mill(lease)  # a worker that starts sweeps what is left over, but not what is worked on
        lease.release()
        assert len(leftovers(project)) == 1
    finally:
        process.kill()
        process.communicate()
    work = project.workspace.root / "work"
    (work / "train-dead").mkdir()
    old = SystemClock().now() // SECOND - 8 * DAY // SECOND
    for path in next(work.glob("predict-*")).iterdir():
        os.utime(path, (old, old))
    os.utime(next(work.glob("predict-*")), (old, old))
    lease = project.workspace.journal.acquire()
    project.mill(lease)
    lease.release()
    assert leftovers(project) == []
