from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.clock import HOUR, parse_time
from tidemill.base.errors import RequestError
from tidemill.engine.table.tally import counting

TIME = pl.Datetime("us", "UTC")
T0 = parse_time("2024-01-01")


def frame(rows: list[Any], *columns: str) -> pl.DataFrame:
    made = pl.DataFrame(rows, dict.fromkeys(columns, pl.Int64), orient="row")
    return made.with_columns(
        (pl.col(name) * HOUR + T0).cast(TIME) for name in columns if name in ("asked", "at", "seen")
    )


hours, group = st.none() | st.integers(0, 12), st.none() | st.integers(0, 1)


@given(
    st.lists(st.tuples(group, hours), max_size=8),
    st.lists(st.tuples(group, hours, hours, st.none() | st.integers(0, 99)), max_size=12),
    st.none() | st.integers(1, 12),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_the_latest_row_that_could_be_known(
    left: list[Any], right: list[Any], within: int | None, by_event: bool
) -> None:
    joined = tm.join_asof(
        frame(left, "g", "asked"), frame(right, "k", "at", "seen", "x"), on={"k": "g"}, at="asked",
        event_time="at" if by_event else None, known_at="seen", columns=["x"],
        within=None if within is None else f"{within}h", prefix="found_",
    ).collect()  # fmt: skip
    assert joined.columns == ["g", "asked", "found_x"]
    for (g, t), found in zip(left, joined["found_x"], strict=True):
        best = None
        for place, (k, at, seen, x) in enumerate(right):
            when = at if by_event else seen
            if None in (g, t, k, when, seen) or k != g or seen >= t or when >= t:
                continue
            if within is not None and when < t - within:
                continue
            if best is None or (when, seen, place) >= best[0]:
                best = ((when, seen, place), x)
        assert found == (best[1] if best else None)


def test_offsets_and_counts() -> None:
    left, right = frame([[1, 5], [1, 1], [2, 9]], "g", "asked"), frame([[1, 2, 7]], "g", "at", "x")
    with counting() as runs:
        runs.append([])
        joined = tm.join_asof(
            left.lazy(), right.lazy(), on="g", at="asked", event_time="at", known_at=tm.after("at", "2h")
        )
    assert joined.collect()["x"].to_list() == [7, None, None]
    assert runs == [[{"step": "join g", "rows": 3, "matched": 1}]]
    late = tm.join_asof(left, right, on="g", at="asked", event_time="at", known_at=tm.after("at", "3h"), columns=["x"])
    assert late.collect()["x"].to_list() == [None, None, None]


def test_what_is_wrong_is_named() -> None:
    left, right = frame([[1, 5]], "g", "asked"), frame([[1, 2, 7]], "g", "at", "x")
    with pytest.raises(RequestError, match="event_time= or known_at="):
        tm.join_asof(left, right, on="g", at="asked")
    with pytest.raises(RequestError, match=r"the left side has no column 'askd'.*'asked'"):
        tm.join_asof(left, right, on="g", at="askd", event_time="at")
    with pytest.raises(RequestError, match="the right side has no column 'y'"):
        tm.join_asof(left, right, on="g", at="asked", event_time="at", columns=["y"])
    with pytest.raises(RequestError, match="both sides have a column 'asked'"):
        tm.join_asof(left, right.rename({"x": "asked"}), on="g", at="asked", event_time="at")
