"""The compiled kernel of windows against the plain one, bit for bit, and against what would crash it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernels import compiled
from tidemill.kernels.aggregate import Feature, Function, Rows, Value, Way, aggregate
from tidemill.kernels.index import index

Array = npt.NDArray[Any]

native: Any = compiled.load("windows")
needs_native = pytest.mark.skipif(native is None, reason="the compiled kernel is not built")
EXAMPLES = int(os.environ.get("TIDEMILL_WINDOWS_EXAMPLES", "400"))

FOREVER = 2**63 - 1
WAYS: tuple[Way, ...] = ("either", "look", "sweep")
FLOATS = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.1, 0.2, 1e9 + 0.1, 1e9 + 1, -1e9, 1e16, 3.5, -2.25, 5e-324, -5e-324,
     2.2250738585072014e-308, 1e-300, 1e300, -1e300, 1e308, 1.7976931348623157e308, -1.7976931348623157e308]
)  # fmt: skip
INTEGERS = np.array([0, 1, -1, 2, 7, 10**9, 2**53 + 1, -(2**40), 2**63 - 1, -(2**63)])
NUMERIC: tuple[Function, ...] = ("count", "sum", "mean", "std", "min", "max", "first", "last")


def rows_of(rng: np.random.Generator, count: int, groups: int, span: int) -> Rows:
    """Draw rows: mostly in time, some late, known in advance, replaced, replaced at once; in any order or in theirs."""
    time = rng.integers(0, span, count)
    late = rng.random(count) < rng.choice([0.0, 0.1, 0.6])
    start = time + np.where(late, rng.integers(-4, span + 1, count), rng.integers(0, 2, count))
    replaced = rng.random(count) < rng.choice([0.0, 0.1, 0.6])
    end = np.where(replaced, start + rng.integers(0, span + 1, count), FOREVER)
    columns = [rng.integers(-1, groups, count), time, start.copy(), rng.permutation(count), start, end]
    match rng.integers(3):
        case 0:
            order = np.lexsort((columns[3], columns[2]))
        case 1:
            order = np.lexsort((columns[3], columns[2], time))
        case _:
            order = np.arange(count)
    group, time, known, seq, start, end = (column[order] for column in columns)
    return Rows(group, groups, time, known, seq, start, end)


def values_of(rng: np.random.Generator, count: int) -> list[Value]:
    def present() -> Array | None:
        return None if rng.random() < 0.4 else rng.random(count) < rng.choice([0.0, 0.5, 0.9])

    some = rng.choice(FLOATS, count) if rng.random() < 0.5 else rng.choice(FLOATS[:12], count)
    floats = np.where(rng.random(count) < rng.choice([0.1, 0.9]), some, rng.normal(size=count).round(1))
    codes = int(rng.choice([1, 3, 40]))
    return [
        Value(None),
        Value(floats, present()),
        Value(rng.choice(INTEGERS, count), present()),
        Value(rng.integers(0, codes, count).astype(np.uint32), present(), codes),
        Value(None, present()),
    ]


def features_of(widths: Sequence[int]) -> list[Feature]:
    features = [Feature("last", 0, None), Feature("last", 1, None)]
    for width in widths:
        features += [Feature("count", 0, width), Feature("since_last", 0, width), Feature("since_last", 4, width)]
        features += [Feature(function, place, width) for function in NUMERIC for place in (1, 2)]
        features += [Feature("n_unique", 3, width), Feature("first", 4, width), Feature("count", 4, width)]
        features += [Feature("quantile", place, width, q) for place in (1, 2) for q in (0.0, 0.3, 0.5, 0.95, 1.0)]
    return features


def same(features: Sequence[Feature], ours: Sequence[Array], theirs: Sequence[Array]) -> None:
    """Compare bit for bit; one NaN is as good as another."""
    for feature, mine, other in zip(features, ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        left, right = (
            each if each.dtype == np.int64 else np.where(np.isnan(each), -1, each.view(np.int64))
            for each in (mine, other)
        )
        differing = np.flatnonzero(left != right)[:3]
        assert not len(differing), (feature, differing, mine[differing], other[differing])


@needs_native
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from((0, 1, 2, 5, 12, 40, 150)),
    queries=st.sampled_from((0, 1, 4, 20, 80)),
    groups=st.integers(1, 4),
    span=st.sampled_from((3, 12, 60, 1000)),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_both_ways_give_the_plain_kernels_bits(seed: int, count: int, queries: int, groups: int, span: int) -> None:
    rng = np.random.default_rng(seed)
    rows, values = rows_of(rng, count, groups, span), values_of(rng, count)
    features = features_of((0, 1, int(rng.integers(1, span)), 3 * span))
    asked, t = rng.integers(-1, groups, queries), rng.integers(-3, 2 * span, queries)
    want = aggregate(rows, values, features, asked, t, way="plain")
    for way in WAYS:
        same(features, aggregate(rows, values, features, asked, t, way=way), want)
    # Only the last rows: they are found without looking at whole windows.
    newest = [feature for feature in features if feature.function in ("last", "since_last")]
    asked_for = [answer for feature, answer in zip(features, want, strict=True) if feature in newest]
    for way in WAYS:
        same(newest, aggregate(rows, values, newest, asked, t, way=way), asked_for)


def many(late: float, replaced: float, count: int = 4000) -> tuple[Rows, list[Value], Array, Array]:
    """Return one hot group with as many queries as rows."""
    rng = np.random.default_rng(3)
    time = np.sort(rng.integers(0, 10**6, count))
    start = time + np.where(rng.random(count) < late, rng.integers(0, 10**5, count), 1)
    end = np.where(rng.random(count) < replaced, start + rng.integers(1, 10**5, count), FOREVER)
    zero = np.zeros(count, dtype=np.int64)
    values = [
        Value(None),
        Value(rng.normal(size=count)),
        Value(rng.integers(0, 90, count)),
        Value(rng.integers(0, 900, count).astype(np.uint32), None, 900),
        Value(None),
    ]
    return Rows(zero, 1, time, start, zero, start, end), values, zero, rng.integers(0, 11 * 10**5, count)


@needs_native
@pytest.mark.parametrize(("late", "replaced"), [(0.0, 0.0), (0.02, 0.005), (0.7, 0.7)])
def test_a_hot_key(late: float, replaced: float) -> None:
    rows, values, asked, t = many(late, replaced)
    features = features_of((300, 50_000, 2 * 10**6))
    want = aggregate(rows, values, features, asked, t, way="look")
    for way in WAYS:
        same(features, aggregate(rows, values, features, asked, t, way=way), want)
    some = slice(0, 4000, 200)
    few: tuple[Way, ...] = ("plain", "look")
    plain, look = (aggregate(rows, values, features, asked[some], t[some], way=way) for way in few)
    same(features, look, plain)


@needs_native
def test_threads_share_many_groups() -> None:
    rng = np.random.default_rng(5)
    count, groups = 60_000, 700
    rows, values = rows_of(rng, count, groups, 1000), values_of(rng, count)
    asked, t = rng.integers(-1, groups, 20_000), rng.integers(0, 1500, 20_000)
    features = features_of((10, 500))
    same(
        features,
        aggregate(rows, values, features, asked, t, way="sweep"),
        aggregate(rows, values, features, asked, t, way="look"),
    )


@needs_native
def test_times_at_the_ends_of_time() -> None:
    low, high = -(2**63), 2**63 - 1
    time = np.array([low, low, 0, high - 1, high])
    zero = np.zeros(5, dtype=np.int64)
    rows = Rows(zero, 1, time, zero, np.arange(5), np.full(5, low), np.full(5, high))
    t = np.array([low, low + 1, 0, 1, high - 1, high])
    features = [
        Feature("last", 0, None),
        Feature("count", 0, 1),
        Feature("count", 0, high),
        Feature("since_last", 0, 9),
    ]
    for way in WAYS:
        last, near, all_before, since = aggregate(
            rows, [Value(None)], features, np.zeros(6, dtype=np.int64), t, way=way
        )
        assert last.tolist() == [-1, 1, 1, 2, 2, 3]
        assert near.tolist() == [0, 2, 0, 1, 0, 1]
        assert all_before.tolist() == [0, 2, 2, 3, 3, 4]
        assert [each if each == each else None for each in since.tolist()] == [None, 1e-6, None, 1e-6, None, 1e-6]


@pytest.mark.parametrize("seed", range(40))
def test_an_index_sorts_by_group_and_times(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, groups = int(rng.choice([0, 1, 30, 47, 49, 300, 3000])), int(rng.choice([1, 2, 60]))
    group = rng.integers(-1, groups, count)
    times = [rng.integers(-5, int(rng.choice([3, 10**6, 2**62])), count) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.5:
        order = np.lexsort(times[::-1][: int(rng.integers(1, 4))])
        group, times = group[order], [each[order] for each in times]
    made = index(group, groups, *times)
    want = np.lexsort((*reversed(times), group))
    assert made.order.tolist() == want[group[want] >= 0].tolist()
    assert made.order.dtype == np.uint32
    assert made.bounds.tolist() == [0, *np.cumsum(np.bincount(group[group >= 0], minlength=groups)).tolist()]


def arguments(**changed: Any) -> list[Any]:
    """Return what ``answer`` takes for two rows of one group and two queries; some of it changed."""
    numbers = {name: np.array([1, 2]) for name in ("event", "start", "end", "t")}
    ordered = {f"{of}order": np.array([0, 1], dtype=np.uint32) for of in ("", "query_")}
    bounded = {f"{of}bounds": np.array([0, 2]) for of in ("", "query_")}
    given_ = {
        **numbers, **ordered, **bounded, "widths": (5,), "values": ((0, None, None, 0),),
        "features": ((0, 0, 0, 0.0, np.zeros(2, dtype=np.int64)),), "first": 0, "last": 1, "way": 0, **changed,
    }  # fmt: skip
    names = ("order", "bounds", "event", "start", "end", "query_order", "query_bounds", "t", "widths", "values",
             "features", "first", "last", "way")  # fmt: skip
    return [given_[name] for name in names]


OUT = np.zeros(2, dtype=np.int64)
REFUSED: list[dict[str, Any]] = [
    {"order": np.array([0, 2], dtype=np.uint32)},
    {"order": np.array([0], dtype=np.uint32)},
    {"order": np.array([0, 1])},
    {"bounds": np.array([0, 3])},
    {"bounds": np.array([2, 0])},
    {"bounds": np.array([-1, 2])},
    {"bounds": np.array([0, 1, 2])},
    {"query_bounds": np.array([0, 3])},
    {"query_order": np.array([0, 7], dtype=np.uint32)},
    {"event": np.array([1])},
    {"event": np.array([1.0, 2.0])},
    {"event": np.array([[1, 2]])},
    {"event": np.array([1, 9, 2, 9])[::2]},
    {"event": [1, 2]},
    {"start": np.array([1, 2, 3])},
    {"end": None},
    {"t": np.array([1, 2], dtype=np.int32)},
    {"widths": ()},
    {"widths": (5, 5)},
    {"widths": (-1,)},
    {"widths": (2**63,)},
    {"widths": [5]},
    {"values": ((4, None, None, 0),)},
    {"values": ((1, None, None, 0),)},
    {"values": ((1, np.zeros(1), None, 0),)},
    {"values": ((0, None, np.ones(3, dtype=bool), 0),)},
    {"values": ((3, np.zeros(2, dtype=np.uint32), None, -1),)},
    {"values": ((3, np.zeros(2, dtype=np.uint32), None, 2**32),)},
    {"values": ((0, None, None),)},
    {"values": None},
    {"features": ((11, 0, 0, 0.0, OUT),)},
    {"features": ((-1, 0, 0, 0.0, OUT),)},
    {"features": ((0, 1, 0, 0.0, OUT),)},
    {"features": ((0, 0, 1, 0.0, OUT),)},
    {"features": ((0, 0, 0, 2.0, OUT),)},
    {"features": ((0, 0, 0, float("nan"), OUT),)},
    {"features": ((0, 0, 0, 0.0, OUT[:1]),)},
    {"features": ((0, 0, 0, 0.0, np.zeros(2)),)},
    {"features": ((0, 0, 0, 0.0, b"0123456789abcdef"),)},
    {"features": ((1, 0, 0, 0.0, np.zeros(2)),)},
    {"features": ((8, 0, 0, 0.0, OUT),)},
    {"widths": (5, 6), "features": ((0, 0, 1, 0.0, OUT), (0, 0, 0, 0.0, OUT))},
    {"first": -1},
    {"last": 2},
    {"first": 1, "last": 0},
    {"way": 3},
    {"way": "look"},
]


@needs_native
@pytest.mark.parametrize("changed", REFUSED, ids=lambda changed: " ".join(changed))
def test_what_does_not_fit_is_refused(changed: dict[str, Any]) -> None:
    native.answer(*arguments())
    with pytest.raises((TypeError, ValueError, OverflowError, BufferError)):
        native.answer(*arguments(**changed))


@needs_native
def test_what_cannot_be_sorted_is_refused() -> None:
    order, bounds, group, time = np.zeros(2, dtype=np.uint32), np.zeros(2, dtype=np.int64), np.zeros(2, np.int64), OUT
    assert native.order(group, 1, (time,), order, bounds) == 2
    for refused in (
        (np.array([0, 1]), 1, (time,), order, bounds),
        (np.array([0, -2]), 1, (time,), order, bounds),
        (group, -1, (time,), order, bounds),
        (group, 2, (time,), order, bounds),
        (group, 1, (), order, bounds),
        (group, 1, (time[:1],), order, bounds),
        (group, 1, [time], order, bounds),
        (group, 1, (time,), order[:1], bounds),
        (group, 1, (time,), time, bounds),
        (group, "one", (time,), order, bounds),
        (group, 1, (time,), order),
        (group, 1, (time,), order, bounds, order),
    ):
        with pytest.raises((TypeError, ValueError)):
            native.order(*refused)


@needs_native
@pytest.mark.parametrize("way", [1, 2])
def test_wrong_data_gives_answers_and_no_crash(way: int) -> None:
    """Rows and queries that are not in order, codes that are too large, numbers that are not finite."""
    rng = np.random.default_rng(7)
    count = 200
    numbers = np.where(rng.random(count) < 0.5, rng.normal(size=count), rng.choice([np.nan, np.inf, -np.inf], count))
    codes = rng.integers(0, 2**32, count).astype(np.uint32)
    outs = [np.zeros(count, dtype=np.int64 if function in (0, 6, 7, 8) else np.float64) for function in range(11)]
    places = {8: 1}
    native.answer(
        None, np.array([0, count]), *(rng.integers(-50, 50, count) for _ in range(3)), None, np.array([0, count]),
        rng.integers(-50, 50, count), (3, 40), ((1, numbers, None, 0), (3, codes, None, 5)),
        tuple((function, places.get(function, 0), 1, 0.5, outs[function]) for function in range(11)), 0, 1, way,
    )  # fmt: skip
    assert outs[0].max() > 0


def test_every_function_is_tested() -> None:
    assert {feature.function for feature in features_of((1,))} == set(get_args(Function))


def test_many_distinct_codes_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, values, asked, t = many(0.1, 0.1, 300)
    features = [Feature("n_unique", 3, width) for width in (10**4, 10**6)]
    want = aggregate(rows, values, features, asked, t)
    for size in (0, 1 << 24):
        monkeypatch.setattr("tidemill.kernels.aggregate._TICKED", size)
        same(features, aggregate(rows, values, features, asked, t, way="plain"), want)
