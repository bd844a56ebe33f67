"""Sums without rounding: numbers held as integers times one power of two, rounded once, at the very end.

A float is an integer times a power of two, so sums and prefix sums of floats are integer sums and the order of addition
does not matter. What is computed from prefix sums over a year of rows is, bit for bit, what is computed from the twenty
rows of one window. Integers are int64 while the sum of all magnitudes is certain to fit, and Python integers (object
arrays) beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SAFE_BITS = 62  # sums of magnitudes stay below 2**62
_FLOAT_BITS = 53  # integers up to 2**53 are floats
_FAR = 900  # scaling by at most 2**±900 neither overflows nor reaches the subnormals here


@dataclass(frozen=True, slots=True)
class Exact:
    """Numbers ``integers * 2**exponent``; ``integers`` are int64, or Python integers in an object array."""

    integers: Array
    exponent: int


def exact(values: Array, present: Array) -> Exact:
    """Return ``values`` (float64, finite where present; or int64), exactly; 0 where they are not ``present`` (bool)."""
    values = np.where(present, values, 0)
    if values.dtype.kind == "i":
        largest = max(abs(int(values.min(initial=0))), abs(int(values.max(initial=0))))
        return Exact(values if _fits(largest.bit_length(), len(values)) else values.astype(object), 0)
    mantissas, powers = np.frexp(values)
    integers = np.ldexp(mantissas, _FLOAT_BITS).astype(np.int64)
    nonzero = integers != 0
    if not nonzero.any():
        return Exact(integers, 0)
    zeros = np.where(nonzero, np.frexp((integers & -integers).astype(np.float64))[1] - 1, 0)  # trailing zero bits
    lowest = powers - _FLOAT_BITS + zeros
    exponent = int(lowest[nonzero].min())
    shifts = np.where(nonzero, lowest - exponent, 0)
    odd = integers >> zeros
    if _fits(int(powers[nonzero].max()) - exponent, len(values)):
        return Exact(odd << shifts, exponent)
    return Exact(odd.astype(object) << shifts.astype(object), exponent)


def squares(numbers: Exact) -> Exact:
    """Return the squares, exactly."""
    integers = numbers.integers
    if integers.dtype != object:
        largest = max(abs(int(integers.min(initial=0))), abs(int(integers.max(initial=0))))
        if not _fits(2 * largest.bit_length(), len(integers)):
            integers = integers.astype(object)
    return Exact(integers * integers, 2 * numbers.exponent)


def prefix(integers: Array) -> Array:
    """Return the sums of the first 0, 1, …, n integers (n + 1 of them), of the same type."""
    sums = np.zeros(len(integers) + 1, dtype=integers.dtype)
    if len(integers):
        sums[1:] = np.cumsum(integers)
    return sums


def quotient(numerators: Array, denominators: Array, exponent: int) -> Array:
    """Return ``numerators / denominators * 2**exponent`` as correctly rounded float64; beyond the largest, infinite.

    ``numerators`` are int64 or Python integers, ``denominators`` positive int64 below 2**53.
    """
    if numerators.dtype == object or not -_FAR <= exponent <= _FAR:
        pairs = zip(numerators.tolist(), denominators.tolist(), strict=True)
        return np.array([_divide(numerator, denominator, exponent) for numerator, denominator in pairs], dtype=float)
    # Conversion to float is exact below 2**53, and by 1 nothing is divided: one rounding. Elsewhere, by hand.
    result: Array = np.ldexp(numerators.astype(np.float64) / denominators, exponent)
    for row in np.flatnonzero((np.abs(numerators) >= 1 << _FLOAT_BITS) & (denominators != 1)):
        result[row] = _divide(int(numerators[row]), int(denominators[row]), exponent)
    return result


def deviation(counts: Array, sums: Array, square_sums: Array, exponent: int) -> Array:
    """Return correctly rounded sample standard deviations (n - 1) as float64; NaN where the count is below 2.

    ``sums`` and ``square_sums`` are in units of ``2**exponent`` and ``2**(2 * exponent)``.
    """
    triples = zip(counts.tolist(), sums.tolist(), square_sums.tolist(), strict=True)
    return np.array([_deviation(*triple, exponent) for triple in triples], dtype=float)


def _fits(bits: int, count: int) -> bool:
    return bits + count.bit_length() <= _SAFE_BITS


def _divide(numerator: int, denominator: int, exponent: int) -> float:
    if exponent >= 0:
        numerator <<= exponent
    else:
        denominator <<= -exponent
    try:
        return numerator / denominator  # Python rounds the quotient of two integers correctly
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


def _deviation(count: int, total: int, squared: int, exponent: int) -> float:
    if count < 2:
        return math.nan
    numerator, denominator = count * squared - total * total, count * (count - 1)
    if exponent >= 0:
        numerator <<= 2 * exponent
    else:
        denominator <<= -2 * exponent
    return _root(numerator, denominator)


def _root(numerator: int, denominator: int) -> float:
    """Return the correctly rounded square root of a ratio: an integer root of at least 55 bits, rounded to odd.

    The method of ``_float_sqrt_of_frac`` in CPython's ``statistics`` (Mark Dickinson).
    """
    if numerator == 0:
        return 0.0
    shift = (numerator.bit_length() - denominator.bit_length() - 109) // 2
    if shift >= 0:
        return _divide(_odd_root(numerator, denominator << 2 * shift), 1, shift)
    return _divide(_odd_root(numerator << -2 * shift, denominator), 1, shift)


def _odd_root(numerator: int, denominator: int) -> int:
    root = math.isqrt(numerator // denominator)
    return root | (root * root * denominator != numerator)
