"""The compiled kernel of keys against the plain one, and against what would crash it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kernels import compiled, keys
from tidemill.kernels.keys import Keys, match, repeated

Array = npt.NDArray[Any]

native: Any = compiled.load("keys")
needs_native = pytest.mark.skipif(native is None, reason="the compiled kernel is not built")

#: Keys that differ in one bit, in their high bits only, and those at the ends.
NASTY = np.array([0, 1, -1, 2, 1 << 32, 1 << 62, -(1 << 63), (1 << 63) - 1, 256, 512, 1 << 40])


def keys_of(rng: np.random.Generator, count: int, width: int, span: int) -> Keys:
    columns = tuple(
        rng.choice(NASTY, count) if rng.random() < 0.3 else rng.integers(0, span, count) for _ in range(width)
    )
    return Keys(columns, None if rng.random() < 0.5 else rng.random(count) < 0.2)


def direct(ours: Keys, theirs: Keys) -> tuple[list[int], list[int], int]:
    numbers: dict[tuple[int, ...], int] = {}

    def rows(of: Keys) -> list[tuple[int, ...] | None]:
        tuples = zip(*(column.tolist() for column in of.columns), strict=True)
        return [None if of.null is not None and of.null[place] else key for place, key in enumerate(tuples)]

    mine = [-1 if key is None else numbers.setdefault(key, len(numbers)) for key in rows(ours)]
    return mine, [-1 if key is None else numbers.get(key, -1) for key in rows(theirs)], len(numbers)


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.sampled_from((0, 1, 3, 40, 700)), st.sampled_from((0, 1, 33, 900))),
    width=st.integers(1, 3),
    span=st.sampled_from((1, 5, 60, 2**62)),
)
@settings(max_examples=150, deadline=None)
def test_keys_are_numbered_as_they_come(plain: bool, seed: int, sizes: tuple[int, int], width: int, span: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = (keys_of(rng, count, width, span) for count in sizes)
    mine, other, groups = keys._plain(ours, theirs) if plain else match(ours, theirs)
    assert mine.dtype == other.dtype == np.int64
    assert (mine.tolist(), other.tolist(), groups) == direct(ours, theirs)


def test_threads_share_many_rows() -> None:
    rng = np.random.default_rng(5)
    ours, theirs = Keys((rng.integers(0, 3000, 5000),)), Keys((rng.integers(0, 4000, 200_001),))
    for mine, plain in zip(match(ours, theirs)[:2], keys._plain(ours, theirs)[:2], strict=True):
        assert mine.tolist() == plain.tolist()


@given(
    hashes=st.lists(
        st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1), st.sampled_from((7 << 50, 9 << 50))), max_size=80
    )
)
def test_no_repeated_hash_is_missed(hashes: list[int]) -> None:
    places = repeated(np.array(hashes, dtype=np.uint64))
    assert places.tolist() == sorted(set(places.tolist()))
    assert {place for place, each in enumerate(hashes) if hashes.count(each) > 1} <= set(places.tolist())


@needs_native
def test_few_hashes_are_repeated_by_mistake() -> None:
    hashes = np.random.default_rng(2).integers(0, 2**63, 50_000).astype(np.uint64)
    assert len(repeated(hashes)) < 0.15 * len(hashes)


NUMBERS: tuple[Array, ...] = (np.arange(4), np.arange(4))
REFUSED: list[tuple[str, tuple[Any, ...]]] = [
    ("number", ((), None, np.empty(0, np.int64))),
    ("number", ([], None, np.empty(0, np.int64))),
    ("number", (NUMBERS, None)),
    ("number", ((np.arange(4), np.arange(3)), None, np.empty(4, np.int64))),
    ("number", ((np.arange(4.0),), None, np.empty(4, np.int64))),
    ("number", (NUMBERS, np.zeros(3, bool), np.empty(4, np.int64))),
    ("number", (NUMBERS, None, np.empty(3, np.int64))),
    ("number", (NUMBERS, None, np.empty(4, np.int32))),
    ("find", (None, NUMBERS, None, np.empty(4, np.int64), 0, 4)),
    ("find", ("keys", NUMBERS[:1], None, np.empty(4, np.int64), 0, 4)),
    ("find", ("keys", NUMBERS, None, np.empty(4, np.int64), 0, 5)),
    ("find", ("keys", NUMBERS, None, np.empty(4, np.int64), -1, 4)),
    ("find", ("keys", NUMBERS, None, np.empty(4, np.int64), 3, 2)),
    ("find", ("keys", NUMBERS, None, np.empty(5, np.int64), 0, 4)),
    ("repeated", (np.arange(4), np.empty(4, bool))),
    ("repeated", (np.arange(4).astype(np.uint64), np.empty(3, bool))),
]


@needs_native
@pytest.mark.parametrize(("function", "arguments"), REFUSED)
def test_what_does_not_fit_is_refused(function: str, arguments: tuple[Any, ...]) -> None:
    held, _ = native.number(NUMBERS, None, np.empty(4, np.int64))
    with pytest.raises((TypeError, ValueError)):
        getattr(native, function)(*(held if isinstance(each, str) else each for each in arguments))
