"""Folds, segregation into parts, and what is doubted about them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.clock import DAY, HOUR
from tidemill.base.errors import TidemillError
from tidemill.engine.evaluate.split import ASKED_AT, doubts, folds, segregate
from tidemill.spec.split import by_key, by_time


def frame(asked: Any, **columns: Any) -> pl.DataFrame:
    times = pl.Series(ASKED_AT, np.asarray(asked, dtype=np.int64)).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({ASKED_AT: times, "id": np.arange(len(times)), **columns})


@settings(deadline=None, max_examples=80)
@given(
    asked=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    test=st.integers(1, 20),
    gap=st.integers(0, 3),
    blocks=st.integers(1, 4),
    within=st.integers(0, 4),
    settle=st.integers(0, 2),
    window=st.none() | st.integers(1, 20),
)
def test_each_block_is_judged_by_what_was_mature_before_it(
    asked: list[int], test: int, gap: int, blocks: int, within: int, settle: int, window: int | None
) -> None:
    split = by_time(test=f"{test * blocks}h", gap=f"{gap}h", blocks=blocks)
    made = folds(
        split,
        frame([each * HOUR for each in asked]),
        key=["id"],
        within=within * HOUR,
        settle=settle * HOUR,
        window=None if window is None else window * HOUR,
    )
    first = max(asked) * HOUR + 1 - test * blocks * HOUR  # the newest test rows end with the newest question
    judged = [row for row, each in enumerate(asked) if each * HOUR >= first]
    assert sorted(row for fold in made for row in fold.test) == judged
    for fold in made:
        assert fold.origin is not None
        part = (fold.origin + gap * HOUR - first) // (test * HOUR)
        start = first + part * test * HOUR
        assert fold.origin == start - gap * HOUR
        assert all(start <= asked[row] * HOUR < start + test * HOUR for row in fold.test)
        expected = [
            row
            for row, each in enumerate(asked)
            if (each + within + settle) * HOUR < fold.origin
            and (window is None or each * HOUR >= fold.origin - window * HOUR)
        ]
        assert fold.train.tolist() == expected


def test_a_split_by_key_does_not_reshuffle_when_rows_come() -> None:
    small, large = frame(np.arange(500)), frame(np.arange(2_000))
    (before,), (after,) = (folds(by_key(test=0.3, seed=4), each, key=["id"], within=DAY) for each in (small, large))
    assert set(before.test) == {row for row in after.test if row < 500}
    assert 0.25 < len(after.test) / 2_000 < 0.35
    assert sorted([*after.train, *after.test]) == list(range(2_000))
    assert after.origin is None
    (other,) = folds(by_key(test=0.3, seed=5), large, key=["id"], within=DAY)
    assert other.test.tolist() != after.test.tolist()


def test_a_key_means_the_same_however_its_column_is_held() -> None:
    times = np.arange(300) * DAY
    plain = frame(times, name=[f"n{each % 7}" for each in range(300)])
    held = plain.with_columns(pl.col("name").cast(pl.Categorical), pl.col(ASKED_AT).dt.cast_time_unit("ns"))
    split, key = by_key(test=0.5), ["name", ASKED_AT]
    tested = [folds(split, each, key=key, within=0)[0].test.tolist() for each in (plain, held)]
    assert tested[0] == tested[1]


def test_no_rows_make_no_folds() -> None:
    assert folds(by_time(test="1d"), frame([]), key=["id"], within=0) == ()
    assert folds(by_key(), frame([]), key=["id"], within=0) == ()


@pytest.mark.parametrize("by", ["time", "key"])
def test_segregation_divides_all_rows_in_the_ratio(by: Literal["time", "key"]) -> None:
    rows = frame(np.random.default_rng(1).permutation(5_000) * HOUR)
    ratio = {"train": 0.7, "validation": 0.1, "test": 0.2}
    divided = segregate(rows, ratio, by=by, key=["id"], seed=3)
    assert list(divided.parts) == list(ratio)
    assert sorted(np.concatenate(list(divided.parts.values()))) == list(range(5_000))
    assert divided.left_out == 0
    for name, share in ratio.items():
        assert len(divided.parts[name]) / 5_000 == pytest.approx(share, abs=0.02)


def test_segregation_by_time_goes_forward_and_keeps_ties_and_gaps() -> None:
    asked = np.repeat(np.arange(100), 3) * HOUR
    divided = segregate(frame(asked), {"train": 0.5, "test": 0.5}, by="time", gap=2 * HOUR)
    assert asked[divided.parts["test"]].min() == 50 * HOUR
    assert asked[divided.parts["train"]].max() == 48 * HOUR  # 49 h is less than two hours before
    assert divided.left_out == 3
    assert divided.warnings == ()


def test_dividing_a_later_part_leaves_the_earlier_ones_alone() -> None:
    rows = frame(np.arange(1_000))
    two = segregate(rows, {"train": 0.6, "rest": 0.4}, by="key", key=["id"])
    three = segregate(rows, {"train": 0.6, "validation": 0.2, "test": 0.2}, by="key", key=["id"])
    assert two.parts["train"].tolist() == three.parts["train"].tolist()


@pytest.mark.parametrize("ratio", [{"train": 1.0}, {"train": 0.5, "test": 0.4}, {"train": 1.5, "test": -0.5}])
def test_a_ratio_must_be_one(ratio: dict[str, float]) -> None:
    with pytest.raises(TidemillError, match="ratio"):
        segregate(frame([1, 2]), ratio, by="time")


def test_missing_columns_are_named() -> None:
    with pytest.raises(TidemillError, match="Did you mean 'id'"):
        folds(by_key(), frame([1, 2]), key=["idd"], within=0)
    with pytest.raises(TidemillError, match="_asked_at"):
        folds(by_time(test="1d"), pl.DataFrame({"id": [1]}), key=["id"], within=0)


def parts(first: Any, second: Any) -> dict[str, Any]:
    return {"train": np.asarray(first), "test": np.asarray(second)}


def test_nothing_is_doubted_about_a_clean_split() -> None:
    rng = np.random.default_rng(2)
    rows = frame(np.arange(4_000) * HOUR, late=rng.random(4_000) < 0.3, delay=rng.normal(size=4_000))
    sides = parts(np.arange(3_000), np.arange(3_000, 4_000))
    assert doubts(rows, sides, key=["id"], label="late") == ()
    assert doubts(rows, sides, key=["id"], label="delay") == ()


def test_a_random_split_of_times_overlaps() -> None:
    divided = segregate(frame(np.arange(1_000) * HOUR), {"train": 0.8, "test": 0.2}, by="key", key=["id"])
    (warning,) = divided.warnings
    assert warning.kind == "overlap"
    assert "the future explains the past" in warning.what
    assert "by_time" in warning.do


def test_the_same_key_on_both_sides() -> None:
    rows = frame(np.arange(400) * HOUR, plane=np.arange(400) % 150)
    (warning,) = doubts(rows, parts(np.arange(200), np.arange(200, 400)), key=["plane"])
    assert warning.kind == "same_key"
    assert "150 keys (plane)" in str(warning)


def test_too_few_rows() -> None:
    (warning,) = doubts(frame(np.arange(130)), parts(np.arange(100), np.arange(100, 130)))
    assert (warning.kind, warning.what) == ("few_rows", "'test' has 30 rows.")
    assert [each.kind for each in doubts(frame([]), parts([], []))] == ["few_rows", "few_rows"]


def test_uneven_labels() -> None:
    """The late rate of the flights: 0.13 in September, 0.33 in December."""
    rng = np.random.default_rng(3)
    late = np.r_[rng.random(3_000) < 0.13, rng.random(3_000) < 0.33]
    rows = frame(np.arange(6_000) * HOUR, late=late, minutes=np.r_[rng.normal(0, 1, 3_000), rng.normal(1, 1, 3_000)])
    sides = parts(np.arange(3_000), np.arange(3_000, 6_000))
    (classes,) = doubts(rows, sides, label="late")
    (numbers,) = doubts(rows, sides, label="minutes")
    assert classes.kind == numbers.kind == "uneven"
    assert "% of 'train' and" in classes.what
    assert "median" in numbers.what


def test_a_class_that_was_never_learnt() -> None:
    rows = frame(np.arange(400) * HOUR, kind=["a"] * 150 + ["b"] * 100 + ["c"] + ["a"] * 149)
    (warning,) = doubts(rows, parts(np.arange(200), np.arange(200, 400)), label="kind")
    assert "classes 'c' occur in 'test' but not in 'train'" in warning.what
