"""Online state made anew while others look, in a process that may be killed: they see the old state or the new one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tidemill.adapters.lmdb_online import LmdbDraft, LmdbOnline
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.base.clock import HOUR, MINUTE
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.feature import rebuild
from tidemill.engine.feature.lookup import Lookup
from tidemill.engine.feature.online import OnlineState
from tidemill.spec.feature import View
from tidemill.testing.histories import ORIGIN, TIME, reading

ARRIVALS = tm.Source("arrivals", tm.push(), key="id", event_time="landed")
VIEWS: list[View] = [tm.Aggregation("carrier", ARRIVALS, by="carrier", features={"n": tm.count(over="1d")}),
         tm.Latest("last", ARRIVALS, by="carrier", columns=["delay"])]  # fmt: skip
ROWS, NOW = 4_000, ORIGIN + 80 * HOUR
SMALL = 64 * 1024  # of the map: it grows in the middle


def rows(seed: int) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    at = ORIGIN + np.arange(ROWS) * MINUTE
    made = pl.DataFrame({
        KNOWN_AT: at, SEQ: np.arange(ROWS), TOMBSTONE: [False] * ROWS, TICK: at, HISTORY: [False] * ROWS,
        "id": [f"f{each}" for each in range(ROWS)], "landed": at, "carrier": rng.choice(["a", "b", "c"], ROWS),
        "delay": rng.normal(size=ROWS),
    })  # fmt: skip
    return {"arrivals": made.with_columns(pl.col(KNOWN_AT, TICK, "landed").cast(TIME))}


def make(store: LmdbOnline | MemoryOnline, seed: int, progress: Any = None) -> None:
    """Make the state anew of the rows of ``seed``, in small slices and batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "SLICE_CELLS", 3_000)
        patch.setattr(rebuild, "BATCH", 10_000)
        state = OnlineState(VIEWS, store)
        state.rebuild(NOW, reading(rows(seed)), {"arrivals": ROWS}, seed, MemoryScratch(), progress)


def dying(path: Path, seed: int, where: str, times: int) -> None:
    """Make the state anew at ``path``; when ``where`` is passed for so many times this process is killed.

    Places are "tell", and "write" and "publish" of the draft; "written" and "published" come after it. Runs in a child.
    """
    left = times

    def passed(place: str) -> None:
        nonlocal left
        left -= place == where
        if not left:
            signal.raise_signal(signal.SIGKILL)

    write, publish = LmdbDraft.write, LmdbDraft.publish

    def watched_write(self: LmdbDraft, changes: Any) -> None:
        passed("write")
        write(self, changes)
        passed("written")

    def watched_publish(self: LmdbDraft, mark: bytes) -> None:
        passed("publish")
        publish(self, mark)
        passed("published")

    LmdbDraft.write, LmdbDraft.publish = watched_write, watched_publish  # type: ignore[method-assign]
    store = LmdbOnline(path, map_size=SMALL)
    OnlineState(VIEWS, store).claim()
    make(store, seed, lambda _: passed("tell"))


def killed(path: Path, seed: int, where: str, times: int) -> int:
    code = f"from tests.acceptance.test_rebuild_kill import *; dying(Path({str(path)!r}), {seed}, {where!r}, {times})"
    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode


def content(store: LmdbOnline | MemoryOnline) -> dict[str, list[tuple[bytes, bytes]]]:
    spaces = ["views", "fresh", "key:arrivals", "shelf:carrier", "block:carrier", "block:last"]
    with store.snapshot() as snapshot:
        return {"mark": [(b"", snapshot.mark() or b"")], **{name: list(snapshot.items(name)) for name in spaces}}


def at_once(seed: int) -> dict[str, list[tuple[bytes, bytes]]]:
    store = MemoryOnline()
    OnlineState(VIEWS, store).apply(NOW, rows(seed), {"arrivals": ROWS}, seed)
    return content(store)


