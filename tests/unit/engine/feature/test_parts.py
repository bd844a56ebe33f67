"""Groups of many versions are kept in blocks: few are touched, thin ones are put together, past ones go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

import tidemill as tm
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.base.clock import HOUR, SECOND
from tidemill.engine.feature import lookup as lookups
from tidemill.engine.feature.layout import BLOCK, DIRECTORY, Directory
from tidemill.engine.feature.lookup import Lookup, features_at
from tidemill.engine.feature.online import OnlineState
from tidemill.ports.online import Change
from tidemill.testing.histories import ORIGIN, TIME, frame

TYPES: dict[str, pl.DataType] = {"id": pl.String(), "at": TIME, "by": pl.String(), "x": pl.Float64()}
TABLE = tm.Source("things", tm.push(), key="id", event_time="at")
OVER = ("10m", "1h", "12h")
VIEW = tm.Aggregation(
    "v",
    TABLE,
    by="by",
    features={
        "n": tm.count(over=OVER), "sum": tm.sum("x", over=OVER), "std": tm.std("x", over=OVER),
        "max": tm.max("x", over=OVER), "last": tm.last("x", over=OVER), "first": tm.first("x", over=OVER),
        "since": tm.since_last(over=OVER),
    },
)  # fmt: skip
NEWEST = tm.Latest("newest", TABLE, by="by", columns=["x", "id"])
MODEL = tm.Model(
    "m", examples=TABLE, asked_at="at", label=tm.Label(TABLE, "x", within="1h"), features=[VIEW, NEWEST],
    estimator=LogisticRegression(),
)  # fmt: skip
ASKED = pl.DataFrame({"by": ["hot", "cold"]})


def thing(number: int, at: int, known: int, **others: Any) -> dict[str, Any]:
    row = {"id": f"t{number}", "at": at, "by": "hot", "x": 0.1 * number, "_known_at": known, "_tombstone": False}
    return {**row, "_tick": known, "_history": False, **others}


class Watched(MemoryOnline):
    """A store that remembers the last batch."""

    changes: Sequence[Change] = ()

    def apply(self, changes: Sequence[Change], mark: bytes | None, *, epoch: int = 0) -> None:
        self.changes = list(changes)
        super().apply(changes, mark, epoch=epoch)


class Stage:
    """A state to which rows are brought, checked against the offline features at every tick."""

    def __init__(self) -> None:
        self.store = Watched()
        self.state, self.lookup = OnlineState([VIEW, NEWEST], self.store), Lookup(MODEL, self.store)
        self.rows: list[dict[str, Any]] = []

    def bring(self, tick: int, rows: Sequence[dict[str, Any]]) -> None:
        numbered = [{**row, "_seq": len(self.rows) + place} for place, row in enumerate(rows)]
        self.rows += numbered
        self.state.apply(tick, {"things": frame(numbered, TYPES)}, {"things": len(self.rows)}, 0)
        self.check()

    def check(self) -> None:
        found, applied = self.lookup.features(ASKED)
        assert found.equals(features_at(MODEL, {"things": frame(self.rows, TYPES)}, ASKED, applied), null_equal=True)
        for place, request in enumerate(ASKED.iter_rows(named=True)):
            assert tuple(self.lookup.row(request, ASKED.schema)[0]) == found.row(place)

    def directory(self, view: str = "v") -> Directory | None:
        with self.store.snapshot() as snapshot:
            found = [value for key, value in snapshot.items(f"block:{view}") if key.endswith(DIRECTORY)]
        return Directory.decode(found[0]) if found else None

    def blocks(self, view: str = "v") -> int:
        with self.store.snapshot() as snapshot:
            return sum(not key.endswith(DIRECTORY) for key, _ in snapshot.items(f"block:{view}"))


def load(stage: Stage, count: int) -> None:
    stage.bring(ORIGIN, [thing(number, ORIGIN - (count - number) * SECOND, ORIGIN) for number in range(count)])


def test_a_row_for_a_hot_group_rewrites_its_head_alone() -> None:
    stage = Stage()
    load(stage, 10 * BLOCK - 100)
    directory = stage.directory()
    assert directory is not None
    assert [block.rows for block in directory.blocks] == [BLOCK] * 8
    assert stage.blocks() == 8
    stage.bring(ORIGIN + SECOND, [thing(10_000, ORIGIN, ORIGIN + SECOND)])
    assert [change.space for change in stage.store.changes if change.space in ("shelf:by", "block:v")] == ["shelf:by"]
    # A late row and a correction rewrite the block where they belong, and its line in the directory.
    late = ORIGIN - (9 * BLOCK - 100) * SECOND - 1
    stage.bring(
        ORIGIN + 2 * SECOND, [thing(20_000, late, ORIGIN + 2 * SECOND), thing(3 * BLOCK, late, ORIGIN + 2 * SECOND)]
    )
    assert [change.space for change in stage.store.changes if change.space == "block:v"] == ["block:v"] * 3
    directory = stage.directory()
    assert directory is not None
    assert sorted(block.rows for block in directory.blocks) == [BLOCK - 1, *[BLOCK] * 6, BLOCK + 2]


def test_blocks_are_cut_when_they_have_grown() -> None:
    stage = Stage()
    load(stage, 4 * BLOCK)
    early = ORIGIN - 4 * BLOCK * SECOND
    for batch in range(3):
        tick = ORIGIN + (batch + 1) * SECOND
        stage.bring(tick, [thing(10_000 + batch * BLOCK + n, early + n, tick) for n in range(BLOCK)])
    directory = stage.directory()
    assert directory is not None
    assert all(BLOCK <= block.rows <= 2 * BLOCK for block in directory.blocks)
    assert len({block.number for block in directory.blocks}) == len(directory.blocks) == stage.blocks()
    fences = [block.fence for block in directory.blocks]
    assert fences == sorted(fences)


def test_what_is_past_goes_block_by_block() -> None:
    stage = Stage()
    load(stage, 6 * BLOCK)
    later = ORIGIN + 12 * HOUR - 3 * BLOCK * SECOND
    stage.bring(later, [thing(9_000, ORIGIN, later)])
    directory = stage.directory()
    assert directory is not None
    assert len(directory.blocks) == stage.blocks() == 2  # one that is not past, and one cut from the head
    far = ORIGIN + 30 * HOUR
    stage.bring(far, [thing(9_001, far - SECOND, far)])
    assert stage.directory() is None
    assert stage.blocks() == 0
    assert stage.blocks("newest") == 5  # what was there before the newest may show again when that is taken back


def test_thin_blocks_are_put_together() -> None:
    stage = Stage()
    load(stage, 8 * BLOCK)
    tick = ORIGIN + SECOND
    kept = {number for number in range(8 * BLOCK) if number % 32 == 0}
    gone = [thing(number, ORIGIN, tick, _tombstone=True) for number in range(8 * BLOCK) if number not in kept]
    stage.bring(tick, gone)
    stage.bring(tick + SECOND, [thing(0, ORIGIN, tick + SECOND)])
    assert stage.directory() is None
    assert stage.blocks() == 0


def test_rows_known_in_the_future_wait_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.engine.feature.parts.BLOCK", 4)
    stage = Stage()
    rows = [thing(number, ORIGIN + number * SECOND, ORIGIN + number * SECOND) for number in range(40)]
    stage.bring(ORIGIN, rows)
    for second in range(0, 44, 3):
        stage.bring(ORIGIN + second * SECOND + 1, [])
    for tick, number in zip(itertools.count(ORIGIN + HOUR, HOUR), range(0, 40, 7), strict=False):
        stage.bring(tick, [thing(number, ORIGIN + 39 * SECOND, tick + 5 * HOUR)])


def test_answers_of_long_groups_are_kept_for_a_moment_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.engine.feature.parts.BLOCK", 2)
    monkeypatch.setattr(lookups, "KEPT", 3)
    stage = Stage()
    rows = [thing(number, ORIGIN, ORIGIN, by=f"g{number % 10}") for number in range(100)]
    stage.bring(ORIGIN, rows)
    schema = ASKED.schema
    for number in range(10):
        first, _ = stage.lookup.row({"by": f"g{number}"}, schema)
        assert stage.lookup.row({"by": f"g{number}"}, schema)[0] == first
        assert all(len(reader.kept) <= 3 for reader in stage.lookup._readers.values())
    assert any(reader.kept for reader in stage.lookup._readers.values())
    stage.bring(ORIGIN + SECOND, [])
    stage.lookup.row({"by": "nobody"}, schema)
    assert not any(reader.kept for reader in stage.lookup._readers.values())
