"""Online lookups of 20 features in three views, against Feast on its SQLite online store.

Ours: two aggregations with windows of a day and a week and a latest row, over two streams. While we ask, a process of
its own, as the worker is one, brings rows and advances time, tick after tick, and every answer is as of the newest one;
samples are compared, bit for bit, with the same features computed offline over all rows. Feast looks up 20 values that
were written beforehand; they neither arrive nor age. Then a state of a million keys is opened.
"""

from __future__ import annotations

import json
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_700_000_000 * SECOND
TICKS = 20  # a round
PACE = 0.1  # seconds of ours from a tick to the next
ARRIVING = 200  # rows of each stream in a tick

FEAST = """
import datetime, json, pathlib, random, sys, time
import numpy as np, pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.repo_config import RegistryConfig
from feast.types import Float64
from feast.value_type import ValueType

folder, users, once, hundred = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
made = (folder / "registry.db").exists()
config = RepoConfig(project="bench", provider="local", registry=RegistryConfig(path=str(folder / "registry.db")),
                    online_store={"type": "sqlite", "path": str(folder / "online.db")},
                    entity_key_serialization_version=3)
store = FeatureStore(config=config)
widths = {"a": 8, "b": 8, "l": 4}
if not made:
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
    now = datetime.datetime.now(datetime.timezone.utc)
    rng = np.random.default_rng(1)
    for name, width in widths.items():
        frame = pd.DataFrame({"user": [f"u{i}" for i in range(users)], "event_timestamp": now,
                              **{f"{name}{i}": rng.normal(size=users) for i in range(width)}})
        frame.to_parquet(folder / f"{name}.parquet")
        fields = [Field(name=f"{name}{i}", dtype=Float64) for i in range(width)]
        view = FeatureView(name=name, entities=[user], schema=fields,
                           source=FileSource(path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp"))
        store.apply([user, view])
        store.write_to_online_store(name, frame)
features = [f"{name}:{name}{i}" for name, width in widths.items() for i in range(width)]

def ask(count):
    rows = [{"user": f"u{random.randrange(users)}"} for _ in range(count)]
    begun = time.perf_counter()
    found = store.get_online_features(features, rows).to_dict()
    took = time.perf_counter() - begun
    assert len(found) == 21 and all(value is not None for values in found.values() for value in values)
    return took

for _ in range(3):
    ask(1), ask(100)
print(json.dumps({"one": [ask(1) for _ in range(once)], "hundred": [ask(100) for _ in range(hundred)]}))
"""


class Streams:
    """Two streams of rows about ``users``: what views are over, and what has come so far."""

    def __init__(self, users: int, rows: int) -> None:
        import polars as pl

        import tidemill as tm

        self.time = pl.Datetime("us", "UTC")
        clicks = tm.Source("clicks", tm.push(), key="click", event_time="at")
        orders = tm.Source("orders", tm.push(), key="order", event_time="at")
        over = ("1d", "7d")
        a = tm.Aggregation("a", clicks, by="user", features={
            "n": tm.count(over=over), "mean": tm.mean("x", over=over), "std": tm.std("x", over=over),
            "least": tm.min("x", over="7d"), "most": tm.max("x", over="7d"),
        })  # fmt: skip
        b = tm.Aggregation("b", orders, by="user", features={
            "n": tm.count(over=over), "sum": tm.sum("q", over=over), "mean": tm.mean("x", over=over),
            "kinds": tm.n_unique("kind", over="7d"), "last": tm.last("x", over="7d"),
        })  # fmt: skip
        latest = tm.Latest("l", clicks, by="user", columns=["x", "q", "kind", "ok"])
        asked = tm.Source("asked", tm.push(), key="id", event_time="at")
        label = tm.Label(orders, pl.col("x") > 0, within="1d")
        self.views = (a, b, latest)
        self.model = tm.Model("m", examples=asked, asked_at="at", label=label, features=[a, b, latest], estimator=None)
        assert len(self.model.columns) == 20
        self.users, self.key = users, {"clicks": "click", "orders": "order"}
        self.tick = START
        self.tables = {name: self.rows(name, 0, rows, START - 7 * DAY, START) for name in self.key}
        self.next = dict.fromkeys(self.key, rows)

    def rows(self, table: str, first: int, count: int, since: int, until: int) -> Any:
        """Return ``count`` rows that happen, and become known, between two times."""
        import numpy as np
        import polars as pl

        rng = np.random.default_rng([first, len(table)])
        at = np.sort(rng.integers(since, until, count))
        times = {name: pl.Series(at).cast(self.time) for name in ("at", "_known_at", "_tick")}
        numbers = np.arange(first, first + count)
        return pl.DataFrame(
            {
                self.key[table]: numbers,
                "user": [f"u{i}" for i in rng.integers(0, self.users, count).tolist()],
                "x": rng.normal(50, 10, count),
                "q": rng.integers(0, 100, count),
                "kind": rng.choice(["a", "b", "c"], count),
                "ok": rng.random(count) < 0.5,
                "_seq": numbers,
                **times,
            }
        ).with_columns(pl.lit(False).alias("_tombstone"), pl.lit(False).alias("_history"))

    def advance(self) -> Any:
        """Let a second pass; return the rows that came in it, known at its end."""
        import polars as pl

        until = self.tick + SECOND
        known = pl.lit(until).cast(self.time)
        new = {
            name: self.rows(name, self.next[name], ARRIVING, self.tick, until).with_columns(
                known.alias("_known_at"), known.alias("_tick")
            )
            for name in self.key
        }
        self.tick = until
        self.next = {name: number + ARRIVING for name, number in self.next.items()}
        self.tables = {name: pl.concat((self.tables[name], new[name])) for name in new}
        return new


