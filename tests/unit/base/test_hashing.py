"""Canonical JSON and the hashes built on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.errors import TidemillError
from tidemill.base.hashing import bucket, canonical, digest, fingerprint, seed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé€😀\n"'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abcd"), JSON))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical(value) == canonical(dict(reversed(value.items())))
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


@settings(deadline=None)
@given(JSON)
def test_what_is_written_reads_back(value: Any) -> None:
    import json

    assert repr(json.loads(canonical(value))) == repr(json.loads(json.dumps(value, sort_keys=True)))


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"x", object()])
def test_what_json_does_not_know_is_refused(value: Any) -> None:
    with pytest.raises(TidemillError, match="cannot be written as canonical JSON"):
        canonical({"a": value})


def test_known_values_stay_what_they_are() -> None:
    # Fingerprints are kept in journals: these must never change.
    assert canonical({"b": [1, 1.0, None], "a": "é"}) == '{"a":"é","b":[1,1.0,null]}'.encode()
    assert digest(b"") == "3345524abf6bbe1809449224b5972c41790b6cf2"
    assert fingerprint("a", 1) == digest(b'["a",1]')
    assert seed("a") == seed("a") != seed("b")


def test_parts_are_kept_apart() -> None:
    assert len({fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint("abc"), fingerprint(["ab", "c"])}) == 4


@settings(deadline=None)
@given(st.text(), st.text(max_size=8))
def test_buckets_and_seeds_lie_in_their_bounds(key: str, salt: str) -> None:
    assert 0 <= bucket(key) < 1
    assert 0 <= seed(key) < 2**31


def test_buckets_are_even_and_salted() -> None:
    buckets = [bucket(str(number), salt="a") for number in range(4_000)]
    assert abs(sum(buckets) / len(buckets) - 0.5) < 0.03
    assert abs(sum(each < 0.1 for each in buckets) / len(buckets) - 0.1) < 0.03
    assert buckets[:10] != [bucket(str(number), salt="b") for number in range(10)]
