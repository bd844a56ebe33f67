"""What every online store must do. A test class inherits ``OnlineSuite`` and says how to open one."""

# ruff: noqa: D102  # the name of a test says what it holds
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.errors import FencedError, TidemillError
from tidemill.ports.online import Change, Online

_CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from(["a", "ab", "plane"]),
        st.binary(max_size=3) | st.sampled_from([b"\xff" * 500, b"\0" * 9]),
        st.none() | st.binary(max_size=4),
    ),
    max_size=6,
)


class OnlineSuite:
    """Inherit as ``class TestX(OnlineSuite)`` and define ``open``."""

    def open(self, directory: Path) -> Online:
        """Return an empty store that belongs to ``directory``."""
        raise NotImplementedError

    def test_a_new_store_is_empty(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        with online.snapshot() as snapshot:
            assert snapshot.mark() is None
            assert snapshot.get("plane", b"n1") is None
            assert list(snapshot.items("plane")) == []
        online.close()
        online.close()

    def test_the_last_change_of_a_key_wins(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        online.apply([Change("s", b"k", b"1"), Change("s", b"k", b"2"), Change("s", b"gone", b"x")], b"m1")
        online.apply([Change("s", b"gone", None), Change("s", b"never", None), Change("s", b"empty", b"")], b"m2")
        with online.snapshot() as snapshot:
            assert snapshot.get("s", b"k") == b"2"
            assert snapshot.get("s", b"gone") is None
            assert snapshot.get("s", b"empty") == b""
            assert list(snapshot.items("s")) == [(b"empty", b""), (b"k", b"2")]
            assert snapshot.mark() == b"m2"
        online.close()

    def test_spaces_do_not_touch(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        changes = [
            Change("a", b"bc", b"1"),
            Change("ab", b"c", b"2"),
            Change("a", b"", b"3"),
            Change("mark", b"", b"4"),
        ]
        online.apply(changes, b"mark")
        with online.snapshot() as snapshot:
            assert list(snapshot.items("a")) == [(b"", b"3"), (b"bc", b"1")]
            assert list(snapshot.items("ab")) == [(b"c", b"2")]
            assert list(snapshot.items("mark")) == [(b"", b"4")]
            assert snapshot.get("abc", b"") is None
            assert snapshot.mark() == b"mark"
        online.close()

    def test_many_are_read_at_once_and_a_space_from_a_key_on(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        keys = [b"a", b"a\0", b"ab", b"b", b"\xff\xff"]
        online.apply([Change("s", key, b"=" + key) for key in keys] + [Change("t", b"c", b"other")], b"m")
        with online.snapshot() as snapshot:
            wanted = [b"b", b"never", b"a", b"b", b"k" * 600]
            assert snapshot.get_many("s", wanted) == [b"=b", None, b"=a", b"=b", None]
            assert snapshot.get_many("s", []) == []
            for place, key in enumerate(keys):
                assert [each for each, _ in snapshot.items("s", after=key)] == keys[place + 1 :]
            assert [each for each, _ in snapshot.items("s", after=b"aa")] == keys[2:]
            assert list(snapshot.items("never", after=b"")) == []
        online.close()

    def test_a_snapshot_does_not_move(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        online.apply([Change("s", b"a", b"1"), Change("s", b"b", b"1")], b"m1")
        with online.snapshot() as before:
            pairs = iter(before.items("s"))
            assert next(iter(pairs)) == (b"a", b"1")
            online.apply([Change("s", b"a", b"2"), Change("s", b"b", None), Change("s", b"c", b"2")], b"m2")
            assert list(pairs) == [(b"b", b"1")]
            assert before.get("s", b"a") == b"1"
            assert before.get("s", b"c") is None
            assert before.mark() == b"m1"
            with online.snapshot() as after:
                assert list(after.items("s")) == [(b"a", b"2"), (b"c", b"2")]
                assert after.mark() == b"m2"
        online.close()

    def test_a_key_that_is_too_long_stops_the_whole_batch(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        online.apply([Change("s", b"k" * 500, b"1")], b"m1")
        with pytest.raises(TidemillError, match="500 bytes"):
            online.apply([Change("s", b"a", b"1"), Change("s", b"k" * 501, b"1")], b"m2")
        with online.snapshot() as snapshot:
            assert list(snapshot.items("s")) == [(b"k" * 500, b"1")]
            assert snapshot.get("s", b"k" * 501) is None
            assert snapshot.mark() == b"m1"
        online.close()

    def test_clear_forgets_everything(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        online.apply([Change("s", b"k", b"1"), Change("t", b"k", b"1")], b"m1")
        online.clear()
        with online.snapshot() as snapshot:
            assert list(snapshot.items("s")) == []
            assert snapshot.get("t", b"k") is None
            assert snapshot.mark() is None
        online.apply([], b"m2")
        with online.snapshot() as snapshot:
            assert snapshot.mark() == b"m2"
        online.close()

    def test_a_batch_may_leave_the_mark(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        online.apply([Change("s", b"k", b"1")], None)
        with online.snapshot() as snapshot:
            assert (snapshot.get("s", b"k"), snapshot.mark()) == (b"1", None)
        online.apply([], b"m1")
        online.apply([Change("s", b"k", b"2")], None)
        with online.snapshot() as snapshot:
            assert (snapshot.get("s", b"k"), snapshot.mark()) == (b"2", b"m1")
        online.close()

    def test_a_draft_shows_when_it_is_published_and_takes_the_place_of_all(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        for number in range(3):  # one after the other, and the first in an empty store
            mark, other = f"m{number}".encode(), f"m{number + 1}".encode()
            with online.snapshot() as snapshot:
                before = {space: list(snapshot.items(space)) for space in "stu"}
            draft = online.draft()
            draft.write([Change("s", b"new", mark), Change("t", b"gone", b"x"), Change("s", mark, mark)])
            draft.write([Change("t", b"gone", None), Change("t", b"never", None), Change("s", b"newer", mark)])
            online.apply([Change("u", b"between", mark)], mark)  # what is shown goes on
            with online.snapshot() as shown, draft.snapshot() as written:
                assert {space: list(shown.items(space)) for space in "st"} == {space: before[space] for space in "st"}
                assert (shown.get("u", b"between"), shown.mark()) == (mark, mark)
                assert list(written.items("s")) == sorted([(mark, mark), (b"new", mark), (b"newer", mark)])
                assert written.get_many("s", [b"new", b"between"]) == [mark, None]
                assert (written.get("t", b"gone"), list(written.items("u"))) == (None, [])
            with online.snapshot() as open_before:
                draft.publish(other)
                assert (open_before.mark(), open_before.get("u", b"between")) == (mark, mark)
            with online.snapshot() as snapshot:
                assert snapshot.mark() == other
                assert list(snapshot.items("s")) == sorted([(mark, mark), (b"new", mark), (b"newer", mark)])
                assert [*snapshot.items("t"), *snapshot.items("u")] == []
        online.close()

    def test_a_draft_that_is_given_up_leaves_nothing(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        online.apply([Change("s", b"k", b"1")], b"m1")
        given_up = online.draft()
        given_up.write([Change("s", b"k", b"2"), Change("s", b"other", b"2")])
        with pytest.raises(TidemillError, match="500 bytes"):
            given_up.write([Change("s", b"a", b"1"), Change("s", b"k" * 501, b"1")])
        draft = online.draft()
        draft.write([Change("s", b"k", b"3")])
        draft.publish(b"m3")
        with online.snapshot() as snapshot:
            assert (list(snapshot.items("s")), snapshot.mark()) == ([(b"k", b"3")], b"m3")
        online.close()

    def test_it_is_a_dictionary(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)

        # An inner function, because hypothesis objects to one test shared by several classes.
        @settings(deadline=None, max_examples=25)
        @given(batches=st.lists(_CHANGES, max_size=4))
        def check(batches: list[list[Change]]) -> None:
            online.clear()
            expected: dict[str, dict[bytes, bytes]] = {"a": {}, "ab": {}, "plane": {}}
            for number, batch in enumerate(batches):
                online.apply(batch, str(number).encode())
                for change in batch:
                    if change.value is None:
                        expected[change.space].pop(change.key, None)
                    else:
                        expected[change.space][change.key] = change.value
            with online.snapshot() as snapshot:
                assert snapshot.mark() == (str(len(batches) - 1).encode() if batches else None)
                for space, pairs in expected.items():
                    assert list(snapshot.items(space)) == sorted(pairs.items())
                    assert all(snapshot.get(space, key) == value for key, value in pairs.items())

        check()
        online.close()

    def test_a_claim_shuts_lower_epochs_out(self, tmp_path: Path) -> None:
        online = self.open(tmp_path)
        online.claim(3)
        online.apply([Change("plane", b"n1", b"a")], b"1", epoch=3)
        draft = online.draft(epoch=3)
        online.claim(5)
        with pytest.raises(FencedError):
            draft.publish(b"2")
        for epoch in (0, 3, 4):
            with pytest.raises(FencedError):
                online.draft(epoch=epoch)
            with pytest.raises(FencedError, match=f"epoch {epoch}, but the online state was taken over with epoch 5"):
                online.apply([Change("plane", b"n1", b"b")], b"2", epoch=epoch)
            with pytest.raises(FencedError):
                online.clear(epoch=epoch)
            with pytest.raises(FencedError):
                online.claim(epoch)
        with online.snapshot() as snapshot:
            assert snapshot.mark() == b"1"
            assert snapshot.get("plane", b"n1") == b"a"
        online.clear(epoch=5)
        with pytest.raises(FencedError):  # clearing forgets the rows, not who has claimed
            online.apply([], b"3", epoch=3)
        online.apply([], b"4", epoch=5)
        online.close()
