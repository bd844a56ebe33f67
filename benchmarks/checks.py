"""Data checks: 30 declared checks of 5 million rows × 20 columns.

Ours judges each row by the declared checks, with the code that ingest uses, and writes a reason for each row that
fails. The floor is one Polars select, written by hand, that counts the failures of each check. The rivals are Pandera
(Polars backend, lazy, so that it reports every failure) and Pointblank, each in its own environment. All read the same
Parquet file and time the checks alone, on frames in memory. One row in a hundred thousand fails. Each rival is asked
how many failures it found, so that all are known to have done the work.

    python benchmarks/checks.py [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
import numpy as np
import polars as pl

import tidemill as tm
from tidemill.engine.table.contract import normal
from tidemill.engine.table.ingest import to_arrow
from tidemill.engine.table.quality import accept, judge
from tidemill.ports.reader import Batch

AIRPORTS = ("EWR", "JFK", "LGA", "BOS", "SFO", "LAX", "ORD", "DEN")
NUMBERS = [f"f{place}" for place in range(8)]
TEXTS = [f"s{place}" for place in range(4)]
PRESENT = (*NUMBERS[:6], *TEXTS)  # not null

#: The declared checks: 10 not_null, 10 between, 6 one_of, 4 expressions.
CHECKS = (
    tm.not_null(*PRESENT),
    *(tm.between(name, -50, 150) for name in NUMBERS),
    tm.between("i0", 0, 999),
    tm.between("i1", 0, 999),
    *(tm.one_of(name, *AIRPORTS) for name in TEXTS),
    tm.one_of("i2", *range(12)),
    tm.one_of("i3", *range(31)),
    tm.holds("f0 is below f1", pl.col("f0") < pl.col("f1") + 190),
    tm.holds("i0 and i1 are small", pl.col("i0") + pl.col("i1") <= 2000),
    tm.holds("f2 doubled", pl.col("f2") * 2 < 1e4),
    tm.holds("codes have three letters", pl.col("s0").str.len_chars() == 3),
)

#: What one writes by hand: the failures of each check, counted in one select.
BY_HAND = [
    *(pl.col(name).is_null().sum().alias(f"null {name}") for name in PRESENT),
    *((~pl.col(name).is_between(-50, 150)).sum().alias(f"between {name}") for name in NUMBERS),
    *((~pl.col(name).is_between(0, 999)).sum().alias(f"between {name}") for name in ("i0", "i1")),
    *((~pl.col(name).is_in(list(AIRPORTS))).sum().alias(f"one of {name}") for name in TEXTS),
    (~pl.col("i2").is_in(list(range(12)))).sum().alias("one of i2"),
    (~pl.col("i3").is_in(list(range(31)))).sum().alias("one of i3"),
    (~(pl.col("f0") < pl.col("f1") + 190)).sum().alias("a"),
    (~(pl.col("i0") + pl.col("i1") <= 2000)).sum().alias("b"),
    (~(pl.col("f2") * 2 < 1e4)).sum().alias("c"),
    (~(pl.col("s0").str.len_chars() == 3)).sum().alias("d"),
]

#: What both rivals' scripts begin and end with.
_SHARED = """
import gc, json, sys, time
import polars as pl
AIRPORTS = ["EWR", "JFK", "LGA", "BOS", "SFO", "LAX", "ORD", "DEN"]
NUMBERS = [f"f{place}" for place in range(8)]
TEXTS = [f"s{place}" for place in range(4)]
PRESENT = [*NUMBERS[:6], *TEXTS]
frame = pl.read_parquet(sys.argv[1])
"""
_TIMED = """
work(frame.head(1000))
gc.collect()
best = []
for _ in range(2):
    start = time.perf_counter()
    failures = work(frame)
    best.append(time.perf_counter() - start)
print(json.dumps({"seconds": min(best), "failures": failures, "version": version}))
"""

PANDERA = (
    _SHARED
    + """
import pandera
import pandera.polars as pa
version = pandera.__version__
columns = {}
for name in NUMBERS:
    columns[name] = pa.Column(float, pa.Check.in_range(-50, 150), nullable=name not in PRESENT)
columns["i0"] = pa.Column(int, pa.Check.in_range(0, 999), nullable=True)
columns["i1"] = pa.Column(int, pa.Check.in_range(0, 999), nullable=True)
columns["i2"] = pa.Column(int, pa.Check.isin(list(range(12))), nullable=True)
columns["i3"] = pa.Column(int, pa.Check.isin(list(range(31))), nullable=True)
for name in TEXTS:
    columns[name] = pa.Column(str, pa.Check.isin(AIRPORTS), nullable=False)
holds = [
    pa.Check(lambda data: data.lazyframe.select(pl.col("f0") < pl.col("f1") + 190)),
    pa.Check(lambda data: data.lazyframe.select(pl.col("i0") + pl.col("i1") <= 2000)),
    pa.Check(lambda data: data.lazyframe.select(pl.col("f2") * 2 < 1e4)),
    pa.Check(lambda data: data.lazyframe.select(pl.col("s0").str.len_chars() == 3)),
]
schema = pa.DataFrameSchema(columns, checks=holds)
def work(frame):
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        return error.failure_cases.height
    return 0
