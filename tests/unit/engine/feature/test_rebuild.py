"""Online state made anew in partitions: byte for byte what all rows at once make, and whole or not there."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tidemill.adapters.arrow_scratch import ArrowScratch
from tidemill.adapters.memory_online import MemoryDraft, MemoryOnline
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.base.clock import HOUR, MINUTE
from tidemill.base.errors import WorkspaceError
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.feature import rebuild
from tidemill.engine.feature.freshness import Rebuilding, freshness
from tidemill.engine.feature.lookup import Lookup
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.feature.partition import frame_of
from tidemill.ports.online import Change
from tidemill.spec.feature import View
from tidemill.testing.histories import ORIGIN, TIME, reading

ARRIVALS = tm.Source("arrivals", tm.push(), key="id", event_time="landed")
PLANES = tm.Source("planes", tm.files("planes.csv"), key="tail")
VIEWS: list[View] = [
    tm.Aggregation("carrier", ARRIVALS, by="carrier", features={
        "n": tm.count(over="2d"), "sum": tm.sum("delay", over="1h"), "last": tm.last("note", over="2d")}),
    tm.Latest("seen", ARRIVALS, by=("carrier", "tail"), columns=["delay"]),
    tm.Latest("plane", PLANES, by="tail", columns=["seats"]),
]  # fmt: skip
TICK_NOW, ROWS = ORIGIN + 50 * HOUR, 6_000


def tables(seed: int) -> dict[str, pl.DataFrame]:
    """Keys with corrections that change their group, tombstones, nulls, rows known in advance, and one hot group."""
    rng = np.random.default_rng(seed)
    known = np.sort(ORIGIN + rng.integers(0, 52 * 60, ROWS) * MINUTE)
    keys = rng.integers(0, ROWS * 2 // 3, ROWS)
    carrier = rng.choice(["a", "b", "none", *map(str, range(40))], ROWS, p=[0.6, 0.1, 0.02, *[0.28 / 40] * 40])
    arrivals = pl.DataFrame({
        KNOWN_AT: pl.Series(known), SEQ: np.arange(ROWS), TOMBSTONE: rng.random(ROWS) < 0.05, TICK: known,
        HISTORY: [False] * ROWS, "id": [None if each % 97 == 0 else f"f{each}" for each in keys],
        "landed": known - rng.integers(0, 600, ROWS) * MINUTE, "carrier": carrier, "tail": rng.choice(["x", "y"], ROWS),
        "delay": rng.normal(size=ROWS), "note": rng.choice(["short", "é" * 60, "none"], ROWS),
    })  # fmt: skip
    arrivals = arrivals.with_columns(
        pl.col(KNOWN_AT, TICK, "landed").cast(TIME), pl.col("carrier", "note").replace("none", None)
    )
    planes = pl.DataFrame({
        KNOWN_AT: pl.Series([None] * 9, dtype=TIME), SEQ: np.arange(9), TOMBSTONE: [False] * 9, TICK: [ORIGIN] * 9,
        HISTORY: [True] * 9, "tail": list("xyzxyzxyz"), "seats": rng.integers(0, 9, 9),
    }).with_columns(pl.col(TICK).cast(TIME), pl.col(KNOWN_AT).fill_null(pl.lit(ORIGIN).cast(TIME)))  # fmt: skip
    return {"arrivals": arrivals, "planes": planes}


NEXT_SEQ = {"arrivals": ROWS, "planes": 9}


def content(store: MemoryOnline) -> dict[str, dict[bytes, bytes]]:
    with store.snapshot() as snapshot:
        found: Mapping[str, Mapping[bytes, bytes]] = snapshot.spaces
        assert snapshot.mark() is not None
        return {"": {b"mark": snapshot.mark() or b""}, **{name: dict(pairs) for name, pairs in found.items() if pairs}}


def at_once(given: Mapping[str, pl.DataFrame]) -> MemoryOnline:
    store = MemoryOnline()
    OnlineState(VIEWS, store).apply(TICK_NOW, given, NEXT_SEQ, 7)
    return store


@pytest.fixture
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let slices and batches be small."""
    monkeypatch.setattr(rebuild, "SLICE_CELLS", request.param * 9)
    monkeypatch.setattr(rebuild, "BATCH", request.param)
    return int(request.param)


