"""Records of several views' heads: packed and taken apart, and a store that hides them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.base.errors import WorkspaceError
from tidemill.engine.feature.layout import heads
from tidemill.engine.feature.shelf import Shelved, pack, take, unpack
from tidemill.ports.online import Change

FIELDS = st.dictionaries(st.integers(0, 2**16 - 1), st.binary(min_size=1, max_size=40), max_size=6)


@given(FIELDS, st.integers(0, 2**16 - 1))
def test_what_was_packed_is_taken(fields: dict[int, bytes], other: int) -> None:
    record = pack(fields)
    assert unpack(record) == fields
    for number in (*fields, other):
        assert take(record, number) == fields.get(number)
        assert take(None, number) is None
    for damaged in (record + b"x", *(record[:size] for size in range(1, len(record)))):
        with pytest.raises(WorkspaceError, match="damaged"):
            take(damaged, other)


THINGS = tm.Source("things", tm.push(), key="id", event_time="at")
BY = tm.Aggregation("by", THINGS, by="user", features={"n": tm.count(over="1d")})
NEWEST = tm.Latest("newest", THINGS, by="user", columns=["x"])
SHOPS = tm.Latest("shops", THINGS, by=("shop", "user"), columns=["x"])


def test_each_view_seems_to_have_its_heads_to_itself() -> None:
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