"""
    + _TIMED
)

POINTBLANK = (
    _SHARED
    + """
import pointblank as pb
version = pb.__version__
def work(frame):
    plan = pb.Validate(frame).col_vals_not_null(PRESENT).col_vals_between(NUMBERS, -50, 150, na_pass=True)
    plan = plan.col_vals_between(["i0", "i1"], 0, 999, na_pass=True)
    plan = plan.col_vals_in_set(TEXTS, AIRPORTS)
    plan = plan.col_vals_in_set("i2", list(range(12))).col_vals_in_set("i3", list(range(31)))
    plan = plan.col_vals_expr(pl.col("f0") < pl.col("f1") + 190).col_vals_expr(pl.col("i0") + pl.col("i1") <= 2000)
    plan = plan.col_vals_expr(pl.col("f2") * 2 < 1e4).col_vals_expr(pl.col("s0").str.len_chars() == 3)
    done = plan.interrogate(get_first_n=1)
    return int(sum(done.n_failed().values()))
"""
    + _TIMED
)


def make(rows: int) -> pl.DataFrame:
    """Return the rows: 8 numbers, 6 whole numbers, 4 texts, a truth value, a time."""
    chance = np.random.default_rng(7)
    columns: dict[str, object] = {name: chance.normal(50, 10, rows) for name in NUMBERS}
    columns["i0"], columns["i1"] = chance.integers(0, 1000, rows), chance.integers(0, 1000, rows)
    columns["i2"], columns["i3"] = chance.integers(0, 12, rows), chance.integers(0, 31, rows)
    columns["i4"], columns["id"] = chance.integers(0, 2**40, rows), np.arange(rows)
    codes = pl.Series(AIRPORTS)
    columns |= {name: codes.gather(chance.integers(0, len(AIRPORTS), rows)) for name in TEXTS}
    columns["ok"] = chance.random(rows) < 0.5
    frame = pl.DataFrame(columns)
    start = pl.lit(1_700_000_000_000_000) + pl.int_range(pl.len()) * 1000
    frame = frame.with_columns(start.cast(pl.Datetime("us", "UTC")).alias("at"))
    odd = pl.Series(chance.random(rows) < 1e-5)
    return frame.with_columns(
        pl.when(odd).then(200.0).otherwise("f7").alias("f7"),
        pl.when(odd.shift(1)).then(None).otherwise("f3").alias("f3"),
        pl.when(odd.shift(2)).then(pl.lit("XXX")).otherwise("s1").alias("s1"),
    )


def main() -> None:
    """Run the benchmark."""
    options = common.arguments(__doc__, rows=5_000_000)
    rows = 500_000 if options.quick else options.rows
    rivals = {
        "pandera": (common.rival("pandera", "pandera[polars]>=0.26", "polars"), PANDERA),
        "pointblank": (common.rival("pointblank", "pointblank[pl]>=0.13"), POINTBLANK),
    }
    path = common.cache() / f"checks-{rows}.parquet"
    if not path.exists():
        make(rows).write_parquet(path)
    frame = pl.read_parquet(path)

    source = tm.Source("rows", tm.push(), key="id", event_time="at", checks=CHECKS)
    contract = {name: normal(dtype) for name, dtype in frame.schema.items()}
    batch = Batch(to_arrow(frame), "")
    failed = judge(frame, CHECKS)
    assert len(failed) - failed.null_count() == sum(frame.select(BY_HAND).row(0))  # each odd row fails one check

    found: dict[str, dict[str, float]] = {}

    def ask(name: str) -> float:
        python, script = rivals[name]
        found[name] = common.ask(python, script, str(path))
        return float(found[name]["seconds"])

    common.say(f"{rows:,} rows × {frame.width} columns, {len(BY_HAND)} checks")
    rounds = 3 if options.quick else 5
    close = common.medians(
        common.alternate(
            {
                "ours": lambda: common.seconds(lambda: judge(frame, CHECKS)),
                "polars": lambda: common.seconds(lambda: frame.select(BY_HAND)),
                "ingest": lambda: common.seconds(
                    lambda: accept(source, batch, contract, tick=0, history=False, seen=frozenset())
                ),
            },
            rounds=2 * rounds + 1,
        )
    )
    far = common.medians(
        common.alternate(
            {
                "ours": lambda: min(common.seconds(lambda: judge(frame, CHECKS)) for _ in range(2)),  # as the rivals
                **{name: (lambda name=name: ask(name)) for name in rivals},
            },
            rounds=rounds,
            warm=0,
        )
    )
    for name, each in found.items():
        common.say(f"{name} {each['version']}: {far[name]:.3f} s, {each['failures']} failures found")
    common.finish(
        "checks",
        common.goal(close["ours"], close["polars"], 1.3),
        quick=options.quick,
        others={name: common.goal(far["ours"], far[name], 2, holds=">=", of="rival / ours") for name in rivals},
        rows=rows,
        ingest={"seconds": round(close["ingest"], 4), "over polars": round(close["ingest"] / close["polars"], 3)},
        versions={
            "polars": pl.__version__,
            "python": sys.version.split()[0],
            **{n: e["version"] for n, e in found.items()},
        },
        data=str(Path(path).name),
    )


if __name__ == "__main__":
    main()
