"""How hard will the wind blow at this airport? Asked three hours before, in miles an hour."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingRegressor

import tidemill as tm

GUSTS = Path(__file__).parent / "gusts.ndjson"


def new_gusts(taken):
    """Return the gusts after the first ``taken``: any function that can count will do."""
    with GUSTS.open() as lines:
        return [json.loads(line) for number, line in enumerate(lines) if number >= taken]


# Where the data comes from. One speed of 2013 is 1048 mph: the check puts that row into quarantine.
hours = tm.Source(
    "hours", tm.files("hours.csv"), key=("origin", "hour"), event_time="hour", known_at=tm.before("hour", "30d")
)
observations = tm.Source(
    "observations",
    tm.files("observations/*.csv"),
    key=("origin", "observed"),
    event_time="observed",
    known_at=tm.after("observed", "20m"),
    corrected_at="corrected",
    checks=[tm.between("wind_speed", 0, 150), tm.one_of("origin", "EWR", "JFK", "LGA")],
)
gusts = tm.Source(
    "gusts", tm.rows(new_gusts), key=("origin", "observed"), event_time="observed", known_at=tm.after("observed", "20m")
)


@tm.table("trend", key=("origin", "observed"), event_time="observed", known_at=tm.after("observed", "20m"))
def trend(observations):
    """How the pressure changed in three hours, and the wind of the same hour at the other airports."""
    earlier = observations.select(
        "origin", pl.col("observed") + pl.duration(hours=3), pl.col("pressure").alias("pressure_before")
    )
    others = (
        observations.join(observations, on="observed", suffix="_there")
        .filter(pl.col("origin") != pl.col("origin_there"))
        .group_by("origin", "observed")
        .agg(pl.col("wind_speed_there").mean().alias("wind_elsewhere"))
    )
    return (
        observations.join(earlier, on=["origin", "observed"], how="left")
        .join(others, on=["origin", "observed"], how="left")
        .select("origin", "observed", "wind_elsewhere", pressure_change=pl.col("pressure") - pl.col("pressure_before"))
    )


# What the features mean.
now = tm.Latest(
    "now", observations, by="origin", columns=["wind_speed", "wind_dir", "temp", "humid", "pressure"], within="3h"
)
wind = tm.Aggregation(
    "wind",
    observations,
    by="origin",
    features={
        "mean": tm.mean("wind_speed", over=("3h", "6h", "1d")),
        "strongest": tm.max("wind_speed", over=("6h", "1d")),
        "spread": tm.std("wind_speed", over="1d"),
        "calm": tm.mean(pl.col("wind_speed") < 5, over="1d"),
        "rain": tm.sum("precip", over="6h"),
    },
)
change = tm.Latest("change", trend, by="origin", columns=["pressure_change", "wind_elsewhere"], within="3h")
gust = tm.Aggregation(
    "gust", gusts, by="origin", features={"count": tm.count(over="6h"), "strongest": tm.max("gust", over="6h")}
)
calendar = tm.OnDemand(
    "calendar",
    {
        "hour": tm.local("hour", "America/New_York").dt.hour(),
        "day": tm.local("hour", "America/New_York").dt.ordinal_day(),
    },
)


def crane_cost(truth, prediction):
    """Mean cost of an hour: 1 to stop the cranes when more than 18 mph are forecast, 10 if it blows so unforeseen."""
    stopped = prediction > 18
    return float(np.mean(np.where(stopped, 1.0, np.where(truth > 18, 10.0, 0.0))))


model = tm.Model(
    "wind_speed",
    examples=hours,
    asked_at=tm.before("hour", "3h"),
    label=tm.Label(observations, "wind_speed", within="4h", settle="2d", on={"observed": "hour"}),
    features=[now, wind, change, gust, calendar, "origin"],
    estimator=HistGradientBoostingRegressor(
        categorical_features="from_dtype", learning_rate=0.05, max_iter=120, early_stopping=False
    ),
    split=tm.by_time(test="60d", gap="1d", blocks=2),
    metrics=["mae", "rmse", "r2"],
    kpis={"crane_cost": crane_cost},
    slices=["origin"],
    gate=tm.Gate("mae", margin=0.05),
)

system = tm.System(
    "wind",
    model,
    monitor=tm.Monitor(drift=tm.psi(over=0.25), performance=tm.worse_than(0.3), every="7d", window="30d"),
    policy=tm.Policy(retrain=[tm.every("30d"), tm.on_drop(cooldown="14d")], takes="2s"),
    tick="1h",
)
