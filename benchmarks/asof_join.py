"""As-of joins: a million questions to three tables (5M, 2M and 0.5M rows), against Feast on DuckDB.

Each question asks each table for the newest row of its key that is not older than seven days. Both sides start from the
same Parquet files in a process of their own and end with the joined frame in memory; the values must be the same, and
no question may be lost. Rows come at even microseconds and questions at odd ones, so that none meet: the two sides
differ in whether a row of that very moment counts (ours: it does not).

Feast pairs each question with all rows of its key in those seven days, and then ranks them: what it takes grows with
the rows that a key has. The comparison that decides is where it is at its best: many keys (200 000 users, 10 shops with
20 000 items each), one to three rows of each in seven days. Beside it, one pair of runs with fewer keys, "busy keys":
prices change three times a day.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common

DAY = 86_400_000_000
START = 1_700_000_000_000_000  # microseconds
WITHIN = 7  # days
PEAK = 1_300  # MB


@dataclass(frozen=True)
class Size:
    """A table: its rows, its keys (one column, or two), and its columns of values."""

    name: str
    rows: int
    keys: tuple[tuple[str, int], ...]
    values: int


#: How many shops there are, and how many items in each.
LAYOUTS = {"many keys": (10, 20_000), "busy keys": (100, 2_500)}


def sizes(layout: str, scale: int) -> tuple[Size, ...]:
    """Return the three tables of a layout, divided by ``scale``."""
    shops, items = LAYOUTS[layout]
    return (
        Size("clicks", 5_000_000 // scale, (("user", 200_000 // scale),), 4),
        Size("stock", 2_000_000 // scale, (("shop", shops), ("item", items // scale)), 3),
        Size("prices", 500_000 // scale, (("item", items // scale),), 3),
    )


def make(folder: Path, layout: str, scale: int) -> None:
    """Write the Parquet files of the tables and of the questions."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(7)

    def times(rows: int, odd: int) -> pl.Series:
        micros = START + 2 * rng.integers(0, 60 * DAY // 2, rows) + odd
        return pl.Series(micros).cast(pl.Datetime("us", "UTC"))

    for table in sizes(layout, scale):
        columns: dict[str, Any] = {key: rng.integers(0, many, table.rows) for key, many in table.keys}
        columns["event_timestamp"] = times(table.rows, 0)
        columns |= {f"{table.name}_{place}": rng.normal(size=table.rows) for place in range(table.values)}
        # One row a key and time, so that both sides agree on which is the newest.
        unique = pl.DataFrame(columns).unique([*(key for key, _ in table.keys), "event_timestamp"], maintain_order=True)
        unique.write_parquet(folder / f"{table.name}.parquet")
    rows = 1_000_000 // scale
    keys = {key: many for table in sizes(layout, scale) for key, many in table.keys}
    asked = {key: rng.integers(0, many + many // 50 + 1, rows) for key, many in keys.items()}  # some keys are unknown
    pl.DataFrame({"question": np.arange(rows), **asked, "event_timestamp": times(rows, 1)}).write_parquet(
        folder / "questions.parquet"
    )


def ours(folder: Path, layout: str, scale: int, out: Path) -> dict[str, float]:
    """Join with the feature engine, as a training set is; return seconds and the peak of memory in MB."""
    import polars as pl

    import tidemill as tm
    from tidemill.base.schema import KNOWN_AT, SEQ, TOMBSTONE
    from tidemill.engine.feature.feature import compute

    begun = time.perf_counter()
    questions = pl.read_parquet(folder / "questions.parquet")
    asked = questions["event_timestamp"].to_physical().to_numpy()
    found = [questions]
    for table in sizes(layout, scale):
        keys = tuple(key for key, _ in table.keys)
        file = folder / f"{table.name}.parquet"
        source = tm.Source(
            table.name, tm.files(file.name), key=(*keys, "event_timestamp"), event_time="event_timestamp"
        )
        columns = [f"{table.name}_{place}" for place in range(table.values)]
        view = tm.Latest(table.name, source, by=keys, columns=columns, within=f"{WITHIN}d")
        rows = (
            pl.read_parquet(file)
            .rechunk()  # as a scan of the lake comes
            .with_row_index(SEQ)
            .with_columns(
                pl.col(SEQ).cast(pl.Int64), pl.col("event_timestamp").alias(KNOWN_AT), pl.lit(False).alias(TOMBSTONE)
            )
        )
        found.append(compute(view, rows, questions, asked))
        del rows
    joined = pl.concat(found, how="horizontal")
    took = time.perf_counter() - begun
    joined.rename(
        {f"{t.name}__{t.name}_{p}": f"{t.name}_{p}" for t in sizes(layout, scale) for p in range(t.values)}
    ).write_parquet(out)
    return {"seconds": took, "peak": common.peak()}


FEAST = """
import json, re, sys, time, pathlib, datetime
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.repo_config import RegistryConfig
from feast.types import Float64
from feast.value_type import ValueType

folder, sizes, within, out = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
config = RepoConfig(project="bench", provider="local", registry=RegistryConfig(path=str(folder / "registry.db")),
                    offline_store={"type": "duckdb"}, online_store=None, entity_key_serialization_version=3)
store = FeatureStore(config=config)
entities = {key: Entity(name=key, join_keys=[key], value_type=ValueType.INT64)
            for name, keys, values in sizes for key in keys}
views = [
    FeatureView(
        name=name, entities=[entities[key] for key in keys], ttl=datetime.timedelta(days=within), online=False,
        schema=[Field(name=f"{name}_{place}", dtype=Float64) for place in range(values)],
        source=FileSource(path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp"),
    )
    for name, keys, values in sizes
]
store.apply([*entities.values(), *views])
begun = time.perf_counter()
questions = pd.read_parquet(folder / "questions.parquet")
joined = store.get_historical_features(
    questions, [f"{name}:{name}_{place}" for name, keys, values in sizes for place in range(values)]
).to_df()
took = time.perf_counter() - begun
joined.to_parquet(out)
peak = int(re.findall(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[0]) / 1024
print(json.dumps({"seconds": took, "peak": peak}))
"""


def same(mine: Path, theirs: Path, rows: int) -> dict[str, int]:
    """Return how many questions each side kept, and in how many values the kept ones differ."""
    import polars as pl

    left = pl.read_parquet(mine).sort("question")
    right = (
        pl.read_parquet(theirs).select(left.columns).with_columns(pl.col(pl.Float64).fill_nan(None)).sort("question")
    )
    values = [column for column, dtype in left.schema.items() if dtype == pl.Float64]
    both = left.join(right, on="question", suffix="_theirs", how="inner")
    differing = sum(int(both[column].ne_missing(both[f"{column}_theirs"]).sum()) for column in values)
    return {"asked": rows, "ours": left.height, "theirs": right["question"].n_unique(), "differing": differing}


@dataclass(frozen=True)
class Comparison:
    """Medians of seconds, peaks in MB, and what ``same`` returned."""

    seconds: dict[str, float]
    peak: dict[str, float]
    values: dict[str, int]

    def goal(self) -> dict[str, Any]:
        """Return what is compared: it is met when the values are the same and no question is lost, too."""
        goal = common.goal(self.seconds["ours"], self.seconds["feast"], 4.0, holds=">=", of="rival / ours")
        kept = self.values["ours"] == self.values["asked"] and self.values["differing"] == 0
        return {**goal, "ok": bool(goal["ok"] and kept and self.peak["ours"] <= PEAK)}


def compare(feast: Path, layout: str, scale: int, *, rounds: int, warm: int) -> Comparison:
    """Make the tables of a layout and have both sides join them in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = sizes(layout, scale)
        common.say(f"{layout}: making tables of {', '.join(f'{table.rows:,}' for table in tables)} rows")
        make(folder, layout, scale)
        shape = json.dumps([[table.name, [key for key, _ in table.keys], table.values] for table in tables])
        peak = {"ours": 0.0, "feast": 0.0}

        def run(side: str) -> float:
            mine = [str(folder), layout, str(scale), str(folder / "ours.parquet")]
            theirs = [str(folder), shape, str(WITHIN), str(folder / "feast.parquet")]
            answer = (
                common.ask(sys.executable, Path(__file__), "--ours", *mine)
                if side == "ours"
                else common.ask(feast, FEAST, *theirs, env={"FEAST_USAGE": "False"})
            )
            peak[side] = max(peak[side], answer["peak"])
            common.say(f"{layout}, {side}: {answer['seconds']:.2f} s, {answer['peak']:,.0f} MB")
            return float(answer["seconds"])

        sides = {side: partial(run, side) for side in peak}
        seconds = common.medians(common.alternate(sides, rounds=rounds, warm=warm))
        values = same(folder / "ours.parquet", folder / "feast.parquet", 1_000_000 // scale)
        return Comparison(seconds, peak, values)


def main() -> None:
    """Run it."""
    given = common.arguments(__doc__)
    scale = 10 if given.quick else 1
    feast = common.rival("feast", "feast[duckdb]==0.67.0", "duckdb<3")
    many = compare(feast, "many keys", scale, rounds=3, warm=1)
    busy = compare(feast, "busy keys", scale, rounds=1, warm=0)
    common.finish(
        "asof_join", many.goal(), quick=given.quick, values=many.values, peak_goal_mb=PEAK,
        peak_mb={side: round(peak) for side, peak in many.peak.items()}, others={"busy keys": busy.goal()},
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        print(json.dumps(ours(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))))
    else:
        main()
