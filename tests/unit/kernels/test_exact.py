"""Sums, means and deviations against fractions and the standard library, bit for bit."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidemill.kernels.exact import deviation, exact, prefix, quotient, squares

NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from((0.1, 1e16, -1e16, 5e-324, 3.0)))


def rounded(value: Fraction) -> float:
    try:
        return value.numerator / value.denominator
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@given(values=NUMBERS, low=st.integers(0, 20), high=st.integers(0, 20))
@example([0.1] * 10, 0, 10)
@example([2.0**53, 1.0, 1.0], 0, 3)
@example([1e308, 1e308], 0, 2)
@example([5e-324, 5e-324, 5e-324], 0, 3)
@settings(deadline=None, max_examples=200)
def test_any_stretch_is_correctly_rounded(values: list[float], low: int, high: int) -> None:
    low, high = sorted((min(low, len(values)), min(high, len(values))))
    numbers = exact(np.array(values, dtype=float), np.ones(len(values), dtype=bool))
    sums, squared = prefix(numbers.integers), prefix(squares(numbers).integers)
    total, total_squared = sums[[high]] - sums[[low]], squared[[high]] - squared[[low]]
    count = np.array([high - low])
    part = values[low:high]
    true = sum(map(Fraction, part), Fraction())
    assert quotient(total, np.array([1]), numbers.exponent)[0].hex() == rounded(true).hex()
    if part:
        assert quotient(total, count, numbers.exponent)[0].hex() == rounded(true / len(part)).hex()
    if len(part) > 1:
        try:
            want = float(statistics.stdev(map(Fraction, part)))
        except OverflowError:
            want = math.inf
        assert deviation(count, total, total_squared, numbers.exponent)[0].hex() == want.hex()


@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1))
@settings(deadline=None)
def test_integers_are_not_rounded_before_the_end(values: list[int]) -> None:
    numbers = exact(np.array(values, dtype=np.int64), np.ones(len(values), dtype=bool))
    total = prefix(numbers.integers)[[-1]]
    assert quotient(total, np.array([1]), numbers.exponent)[0] == float(sum(values))
    assert quotient(total, np.array([len(values)]), numbers.exponent)[0] == sum(values) / len(values)


def test_small_integers_stay_machine_integers_and_absent_ones_count_nothing() -> None:
    numbers = exact(np.array([3.0, np.nan, -1.5]), np.array([True, False, True]))
    assert numbers.integers.tolist() == [6, 0, -3]
    assert numbers.exponent == -1
    assert numbers.integers.dtype == np.int64
    assert exact(np.array([1e300, 1e-300]), np.ones(2, dtype=bool)).integers.dtype == object


def test_a_deviation_of_fewer_than_two_is_not_a_number_and_of_equals_zero() -> None:
    got = deviation(np.array([0, 1, 2]), np.array([0, 5, 10]), np.array([0, 25, 50]), 0)
    assert np.isnan(got[:2]).all()
    assert got[2] == 0.0


@pytest.mark.parametrize("offset", [0.0, 1e9, 1e15])
def test_a_large_offset_does_not_hurt(offset: float) -> None:
    values = offset + np.array([0.0, 1.0, 2.0])
    numbers = exact(values, np.ones(3, dtype=bool))
    got = deviation(
        np.array([3]), prefix(numbers.integers)[[3]], prefix(squares(numbers).integers)[[3]], numbers.exponent
    )
    assert got[0] == 1.0
