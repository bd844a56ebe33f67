"""Types, nulls and errors of feature views; the values themselves are held against the oracle elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.base.errors import DeclarationError, NotFoundError, RequestError
from tidemill.engine.feature.feature import compute, dtypes, features, unanswered
from tidemill.spec.feature import View
from tidemill.testing.histories import SYSTEM_TYPES, TIME, frame

TYPES: dict[str, pl.DataType] = {
    "id": pl.Int32(), "at": TIME, "by": pl.Int64(), "x": pl.Float64(), "n": pl.Int64(), "ok": pl.Boolean(),
    "kind": pl.Enum(["p", "q"]),
}  # fmt: skip
EVENTS = tm.Source("events", tm.files("*"), key="id", event_time="at")
FUNCTIONS = ("sum", "mean", "std", "min", "max", "first", "last", "n_unique")
WINDOWS = tm.Aggregation(
    "w", EVENTS, by="by",
    features={"count": tm.count(over="1h")}
    | {f"{each}_{column}": getattr(tm, each)(column, over="1h") for each in FUNCTIONS for column in ("x", "n", "ok")}
    | {"median_x": tm.quantile("x", 0.5, over="1h"), "p90_n": tm.quantile("n", 0.9, over="1h")}
    | {"ok": tm.share("ok", over="1h"), "idle": tm.since_last(over="1h")}
    | {f"{function}_kind": getattr(tm, function)("kind", over="1h") for function in ("first", "last", "n_unique")},
)  # fmt: skip
LATEST = tm.Latest("l", EVENTS, by="by", columns=["x", "n", "ok", "kind", "at"])
MODEL = tm.Model(
    "m", examples=EVENTS, asked_at="at", label=tm.Label(EVENTS, "ok", within="1h"),
    features=["n", WINDOWS, LATEST, tm.OnDemand("o", {"half": pl.col("n") / 2})], estimator=LogisticRegression(),
)  # fmt: skip


def event(seq: int, **values: Any) -> dict[str, Any]:
    row = {"id": seq, "at": seq, "by": 1, "x": 1.0, "n": 1, "ok": True, "kind": "p", "_known_at": seq, "_seq": seq}
    return {**row, "_tombstone": False, "_tick": 0, "_history": False, **values}


def ask(view: View, rows: list[dict[str, Any]], requests: dict[str, list[Any]], t: int = 100) -> pl.DataFrame:
    asked = pl.DataFrame(requests)
    return compute(view, frame(rows, TYPES), asked, np.full(asked.height, t, dtype=np.int64))


@pytest.mark.parametrize("view", [WINDOWS, LATEST])
@pytest.mark.parametrize("rows", [[], [event(0)]])
def test_types_do_not_depend_on_rows(view: View, rows: list[dict[str, Any]]) -> None:
    want = dtypes(view, TYPES)
    assert tuple(want) == view.columns
    for by in ([], [1], [None, 7]):
        got = ask(view, rows, {"by": by})
        assert dict(got.schema) == want
        assert got.height == len(by)


def test_numbers_that_are_not_finite_are_null_to_aggregates_and_copied_by_latest() -> None:
    rows = [event(0, x=2.0), event(1, x=float("nan")), event(2, x=float("inf"))]
    got = ask(WINDOWS, rows, {"by": [1]}).row(0, named=True)
    assert got["w__count_1h"] == 3
    assert got["w__mean_x_1h"] == got["w__last_x_1h"] == got["w__max_x_1h"] == 2.0
    assert got["w__n_unique_x_1h"] == 1
    assert got["w__std_x_1h"] is None
    assert ask(LATEST, rows, {"by": [1]})["l__x"][0] == float("inf")


def test_quantiles_shares_and_the_time_since_the_last_row() -> None:
    rows = [event(0, x=1.0, ok=True), event(1, x=4.0, ok=None), event(2, x=None, ok=False), event(3, x=2.0, ok=False)]
    got = ask(WINDOWS, rows, {"by": [1, 9]})
    assert got["w__median_x_1h"].to_list() == [2.0, None]
    assert got["w__ok_1h"].to_list() == [1 / 3, None]
    assert got["w__idle_1h"].to_list() == [97e-6, None]
    numbers = [event(seq, n=seq * seq) for seq in range(8)]
    assert ask(WINDOWS, numbers, {"by": [1]})["w__p90_n_1h"][0] == np.quantile([seq * seq for seq in range(8)], 0.9)


def test_views_of_one_table_share_groups_and_no_answers() -> None:
    views = [tm.Latest(name, EVENTS, by=by, columns="n") for name, by in (("a", "by"), ("b", "by"), ("c", "n"))]
    model = tm.Model(
        "m", examples=EVENTS, asked_at="at", label=tm.Label(EVENTS, "ok", within="1h"),
        features=[*views, WINDOWS, tm.Latest("d", EVENTS, by="by", columns="x", on={"by": "n"})],
        estimator=LogisticRegression(),
    )  # fmt: skip
    tables = {"events": frame([event(0, n=2, x=5.0), event(1, by=2, n=3, x=7.0), event(2, by=2, at=None, n=4)], TYPES)}
    requests = pl.DataFrame({"id": [1, 2], "by": [1, 2], "n": [2, 9]})
    got = features(model, tables, requests, np.array([50, 50]))
    assert [got[f"{name}__n"].to_list() for name in "abc"] == [[2, 3], [2, 3], [2, None]]
    assert got["d__x"].to_list() == [7.0, None]
    assert got["w__count_1h"].to_list() == [1, 1]


def test_integers_are_summed_exactly_and_zero_has_no_sign() -> None:
    rows = [event(0, n=2**53, x=-0.0), event(1, n=1, x=-0.0), event(2, n=1, x=0.0)]
    got = ask(WINDOWS, rows, {"by": [1]}).row(0, named=True)
    assert got["w__sum_n_1h"] == 2**53 + 2
    assert [str(got[f"w__{name}_x_1h"]) for name in ("sum", "min", "max", "first")] == ["0.0", "0.0", "0.0", "-0.0"]
    assert got["w__n_unique_x_1h"] == 1
    assert got["w__mean_ok_1h"] == 1.0


def test_keys_are_compared_as_the_tables_type() -> None:
    for by in ([1, 2], ["1", "x"], [1.0, None]):
        assert ask(LATEST, [event(0), event(1, by=None)], {"by": by})["l__n"].to_list() == [1, None]


def test_features_are_in_the_models_order() -> None:
    tables = {"events": frame([event(0, n=4)], TYPES)}
    requests = pl.DataFrame({"id": [1, 2], "by": [1, 9], "n": [7, 8]})
    got = features(MODEL, tables, requests, np.array([5, 5]))
    assert tuple(got.columns) == MODEL.columns
    assert got["n"].to_list() == [7, 8]
    assert got["l__n"].to_list() == [4, None]
    assert got["o__half"].to_list() == [3.5, 4.0]


def test_what_is_missing_is_named() -> None:
    requests = pl.DataFrame({"id": [1], "by": [1]})
    with pytest.raises(RequestError, match="'n' is missing"):
        features(MODEL, {"events": frame([], TYPES)}, requests, np.array([5]))
    with pytest.raises(NotFoundError, match="'events'"):
        features(MODEL, {}, requests.with_columns(n=1), np.array([5]))
    with pytest.raises(NotFoundError, match="'events'"):
        compute(WINDOWS, None, requests, np.array([5]))
    with pytest.raises(RequestError, match="Did you mean 'bye'"):
        ask(LATEST, [], {"bye": [1]})
    static = tm.Source("static", tm.files("*"), key="id")
    windows = tm.Aggregation("w", static, by="by", features={"n": tm.count(over="1h")})
    with pytest.raises(DeclarationError, match="no event time"):
        ask(windows, [], {"by": [1]})


def test_a_table_without_rows_yet_answers_like_an_empty_one() -> None:
    events = tm.Source("pushed", tm.push(), key="id", event_time="at")
    views: tuple[tm.Aggregation | tm.Latest, ...] = (
        tm.Aggregation(
            "w", events, by="k",
            features={"n": tm.count(over="1d"), "x": tm.mean("x", over=("1d", "2d")), "u": tm.n_unique("x", over="1d")},
        ),
        tm.Latest("l", events, by="k", columns="x"),
    )  # fmt: skip
    requests = pl.DataFrame({"k": ["a", None]})
    for view in views:
        nothing = unanswered(view, requests)
        typed = {"id": pl.String(), "at": TIME, "k": pl.String(), "x": pl.Float64(), **SYSTEM_TYPES}
        empty = compute(view, pl.DataFrame(schema=typed), requests, np.zeros(2, dtype=np.int64))
        assert nothing.columns == empty.columns
        assert nothing.rows() == empty.rows()
