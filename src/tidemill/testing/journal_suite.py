"""What every journal must do. A test class inherits ``JournalSuite`` and says how to open and how to usurp one."""

# ruff: noqa: D102  # the name of a test says what it holds
from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.base.errors import FencedError, LeaseHeldError, TidemillError
from tidemill.base.hashing import canonical
from tidemill.ports.journal import Draft, Entry, Journal, Lease

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé"\\\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=3),
    max_leaves=6,
)


class JournalSuite:
    """Inherit as ``class TestX(JournalSuite)`` and define ``open`` and ``usurp``."""

    def open(self, directory: Path) -> Journal:
        """Return a journal on the store that belongs to ``directory``: empty at first, the same at every call."""
        raise NotImplementedError

    def usurp(self, directory: Path) -> Lease:
        """Return a lease on the same store, taken without regard for the present holder."""
        raise NotImplementedError

    def test_numbers_count_from_one_without_gaps(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        assert journal.last() == 0
        first = journal.append([Draft(10, "commit", {"table": "a"}), Draft(10, "alert", {"size": 0.1})], lease)
        second = journal.append([Draft(5, "commit", {"table": "b"}, meta={"host": "h"})], lease)
        assert [entry.number for entry in (*first, *second)] == [1, 2, 3]
        assert journal.last() == 3
        assert list(journal.read()) == [
            Entry(1, 10, "commit", {"table": "a"}),
            Entry(2, 10, "alert", {"size": 0.1}),
            Entry(3, 5, "commit", {"table": "b"}),
        ]
        assert [entry.meta for entry in journal.read(after=2)] == [{"host": "h"}]
        lease.release()

    def test_an_append_of_nothing_writes_nothing(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        assert journal.append([], lease) == ()
        assert journal.last() == 0
        lease.release()

    def test_reading_by_number_and_kind(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        journal.append([Draft(n, "even" if n % 2 == 0 else "odd", {"n": n}) for n in range(1, 2_501)], lease)
        assert [entry.number for entry in journal.read()] == list(range(1, 2_501))
        assert [entry.number for entry in journal.read(after=2_490, kinds=["even"])] == [2492, 2494, 2496, 2498, 2500]
        assert [entry.body["n"] for entry in journal.read(kinds=("odd",))] == list(range(1, 2_501, 2))
        assert list(journal.read(after=2_500)) == []
        assert list(journal.read(kinds=[])) == []
        lease.release()

    def test_another_handle_reads_what_was_written(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        written = journal.append([Draft(1, "commit", {"b": [1, {"c": None}], "a": "é"})], lease)
        assert tuple(self.open(tmp_path).read()) == written
        lease.release()

    def test_bodies_come_back_byte_for_byte(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()

        # An inner function, because hypothesis objects to one test shared by several classes.
        @settings(deadline=None, max_examples=25)
        @given(bodies=st.lists(st.dictionaries(st.text("abc", max_size=2), _JSON, max_size=3), max_size=3))
        def check(bodies: list[dict[str, Any]]) -> None:
            before = journal.last()
            written = journal.append([Draft(0, "kind", body) for body in bodies], lease)
            read = list(journal.read(after=before))
            assert [canonical(entry.body) for entry in read] == [canonical(body) for body in bodies]
            assert [canonical(entry.body) for entry in written] == [canonical(body) for body in bodies]

        check()
        lease.release()

    def test_one_bad_draft_stops_them_all(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        with pytest.raises(TidemillError, match="canonical JSON"):
            journal.append([Draft(1, "good", {}), Draft(1, "bad", {"x": float("nan")})], lease)
        assert journal.last() == 0
        lease.release()

    def test_the_lease_is_exclusive_until_released(self, tmp_path: Path) -> None:
        lease = self.open(tmp_path).acquire()
        with pytest.raises(LeaseHeldError):
            self.open(tmp_path).acquire()
        lease.check()
        lease.release()
        lease.release()
        with pytest.raises(FencedError):
            lease.check()
        successor = self.open(tmp_path).acquire()
        assert successor.epoch == lease.epoch + 1
        successor.check()
        successor.release()

    def test_a_stale_worker_writes_nothing(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        stale = journal.acquire()
        journal.append([Draft(1, "commit", {})], stale)
        asked = journal.request("retrain", {})
        successor = self.usurp(tmp_path)
        assert successor.epoch > stale.epoch
        with pytest.raises(FencedError):
            stale.check()
        with pytest.raises(FencedError):
            journal.append([Draft(2, "commit", {})], stale, answered=[asked])
        with pytest.raises(FencedError):
            journal.end_tick(2, stale)
        with pytest.raises(FencedError):
            journal.record_step("f", {}, stale)
        assert journal.last() == 1
        assert list(journal.ticks()) == []
        assert journal.step("f") is None
        assert [request.id for request in journal.requests()] == [asked]
        journal.append([Draft(2, "commit", {})], successor)
        assert journal.last() == 2
        stale.release()
        successor.check()
        successor.release()

    def test_ticks(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        for tick in (0, 20, 10, 20, 1_700_000_000_000_000):
            journal.end_tick(tick, lease)
        assert list(journal.ticks()) == [0, 10, 20, 1_700_000_000_000_000]
        assert list(journal.ticks(after=10)) == [20, 1_700_000_000_000_000]
        lease.release()

    def test_requests_wait_until_answered(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        asked = [journal.request("rollback", {"to": number}) for number in range(12)]
        assert len(set(asked)) == 12
        assert [(request.id, request.body["to"]) for request in self.open(tmp_path).requests()] == [
            (id, number) for number, id in enumerate(asked)
        ]
        lease = journal.acquire()
        journal.append([Draft(1, "decision", {})], lease, answered=[asked[0], asked[3]])
        journal.append([], lease, answered=[asked[1], asked[0]])
        assert [request.id for request in journal.requests()] == [asked[2], *asked[4:]]
        assert journal.last() == 1
        lease.release()

    def test_a_step_keeps_its_first_result(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        assert journal.step("abc") is None
        journal.record_step("abc", {"rows": 3}, lease)
        journal.record_step("abc", {"rows": 4}, lease)
        assert self.open(tmp_path).step("abc") == {"rows": 3}
        assert journal.step("ab") is None
        lease.release()

    def test_readers_and_petitioners_work_while_the_worker_writes(self, tmp_path: Path) -> None:
        journal = self.open(tmp_path)
        lease = journal.acquire()
        written = threading.Event()
        faults: list[BaseException] = []

        def read() -> None:
            try:
                while not written.is_set():
                    numbers = [entry.number for entry in journal.read()]
                    assert numbers == list(range(1, len(numbers) + 1))
                    # Batches of three are seen whole or not at all.
                    assert len(numbers) % 3 == 0
            except BaseException as error:
                faults.append(error)

        def ask() -> None:
            try:
                for number in range(20):
                    journal.request("retrain", {"n": number})
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work) for work in (read, read, ask)]
        for thread in threads:
            thread.start()
        for tick in range(60):
            journal.append([Draft(tick, "commit", {}) for _ in range(3)], lease)
        written.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert journal.last() == 180
        assert [request.body["n"] for request in journal.requests()] == list(range(20))
        lease.release()
