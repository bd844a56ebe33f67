"""`plan`: what would be done, and why, for a workspace in every state."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

import tidemill as tm
from tidemill.engine.check.change import changes
from tidemill.engine.check.fingerprint import describe, judging, operations, recipe
from tidemill.engine.check.plan import Built, BuiltModel, BuiltTable, Plan, plan
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table
from tidemill.spec.system import System


def keep(reports: pl.LazyFrame) -> pl.LazyFrame:
    return reports


def keep_some(reports: pl.LazyFrame) -> pl.LazyFrame:
    return reports.filter(pl.col("delay") > 0)


def reports(**changed: Any) -> Source:
    given: dict[str, Any] = {"reader": tm.files("reports/*.csv"), "key": "id", "event_time": "landed", **changed}
    return tm.Source("reports", given.pop("reader"), **given)


def model(source: Source, table: Table, windows: tuple[str, ...], **changed: Any) -> Model:
    carrier = tm.Aggregation("carrier", table, by="carrier", features={"delay": tm.mean("delay", over=windows)})
    given: dict[str, Any] = {
        "examples": source,
        "asked_at": tm.after("landed", "2h"),
        "label": tm.Label(table, pl.col("delay") > 15, within="2d"),
        "features": [carrier, tm.OnDemand("o", {"double": pl.col("distance") * 2}), "origin"],
        "estimator": HistGradientBoostingClassifier(max_iter=100),
    }
    return tm.Model("late", **{**given, **changed})


def system(
    source: Source | None = None,
    function: Any = keep,
    windows: tuple[str, ...] = ("6h", "1d"),
    settings: dict[str, Any] | None = None,
    **changed: Any,
) -> System:
    origin = source or reports()
    table = Table("clean", function, ("id",), "landed", None, False, (origin,))
    return tm.System("flights", model(origin, table, windows, **changed), **(settings or {}))


def built(declared: System, *, pending: int | None = 0, serving: bool = True) -> Built:
    """Everything as ``declared``, through JSON as a workspace keeps it."""
    tables = {
        table.name: BuiltTable(_kept(describe(table)), 10, pending=pending if isinstance(table, Source) else None)
        for table in declared.tables
    }
    views = {view.name: _kept(describe(view)) for view in declared.views if not isinstance(view, OnDemand)}
    models = {
        each.name: BuiltModel("3", _kept(recipe(each, declared.policy)), _kept(judging(each)))
        for each in declared.models
    }
    return Built(tables, views, models, _kept(operations(declared)), serving)


def _kept(parts: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(json.dumps(parts))
    return kept


def work(found: Plan) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(item.action, item.what, item.why) for item in found.items if item.action != "nothing"]


def test_an_empty_workspace_gets_everything_in_order() -> None:
    found = plan(system(), Built())
    assert [(item.action, item.what) for item in found.items] == [
        ("load", "source 'reports'"),
        ("create", "table 'clean'"),
        ("create", "online state of feature view 'carrier'"),
        ("train", "model 'late'"),
        ("serve", "endpoint"),
    ]
    assert not found.idle
    assert all(item.why for item in found.items)


def test_a_workspace_as_declared_needs_nothing() -> None:
    found = plan(system(), built(system()))
    assert work(found) == []
    assert found.idle
    assert plan(system(), built(system(), serving=False)).idle


def test_new_files_are_loaded_and_passed_on() -> None:
    assert work(plan(system(), built(system(), pending=2))) == [
        ("load", "source 'reports'", ("2 new files",)),
        ("load", "table 'clean'", ("new rows in reports",)),
    ]


def test_a_changed_estimator_retrains_and_says_what_changed() -> None:
    changed = system(estimator=HistGradientBoostingClassifier(max_iter=200))
    assert work(plan(changed, built(system()))) == [
        ("retrain", "model 'late'", ("estimator changed: max_iter 100 -> 200",)),
    ]


def test_an_added_window_is_named() -> None:
    assert work(plan(system(windows=("6h", "1d", "3d")), built(system()))) == [
        ("rebuild", "online state of feature view 'carrier'", ("delay: window 3d added",)),
        ("retrain", "model 'late'", ("feature view 'carrier': delay: window 3d added",)),
    ]


def test_a_changed_function_rebuilds_the_table_and_all_on_it() -> None:
    found = work(plan(system(function=keep_some), built(system())))
    assert [(action, what) for action, what, _ in found] == [
        ("rebuild", "table 'clean'"),
        ("rebuild", "online state of feature view 'carrier'"),
        ("retrain", "model 'late'"),
    ]
    assert any("code of" in reason and "keep_some added" in reason for reason in found[0][2]), found
    assert found[1][2] == ("table 'clean' changed",)
    assert "feature view 'carrier': table 'clean' changed" in found[2][2]


def test_a_sources_times_rebuild_it_and_its_place_does_not() -> None:
    found = work(plan(system(reports(known_at=tm.after("landed", "1h"))), built(system())))
    assert found[0] == ("rebuild", "source 'reports'", ("known_at landed -> 1h after 'landed'",))
    assert [action for action, _, _ in found[1:]] == ["rebuild", "rebuild", "retrain"]
    found = work(plan(system(reports(reader=tm.files("moved/*.csv"))), built(system())))
    assert found == [
        (
            "change",
            "source 'reports'",
            ("reader: files reports/*.csv -> moved/*.csv", "the 10 rows already loaded stay"),
        ),
    ]


def test_pushed_rows_cannot_be_loaded_again() -> None:
    pushed, keyed = reports(reader=tm.push()), reports(reader=tm.push(), key=("id", "landed"))
    assert plan(system(pushed), Built()).items[0].action == "create"
    item = plan(system(keyed), built(system(pushed))).items[0]
    assert item.action == "change"
    assert item.why[0] == "key: column landed added"
    assert "stay as they are" in item.why[1]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"asked_at": tm.after("landed", "3h")}, "asked_at 2h after 'landed' -> 3h after 'landed'"),
        ({"features": ["origin", "dest"]}, "feature view 'carrier' removed"),
        ({"features": ["origin", "dest"]}, "feature view 'o' removed"),
        ({"split": tm.by_time(test="20d")}, "split: test 30d -> 20d"),
        ({"settings": {"policy": tm.Policy(window="90d")}}, "window all -> 90d"),
    ],
)
def test_reasons_of_a_retraining(changed: dict[str, Any], reason: str) -> None:
    (action, _, why), *_ = (
        each for each in work(plan(system(**changed), built(system()))) if each[1] == "model 'late'"
    )
    assert action == "retrain"
    assert reason in why


def test_a_changed_label_shows_both_expressions() -> None:
    old = system()
    table = old.models[0].label.table
    new = system(label=tm.Label(table, pl.col("delay") > 30, within="2d"))
    (reason,) = next(item.why for item in plan(new, built(old)).items if item.action == "retrain")
    assert reason == "label changed: (delay > 15) -> (delay > 30)"


def test_judging_and_operations_change_without_a_training() -> None:
    changed = system(
        gate=tm.Gate("log_loss", margin=0.01),
        slices=["origin"],
        settings={"endpoint": tm.Endpoint(port=9000), "tick": "5m"},
    )
    assert work(plan(changed, built(system()))) == [
        ("change", "judging of model 'late'", ("slice origin added", "gate: margin 0.0 -> 0.01")),
        ("change", "system 'flights'", ("endpoint: port 8321 -> 9000", "tick 1m -> 5m")),
    ]


def test_a_change_of_versions_is_named() -> None:
    old = built(system())
    parts = json.loads(json.dumps(old.models["late"].recipe).replace('"scikit-learn": "', '"scikit-learn": "0.'))
    before = Built(
        old.tables, old.views, {"late": BuiltModel("3", parts, old.models["late"].judging)}, old.operations, True
    )
    import sklearn

    ((action, _, why),) = work(plan(system(), before))
    assert action == "retrain"
    assert why == (f"estimator changed: scikit-learn 0.{sklearn.__version__} -> {sklearn.__version__}",)


def test_what_is_no_longer_declared_is_said() -> None:
    old = built(system())
    more = Built(
        {**old.tables, "gone": BuiltTable({}, 5)}, old.views, {**old.models, "past": old.models["late"]}, None, True
    )
    found = plan(system(), more)
    assert [str(warning) for warning in found.warnings] == [
        "table 'gone': is no longer declared; its 5 rows are kept.",
        "model 'past': is no longer declared; its versions are kept and not served.",
    ]
    assert found.idle


def test_static_tables_are_warned_about() -> None:
    static = reports(event_time=None)
    assert any("history is not kept" in str(warning) for warning in plan(system(static), Built()).warnings)


def test_equal_descriptions_have_no_changes_and_different_ones_always_do() -> None:
    parts = recipe(system().models[0], tm.Policy())
    assert changes(parts, _kept(parts)) == ()
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"a": 1}, {"a": 1.0}),
        ({"a": True}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({}, {"a": None}),
    ]
    for old, new in pairs:
        assert changes(old, new)


def test_a_model_that_no_gate_has_passed_is_not_promised() -> None:
    old = built(system())
    models = {name: known for name, known in old.models.items() if name != "late"}
    undecided = replace(old, models=models, undecided={"late": "only 3 rows"})
    (item,) = [item for item in plan(system(), undecided).items if item.what == "model 'late'"]
    assert item.action == "nothing"
    assert item.why[0] == "no champion yet: only 3 rows"
    assert "tidemill retrain late" in item.why[1]
    (item,) = [item for item in plan(system(), replace(undecided, undecided={})).items if item.what == "model 'late'"]
    assert item.action == "train"