@contextmanager
def opened(path: Path) -> Iterator[LmdbOnline]:
    store = LmdbOnline(path, map_size=SMALL)
    try:
        yield store
    finally:
        store.close()


def nothing_is_left_of_a_draft(store: LmdbOnline) -> bool:
    store.claim(0)
    with store.snapshot() as shown:
        place = store.shown(shown._transaction)[0]
        return shown._transaction.stat(store.databases[1 - place])["entries"] == 0


@pytest.mark.parametrize(
    ("where", "times"),
    [("tell", 1), ("tell", 14), ("tell", 50), ("write", 1), ("written", 1), ("written", 9), ("publish", 1)],
)
def test_a_killed_rebuild_is_not_taken_for_a_whole_one(tmp_path: Path, where: str, times: int) -> None:
    assert killed(tmp_path, 1, where, times) == -signal.SIGKILL
    with opened(tmp_path) as store:
        assert OnlineState(VIEWS, store).applied() is None
        assert not any(content(store)["shelf:carrier"])
        make(store, 1)  # at the next start it is made from the beginning
        assert content(store) == at_once(1)
    # Over a state that answers, that one still does, and nothing stays of the other.
    assert killed(tmp_path, 2, where, times) == -signal.SIGKILL
    with opened(tmp_path) as store:
        assert content(store) == at_once(1)
        assert nothing_is_left_of_a_draft(store)
        make(store, 2)
        assert content(store) == at_once(2)
        assert nothing_is_left_of_a_draft(store)


def test_one_killed_when_it_was_published_is_whole(tmp_path: Path) -> None:
    for seed in (1, 2):
        assert killed(tmp_path, seed, "published", 1) == -signal.SIGKILL
        with opened(tmp_path) as store:
            assert content(store) == at_once(seed)
            assert nothing_is_left_of_a_draft(store)


class _Mean:
    def fit(self, frame: Any, truth: Any) -> _Mean:
        return self

    def predict(self, frame: Any) -> Any:
        return np.zeros(len(frame))


MODEL = tm.Model("m", examples=ARRIVALS, asked_at="landed", label=tm.Label(ARRIVALS, "delay", within="1d"),
                 estimator=_Mean(), task="regression", features=VIEWS)  # fmt: skip


def ask(lookup: Lookup) -> list[Any]:
    """Return what is answered about every group, and of which state."""
    answers, applied = lookup.features(pl.DataFrame({"carrier": ["a", "b", "c"]}))
    return [applied.journal, [list(row) for row in answers.rows()]]


def asking(path: Path) -> None:
    """Answer each line of the input. Runs in a child, as a server does."""
    lookup = Lookup(MODEL, LmdbOnline(path, map_size=SMALL))
    for _ in sys.stdin:
        print(json.dumps(ask(lookup)), flush=True)


def test_readers_see_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    expected = {}
    for seed in (1, 2, 3):
        store = MemoryOnline()
        make(store, seed)
        expected[seed] = json.loads(json.dumps(ask(Lookup(MODEL, store))))
    with opened(tmp_path) as online:
        make(online, 1)
        before = online._env.info()["map_size"]
        code = f"from tests.acceptance.test_rebuild_kill import *; asking(Path({str(tmp_path)!r}))"
        reader = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        with reader:
            for seed in (2, 3):
                answered: list[Any] = []

                def look(_: object, answered: list[Any] = answered) -> None:
                    assert reader.stdin is not None
                    assert reader.stdout is not None
                    reader.stdin.write("look\n")
                    reader.stdin.flush()
                    answered.append(json.loads(reader.stdout.readline()))

                make(online, seed, look)
                assert len(answered) > 30
                assert answered[:-1] == [expected[seed - 1]] * (len(answered) - 1)
                assert answered[-1] == expected[seed]
            reader.stdin.close()
        assert online._env.info()["map_size"] > before  # it grew in the middle
