"""Profiles and the population stability index."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.errors import TidemillError
from tidemill.base.hashing import canonical
from tidemill.engine.evaluate.profile import CATEGORIES, PREDICTION, Categories, Numbers, Profile, shifts, stability


def mixed(seed: int, rows: int = 5_000, move: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(move, 1, rows)
    numbers[rng.random(rows) < 0.05] = np.nan
    return pl.DataFrame(
        {
            "number": numbers,
            "zeros": np.where(rng.random(rows) < 0.6, 0.0, rng.exponential(size=rows)),
            "count": rng.integers(0, 4, rows),
            "text": rng.choice(["a", "b", "c"], rows, p=[0.5, 0.3, 0.2]),
            "flag": rng.random(rows) < 0.1,
        }
    ).with_columns(pl.col("text").cast(pl.Categorical).alias("category"))


def test_counts_fall_into_stored_bins() -> None:
    frame = pl.DataFrame(
        {"x": [1.0, 2.0, 2.0, 2.0, 3.0, None, float("nan")], "y": ["b", "a", "b", None, "c", "b", "a"]}
    )
    profile = Profile.of(frame)
    number, text = profile.features["x"], profile.features["y"]
    assert isinstance(number, Numbers)
    assert isinstance(text, Categories)
    assert number.edges[1:] == (1.0, 2.0, 3.0)
    assert number.edges[0] < 1.0
    assert (number.counts, number.nulls) == ((0, 1, 3, 1, 0), 2)
    assert (text.values, text.counts, text.nulls) == (("b", "a", "c"), (3, 2, 1, 0), 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.floats(-5, 5) | st.sampled_from([0.0, 1.0, float("inf")]), max_size=80))
def test_every_row_is_counted_once(values: list[float | None]) -> None:
    profile = Profile.of(pl.DataFrame({"x": values}, schema={"x": pl.Float64}))
    feature = profile.features["x"]
    assert isinstance(feature, Numbers)
    assert sum(feature.counts) + feature.nulls == len(values) == profile.rows
    known = [each for each in values if each is not None]
    bins = np.searchsorted(np.array(feature.edges), np.array(known, dtype=np.float64), side="left")
    assert feature.counts == tuple(np.bincount(bins, minlength=len(feature.edges) + 1))


def test_a_profile_is_plain_data() -> None:
    profile = Profile.of(mixed(1), np.linspace(0, 1, 5_000))
    assert PREDICTION in profile.features
    assert Profile.from_json(json.loads(canonical(profile.as_json()))) == profile


def test_rare_categories_and_unseen_ones_are_other() -> None:
    profile = Profile.of(pl.DataFrame({"x": [f"v{each:03}" for each in range(CATEGORIES + 10)]}))
    feature = profile.features["x"]
    assert feature.counts == (1,) * CATEGORIES + (10,)
    unseen = pl.DataFrame({"x": ["new"] * 500})
    assert shifts(profile, unseen)[0].psi > 1


def test_the_same_distribution_has_not_moved() -> None:
    profile = Profile.of(mixed(2, 20_000))
    for seed in range(20):
        assert all(shift.psi <= shift.noise for shift in shifts(profile, mixed(100 + seed, 300)))


def test_what_moved_comes_first() -> None:
    profile = Profile.of(mixed(3))
    recent = mixed(4, move=1.0)
    recent = recent.with_columns(pl.when(pl.int_range(pl.len()) % 4 < 1).then(None).otherwise("flag").alias("flag"))
    first, second, *others = shifts(profile, recent)
    assert {first.feature, second.feature} == {"number", "flag"}
    assert all(shift.psi < 0.05 for shift in others)
    flag = first if first.feature == "flag" else second
    assert flag.nulls_before == 0
    assert flag.nulls_now == pytest.approx(0.25)


@pytest.mark.parametrize("move", [-1.0, 1.0])
def test_a_constant_that_changes_is_noticed(move: float) -> None:
    profile = Profile.of(pl.DataFrame({"x": [7.0] * 400}))
    assert shifts(profile, pl.DataFrame({"x": [7.0] * 300}))[0].psi == 0
    assert shifts(profile, pl.DataFrame({"x": [7.0 + move] * 300}))[0].psi > 1


def test_the_index_is_the_textbook_one_for_many_rows() -> None:
    before, now = np.array([0.3, 0.5, 0.2]), np.array([0.2, 0.4, 0.4])
    expected = float(((now - before) * np.log(now / before)).sum())
    psi, noise = stability((before * 1e7).astype(np.int64), (now * 1e7).astype(np.int64))
    assert psi == pytest.approx(expected, rel=1e-4)
    assert noise < 1e-5


def test_its_mean_without_drift_is_what_is_subtracted() -> None:
    rng = np.random.default_rng(5)
    shares, raw = np.full(10, 0.1), []
    for _ in range(400):
        before, now = rng.multinomial(2_000, shares), rng.multinomial(400, shares)
        p, q = before / 2_000, now / 400
        raw.append(((q - p) * np.log(q / p)).sum())
    assert np.mean(raw) == pytest.approx(9 * (1 / 400 + 1 / 2_000), rel=0.1)


def test_too_little_to_compare() -> None:
    assert stability(np.array([0, 0]), np.array([3, 4])) == (0.0, 0.0)
    assert stability(np.array([3, 4]), np.array([0, 0])) == (0.0, 0.0)


def test_predictions_of_several_classes_have_a_profile_each() -> None:
    rng = np.random.default_rng(6)
    frame, prediction = pl.DataFrame({"x": np.zeros(1_000)}), rng.dirichlet(np.ones(3), 1_000)
    profile = Profile.of(frame, prediction)
    assert {f"{PREDICTION}_{each}" for each in range(3)} < set(profile.features)
    assert len(shifts(profile, frame)) == 1  # features alone can be compared
    assert len(shifts(profile, frame, prediction)) == 4


def test_what_cannot_be_compared_is_said() -> None:
    profile = Profile.of(mixed(7))
    with pytest.raises(TidemillError, match=r"'number' is in the training profile.*Did you mean 'numbr'"):
        shifts(profile, mixed(8).rename({"number": "numbr"}))
    with pytest.raises(TidemillError, match="was a number in training"):
        shifts(profile, mixed(8).with_columns(pl.lit("x").alias("number")))
    with pytest.raises(TidemillError, match="neither by number nor by value"):
        Profile.of(pl.DataFrame({"x": [[1, 2], [3]]}))
    nulls = mixed(8).with_columns(pl.lit(None).alias("number"), pl.lit(None).alias("text"))
    assert {shift.feature for shift in shifts(profile, nulls)[:2]} == {"number", "text"}