def work(folder: Path, users: int, rows: int) -> None:
    """Be the worker: build a state in ``folder``, then turn as many ticks as each line of standard input says."""
    from tidemill.adapters.arrow_scratch import ArrowScratch
    from tidemill.adapters.lmdb_online import LmdbOnline
    from tidemill.engine.feature.online import OnlineState

    common.pin(0)
    streams, store = Streams(users, rows), LmdbOnline(folder)
    state = OnlineState(streams.views, store)

    def read(table: str, columns: Sequence[str], first: int, count: int) -> Any:
        return streams.tables[table].slice(first, count).select(columns)

    scratch = ArrowScratch(folder / "scratch")
    built = common.seconds(lambda: state.rebuild(START, read, streams.next, 0, scratch))
    common.say(json.dumps({"built": built}))
    for line in sys.stdin:
        took = []
        for _ in range(int(line)):
            begun = time.perf_counter()
            new = streams.advance()
            took.append(common.seconds(lambda new=new: state.apply(streams.tick, new, streams.next, 0)))
            time.sleep(max(0.0, begun + PACE - time.perf_counter()))
        common.say(json.dumps({"apply": took}))
    store.close()


class Ours:
    """A state of ``users`` keys, kept by a worker, and a lookup on it."""

    def __init__(self, folder: Path, users: int, rows: int) -> None:
        import polars as pl

        self.folder, self.users = folder, users
        self.streams = Streams(users, rows)
        command = [sys.executable, __file__, "--work", str(folder), str(users), str(rows)]
        self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.seconds_to_build = float(self.said()["built"])
        self.schema: dict[str, pl.DataType] = {"id": pl.Int64(), "at": self.streams.time, "user": pl.String()}
        self.reopen()

    def said(self) -> Any:
        """Return what the worker says next."""
        assert self.worker.stdout is not None
        return json.loads(self.worker.stdout.readline())

    def reopen(self) -> None:
        """Open the state as a server does."""
        from tidemill.adapters.lmdb_online import LmdbOnline
        from tidemill.engine.feature.lookup import Lookup

        self.store = LmdbOnline(self.folder)
        self.lookup = Lookup(self.streams.model, self.store)

    def while_ticks_turn(self, ticks: int, ask: Callable[[], None]) -> list[float]:
        """Call ``ask`` over and over while the worker turns ``ticks``; return the seconds that each took to apply."""
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.write(f"{ticks}\n")
        while not select.select([self.worker.stdout], [], [], 0)[0]:
            ask()
        for _ in range(ticks):
            self.streams.advance()
        applied: list[float] = self.said()["apply"]
        return applied

    def one(self) -> float:
        """Look one key up; return the seconds."""
        request = {"id": 0, "at": START, "user": f"u{random.randrange(self.users)}"}
        begun = time.perf_counter()
        values, _ = self.lookup.row(request, self.schema)
        took = time.perf_counter() - begun
        assert len(values) == 20
        return took

    def many(self, count: int) -> Any:
        """Return requests for ``count`` keys."""
        import polars as pl

        users = [f"u{random.randrange(self.users)}" for _ in range(count)]
        return pl.DataFrame({"id": range(count), "at": [START] * count, "user": users}, schema=self.schema)

    def hundred(self) -> float:
        """Look 100 keys up; return the seconds."""
        requests = self.many(100)
        begun = time.perf_counter()
        self.lookup.features(requests)
        return time.perf_counter() - begun

    def check(self) -> int:
        """Compare a sample with the offline features over all rows; return the number of values compared."""
        from tidemill.engine.feature.lookup import features_at

        requests = self.many(300)
        found, applied = self.lookup.features(requests)
        assert applied.tick == self.streams.tick
        offline = features_at(self.streams.model, self.streams.tables, requests, applied)
        assert found.equals(offline, null_equal=True)
        for request, row in zip(requests.iter_rows(named=True), found.iter_rows(), strict=True):
            values, _ = self.lookup.row({**request, "at": START}, self.schema)
            assert tuple(values) == row
        return found.height * found.width

    def open(self) -> float:
        """Return the seconds from nothing to the first answer."""
        self.store.close()
        begun = time.perf_counter()
        self.reopen()
        self.lookup.row({"id": 0, "at": START, "user": "u1"}, self.schema)
        return time.perf_counter() - begun

    def close(self) -> None:
        """End the worker."""
        self.store.close()
        self.worker.communicate()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile in microseconds."""
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1e6, 1),
        "p99": round(ordered[int(len(ordered) * 0.99)] * 1e6, 1),
    }


def held(name: str, ours: float, limit: float) -> dict[str, Any]:
    """Return an absolute figure and whether it is within its limit."""
    return {"ours": ours, "goal": f"{name} <= {limit}", "ok": ours <= limit}


def main() -> None:
    """Run it."""
    import tidemill.server.threads  # noqa: F401 - a server uses one thread for each question

    given = common.arguments(__doc__)
    common.pin(-1)
    users, crowd, theirs = (20_000, 100_000, 1_000) if given.quick else (100_000, 1_000_000, 5_000)
    feast = common.rival("feast", "feast[duckdb]==0.67.0", "duckdb<3")
    mine: dict[str, list[float]] = {"one": [], "hundred": [], "apply": []}
    rivals: dict[str, list[float]] = {"one": [], "hundred": []}
    with tempfile.TemporaryDirectory() as name:
        ours = Ours(Path(name) / "ours", users, 10 * users)
        common.say(f"a state of {users:,} keys, {20 * users:,} rows: built in {ours.seconds_to_build:.1f} s")
        (Path(name) / "feast").mkdir()
        compared = 0

        def run_ours() -> float:
            nonlocal compared
            one: list[float] = []

            def ask() -> None:
                one.extend(ours.one() for _ in range(300))
                mine["hundred"].extend(ours.hundred() for _ in range(20))

            mine["apply"] += ours.while_ticks_turn(TICKS, ask)
            mine["one"] += one
            compared += ours.check()
            return statistics.median(one)

        def run_feast() -> float:
            given = [str(Path(name) / "feast"), str(theirs), "200", "20"]
            answer = common.ask(feast, FEAST, *given, env={"FEAST_USAGE": "False"})
            for kind, seconds in rivals.items():
                seconds += answer[kind]
            return statistics.median(answer["one"])

        sides: dict[str, Callable[[], float]] = {"ours": run_ours, "feast": run_feast}
        common.alternate(sides, rounds=3, warm=0)
        ours.close()
        common.say(f"{compared:,} values compared with the offline features: all equal, bit for bit")
        large = Ours(Path(name) / "large", crowd, crowd)
        common.say(f"a state of {crowd:,} keys: built in {large.seconds_to_build:.1f} s")
        opened = statistics.median([large.open() for _ in range(5)])
        large.close()
    figures = {"ours": {kind: quantiles(seconds) for kind, seconds in mine.items()}}
    figures["feast"] = {kind: quantiles(seconds) for kind, seconds in rivals.items()}
    common.say(json.dumps(figures))
    ratios = {
        kind: common.goal(
            figures["ours"][kind]["p50"], figures["feast"][kind]["p50"], limit, holds=">=", of="rival / ours"
        )
        for kind, limit in (("one", 40.0), ("hundred", 10.0))
    }
    others = {
        "hundred keys": ratios["hundred"],
        "one key, p99": held("microseconds", figures["ours"]["one"]["p99"], 20),
        "100 keys, p99": held("microseconds", figures["ours"]["hundred"]["p99"], 500),
        f"opening {crowd:,} keys": held("seconds", round(opened, 4), 1.0),
    }
    common.finish("online_lookup", ratios["one"], quick=given.quick, others=others, compared=compared, figures=figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
