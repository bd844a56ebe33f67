"""Will this flight land more than 15 minutes late? Asked two hours before departure."""

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier

import tidemill as tm

# Where the data comes from. A second row of a key is a correction; a row counts once it is known.
schedules = tm.Source(
    "schedules",
    tm.files("schedules/*.csv"),
    key="flight_id",
    event_time="scheduled",
    known_at=tm.before("scheduled", "30d"),
)
arrivals = tm.Source(
    "arrivals",
    tm.files("arrivals/*.csv"),
    key="flight_id",
    event_time="landed",
    known_at="reported",
    checks=[tm.not_null("carrier", "origin"), tm.between("arr_delay", -120, 2000)],
)
weather = tm.Source(
    "weather",
    tm.files("weather/*.csv"),
    key=("origin", "observed"),
    event_time="observed",
    known_at=tm.after("observed", "1h"),
    checks=[tm.between("wind_speed", 0, 200)],
)
planes = tm.Source("planes", tm.files("planes.csv"), key="tailnum")  # static: no event time

# What the features mean. A window ends when the question is asked.
carrier = tm.Aggregation(
    "carrier",
    arrivals,
    by="carrier",
    features={
        "delay": tm.mean("arr_delay", over=("6h", "1d", "7d")),  # carrier__delay_6h, carrier__delay_1d, …
        "late": tm.mean(pl.col("arr_delay") > 15, over="1d"),
        "landed": tm.count(over="1d"),
    },
)
dest = tm.Aggregation("dest", arrivals, by="dest", features={"delay": tm.mean("arr_delay", over=("6h", "1d"))})
sky = tm.Latest("sky", weather, by="origin", columns=["temp", "wind_speed", "precip", "visib"], within="3h")
plane = tm.Latest("plane", planes, by="tailnum", columns=["year", "seats", "engine"])
calendar = tm.OnDemand(
    "calendar",
    {
        "hour": tm.local("scheduled", "America/New_York").dt.hour(),  # on New York's clocks, not UTC
        "weekday": tm.local("scheduled", "America/New_York").dt.weekday(),
    },
)


def rebooking_cost(truth, prediction):
    """Mean cost per flight in dollars: 20 to rebook a flight called late, 100 for a late one that was not called."""
    called = prediction > 0.3
    return float(np.mean(np.where(called, 20.0, np.where(truth > 0, 100.0, 0.0))))


late = tm.Model(
    "late_arrival",
    examples=schedules, asked_at=tm.before("scheduled", "2h"),
    label=tm.Label(arrivals, pl.col("arr_delay") > 15, within="2d", otherwise=None),
    features=[carrier, dest, sky, plane, calendar, "carrier", "origin", "dest", "distance"],
    estimator=HistGradientBoostingClassifier(categorical_features="from_dtype", early_stopping=False),
    split=tm.by_time(test="30d", gap="1d", blocks=2), metrics=["log_loss", "roc_auc", "brier"],
    kpis={"rebooking_cost": rebooking_cost}, slices=["origin"],
    gate=tm.Gate("log_loss", confidence=0.95, margin=0.005),
)  # fmt: skip

system = tm.System(
    "flights", late,
    endpoint=tm.Endpoint(log="all"),
    monitor=tm.Monitor(drift=tm.psi(over=0.25), performance=tm.worse_than(0.02), window="28d"),
    policy=tm.Policy(retrain=[tm.every("30d"), tm.on_drop(cooldown="14d")], window="all"),
    tick="2h",
)  # fmt: skip
