from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.clock import HOUR
from tidemill.engine.table.past import Rows, earlier, frequencies, last_before, moments, quantiles

TIME = pl.Datetime("us", "UTC")

Row = tuple[int | None, str | None, float | None]
rows_of = st.lists(
    st.tuples(
        st.none() | st.integers(0, 30),
        st.none() | st.sampled_from("ab"),
        st.none() | st.floats(-1e6, 1e6, allow_nan=False) | st.just(1e300) | st.just(math.inf),
    ),
    max_size=25,
)


def frame(rows: list[Row]) -> pl.DataFrame:
    made = pl.DataFrame(rows, {"known": pl.Int64, "g": pl.String, "x": pl.Float64}, orient="row")
    return made.with_columns((pl.col("known") * HOUR).cast(TIME), id=pl.int_range(pl.len()))


def past(rows: list[Row], at: int, over: int) -> list[Row]:
    """The definition: rows of the same group, known in [t - over, t), in order of it."""
    known, group, _ = rows[at]
    if known is None or group is None:
        return []
    alike = [row for row in rows if row[1] == group and row[0] is not None and known - over <= row[0] < known]
    return sorted(alike, key=lambda row: row[0] or 0)


def values(rows: list[Row]) -> list[float]:
    return [x for _, _, x in rows if x is not None and math.isfinite(x)]


def expected(rows: list[Row], over: int, least: int, of: Callable[[list[float]], float | None]) -> list[float | None]:
    found = [values(past(rows, at, over)) for at in range(len(rows))]
    return [of(each) if len(each) >= least else None for each in found]


def same(one: list[Any], other: list[Any]) -> None:
    assert [each is None for each in one] == [each is None for each in other]
    for left, right in zip(one, other, strict=True):
        if left is not None:
            assert left == right or left == pytest.approx(right, rel=1e-12)


@given(rows_of, st.integers(1, 40), st.integers(1, 3))
@settings(deadline=None)
def test_statistics_of_the_past_are_those_of_its_definition(rows: list[Row], over: int, least: int) -> None:
    made = frame(rows)
    those = Rows(made, "known", ["g"], over * HOUR, ["id"])
    mean, spread = moments(those, made["x"], least)
    same(mean.to_list(), expected(rows, over, least, lambda xs: float(sum(map(Fraction, xs)) / len(xs))))
    if all(abs(x) < 1e200 for x in values(rows)):
        same(
            spread.to_list(),
            expected(rows, over, least, lambda xs: float(statistics.stdev(map(Fraction, xs))) if len(xs) > 1 else None),
        )
    for at, found in zip((0.0, 0.25, 0.5, 1.0), quantiles(those, made["x"], least, (0.0, 0.25, 0.5, 1.0)), strict=True):
        same(found.to_list(), expected(rows, over, least, lambda xs, at=at: float(np.quantile(xs, at))))  # type: ignore[misc]


@given(rows_of, st.integers(1, 40), st.integers(1, 3))
@settings(deadline=None)
def test_the_last_value_is_the_last_known_one_that_is_there(rows: list[Row], over: int, least: int) -> None:
    made = frame(rows)
    found = last_before(Rows(made, "known", ["g"], over * HOUR, ["id"]), made["x"], least).to_list()
    for at, value in enumerate(found):
        there = [row for row in past(rows, at, over) if row[2] is not None]
        assert value == (there[-1][2] if len(there) >= least else None)


@given(rows_of)
@settings(deadline=None)
def test_the_row_before_is_the_one_known_before_that_is_alike_and_nulls_are_like_nothing(rows: list[Row]) -> None:
    made = frame(rows)
    found = earlier(made, "known", ["g"], ["id"]).to_list()
    for at, (known, group, _) in enumerate(rows):
        before = [
            each[0] for place, each in enumerate(rows)
            if known is not None and each[0] is not None and (each[0], place) < (known, at)
            and group is not None and each[1] == group
        ]  # fmt: skip
        assert found[at] == (max(each for each in before if each is not None) * HOUR if before else None)


@given(rows_of, st.integers(1, 40))
@settings(deadline=None)
def test_frequencies_count_the_past(rows: list[Row], over: int) -> None:
    own, rarest, total = (each.to_list() for each in frequencies(frame(rows), "known", "g", over * HOUR))
    for at, (known, group, _) in enumerate(rows):
        before = [
            row[1] for row in rows if known is not None and row[0] is not None and known - over <= row[0] < known
        ]  # fmt: skip
        counts = {each: before.count(each) for each in before if each is not None}
        assert total[at] == sum(counts.values())
        assert own[at] == (counts.get(group, 0) if group is not None else 0)
        if counts:
            assert rarest[at] == min(counts.values())


def test_a_glitch_that_has_gone_by_leaves_no_trace() -> None:
    rows: list[Row] = [(0, "a", 1e300), (10, "a", 1.0), (11, "a", 2.0), (12, "a", 3.0)]
    mean, spread = moments(Rows(frame(rows), "known", ["g"], 2 * HOUR, ["id"]), frame(rows)["x"], 1)
    assert mean.to_list() == [None, None, 1.0, 1.5]
    assert spread[3] == pytest.approx(math.sqrt(0.5))
