"""The contract of ``ports.lake.Lake``: subclass ``LakeSuite``, give it a fixture ``lake``, and its tests run on it."""
# ruff: noqa: D102 - the name of a test says what it holds

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pytest

from tidemill.base.errors import FencedError, NotFoundError, TidemillError
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.ports.lake import Commit, Lake

_TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("value", pa.float64()),
        (KNOWN_AT, _TIME),
        (SEQ, pa.int64()),
        (TOMBSTONE, pa.bool_()),
        (TICK, _TIME),
        (HISTORY, pa.bool_()),
    ]
)


@dataclass
class GivenFence:
    """A fence that stands until told otherwise."""

    epoch: int = 1
    lost: bool = False

    def check(self) -> None:
        """Raise FencedError once ``lost``."""
        if self.lost:
            raise FencedError(f"epoch {self.epoch} is over.")


def make_rows(start: int, count: int) -> pa.Table:
    """Return ``count`` rows numbered from ``start``, every other value derived from the number."""
    numbers = range(start, start + count)
    return pa.table(
        [
            pa.array([None if n % 7 == 3 else f"key {n % 5}" for n in numbers], pa.large_string()),
            pa.array([n / 3 for n in numbers], pa.float64()),
            pa.array([n * 1_000_003 for n in numbers], _TIME),
            pa.array(numbers, pa.int64()),
            pa.array([n % 11 == 10 for n in numbers], pa.bool_()),
            pa.array([n * 2_000_000 for n in numbers], _TIME),
            pa.array([False] * count, pa.bool_()),
        ],
        schema=SCHEMA,
    )


def make_commit(start: int, count: int, *, table: str = "arrivals") -> Commit:
    """Return the commit of ``make_rows(start, count)``, with a cursor that tells where it ends."""
    end = start + count
    return Commit(
        table, 0, end * 1_000_000, f"batch {start}", count, end, f'{{"row":{end}}}', '{"kind":"ingest","ä":1}'
    )


def append(lake: Lake, count: int, fence: GivenFence, *, table: str = "arrivals") -> Commit:
    """Append ``count`` rows after the head of ``table``."""
    head = lake.head(table)
    start = 0 if head is None else head.next_seq
    return lake.append(table, make_rows(start, count), make_commit(start, count, table=table), fence)


def check_content(lake: Lake, head: Commit | None, *, table: str = "arrivals") -> None:
    """Assert that ``table`` has ``head`` for its head and exactly the rows before it, each once, in order."""
    assert lake.head(table) == head
    if head is not None:
        assert lake.scan(table).equals(make_rows(0, head.next_seq))


