"""A small system as its owner uses it from Python: files, ticks, tables, training sets, a fitted model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tidemill import project as projects
from tidemill.adapters.system_file import load_system
from tidemill.base.clock import DAY, HOUR, parse_time
from tidemill.base.errors import LeaseHeldError, NotFoundError, RequestError, WorkspaceError
from tidemill.engine.mill.mill import Mill
from tidemill.project import Project

START = parse_time("2024-03-01")

SYSTEM = """
import polars as pl
import tidemill as tm
from sklearn.linear_model import LinearRegression
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

orders = tm.Source("orders", tm.files("orders/*.csv"), key="order", event_time="placed",
                   known_at=tm.before("placed", "1m"))
paid = tm.Source("paid", tm.files("paid/*.csv"), key="order", event_time="at", known_at="known",
                 checks=[tm.between("amount", 0, 10_000)])

@tm.table("large", key="order", event_time="at", known_at="known", rows=True)
def large(paid):
    return paid.filter(pl.col("amount") > 50)

spent = tm.Aggregation("spent", paid, by="shop", features={
    "amount": tm.mean("amount", over=("1d", "7d")),
    "n": tm.count(over="1d"),
})
big = tm.Aggregation("big", large, by="shop", features={"n": tm.count(over="7d")})
returns = tm.Source("returns", tm.push(), key="order", event_time="at")
returned = tm.Aggregation("returned", returns, by="shop", features={
    "n": tm.count(over="7d"),
    "x": tm.mean("x", over="7d"),
})

amount = tm.Model(
    "amount", examples=orders, asked_at="placed", label=tm.Label(paid, "amount", within="6h"),
    features=[spent, big, returned, "size"], estimator=make_pipeline(SimpleImputer(), LinearRegression()),
    split=tm.by_time(test="7d", gap="1h"), gate=tm.Gate("mae", min_rows=50),
)
system = tm.System("shop", amount, tick="1h", policy=tm.Policy(retrain=[tm.every("10d")], takes="1h"))
"""


def write(folder: Path, first: int, last: int) -> None:
    """Write the orders of the days ``first`` to ``last - 1`` after START: two an hour, one corrected a day."""
    rng = np.random.default_rng(first)
    orders, paid = [], []
    for day in range(first, last):
        for number in range(48):
            placed = START + day * DAY + number * HOUR // 2
            name, size = f"{day}-{number}", int(rng.integers(1, 10))
            amount = 10.0 * size + float(rng.normal())
            shop = "ab"[number % 2]
            orders.append((name, placed, shop, size))
            paid.append((name, placed + HOUR, placed + 2 * HOUR, shop, amount))
            if number == 7:
                paid.append((name, placed + HOUR, placed + 9 * HOUR, shop, amount + 1))
        paid.append((f"{day}-bad", START + day * DAY, START + day * DAY + HOUR, "a", -5.0))
    times = pl.Datetime("us", "UTC")
    for name, rows, schema in (
        ("orders", orders, {"order": pl.String, "placed": pl.Int64, "shop": pl.String, "size": pl.Int64}),
        (
            "paid",
            paid,
            {"order": pl.String, "at": pl.Int64, "known": pl.Int64, "shop": pl.String, "amount": pl.Float64},
        ),
    ):
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        frame = frame.with_columns(
            pl.col(column).cast(times) for column in ("placed", "at", "known") if column in schema
        )
        (folder / name).mkdir(exist_ok=True)
        frame.write_csv(folder / name / f"{first:03}.csv", datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Mill]]:
    """The system after twenty days of history and a few ticks, with a champion."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "system.py").write_text(SYSTEM)
    write(folder, 0, 20)
    project = projects.open(folder)
    lease = project.workspace.journal.acquire()
    mill = project.mill(lease)
    mill.start()
    for hour in range(2):
        mill.tick(START + 20 * DAY + hour * HOUR)
    yield project, mill
    mill.stop()
    lease.release()


def test_history_is_loaded_a_model_trained_and_promoted(ran: tuple[Project, Mill]) -> None:
    project, mill = ran
    state = project.state()
    assert state == mill.state
    assert state.rows["orders"] == 960
    assert state.rows["paid"] == 980
    assert state.model("amount").aliases == {"champion": 1}
    judged = state.model("amount").versions[0].judged
    assert judged["metrics"]["r2"]["value"] > 0.9
    assert judged["dropped"] == ["returned__x_7d"]  # nothing has been returned yet: the count is 0, the mean is null
    quarantined = project.rows("paid__quarantine")
    assert quarantined.height == 20
    assert "amount" in quarantined["reason"][0]


