"""Windows: 10M events of 200k keys, 1M questions, eight aggregates over four windows, against Polars and DuckDB.

Ours: the kernel of training sets, from event and question columns to 32 columns; the rivals as one would write them.
Polars computes rolling aggregates at every event and joins the last ones as of the question, which leaves out that old
events drop out between the last event and the question: it does less than is asked. DuckDB joins each question with the
events of its widest window and filters the aggregates. Values are compared where both are defined alike.

Beside it, ours alone: with 2 % late by up to a day and 0.5 % corrected, which neither rival's query takes into account;
one hot key with a million events and questions; and, at full size, the training set of a project whose lake holds 100M
events, partition by partition as ``tidemill`` builds it, for the memory that it takes. Users of one partition in a
thousand are computed again in one piece, and must have the same bits.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

DAY = 86_400_000_000
SPAN = 90 * DAY
WIDTHS = {"1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY, "90d": 90 * DAY}
PER_QUESTION = 2.0  # µs
HOT = 100.0  # ns for each event and question, and feature
MANY = 100_000_000  # events of the training set
PEAK = 6_000.0  # MB for it


def make(folder: Path, events: int, keys: int, questions: int) -> None:
    """Write the Parquet files of events (in order of time) and questions."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(11)
    pl.DataFrame(
        {
            "key": rng.integers(0, keys, events),
            "time": np.sort(2 * rng.integers(0, SPAN // 2, events)),  # questions come at odd times: none meet
            "amount": np.round(rng.gamma(2.0, 20.0, events), 2),
            "shop": rng.integers(0, 50, events),
        }
    ).write_parquet(folder / "events.parquet")
    pl.DataFrame(
        {
            "question": np.arange(questions),
            "key": rng.integers(0, keys, questions),
            "t": 2 * rng.integers(SPAN // 6, SPAN // 2, questions) + 1,
        }
    ).write_parquet(folder / "questions.parquet")


def ours(folder: Path, out: str, kind: str) -> dict[str, float]:
    """Return seconds of making the index, of answering, and the peak of memory in MB, for events of one ``kind``."""
    import numpy as np
    import polars as pl

    from tidemill.kernels.aggregate import Feature, Rows, Value, aggregate
    from tidemill.kernels.index import index

    events, questions = pl.read_parquet(folder / "events.parquet"), pl.read_parquet(folder / "questions.parquet")
    group, happened, t, asked = (
        column.to_numpy() for column in (events["key"], events["time"], questions["t"], questions["key"])
    )
    amounts, shops = Value(events["amount"].to_numpy()), Value(events["shop"].cast(pl.UInt32).to_numpy(), None, 50)
    start, end = happened, np.full(len(happened), 2**63 - 1)
    if kind != "clean":
        rng = np.random.default_rng(12)
        late, corrected = rng.random(len(happened)) < 0.02, rng.random(len(happened)) < 0.005
        start = happened + np.where(late, rng.integers(0, DAY, len(happened)), 0)
        end = np.where(corrected, start + rng.integers(1, 10 * DAY, len(happened)), end)
    groups = int(max(group.max(), asked.max())) + 1
    if kind == "hot":
        group, asked, groups = np.zeros_like(group), np.zeros_like(asked), 1
    seq = np.arange(len(happened))
    rows = Rows(group, groups, happened, start, seq, start, end)
    features = [
        Feature(function, place, width)  # type: ignore[arg-type]
        for function, place in (
            ("count", 0), ("sum", 1), ("mean", 1), ("std", 1), ("min", 1), ("max", 1), ("last", 1), ("n_unique", 2),
        )
        for width in WIDTHS.values()
    ]  # fmt: skip
    begun = time.perf_counter()
    order = index(group, groups, happened, start, seq)
    indexed = time.perf_counter() - begun
    begun = time.perf_counter()
    answers = aggregate(rows, [Value(None), amounts, shops], features, asked, t, order=order)
    took = time.perf_counter() - begun
    if out:
        names = [
            f"{function}_{width}"
            for function in ("count", "sum", "mean", "std", "min", "max", "last", "n_unique")
            for width in WIDTHS
        ]
        frame = pl.DataFrame(dict(zip(names, answers, strict=True))).with_columns(questions["question"])
        frame = frame.with_columns(
            events["amount"].gather(pl.Series(frame[name]).set(frame[name] < 0, None)).alias(name)
            for name in names
            if name.startswith("last")
        )
        frame.fill_nan(None).write_parquet(out)
    return {"index": indexed, "seconds": took, "peak": common.peak()}


POLARS = """
import json, sys, time, polars as pl
folder, out, widths = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
events, questions = pl.read_parquet(folder + "/events.parquet"), pl.read_parquet(folder + "/questions.parquet")
events = events.with_columns(pl.col("time").cast(pl.Datetime("us")))
questions = questions.with_columns(pl.col("t").cast(pl.Datetime("us")))
begun = time.perf_counter()
ordered = events.sort("key", "time")
made = [ordered.select("key", "time")]
for width in widths:
    made.append(
        ordered.rolling("time", period=width, closed="right", group_by="key").agg(
            pl.len().alias(f"count_{width}"), pl.col("amount").sum().alias(f"sum_{width}"),
            pl.col("amount").mean().alias(f"mean_{width}"), pl.col("amount").std().alias(f"std_{width}"),
            pl.col("amount").min().alias(f"min_{width}"), pl.col("amount").max().alias(f"max_{width}"),
            pl.col("amount").last().alias(f"last_{width}"), pl.col("shop").n_unique().alias(f"n_unique_{width}"),
        ).drop("key", "time")
    )
rolled = pl.concat(made, how="horizontal").sort("time")
answer = questions.sort("t").join_asof(
    rolled, left_on="t", right_on="time", by="key", strategy="backward", allow_exact_matches=False
).sort("question")
took = time.perf_counter() - begun
print(json.dumps({"seconds": took, "rows": answer.height}))
"""

DUCKDB = """
import json, sys, time, duckdb
folder, out, widths = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
base = duckdb.connect()
base.execute(f"create table events as from '{folder}/events.parquet'")
base.execute(f"create table questions as from '{folder}/questions.parquet'")
columns = []
for function, call in (("count", "count(e.time)"), ("sum", "sum(e.amount)"), ("mean", "avg(e.amount)"),
                       ("std", "stddev_samp(e.amount)"), ("min", "min(e.amount)"), ("max", "max(e.amount)"),
                       ("last", "arg_max(e.amount, e.time)"), ("n_unique", "count(distinct e.shop)")):
    columns += [f"{call} filter (e.time >= q.t - {micros}) as {function}_{name}" for name, micros in widths.items()]
begun = time.perf_counter()
base.execute(f'''create table answer as select q.question, {", ".join(columns)} from questions q
    left join events e on e.key = q.key and e.time < q.t and e.time >= q.t - {max(widths.values())}
    group by q.question''')
took = time.perf_counter() - begun
base.execute(f"copy (from answer order by question) to '{out}' (format parquet)")
print(json.dumps({"seconds": took}))
"""


SYSTEM = """
import polars as pl
import tidemill as tm
from sklearn.linear_model import LogisticRegression

visits = tm.Source("visits", tm.files("visits/*.parquet"), key="visit", event_time="time")
orders = tm.Source("orders", tm.files("orders/*.parquet"), key="visit", event_time="ordered")
events = tm.Source("events", tm.files("events/*.parquet"), key="event", event_time="time")
history = tm.Aggregation("history", events, by="user", features={
    "n": tm.count(over=("1d", "30d")), "mean": tm.mean("amount", over=("1d", "30d")),
    "std": tm.std("amount", over="30d"), "max": tm.max("amount", over="30d"), "last": tm.last("amount", over="30d"),
})
buys = tm.Model("buys", examples=visits, asked_at="time",
    label=tm.Label(orders, pl.col("bought"), within="1h"), features=[history], estimator=LogisticRegression())
system = tm.System("shop", buys)
"""


def fill(folder: Path, events: int, users: int, questions: int) -> None:
    """Make the project: its declaration, and a lake of so many events, 0.5 % of them corrected, and of questions."""
    import numpy as np
    import polars as pl

    import tidemill as tm
    from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
    from tidemill.ports.lake import Commit
    from tidemill.testing.lake_suite import GivenFence

    folder.mkdir(parents=True)
    (folder / "system.py").write_text(SYSTEM)
    lake, rng, fence, utc = (
        tm.open(folder).workspace.lake,
        np.random.default_rng(13),
        GivenFence(),
        pl.Datetime("us", "UTC"),
    )

    def append(table: str, first: int, columns: dict[str, Any], known: Any) -> int:
        frame = pl.DataFrame(columns)
        system: dict[str, Any] = {
            KNOWN_AT: pl.Series(known).cast(utc), SEQ: np.arange(first, first + frame.height),
            TOMBSTONE: pl.repeat(value=False, n=frame.height, eager=True), TICK: pl.Series(known).cast(utc),
            HISTORY: pl.repeat(value=True, n=frame.height, eager=True),
        }  # fmt: skip
        rows = frame.with_columns(**system)
        last = first + rows.height
        lake.append(
            table, rows.to_arrow(), Commit(table, 0, last, f"{table}-{first}", rows.height, last, None, "{}"), fence
        )
        return last

    chunks = max(1, events // 4_000_000)
    first, step, each = 0, SPAN // chunks, events // chunks
    for chunk in range(chunks):
        happened = np.sort(chunk * step + 2 * rng.integers(0, step // 2, each))
        event, user = chunk * each + np.arange(each), rng.integers(0, users, each)
        amount = np.round(rng.gamma(2.0, 20.0, each), 2)
        again = np.flatnonzero(rng.random(each) < 0.005)  # each corrected within ten days
        rows = np.concatenate((np.arange(each), again))
        known = np.concatenate((happened, happened[again] + rng.integers(1, 10 * DAY, len(again))))
        amount = np.concatenate((amount, np.round(amount[again] * 0.9, 2)))
        columns = {
            "event": event[rows], "user": user[rows], "time": pl.Series(happened[rows]).cast(utc), "amount": amount
        }  # fmt: skip
        first = append("events", first, columns, known)
    asked = 2 * rng.integers(SPAN // 6, SPAN // 2, questions) + 1
    visit = np.arange(questions)
    visits = {"visit": visit, "user": rng.integers(0, users, questions), "time": pl.Series(asked).cast(utc)}
    append("visits", 0, visits, asked - 1)
    orders = {"visit": visit, "ordered": pl.Series(asked + 1).cast(utc), "bought": rng.random(questions) < 0.1}
    append("orders", 0, orders, asked + 1)


def build(folder: Path, out: Path) -> dict[str, float]:
    """Return seconds of building the training set, and the peak of memory in MB."""
    import tidemill as tm

    project = tm.open(folder)
    begun = time.perf_counter()
    made = project.training_set("buys", as_of=2 * SPAN)
    took = time.perf_counter() - begun
    peak = common.peak()
    made.frame.write_parquet(out)
    return {"seconds": took, "peak": peak, "rows": made.frame.height}


def check(folder: Path, out: Path) -> dict[str, int]:
    """Return in how many values of some users the training set differs from one made of their events in one piece."""
    import polars as pl

    import tidemill as tm
    from tidemill.base.schema import SEQ
    from tidemill.engine.example.example import training_set

    project = tm.open(folder)
    lake = project.workspace.lake

    def some(table: str) -> Iterator[pl.DataFrame]:
        head = lake.head(table)
        assert head is not None
        for since in range(0, head.next_seq, 4_000_000):
            frame = pl.DataFrame(lake.scan(table, since=since, limit=4_000_000))
            yield frame.filter(pl.col("user") % 1000 == 7) if "user" in frame.columns else frame

    tables = {name: pl.concat(some(name)).sort(SEQ) for name in ("events", "visits", "orders")}
    want = training_set(project.declared_model("buys"), tables, 2 * SPAN).frame
    got = want.select("visit").join(pl.read_parquet(out), on="visit", how="left", maintain_order="left")
    values = [name for name in want.columns if name != "visit"]
    wrong = sum(int(want[name].ne_missing(got[name]).sum()) for name in values)
    return {"rows": want.height, "differing": wrong}


def differing(mine: Path, theirs: Path) -> int:
    """Return how many values differ by more than rounding: DuckDB's sums and deviations are not exact."""
    import polars as pl

    left, right = pl.read_parquet(mine).sort("question"), pl.read_parquet(theirs).sort("question")
    count = 0
    for name in left.columns:
        a, b = left[name].cast(pl.Float64), right[name].cast(pl.Float64)
        if name.startswith(("n_unique", "count")):
            b = b.fill_null(0)
        close = (a - b).abs() <= 1e-6 * (1 + a.abs())
        count += int((~(close.fill_null(False) | (a.is_null() & b.is_null()))).sum())
    return count


def training_set_of_many(events: int = MANY, questions: int = 1_000_000) -> dict[str, float]:
    """Have the project made, once, and its training set built and checked, each in a process of its own."""
    folder = common.cache() / f"windows-project-{events}"
    project, out = folder / "shop", folder / "built.parquet"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        common.say(f"making a lake of {events:,} events")
        common.ask(sys.executable, Path(__file__), "--fill", str(project), str(events), str(questions))
        (folder / "ready").touch()
    built: dict[str, float] = common.ask(sys.executable, Path(__file__), "--build", str(project), str(out))
    checked = common.ask(sys.executable, Path(__file__), "--check", str(project), str(out))
    common.say(f"training set of {events:,} events: {built['seconds']:,.0f} s, {built['peak']:,.0f} MB; {checked}")
    return {**built, "differing": checked["differing"]}


def main() -> None:
    """Run it."""
    given = common.arguments(__doc__)
    scale = 20 if given.quick else 1
    events, keys, questions = 10_000_000 // scale, 200_000 // scale, 1_000_000 // scale
    polars, duckdb = common.rival("polars", "polars"), common.rival("duckdb", "duckdb")
    folder = common.cache() / f"windows-{events}"
    hot = folder / "hot"
    if not (hot / "questions.parquet").exists():
        hot.mkdir(parents=True, exist_ok=True)
        common.say(f"making {events:,} events of {keys:,} keys and {questions:,} questions")
        make(folder, events, keys, questions)
        make(hot, questions, 1, questions)
    mine, theirs = folder / "ours.parquet", folder / "duckdb.parquet"
    taken: dict[str, dict[str, list[float]]] = {}

    def run(side: str) -> float:
        match side:
            case "polars":
                answer = common.ask(polars, POLARS, str(folder), "", json.dumps(list(WIDTHS)))
            case "duckdb":
                answer = common.ask(duckdb, DUCKDB, str(folder), str(theirs), json.dumps(WIDTHS))
            case _:
                place, out = (hot, "") if side == "hot" else (folder, str(mine) if side == "clean" else "")
                answer = common.ask(sys.executable, Path(__file__), "--ours", str(place), out, side)
        for name, figure in answer.items():
            taken.setdefault(side, {}).setdefault(name, []).append(figure)
        common.say(f"{side}: {', '.join(f'{name} {figure:,.2f}' for name, figure in answer.items())}")
        return float(answer["seconds"] + answer.get("index", 0.0))

    sides = ("clean", "late", "hot", "polars", "duckdb")
    rounds = common.alternate({side: lambda side=side: run(side) for side in sides}, rounds=3, warm=0)  # type: ignore[misc]
    figures = common.medians(rounds)
    many = None if given.quick else training_set_of_many()
    medians: dict[str, dict[str, float]] = {side: common.medians(each) for side, each in taken.items()}
    best = min(("polars", "duckdb"), key=figures.__getitem__)
    main = common.goal(figures["clean"], figures[best], 2.0, holds=">=", of="rival / ours")
    others: dict[str, Any] = {
        f"{side}, µs a question": common.goal(1e6 * medians[side]["seconds"] / questions, PER_QUESTION, 1.0)
        for side in ("clean", "late")
    }
    # The hot key has as many events as questions.
    each = 1e9 * medians["hot"]["seconds"] / (2 * questions) / (8 * len(WIDTHS))
    others["hot, ns an event and question, each feature"] = common.goal(each, HOT, 1.0)
    if many is not None:
        others["training set of 100M events, MB"] = common.goal(many["peak"], PEAK, 1.0)
        others["training set of 100M events, MB"]["ok"] &= many["rows"] == questions and many["differing"] == 0
    wrong = differing(mine, theirs)
    main["ok"] = bool(main["ok"] and not wrong)
    common.finish(
        "windows", main, quick=given.quick, best=best, others=others, differing=wrong,
        index_us_an_event=round(1e6 * medians["clean"]["index"] / events, 4), peak_mb=round(medians["clean"]["peak"]),
        seconds={side: round(figure, 3) for side, figure in figures.items()}, many=many,
    )  # fmt: skip


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--ours", folder, out, kind]:
            print(json.dumps(ours(Path(folder), out, kind)))
        case ["--fill", folder, events, questions]:
            fill(Path(folder), int(events), int(events) // 50, int(questions))
            print("{}")
        case ["--build", folder, out]:
            print(json.dumps(build(Path(folder), Path(out))))
        case ["--check", folder, out]:
            print(json.dumps(check(Path(folder), Path(out))))
        case _:
            main()