class LakeSuite:
    """Tests that every lake passes."""

    @pytest.fixture
    def lake(self) -> Lake:
        """Return an empty lake."""
        raise NotImplementedError

    @pytest.fixture
    def fence(self) -> GivenFence:
        """Return a fence that stands."""
        return GivenFence()

    def test_an_empty_lake_has_no_tables(self, lake: Lake) -> None:
        assert lake.tables() == ()
        assert lake.head("arrivals") is None
        assert lake.commits("arrivals") == ()
        for read in (lake.scan, lake.schema):
            with pytest.raises(NotFoundError, match="arrivals"):
                read("arrivals")

    def test_appends_come_back_as_given(self, lake: Lake, fence: GivenFence) -> None:
        first = append(lake, 5, fence)
        assert replace(first, version=0) == make_commit(0, 5)
        second = append(lake, 20, fence)
        assert second.version > first.version
        check_content(lake, second)
        assert lake.schema("arrivals") == SCHEMA
        assert lake.commits("arrivals") == (first, second)
        assert lake.commits("arrivals", after=first.version) == (second,)
        assert lake.scan("arrivals", version=first.version).equals(make_rows(0, 5))

    def test_zero_rows_record_the_commit(self, lake: Lake, fence: GivenFence) -> None:
        created = append(lake, 0, fence)
        check_content(lake, created)
        moved = lake.append("arrivals", make_rows(0, 0), replace(make_commit(0, 0), cursor='{"row":99}'), fence)
        assert moved.version > created.version
        check_content(lake, moved)
        check_content(lake, append(lake, 3, fence))
        without = lake.append("arrivals", make_rows(3, 0), replace(make_commit(3, 0), cursor=None), fence)
        assert lake.head("arrivals") == without

    def test_tables_are_apart(self, lake: Lake, fence: GivenFence) -> None:
        b = append(lake, 3, fence, table="b")
        a = append(lake, 4, fence, table="a")
        assert lake.tables() == ("a", "b")
        check_content(lake, a, table="a")
        check_content(lake, b, table="b")

    @pytest.mark.parametrize("since", [-1, 0, 1, 4, 5, 6, 24, 25, 1000])
    def test_scan_since_and_columns(self, lake: Lake, fence: GivenFence, since: int) -> None:
        first, _ = append(lake, 5, fence), append(lake, 20, fence)
        assert lake.scan("arrivals", since=since).equals(make_rows(0, 25).slice(max(since, 0)))
        columns = ["value", SEQ]
        some = lake.scan("arrivals", since=since, columns=columns, version=first.version)
        assert some.equals(make_rows(0, 5).select(columns).slice(max(since, 0)))
        for limit in (0, 1, 7, 1000):
            limited = lake.scan("arrivals", since=since, limit=limit)
            assert limited.equals(make_rows(0, 25).slice(max(since, 0), limit))

    def test_unknown_columns_and_versions(self, lake: Lake, fence: GivenFence) -> None:
        newest = append(lake, 5, fence)
        with pytest.raises(NotFoundError, match="Did you mean 'value'"):
            lake.scan("arrivals", columns=["valeu"])
        for version in (0, newest.version + 1):
            with pytest.raises(NotFoundError, match=str(version)):
                lake.scan("arrivals", version=version)
            with pytest.raises(NotFoundError, match=str(version)):
                lake.restore("arrivals", version, fence)

    def test_rows_that_do_not_fit_are_refused(self, lake: Lake, fence: GivenFence) -> None:
        head = append(lake, 5, fence)
        fit = make_rows(5, 2)
        commit = make_commit(5, 2)
        bad: Sequence[tuple[pa.Table, Commit, str]] = [
            (fit.drop_columns(["value"]), commit, "columns"),
            (fit.append_column("more", pa.array([1, 2])), commit, "more"),
            (fit.set_column(1, "value", pa.array([1, 2])), commit, "'value' is double, not int64"),
            (make_rows(6, 2), commit, "numbered from 5"),
            (make_rows(4, 2), commit, "numbered from 5"),
            (fit.take([1, 0]), commit, "numbered from 5"),
            (fit, replace(commit, rows=3), "2 rows"),
            (fit, replace(commit, next_seq=8), "number 8"),
            (fit, replace(commit, table="other"), "other"),
        ]
        for rows, wrong, message in bad:
            with pytest.raises(TidemillError, match=message):
                lake.append("arrivals", rows, wrong, fence)
        check_content(lake, head)

    def test_a_new_table_needs_numbered_rows_and_a_name(self, lake: Lake, fence: GivenFence) -> None:
        with pytest.raises(TidemillError, match=SEQ):
            lake.append("arrivals", make_rows(0, 2).drop_columns([SEQ]), make_commit(0, 2), fence)
        with pytest.raises(TidemillError, match="numbered from 0"):
            lake.append("arrivals", make_rows(1, 2), make_commit(1, 2), fence)
        with pytest.raises(TidemillError, match="cannot name a table"):
            lake.append("../x", make_rows(0, 2), make_commit(0, 2, table="../x"), fence)
        assert lake.tables() == ()

    def test_a_lost_fence_changes_nothing(self, lake: Lake, fence: GivenFence) -> None:
        lost = GivenFence(lost=True)
        with pytest.raises(FencedError):
            append(lake, 5, lost)
        assert lake.tables() == ()
        first, head = append(lake, 5, fence), append(lake, 5, fence)
        for write in (
            lambda: append(lake, 5, lost),
            lambda: lake.restore("arrivals", first.version, lost),
            lambda: lake.compact("arrivals", lost),
            lambda: lake.cleanup("arrivals", keep=1, fence=lost),
        ):
            with pytest.raises(FencedError):
                write()
        check_content(lake, head)
        assert lake.commits("arrivals") == (first, head)

    def test_restore_undoes(self, lake: Lake, fence: GivenFence) -> None:
        first, undone = append(lake, 5, fence), append(lake, 6, fence)
        lake.restore("arrivals", first.version, fence)
        check_content(lake, first)
        assert lake.commits("arrivals") == (first,)
        assert lake.scan("arrivals", version=undone.version).num_rows == 11
        again = append(lake, 2, fence)
        assert again.version > undone.version
        check_content(lake, again)
        assert lake.commits("arrivals") == (first, again)
        lake.restore("arrivals", undone.version, fence)  # and undo the undoing
        check_content(lake, undone)
        assert lake.commits("arrivals", after=first.version) == (undone,)

    def test_head_survives_compaction_and_cleanup(self, lake: Lake, fence: GivenFence) -> None:
        for count in (3, 0, 4, 1):
            head = append(lake, count, fence)
        for _ in range(2):
            lake.compact("arrivals", fence)
            check_content(lake, head)
            assert lake.commits("arrivals")[-1] == head
            lake.cleanup("arrivals", keep=1, fence=fence)
            check_content(lake, head)
            lake.compact("arrivals", fence)
            check_content(lake, head)
        older = head
        head = append(lake, 2, fence)
        check_content(lake, head)
        assert lake.scan("arrivals", since=older.next_seq).equals(make_rows(8, 2))
        lake.restore("arrivals", head.version, fence)
        lake.cleanup("arrivals", keep=1, fence=fence)
        check_content(lake, head)
        with pytest.raises(NotFoundError):
            lake.scan("arrivals", version=older.version)

    def test_cleanup_keeps_what_it_is_told_to(self, lake: Lake, fence: GivenFence) -> None:
        commits = [append(lake, 2, fence) for _ in range(6)]
        lake.cleanup("arrivals", keep=2, fence=fence)
        assert lake.commits("arrivals") == tuple(commits[-2:])
        for commit in commits[:-2]:
            with pytest.raises(NotFoundError):
                lake.scan("arrivals", version=commit.version)
        assert lake.scan("arrivals", version=commits[-2].version).equals(make_rows(0, 10))
        with pytest.raises(TidemillError, match="at least one"):
            lake.cleanup("arrivals", keep=0, fence=fence)

    def test_maintenance_of_a_missing_table(self, lake: Lake, fence: GivenFence) -> None:
        with pytest.raises(NotFoundError):
            lake.restore("arrivals", 1, fence)
        with pytest.raises(NotFoundError):
            lake.compact("arrivals", fence)
        with pytest.raises(NotFoundError):
            lake.cleanup("arrivals", keep=1, fence=fence)
