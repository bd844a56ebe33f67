"""Online lookups of 20 features in three views, against Feast on its SQLite online store.

Ours: two aggregations with windows of a day and a week and a latest row, over two streams. While we ask, rows arrive
and time advances, tick after tick, and every answer is as of the newest one; samples are compared, bit for bit, with
the same features computed offline over all rows. Feast looks up 20 values that were written beforehand; they neither
arrive nor age. Then a state of a million keys is opened.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_700_000_000 * SECOND
TICKS = 10  # a round
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


class Ours:
    """A state of ``users`` keys on disk, the rows it was made of, and a lookup on it."""

    def __init__(self, folder: Path, users: int, rows: int) -> None:
        import polars as pl

        import tidemill as tm
        from tidemill.adapters.lmdb_online import LmdbOnline
        from tidemill.engine.lookup import Lookup
        from tidemill.engine.online import OnlineState

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
        self.model = tm.Model("m", examples=asked, asked_at="at", label=label, features=[a, b, latest], estimator=None)
        assert len(self.model.columns) == 20
        self.folder, self.users = folder, users
        self.schema: dict[str, pl.DataType] = {"id": pl.Int64(), "at": self.time, "user": pl.String()}
        self.tick, self.key = START, {"clicks": "click", "orders": "order"}
        self.tables = {name: self.rows(name, 0, rows, START - 7 * DAY, START) for name in self.key}
        self.store = LmdbOnline(folder)
        self.state = OnlineState((a, b, latest), self.store)
        self.next = dict.fromkeys(self.key, rows)
        self.seconds_to_build = common.seconds(lambda: self.state.rebuild(START, self.tables, self.next, 0))
        self.lookup = Lookup(self.model, self.store)

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

    def advance(self) -> float:
        """Turn a tick: a second passes and rows arrive. Return the seconds that it took to apply them."""
        import polars as pl

        until = self.tick + SECOND
        new = {
            name: self.rows(name, self.next[name], ARRIVING, self.tick, until).with_columns(
                pl.lit(until).cast(self.time).alias("_known_at"), pl.lit(until).cast(self.time).alias("_tick")
            )
            for name in self.key
        }
        self.tick = until
        self.next = {name: number + ARRIVING for name, number in self.next.items()}
        self.tables = {name: pl.concat((self.tables[name], new[name])) for name in new}
        return common.seconds(lambda: self.state.apply(self.tick, new, self.next, 0))

    def one(self) -> float:
        """Look one key up; return the seconds."""
        request = {"id": 0, "at": self.tick, "user": f"u{random.randrange(self.users)}"}
        begun = time.perf_counter()
        values, _ = self.lookup.row(request, self.schema)
        took = time.perf_counter() - begun
        assert len(values) == 20
        return took

    def many(self, count: int) -> Any:
        """Return requests for ``count`` keys."""
        import polars as pl

        users = [f"u{random.randrange(self.users)}" for _ in range(count)]
        return pl.DataFrame({"id": range(count), "at": [self.tick] * count, "user": users}, schema=self.schema)

    def hundred(self) -> float:
        """Look 100 keys up; return the seconds."""
        requests = self.many(100)
        begun = time.perf_counter()
        self.lookup.features(requests)
        return time.perf_counter() - begun

    def check(self) -> int:
        """Compare a sample with the offline features over all rows; return the number of values compared."""
        from tidemill.engine.lookup import features_at

        requests = self.many(300)
        found, applied = self.lookup.features(requests)
        assert found.equals(features_at(self.model, self.tables, requests, applied), null_equal=True)
        for request, row in zip(requests.iter_rows(named=True), found.iter_rows(), strict=True):
            values, _ = self.lookup.row({**request, "at": self.tick}, self.schema)
            assert tuple(values) == row
        return found.height * found.width

    def open(self) -> float:
        """Return the seconds from nothing to the first answer."""
        from tidemill.adapters.lmdb_online import LmdbOnline
        from tidemill.engine.lookup import Lookup

        self.store.close()
        begun = time.perf_counter()
        self.store = LmdbOnline(self.folder)
        request = {"id": 0, "at": self.tick, "user": "u1"}
        Lookup(self.model, self.store).row(request, self.schema)
        took = time.perf_counter() - begun
        self.store.close()
        return took


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
    given = common.arguments(__doc__)
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
            for _ in range(TICKS):
                mine["apply"].append(ours.advance())
                one += [ours.one() for _ in range(300)]
                mine["hundred"] += [ours.hundred() for _ in range(20)]
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
        ours.store.close()
        common.say(f"{compared:,} values compared with the offline features: all equal, bit for bit")
        large = Ours(Path(name) / "large", crowd, crowd)
        common.say(f"a state of {crowd:,} keys: built in {large.seconds_to_build:.1f} s")
        opened = statistics.median([large.open() for _ in range(5)])
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
    main()
