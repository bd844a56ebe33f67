"""One row and many rows give the same bits."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tidemill.engine.expression import evaluate
from tidemill.spec.expression import Expression

A, N = pl.col("a"), pl.col("n")
EXPRESSIONS = {
    "third": A / 3, "nested": (A / 3 + N / 7) / pl.lit(0.7), "constant": A / (pl.lit(2.0) * 1.5), "floor": A // 0.3,
    "rest": A % 0.3, "whole": N // 7, "whole rest": N % 7, "other way": 3 / A, "single": A.cast(pl.Float32) / 3,
    "small": N.cast(pl.Int16) // 7, "branch": pl.when(A / 3 > 1).then(A / 9).otherwise(N / 11), "power": A**2,
    "log": A.abs().log(), "exp": (A / 100).exp(), "round": (A / 7).round(2), "missing": A.fill_null(0.1) / 0.7,
    "literal": pl.lit(1.5), "hour": tm.local("t", "America/New_York").dt.hour() / 24, "is": A / 3 > 2.1,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_one_row_is_the_definition(name: str) -> None:
    random = np.random.default_rng(0)
    frame = pl.DataFrame({"a": random.normal(0, 100, 300), "n": random.integers(-1000, 1000, 300)}).with_columns(
        pl.from_epoch(pl.col("n") * 3_600_000_000, "us").dt.replace_time_zone("UTC").alias("t"),
        pl.when(pl.int_range(300) % 9 > 0).then("a").alias("a"),
    )
    expression = EXPRESSIONS[name]
    together = evaluate(frame, {"x": Expression.of(expression)})["x"]
    alone = pl.concat([frame[row : row + 1].select(x=expression) for row in range(frame.height)])["x"]
    assert together.dtype == alone.dtype
    assert together.equals(alone, null_equal=True)
    assert evaluate(frame.head(0), {"x": Expression.of(expression)}).schema["x"] == alone.dtype
    one = pl.concat([evaluate(frame[row : row + 1], {"x": Expression.of(expression)}) for row in range(20)])["x"]
    assert one.equals(alone.head(20), null_equal=True)


def test_names_may_be_those_of_columns() -> None:
    frame = pl.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    got = evaluate(frame, {"a": Expression.of("b"), "b": Expression.of(pl.col("a") / 2)})
    assert got.to_dict(as_series=False) == {"a": [3.0, 4.0], "b": [0.5, 1.0]}
