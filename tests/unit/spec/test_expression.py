"""Expressions as values: equal when they say the same, hashed alike in every process."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from typing import Any

import polars as pl
import pytest

import tidemill as tm
from tidemill.spec.expression import Expression

X, S, T = pl.col("x"), pl.col("s"), pl.col("t")

#: Each a different meaning.
DISTINCT: list[pl.Expr] = [
    X, pl.col("y"), X + 1, X + 1.0, X + 2, X - 1, X * 2, X / 2, X // 2, X % 2, 1 - X, -X,
    X == 1, X != 1, X < 1, X <= 1, X > 1, X >= 1, (X > 1) & (X < 2), (X > 1) | (X < 2), (X > 1) ^ (X < 2), ~(X > 1),
    pl.when(X > 1).then(2).otherwise(3), pl.when(X > 1).then(3).otherwise(2), pl.when(X > 1).then(2).otherwise(None),
    pl.when(X > 1).then(2).when(X > 0).then(1).otherwise(0),
    X.is_null(), X.is_not_null(), X.fill_null(0), X.fill_null(1), X.cast(pl.Float64),
    X.cast(pl.Float32), X.cast(pl.String),
    T.dt.hour(), T.dt.weekday(), T.dt.month(), T.dt.year(), tm.local("t", "America/New_York").dt.hour(),
    tm.local("t", "Europe/Berlin").dt.hour(), T - T,
    dt.datetime(2013, 1, 1, tzinfo=dt.UTC) < T, dt.datetime(2014, 1, 1, tzinfo=dt.UTC) < T,
    T.dt.date() > dt.date(2013, 1, 1),
    S == "a", S == "b", S.str.to_lowercase(), S.str.to_uppercase(), S.str.len_chars(), S.str.contains("a"),
    S.str.contains("b"), S.str.starts_with("a"), S.str.slice(0, 2), S.str.slice(0, 3), X.is_in([1, 2]), X.is_in([1, 3]),
    X.abs(), X.round(1), X.round(2), X.log(), X.sqrt(), X.clip(0, 1), X.clip(0, 2),
    pl.lit("a"), pl.lit(1), pl.lit(True),
]  # fmt: skip


def test_different_expressions_differ_and_equal_ones_are_equal() -> None:
    once = [Expression.of(expression) for expression in DISTINCT]
    again = [Expression.of(pl.Expr.deserialize(expression.meta.serialize())) for expression in DISTINCT]
    assert once == again
    assert [hash(each) for each in once] == [hash(each) for each in again]
    assert len(set(once)) == len(DISTINCT)


@pytest.mark.parametrize(
    ("expression", "tree"),
    [
        (X, ["column", "x"]),
        (X > 15, [">", ["column", "x"], ["literal", "Int", 15]]),
        (X + 0.5, ["+", ["column", "x"], ["literal", "Float", 0.5]]),
        ((X > 1) & (S == "a"), [
            "&", [">", ["column", "x"], ["literal", "Int", 1]], ["==", ["column", "s"], ["literal", "String", "a"]],
        ]),
        (pl.when(X > 1).then(2).otherwise(3), [
            "if", [">", ["column", "x"], ["literal", "Int", 1]], ["literal", "Int", 2], ["literal", "Int", 3],
        ]),
        (X.is_in([1, 2]), [
            "call", {"Boolean": {"IsIn": {"nulls_equal": False}}}, ["column", "x"],
            ["literal", "List", "Int64", [1, 2]],
        ]),
        (T.gt(dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC)), [
            ">", ["column", "t"], ["literal", "Datetime", [1_000_000, "Microseconds", {"inner": "UTC"}]],
        ]),
    ],
)  # fmt: skip
def test_the_tree_is_our_own(expression: pl.Expr, tree: list[Any]) -> None:
    assert json.loads(Expression.of(expression).tree) == tree


def test_an_alias_changes_nothing() -> None:
    assert Expression.of((X > 1).alias("late")) == Expression.of(X > 1)


def test_a_string_is_a_column() -> None:
    by_name = Expression.of("x")
    assert by_name == Expression.of(X)
    assert by_name.column == "x"
    assert by_name.columns == ("x",)
    assert pl.DataFrame({"x": [1]}).select(by_name.polars).item() == 1
    assert Expression.of(by_name) is by_name


def test_columns_are_those_read_in_alphabetical_order() -> None:
    expression = Expression.of(pl.when(pl.col("b") > pl.col("a")).then(pl.col("c")).otherwise(pl.col("a")))
    assert expression.columns == ("a", "b", "c")
    assert expression.column is None


def test_the_expression_computes_what_was_written() -> None:
    frame = pl.DataFrame({"x": [1, 2, None]})
    expression = Expression.of(pl.when(X > 1).then(X * 2).otherwise(0))
    assert frame.select(expression.polars).to_series().to_list() == [0, 4, 0]


def test_what_leaves_the_subset_carries_the_polars_version() -> None:
    tree = json.loads(Expression.of(X.mean()).tree)
    assert tree[0] == "polars"
    assert tree[1] == pl.__version__
    assert Expression.of(X.mean()) == Expression.of(X.mean())


def test_what_json_cannot_tell_apart_stays_apart() -> None:
    special = [X + pl.lit(value) for value in (float("nan"), float("inf"), float("-inf"))]
    assert len({Expression.of(each) for each in special}) == 3
    assert Expression.of(X.is_in([float("inf")])) != Expression.of(X.is_in([float("-inf")]))


def test_functions_of_our_own_are_told_by_their_name() -> None:
    by_column = tm.local("t", pl.col("zone"))
    assert json.loads(Expression.of(by_column.dt.hour()).tree)[2] == [
        "call", {"Tidemill": "local"}, ["column", "t"], ["column", "zone"],
    ]  # fmt: skip
    assert json.loads(Expression.of(tm.bucket("s", 7)).tree) == [
        "call", {"Tidemill": "bucket"}, ["column", "s"], ["literal", "Int64", 7],
    ]  # fmt: skip
    assert Expression.of(tm.bucket("s", 7)) != Expression.of(tm.bucket("s", 8))


def test_anybody_else_s_function_leaves_the_subset() -> None:
    foreign = pl.map_batches([S, pl.lit(7)], lambda columns: columns[0], return_dtype=pl.Int64)
    assert json.loads(Expression.of(foreign).tree)[0] == "polars"


def test_anything_else_is_refused() -> None:
    for value in (3, None, ["x"], pl.Series([1])):
        with pytest.raises(TypeError, match="expected a column name or a Polars expression"):
            Expression.of(value)  # type: ignore[arg-type]


def test_trees_are_equal_across_processes() -> None:
    script = (
        "import polars as pl, tidemill as tm; from tidemill.spec.expression import Expression as E; x = pl.col('x');"
        "print([E.of(e).tree for e in [pl.when(x > 1).then(2).otherwise(x), x.is_in([1, 2]),"
        " tm.local('t', 'America/New_York').dt.hour(), x.cast(pl.String)]])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("0", "31")
    }
    assert len(outputs) == 1
