"""The compiled as-of join against the plain kernel, and against what would crash it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernels import asof, compiled
from tidemill.kernels.aggregate import Array, Feature, Rows, Value, aggregate

native: Any = compiled.load("asof")
needs_native = pytest.mark.skipif(native is None, reason="the compiled kernel is not built")

FOREVER = 2**63 - 1
BEGINNING = -(2**63)


def plain(rows: Rows, asked: Array, t: Array, width: int | None) -> list[int]:
    (found,) = aggregate(rows, [Value(None)], [Feature("last", 0, width)], asked, t, way="plain")
    numbers: list[int] = found.tolist()
    return numbers


def rows_of(rng: np.random.Generator, count: int, groups: int, span: int, replaced: float) -> Rows:
    """Draw rows that tie often: in time, late or known in advance; never replaced, replaced, or at once."""
    time = rng.integers(0, span, count)
    known = time + np.where(rng.random(count) < rng.choice([0.0, 0.5]), rng.integers(-3, span + 1, count), 0)
    end = np.where(rng.random(count) < replaced, known + rng.integers(0, span + 1, count), FOREVER)
    seq = rng.permutation(count) if rng.random() < 0.7 else np.zeros(count, dtype=np.int64)
    if rng.random() < 0.2:  # the last version wins, whatever its event time
        time = known.copy()
    return Rows(rng.integers(-1, groups, count), groups, time, known, seq, known.copy(), end)


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from((0, 1, 2, 5, 31, 33, 150)),
    queries=st.sampled_from((0, 1, 4, 20, 80)),
    groups=st.integers(0, 4),
    span=st.sampled_from((2, 12, 1000)),
    replaced=st.sampled_from((0.0, 0.1, 0.8)),
    width=st.sampled_from((None, 0, 1, 5, 700)),
)
@settings(max_examples=600, deadline=None)
def test_the_plain_kernels_rows(
    seed: int, count: int, queries: int, groups: int, span: int, replaced: float, width: int | None
) -> None:
    rng = np.random.default_rng(seed)
    rows = rows_of(rng, count, groups, span, replaced)
    asked, t = rng.integers(-1, groups, queries), rng.integers(-3, 2 * span, queries)
    assert asof.last(rows, asked, t, width).tolist() == plain(rows, asked, t, width)


@pytest.mark.parametrize("width", [None, 0, 10, FOREVER - 1])
def test_times_at_the_ends_of_time(width: int | None) -> None:
    ends = np.array([BEGINNING, BEGINNING + 1, -1, 0, 1, FOREVER - 1, FOREVER])
    time, start, end = (each.ravel() for each in np.meshgrid(ends, ends, ends))
    group = np.zeros(len(time), dtype=np.int64)
    rows = Rows(group, 1, time, start, np.arange(len(time)), start, end)
    asked = np.zeros(len(ends), dtype=np.int64)
    assert asof.last(rows, asked, ends, width).tolist() == plain(rows, asked, ends, width)


def test_threads_share_many_groups() -> None:
    rng = np.random.default_rng(8)
    count, queries, groups = 60_000, 30_000, 500
    rows = rows_of(rng, count, groups, 10**6, 0.05)
    asked, t = rng.integers(-1, groups, queries), rng.integers(0, 10**6, queries)
    for width in (None, 20_000):
        (want,) = aggregate(rows, [Value(None)], [Feature("last", 0, width)], asked, t)
        assert asof.last(rows, asked, t, width).tolist() == want.tolist()


@needs_native
def test_where_many_rows_are_replaced_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    count = queries = 3000
    zero, time = np.zeros(count, dtype=np.int64), np.arange(count)
    rows = Rows(zero, 1, time, time, time, time, np.full(count, 10 * count))
    t = np.arange(queries) + count
    assert asof._compiled(rows, zero, t, None) is None
    assert asof.last(rows, zero, t).tolist() == [count - 1] * queries


def arguments(**changed: Any) -> list[Any]:
    three = np.arange(3)
    made: dict[str, Any] = {
        "group": np.array([0, 1, 1]), "time": three, "known": three, "seq": three, "start": three,
        "end": np.full(3, FOREVER), "query_order": np.array([1, 0], dtype=np.uint32),
        "query_bounds": np.array([0, 1, 2]), "t": np.array([5, 6]), "width": 9, "out": np.full(2, -1), "first": 0,
        "last": 2,
    }  # fmt: skip
    return list({**made, **changed}.values())


REFUSED: list[dict[str, Any]] = [
    {"group": np.arange(4)},
    {"time": np.arange(3.0)},
    {"end": np.arange(2)},
    {"query_order": np.array([1, 2], dtype=np.uint32)},
    {"query_order": np.array([1], dtype=np.uint32)},
    {"query_order": np.array([1, 0])},
    {"query_bounds": np.array([0, 1, 3])},
    {"query_bounds": np.array([0, 2, 1])},
    {"query_bounds": np.array([-1, 1, 2])},
    {"query_bounds": np.array([0, 1])},
    {"t": np.arange(3)},
    {"width": -1},
    {"width": 2**70},
    {"out": np.full(3, -1)},
    {"out": np.full(2, -1, dtype=np.int32)},
    {"first": -1},
    {"first": 3},
    {"last": 3},
]


@needs_native
@pytest.mark.parametrize("changed", REFUSED, ids=lambda changed: " ".join(changed))
def test_what_does_not_fit_is_refused(changed: dict[str, Any]) -> None:
    assert native.last(*arguments()) is True
    with pytest.raises((TypeError, ValueError, OverflowError)):
        native.last(*arguments(**changed))


@needs_native
def test_wrong_data_gives_answers_and_no_crash() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        strange = {name: rng.integers(-(2**63), 2**63 - 1, 3) for name in ("time", "known", "seq", "start", "end")}
        group = rng.choice([-(2**63), -5, -1, 0, 1, 2, 2**40, 2**63 - 1], 3)
        out = np.full(2, -1)
        native.last(*arguments(group=group, t=rng.integers(-9, 9, 2), out=out, **strange))
        assert ((out >= -1) & (out < 3)).all()
