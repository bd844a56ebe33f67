"""A process that is killed while it makes online state anew: the state is whole afterwards, or not there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tidemill.adapters.lmdb_online import LmdbOnline
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.base.clock import HOUR, MINUTE
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.feature import online
from tidemill.engine.feature.online import OnlineState
from tidemill.spec.feature import View
from tidemill.testing.histories import ORIGIN, TIME, reading

ARRIVALS = tm.Source("arrivals", tm.push(), key="id", event_time="landed")
VIEWS: list[View] = [tm.Aggregation("carrier", ARRIVALS, by="carrier", features={"n": tm.count(over="1d")}),
         tm.Latest("last", ARRIVALS, by="carrier", columns=["delay"])]  # fmt: skip
ROWS, NOW = 4_000, ORIGIN + 80 * HOUR


def rows(seed: int) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    at = ORIGIN + np.arange(ROWS) * MINUTE
    made = pl.DataFrame({
        KNOWN_AT: at, SEQ: np.arange(ROWS), TOMBSTONE: [False] * ROWS, TICK: at, HISTORY: [False] * ROWS,
        "id": [f"f{each}" for each in range(ROWS)], "landed": at, "carrier": rng.choice(["a", "b", "c"], ROWS),
        "delay": rng.normal(size=ROWS),
    })  # fmt: skip
    return {"arrivals": made.with_columns(pl.col(KNOWN_AT, TICK, "landed").cast(TIME))}


def rebuild(path: Path, seed: int, dies: int) -> None:
    """Make the state anew at ``path``; at the step ``dies`` this process is killed. Runs in a child."""
    online.PART_CELLS, online._BATCH = 4_000, 10_000
    told: list[object] = []

    def tell(said: object) -> None:
        told.append(said)
        if len(told) == dies:
            signal.raise_signal(signal.SIGKILL)

    OnlineState(VIEWS, LmdbOnline(path)).rebuild(NOW, reading(rows(seed)), {"arrivals": ROWS}, seed, tell)


def killed(path: Path, seed: int, dies: int) -> int:
    code = f"from tests.acceptance.test_rebuild_kill import *; rebuild(Path({str(path)!r}), {seed}, {dies})"
    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode


def content(store: LmdbOnline | MemoryOnline) -> dict[str, list[tuple[bytes, bytes]]]:
    spaces = ["views", "fresh", "rebuilding", "key:arrivals", *(f"{kind}:{view.name}" for kind in ("view", "block")
                                                                for view in VIEWS)]  # fmt: skip
    with store.snapshot() as snapshot:
        return {"mark": [(b"", snapshot.mark() or b"")], **{name: list(snapshot.items(name)) for name in spaces}}


def at_once(seed: int) -> dict[str, list[tuple[bytes, bytes]]]:
    store = MemoryOnline()
    OnlineState(VIEWS, store).apply(NOW, rows(seed), {"arrivals": ROWS}, seed)
    return content(store)


@pytest.mark.parametrize("dies", [1, 4, 7])
def test_a_killed_rebuild_is_not_taken_for_a_whole_one(tmp_path: Path, dies: int) -> None:
    assert killed(tmp_path, 1, dies) == -signal.SIGKILL
    store = LmdbOnline(tmp_path)
    assert OnlineState(VIEWS, store).applied() is None
    store.close()
    assert killed(tmp_path, 1, 0) == 0  # at the next start it is made from the beginning
    store = LmdbOnline(tmp_path)
    assert content(store) == at_once(1)
    store.close()
    # Over a state that answers, nothing has changed but what is said of how far it was.
    assert killed(tmp_path, 2, dies) == -signal.SIGKILL
    store = LmdbOnline(tmp_path)
    assert {**content(store), "rebuilding": []} == at_once(1)
    store.close()
