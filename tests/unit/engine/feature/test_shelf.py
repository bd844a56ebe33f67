"""Records of several views' heads: packed and taken apart, by the kernel as without it, and a store that hides them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.base.errors import WorkspaceError
from tidemill.engine.feature import shelf
from tidemill.engine.feature.layout import has_directory, heads
from tidemill.engine.feature.shelf import Shelved, pack, take, take_all, unpack
from tidemill.kernels import compiled
from tidemill.ports.online import Change

FIELDS = st.dictionaries(st.integers(0, 2**16 - 1), st.binary(min_size=1, max_size=40), max_size=6)


@pytest.fixture(params=["compiled", "plain"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(shelf, "_native", None)
    elif compiled.load("online") is None:
        pytest.skip("the compiled kernels were not built")


def refused(record: bytes) -> bool:
    found = []
    for native in (shelf._native, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shelf, "_native", native)
            try:
                take(record, (0, 7))
            except WorkspaceError:
                found.append(True)
            else:
                found.append(False)
    assert found[0] is found[1]
    return found[0]


@given(FIELDS, st.lists(st.integers(0, 2**16 - 1), max_size=4))
def test_what_was_packed_is_taken(fields: dict[int, bytes], others: list[int]) -> None:
    record = pack(fields)
    assert unpack(record) == fields
    numbers = (*reversed(fields), *others)
    wanted = tuple(fields.get(number) for number in numbers)
    assert take(record, numbers) == wanted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf, "_native", None)
        assert take(record, numbers) == wanted
    assert take(None, numbers) == (None,) * len(numbers)
    for number in numbers:
        head = fields.get(number)
        blocks = [0, 2] if head and has_directory(head) else []
        assert take_all([record, None, record], number) == ([head, None, head], blocks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shelf, "_native", None)
            assert take_all([record, None, record], number) == ([head, None, head], blocks)
    assert all(refused(record[:size]) for size in range(1, len(record)))
    assert refused(record + b"x")


ODD = st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=9)), max_size=4).map(  # a number twice, empty heads
    lambda fields: b"".join(
        (
            struct.pack("<H", len(fields)),
            *(struct.pack("<HI", number, len(head)) for number, head in fields),
            *(head for _, head in fields),
        )
    )
)


@given(ODD | st.binary(max_size=60))
def test_no_bytes_are_taken_otherwise_by_the_kernel(record: bytes) -> None:
    if not refused(record):
        numbers = (*range(4), *unpack(record))
        found = take(record, numbers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shelf, "_native", None)
            assert take(record, numbers) == found


THINGS = tm.Source("things", tm.push(), key="id", event_time="at")
BY = tm.Aggregation("by", THINGS, by="user", features={"n": tm.count(over="1d")})
NEWEST = tm.Latest("newest", THINGS, by="user", columns=["x"])
SHOPS = tm.Latest("shops", THINGS, by=("shop", "user"), columns=["x"])


def test_each_view_seems_to_have_its_heads_to_itself(kernel: Any) -> None:
    store = MemoryOnline()
    state = Shelved(store, (BY, NEWEST, SHOPS))
    by, newest, shops = heads(BY), heads(NEWEST), heads(SHOPS)
    state.apply([Change(by, b"k", b"1"), Change(newest, b"k", b"2"), Change(shops, b"k", b"3"), Change("a", b"k", b"4"),
                 Change(newest, b"l", b"5")], b"first")  # fmt: skip
    state.apply([Change(by, b"k", b"one"), Change(newest, b"l", None), Change(by, b"m", None)], b"second")
    with state.snapshot() as snapshot:
        assert [snapshot.get(space, b"k") for space in (by, newest, shops, "a")] == [b"one", b"2", b"3", b"4"]
        assert snapshot.get_many(newest, [b"k", b"l"]) == [b"2", None]
        assert [list(snapshot.items(space)) for space in (by, newest)] == [[(b"k", b"one")], [(b"k", b"2")]]
        assert (list(snapshot.items(by, after=b"k")), snapshot.mark()) == ([], b"second")
    with store.snapshot() as snapshot:
        assert [list(snapshot.items(space)) for space in (by, newest)] == [[], []]
        assert dict(snapshot.items("shelf:user")).keys() == {b"k"}  # no record is left of what has no heads
        assert dict(snapshot.items("shelf:shop,user")).keys() == {b"k"}