def test_tables_are_read_as_of_a_time(ran: tuple[Project, Mill]) -> None:
    project, _ = ran
    late = START + 3 * DAY + 7 * HOUR // 2  # the order of day 3 whose payment is corrected nine hours later
    before = project.table("paid", as_of=late + 9 * HOUR).filter(pl.col("order") == "3-7")["amount"][0]
    after = project.table("paid", as_of=late + 9 * HOUR + 1).filter(pl.col("order") == "3-7")["amount"][0]
    assert after == pytest.approx(before + 1)
    assert project.table("paid").height == 959  # the last payment becomes known half an hour after the last tick
    assert project.table("large").height == project.table("paid").filter(pl.col("amount") > 50).height
    assert project.table("paid").columns == ["order", "at", "known", "shop", "amount"]


def test_training_sets_and_models_from_python(ran: tuple[Project, Mill]) -> None:
    project, _ = ran
    made = project.training_set("amount", as_of="2024-03-15")
    assert made.frame["_asked_at"].is_sorted()
    assert made.counts["no_example"] == 0
    model = project.model("amount@champion")
    assert repr(model) == "<amount v1>"
    asked = project.table("orders").tail(5)
    alone = np.concatenate([model.predict(asked[row : row + 1]) for row in range(5)])
    np.testing.assert_array_equal(model.predict(asked), alone)
    past = model.features(asked, as_of=START)
    assert past["spent__n_1d"].to_list() == [0] * 5
    seen = model.predictor.encoding.frame(model.features(asked))
    np.testing.assert_allclose(model.estimator.predict(seen), model.predict(asked), rtol=1e-9)
    assert model.classes == ()


def test_questions_that_are_none_are_refused_with_what_is_wrong(ran: tuple[Project, Mill]) -> None:
    model, asked = ran[0].model("amount"), ran[0].table("orders").tail(3)
    as_text = asked.with_columns(pl.col("size").cast(pl.String))
    np.testing.assert_array_equal(model.predict(as_text), model.predict(asked))
    wrong = pl.Series("size", ["1", "many", "3"])
    with pytest.raises(RequestError, match="Row 1 of the questions: 'size': 'many' is not a whole number"):
        model.predict(asked.with_columns(wrong))
    with pytest.raises(RequestError, match="'size' is missing"):
        model.predict(asked.drop("size"))
    with pytest.raises(RequestError, match="of type dict; give a Polars DataFrame"):
        model.predict(asked.to_dict())  # type: ignore[arg-type]


def test_unknown_names_get_the_nearest(ran: tuple[Project, Mill]) -> None:
    project, _ = ran
    with pytest.raises(NotFoundError, match="Did you mean 'orders'"):
        project.table("order")
    with pytest.raises(NotFoundError, match="Did you mean 'amount'"):
        project.model("amont")
    with pytest.raises(NotFoundError, match="versions go from 1 to 1"):
        project.model("amount@v9")


def test_one_worker_at_a_time(ran: tuple[Project, Mill]) -> None:
    project, _ = ran
    with pytest.raises(LeaseHeldError):
        projects.open(project.path).workspace.journal.acquire()


def test_nothing_new_means_no_work(ran: tuple[Project, Mill]) -> None:
    _, mill = ran
    for hour in range(2, 5):
        turned = mill.tick(START + 20 * DAY + hour * HOUR)
        assert turned.entries == ()
        assert not turned.rows


def test_a_source_whose_rows_would_mean_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "system.py").write_text(SYSTEM)
    write(tmp_path, 0, 2)
    project = projects.open(tmp_path)
    lease = project.workspace.journal.acquire()
    first = project.mill(lease)
    first.start()
    first.tick(START + 2 * DAY)
    first.stop()
    (tmp_path / "system.py").write_text(SYSTEM.replace('event_time="at", known_at="known",', 'event_time="at",', 1))
    with pytest.raises(WorkspaceError, match=r"source 'paid'.*another declaration.*known_at"):
        Project(project.path, load_system(project.path), project.workspace).mill(lease).start()
    lease.release()
