"""Fingerprints of declarations: every meaningful part counts, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.base.hashing import canonical
from tidemill.engine.check.fingerprint import describe, judging, of, operations, recipe, recipe_fingerprint
from tidemill.spec.feature import Aggregation, Latest
from tidemill.spec.model import Label, Model
from tidemill.spec.source import Source, Table


def arrivals(**changes: Any) -> Source:
    given: dict[str, Any] = {"name": "arrivals", "reader": tm.files("arrivals/*.csv"), "key": "flight_id"}
    given |= {"event_time": "landed", "known_at": "reported", "checks": [tm.between("arr_delay", -120, 2000)]}
    given |= changes
    return tm.Source(given.pop("name"), given.pop("reader"), **given)


def carrier(**changes: Any) -> Aggregation:
    given: dict[str, Any] = {"name": "carrier", "table": arrivals(), "by": "carrier"}
    given |= {"features": {"late": tm.mean(pl.col("arr_delay") > 15, over=("6h", "1d")), "n": tm.count(over="1d")}}
    given |= changes
    return tm.Aggregation(given.pop("name"), given.pop("table"), **given)


def latest(**changes: Any) -> Latest:
    given: dict[str, Any] = {"name": "last", "table": arrivals(), "by": "origin", "columns": ["arr_delay", "carrier"]}
    given |= {"within": "3h", **changes}
    return tm.Latest(given.pop("name"), given.pop("table"), **given)


def label(**changes: Any) -> Label:
    given: dict[str, Any] = {"table": arrivals(), "value": pl.col("arr_delay") > 15, "within": "2d", **changes}
    return tm.Label(given.pop("table"), given.pop("value"), **given)


def cost(truth: Any, prediction: Any) -> float:
    return 1.0


def no_rows(taken: int) -> list[Any]:
    return []


def other_cost(truth: Any, prediction: Any) -> float:
    return 2.0


def model(**changes: Any) -> Model:
    given: dict[str, Any] = {"name": "late", "examples": arrivals(), "asked_at": tm.before("landed", "2h")}
    given |= {"label": label(), "features": [carrier(), latest(), "origin"], "split": tm.by_time(test="30d")}
    given |= {"estimator": HistGradientBoostingClassifier(), "kpis": {"cost": cost}}
    given |= changes
    return tm.Model(given.pop("name"), **given)


TABLE_CHANGES: list[dict[str, Any]] = [
    {"key": ("flight_id", "carrier")},
    {"event_time": None},
    {"known_at": None},
    {"known_at": tm.after("landed", "1h")},
    {"known_at": tm.after("landed", "2h")},
    {"corrected_at": "reported"},
    {"tombstone": "gone"},
    {"checks": []},
    {"checks": [tm.between("arr_delay", -120, 1000)]},
    {"checks": [tm.holds("x", pl.col("arr_delay") > 1)]},
    {"checks": [tm.holds("x", pl.col("arr_delay") > 2)]},
    {"checks": [tm.not_null("arr_delay")]},
    {"checks": [tm.one_of("carrier", "AA", "UA")]},
]
SOURCE_CHANGES = [
    *TABLE_CHANGES,
    {"reader": tm.files("other/*.csv")},
    {"reader": tm.push()},
    {"reader": tm.rows(no_rows)},
    {"reader": tm.rows(no_rows, history=True)},
]
AGGREGATION_CHANGES: list[dict[str, Any]] = [
    {"by": "origin"},
    {"on": {"carrier": "line"}},
    {"table": arrivals(name="others")},
    {"table": arrivals(known_at="landed")},
    {"features": {"late": tm.mean(pl.col("arr_delay") > 15, over=("6h", "1d"))}},
    {"features": {"late": tm.mean(pl.col("arr_delay") > 15, over=("6h", "2d")), "n": tm.count(over="1d")}},
    {"features": {"late": tm.mean(pl.col("arr_delay") > 16, over=("6h", "1d")), "n": tm.count(over="1d")}},
    {"features": {"late": tm.sum(pl.col("arr_delay") > 15, over=("6h", "1d")), "n": tm.count(over="1d")}},
    {"features": {"n": tm.count(over="1d"), "late": tm.mean(pl.col("arr_delay") > 15, over=("6h", "1d"))}},
    {"features": {"late": tm.share(pl.col("arr_delay") > 15, over=("6h", "1d")), "n": tm.count(over="1d")}},
    {"features": {"delay": tm.quantile("arr_delay", 0.5, over="1d")}},
    {"features": {"delay": tm.quantile("arr_delay", 0.9, over="1d")}},
    {"features": {"idle": tm.since_last(over="1d")}},
]
LATEST_CHANGES: list[dict[str, Any]] = [
    {"by": "carrier"},
    {"columns": ["carrier", "arr_delay"]},
    {"columns": "arr_delay"},
    {"within": "4h"},
    {"within": None},
    {"ahead": True},
    {"on": {"origin": "dest"}},
]
LABEL_CHANGES: list[dict[str, Any]] = [
    {"value": pl.col("arr_delay") > 30},
    {"within": "3d"},
    {"settle": "1d"},
    {"otherwise": False},
    {"otherwise": 0},
    {"on": {"flight_id": "id"}},
]
RECIPE_CHANGES: list[dict[str, Any]] = [
    {"examples": arrivals(known_at="landed")},
    {"asked_at": tm.before("landed", "3h")},
    {"label": label(within="3d")},
    {"features": [carrier(), latest()]},
    {"features": ["origin", carrier(), latest()]},
    {"features": [carrier(name="line"), latest(), "origin"]},
    {"features": [carrier(by="origin"), latest(), "origin"]},
    {"estimator": HistGradientBoostingClassifier(max_iter=200)},
    {"estimator": LogisticRegression()},
    {"task": "regression", "metrics": ["mae"]},
    {"split": tm.by_time(test="20d")},
    {"split": tm.by_time(test="30d", gap="1d")},
    {"split": tm.by_key(test=0.2)},
]
JUDGING_CHANGES: list[dict[str, Any]] = [
    {"metrics": ["brier"]},
    {"kpis": {}},
    {"kpis": {"cost": other_cost}},
    {"slices": ["origin"]},
    {"gate": tm.Gate("log_loss", margin=0.01)},
]


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (arrivals, SOURCE_CHANGES),
        (carrier, AGGREGATION_CHANGES),
        (latest, LATEST_CHANGES),
        (label, LABEL_CHANGES),
    ],
    ids=["source", "aggregation", "latest", "label"],
)
def test_every_part_of_a_declaration_counts(make: Callable[..., Any], changed: list[dict[str, Any]]) -> None:
    prints = [of(make()), *(of(make(**changes)) for changes in changed)]
    assert len(set(prints)) == len(prints)
    assert of(make()) == prints[0]


def test_every_part_of_the_recipe_counts() -> None:
    policy = tm.Policy()
    prints = [recipe_fingerprint(model(**changes), policy) for changes in [{}, *RECIPE_CHANGES]]
    prints.append(recipe_fingerprint(model(), tm.Policy(window="90d")))
    assert len(set(prints)) == len(prints)


def test_judging_and_serving_do_not_change_the_recipe() -> None:
    before = recipe_fingerprint(model(), tm.Policy())
    for changes in [*JUDGING_CHANGES, {"name": "other"}]:
        assert recipe_fingerprint(model(**changes), tm.Policy()) == before
    assert recipe_fingerprint(model(), tm.Policy(retrain=[tm.every("30d")], takes="2h")) == before
    judged = [canonical(judging(model(**changes))) for changes in [{}, *JUDGING_CHANGES]]
    assert len(set(judged)) == len(judged)


def test_where_rows_come_from_does_not_change_what_is_built_on_them() -> None:
    moved = arrivals(reader=tm.files("moved/*.csv"))
    assert of(arrivals()) != of(moved)
    assert of(carrier()) == of(carrier(table=moved))
    # Undeclared, the known-at depends on the reader, and that does count.
    assert of(carrier(table=arrivals(known_at=None))) != of(carrier(table=arrivals(known_at=None, reader=tm.push())))


def test_the_order_of_renamings_and_checks_of_other_tables_does_not_matter() -> None:
    first = latest(by=("origin", "carrier"), on={"origin": "a", "carrier": "b"})
    second = latest(by=("origin", "carrier"), on={"carrier": "b", "origin": "a"})
    assert of(first) == of(second)


reports = arrivals(name="reports")


def tidy(reports: pl.LazyFrame) -> pl.LazyFrame:
    return reports.filter(pl.col("arr_delay").is_not_null())


def tidier(reports: pl.LazyFrame) -> pl.LazyFrame:
    return reports.filter(pl.col("arr_delay").is_null())


def table(function: Callable[..., Any] = tidy, **changes: Any) -> Table:
    given = {"name": "tidy", "key": ("flight_id",), "event_time": "landed", "known_at": None, "by_row": False}
    return Table(function=function, **{**given, "sources": (reports,), **changes})


def test_a_derived_table_is_its_function_and_its_inputs() -> None:
    tables = [
        table(),
        table(tidier),
        table(by_row=True),
        table(key=("carrier",)),
        table(sources=(arrivals(name="reports", known_at="landed"),)),
        table(sources=(reports, reports)),
    ]
    prints = [of(each) for each in tables]
    assert len(set(prints)) == len(prints)
    assert describe(table())["function"]["versions"] == {"polars": pl.__version__}


def test_descriptions_are_plain_json() -> None:
    system = tm.System("flights", model(), policy=tm.Policy(retrain=[tm.every("30d"), tm.on_drift()]))
    for parts in (recipe(model(), system.policy), judging(model()), operations(system), *map(describe, system.tables)):
        canonical(parts)
    assert operations(system)["policy"]["retrain"] == [
        {"trigger": "Every", "micros": "30d"},
        {"trigger": "OnDrift", "cooldown": "7d"},
    ]


SUBJECT = """
import polars as pl, tidemill as tm
class Mean:
    def __init__(self, shift=1.0): self.shift = shift
    def fit(self, X, y): return self
    def predict(self, X): return X
NAMES = frozenset({"alpha", "beta", "gamma", "delta"})
reports = tm.Source("reports", tm.files("*.csv"), key="id", event_time="at")
@tm.table("tidy", key="id", event_time="at")
def tidy(reports): return reports.filter(pl.col("name").is_in(list(NAMES)))
view = tm.Aggregation("a", tidy, by="name", features={
    "x": tm.mean(pl.when(pl.col("x") > 1).then(2).otherwise(pl.col("x")), over="1d"),
    "h": tm.max(pl.col("at").dt.hour(), over="7d")})
model = tm.Model("m", examples=reports, asked_at=tm.after("at", "1h"), features=[view], estimator=
    Mean(), label=tm.Label(tidy, pl.col("x") > 1, within="1d"))
"""


def test_fingerprints_are_equal_across_processes(tmp_path: Path) -> None:
    (tmp_path / "subject.py").write_text(SUBJECT)
    script = (
        "import subject as s; from tidemill.engine.check.fingerprint import *; from tidemill.spec.system import Policy;"
        "print(of(s.reports), of(s.tidy), of(s.view), recipe_fingerprint(s.model, Policy()))"
    )
    outputs = set()
    for seed in ("0", "99"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 4
