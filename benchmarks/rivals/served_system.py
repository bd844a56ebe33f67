"""The system that the serving benchmark serves: the pipelines of ``pipeline.py``, and one with features looked up."""

import pipeline
import polars as pl

import tidemill as tm

ROWS = tm.Source("rows", tm.files("rows.parquet"), key="id", event_time="at", known_at=tm.before("at", "30d"))
CAME = tm.Source("came", tm.files("came.parquet"), key="id", event_time="at", known_at="at")

shop = tm.Aggregation(
    "shop",
    CAME,
    by="w0",
    features={
        "rate": tm.mean("y", over=("1d", "7d")),
        "count": tm.count(over=("1d", "7d")),
        "spread": tm.std("n00", over="7d"),
    },
)
street = tm.Aggregation(
    "street",
    CAME,
    by="w4",
    features={
        "rate": tm.mean("y", over=("1d", "7d")),
        "lowest": tm.min("n01", over="7d"),
        "highest": tm.max("n01", over="7d"),
    },
)
clock = tm.OnDemand(
    "clock",
    {
        "hour": pl.col("at").dt.hour(),
        "weekday": pl.col("at").dt.weekday(),
        "both": pl.col("n02") * pl.col("n03"),
    },
)


def model(name, kind, features):
    return tm.Model(
        name,
        examples=ROWS,
        asked_at=tm.before("at", "2h"),
        label=tm.Label(CAME, "y", within="2d"),
        features=features,
        estimator=pipeline.estimator(kind),
        split=tm.by_time(test="15d"),
        metrics=["log_loss"],
    )


plain = [*pipeline.NUMBERS, *pipeline.WORDS]
system = tm.System(
    "bench",
    *(model(kind, kind, plain) for kind in pipeline.KINDS),
    model("looked", "hgb", [*plain, shop, street, clock]),
    endpoint=tm.Endpoint(log="all", durability="batch", load="use"),
    policy=tm.Policy(takes="1s"),
)