@pytest.mark.parametrize("small", [1_000, 4_000, 20_000], indirect=True)
@pytest.mark.parametrize("seed", [1, 2])
def test_in_partitions_it_is_byte_for_byte_what_all_rows_at_once_make(seed: int, small: int) -> None:
    given = tables(seed)
    expected = content(at_once(given))
    assert any(len(key) > 4 and key.startswith(b"\x91\xa1a") for key in expected["block:carrier"])  # the hot group's
    steps: list[Rebuilding] = []
    store = MemoryOnline()
    OnlineState(VIEWS, store).rebuild(TICK_NOW, reading(given), NEXT_SEQ, 7, MemoryScratch(), steps.append)
    assert content(store) == expected
    assert [each.done for each in steps] == list(range(steps[0].steps + 1))
    assert (steps[0].steps > 7 + 5) == (small < ROWS)  # those of two views and of one, in a slice each
    assert all(each.left is not None and each.left >= 0 for each in steps[1:])
    # In place of a state that answers, with groups and keys that are gone.
    other = MemoryOnline()
    OnlineState(VIEWS, other).apply(ORIGIN, {"arrivals": tables(seed + 10)["arrivals"].head(900)}, {"arrivals": 900}, 3)
    OnlineState(VIEWS, other).rebuild(TICK_NOW, reading(given), NEXT_SEQ, 7, MemoryScratch())
    assert content(other) == expected


@pytest.mark.parametrize("small", [1_000], indirect=True)
@pytest.mark.parametrize("stops", [0, 1, 3, 6])
def test_one_that_is_broken_off_never_looks_whole(stops: int, small: int) -> None:
    given, store = tables(1), MemoryOnline()
    state = OnlineState(VIEWS, store)

    def stop(at: Rebuilding) -> None:
        if at.done == stops:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state.rebuild(TICK_NOW, reading(given), NEXT_SEQ, 7, MemoryScratch(), stop)
    assert state.applied() is None
    broken_off = freshness(store).rebuilding
    assert broken_off is not None
    assert broken_off.done == stops
    with pytest.raises(WorkspaceError, match="empty"):
        Lookup(MODEL, store).features(pl.DataFrame({"carrier": ["a"], "tail": ["x"]}))
    state.rebuild(TICK_NOW, reading(given), NEXT_SEQ, 7, MemoryScratch())
    assert content(store) == content(at_once(given))
    assert freshness(store).rebuilding is None
    # Over a state that answers, that one stands.
    with pytest.raises(KeyboardInterrupt):
        state.rebuild(TICK_NOW + HOUR, reading(tables(2)), NEXT_SEQ, 8, MemoryScratch(), stop)
    before = content(store)
    assert before.pop("rebuilding")
    assert before == content(at_once(given))


class Counted:
    """Counts the rows that the frames hold which somebody still has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: list[tuple[weakref.ref[pl.DataFrame], int]] = []
        self.most = self.read = 0
        monkeypatch.setattr(rebuild, "frame_of", lambda tables: self.count(frame_of(tables)))

    def count(self, frame: pl.DataFrame) -> pl.DataFrame:
        self.held.append((weakref.ref(frame), frame.height))
        self.most = max(self.most, sum(height for held, height in self.held if held() is not None))
        return frame

    def reading(self, given: Mapping[str, pl.DataFrame]) -> rebuild.Read:
        def read(table: str, columns: Sequence[str], since: int, limit: int) -> pl.DataFrame:
            frame = self.count(reading(given)(table, columns, since, limit))
            self.read += frame.height if limit > 1 else 0
            return frame

        return read


@pytest.mark.parametrize("small", [300], indirect=True)
def test_few_rows_are_held_at_once_and_each_is_read_once(
    small: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given, counted = tables(1), Counted(monkeypatch)
    given["arrivals"] = given["arrivals"].with_columns(
        pl.format("f{}", SEQ).alias("id"), (pl.col(SEQ) % 500).cast(pl.String).alias("carrier")
    )
    store = MemoryOnline()
    wrote: list[int] = []
    write = MemoryDraft.write

    def watched(draft: MemoryDraft, changes: Sequence[Change]) -> None:
        wrote.append(sum(len(change.value or b"") for change in changes[:-1]))
        write(draft, changes)

    monkeypatch.setattr(MemoryDraft, "write", watched)
    for number in range(2):  # where nothing answers, and where something does
        counted.most = counted.read = 0
        scratch = ArrowScratch(tmp_path / str(number))
        OnlineState(VIEWS, store).rebuild(TICK_NOW, counted.reading(given), NEXT_SEQ, 7, scratch)
        assert content(store) == content(at_once(given))
        assert counted.read == ROWS + 9
        # A part and the one before it, which a hash makes uneven.
        assert counted.most < 3 * small
    assert max(wrote) < 3 * small  # heads are written with those of other views


class _Mean:
    def fit(self, frame: Any, truth: Any) -> _Mean:
        return self

    def predict(self, frame: Any) -> Any:
        return np.zeros(len(frame))


MODEL = tm.Model("m", examples=ARRIVALS, asked_at="landed", label=tm.Label(ARRIVALS, "delay", within="1d"),
                 estimator=_Mean(), task="regression", features=VIEWS)  # fmt: skip
