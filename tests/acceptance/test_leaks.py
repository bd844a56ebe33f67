"""Every leak known of the flights is planted, and each is refused, warned about, or cannot show.

Measured on the whole year, honest features two hours ahead reach an AUC of 0.77 at most; a random split pretends 0.79,
an encoding over the whole year 0.79, the mean of the same hour 0.80, the delay of departure 0.92. What catches each:

===================================  =================================================================
random split                         the split's warning "overlap", kept with the model's judgement
whole-year encoding                  a table: the cut test of ``check``; a table without times: never visible
                                     to the past; an expression over other rows: ``check``
same-hour mean                       a table: the cut test; a column made elsewhere: the warning "giveaway"
departure delay                      the warning "giveaway"; as it arrives: not visible before it is known
closed window, the current event     cannot be declared, and is not visible: windows are [t - w, t)
the label's columns                  ``check`` when they are in the example's row; else not visible
===================================  =================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

import tidemill as tm
from tidemill.base.clock import DAY, HOUR, parse_time
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.cli.flights import feeds
from tidemill.cli.main import main
from tidemill.engine.check.check import check
from tidemill.engine.evaluate.split import DataWarning, segregate
from tidemill.engine.example.example import training_set
from tidemill.engine.feature.feature import features
from tidemill.engine.table.derive import cut_test, replay
from tidemill.engine.train.train import Order, Trained, train
from tidemill.spec.feature import View
from tidemill.spec.model import Label, Model
from tidemill.spec.source import Source, Table

NOW = parse_time("2013-05-01")

schedules = Source(
    "schedules", tm.files("schedules/*.csv"), key="flight_id", event_time="scheduled",
    known_at=tm.before("scheduled", "30d"),
)  # fmt: skip
arrivals = Source("arrivals", tm.files("arrivals/*.csv"), key="flight_id", event_time="landed", known_at="reported")
carrier = tm.Aggregation("carrier", arrivals, by="carrier", features={"delay": tm.mean("arr_delay", over=("6h", "1d"))})
calendar = tm.OnDemand("calendar", {"hour": tm.local("scheduled", "America/New_York").dt.hour()})
HONEST: tuple[View | str, ...] = (carrier, calendar, "carrier", "origin", "distance")


def stamped(rows: pl.DataFrame, known: pl.Expr | pl.Series) -> pl.DataFrame:
    """Return ``rows`` as the lake holds history."""
    return rows.with_columns(known.alias(KNOWN_AT)).with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQ),
        pl.lit(value=False).alias(TOMBSTONE),
        pl.col(KNOWN_AT).alias(TICK),
        pl.lit(value=True).alias(HISTORY),
    )


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    """Return the flights of March and April 2013."""
    span = pl.col("scheduled").is_between(
        pl.datetime(2013, 3, 1, time_zone="UTC"), pl.datetime(2013, 5, 1, time_zone="UTC")
    )
    return feeds.read_flights().filter(span)


@pytest.fixture(scope="module")
def tables(flights: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return both feeds of every fifth flight, and with each schedule what must not be there."""
    late = (pl.col("arr_delay") > 15).cast(pl.Float64)
    hour = pl.col("scheduled").dt.truncate("1h")
    planted = flights.with_columns(
        same_hour=late.mean().over("origin", hour),
        whole_year=late.mean().over("carrier", "flight", "origin", "dest"),
        landed_late=(pl.col("arr_delay") + 3).cast(pl.Float64),
    ).filter(pl.col("flight") % 5 == 0)
    timetable = feeds.scheduled(planted).join(
        planted.select("flight_id", "dep_delay", "same_hour", "whole_year", "landed_late"),
        on="flight_id",
        maintain_order="left",
    )
    return {
        "schedules": stamped(timetable, pl.col("scheduled") - pl.duration(days=30)),
        "arrivals": stamped(feeds.arrived(planted), pl.col("reported")),
    }


def model(*planted: View | str, **changed: Any) -> Model:
    declared: dict[str, Any] = {
        "examples": schedules,
        "asked_at": tm.before("scheduled", "2h"),
        "label": Label(arrivals, pl.col("arr_delay") > 15, within="2d"),
        "features": [*HONEST, *planted],
        "estimator": HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=15),
        "split": tm.by_time(test="14d", gap="1d"),
        "metrics": ["roc_auc"],
    }
    return Model("late", **{**declared, **changed})


def trained(declared: Model, tables: dict[str, pl.DataFrame]) -> Trained:
    order = Order(declared.name, "t", "first", NOW, None, {name: rows.height for name, rows in tables.items()}, None)
    with threadpool_limits(1):
        return train(declared, tables, order, None, lambda _: None)


def warned(made: Trained, kind: str) -> list[str]:
    return [each["what"] for each in made.judged["warnings"] if each["kind"] == kind]


def auc(made: Trained) -> float:
    return float(made.judged["metrics"]["roc_auc"]["value"])


def faults(declared: Model, schemas: dict[str, Any] | None = None) -> list[str]:
    return [str(fault) for fault in check(tm.System("flights", declared), schemas)]


# The control: the honest system is neither refused nor warned about.


def test_the_honest_system_passes(tables: dict[str, pl.DataFrame]) -> None:
    declared = model()
    schemas = {name: {k: v for k, v in rows.schema.items() if not k.startswith("_")} for name, rows in tables.items()}
    assert faults(declared, schemas) == []
    made = trained(declared, tables)
    assert not warned(made, "overlap")
    assert not warned(made, "giveaway")
    assert not warned(made, "label_used")
    assert auc(made) < 0.75


# Random split


def test_a_random_split_is_warned_about(tables: dict[str, pl.DataFrame]) -> None:
    """The only random split of a model is by key; judged by it, the future explains the past, and it says so."""
    made = trained(model(split=tm.by_key(test=0.25, seed=1)), tables)
    (what,) = warned(made, "overlap")
    assert "rows of 'train' were asked at or after" in what
    assert "the future explains the past" in what


def test_a_random_split_of_a_frame_is_warned_about(tables: dict[str, pl.DataFrame]) -> None:
    frame = training_set(model(), tables, NOW).frame
    parts = segregate(frame, {"train": 0.8, "test": 0.2}, by="key", key=["flight_id"], seed=1)
    assert _kinds(parts.warnings) == {"overlap"}
    parts = segregate(frame, {"train": 0.8, "test": 0.2}, by="time", label="_label")
    assert "overlap" not in _kinds(parts.warnings)


def _kinds(found: tuple[DataWarning, ...]) -> set[str]:
    return {each.kind for each in found}


# Whole-year target encoding


def whole_year(arrivals: pl.LazyFrame) -> pl.LazyFrame:
    """The share of late landings of each flight's carrier, over all the data there is."""
    return arrivals.select(
        "flight_id", "carrier", "landed", "reported", usual=(pl.col("arr_delay") > 15).mean().over("carrier")
    )


def derived(function: Any, **declared: Any) -> Table:
    return Table(
        function.__name__, function, tuple(declared["key"]), declared.get("event_time"), declared.get("known_at"),
        False, (arrivals,),
    )  # fmt: skip


def test_a_whole_year_encoding_fails_the_cut_test(tables: dict[str, pl.DataFrame]) -> None:
    table = derived(whole_year, key=["flight_id"], event_time="landed", known_at="reported")
    few = {"arrivals": tables["arrivals"].filter(pl.col("carrier") == "WN")}
    fault = cut_test(table, few, [parse_time("2013-03-20"), parse_time("2013-04-10")])
    assert fault is not None
    assert fault.where == "table 'whole_year'"
    assert fault.what.startswith(
        "its rows depend on what was not known yet: at 2013-03-20T00:00:00Z 'usual' of the row"
    )
    assert "declare a later known_at" in fault.do


def test_check_refuses_a_whole_year_encoding(tmp_path: Path, tables: dict[str, pl.DataFrame]) -> None:
    """As a user meets it: ``tidemill check`` over the files, exit 1."""
    (tmp_path / "arrivals").mkdir()
    few = tables["arrivals"].filter(pl.col("carrier") == "WN").unique("flight_id", keep="first", maintain_order=True)
    few.select("flight_id", "carrier", "landed", "reported", "arr_delay").write_csv(tmp_path / "arrivals" / "all.csv")
    (tmp_path / "system.py").write_text(_WHOLE_YEAR)
    result = CliRunner().invoke(main, ["check", "--project", str(tmp_path)])
    assert result.exit_code == 1, result.output
    assert "table 'usual'" in result.output
    assert "its rows depend on what was not known yet" in " ".join(result.output.split())


_WHOLE_YEAR = """
import polars as pl
import tidemill as tm
from sklearn.linear_model import LinearRegression

arrivals = tm.Source("arrivals", tm.files("arrivals/*.csv"), key="flight_id", event_time="landed", known_at="reported")

@tm.table("usual", key="flight_id", event_time="landed", known_at="reported")
def usual(arrivals):
    mean = pl.col("arr_delay").mean().over("carrier")
    return arrivals.select("flight_id", "carrier", "landed", "reported", usual=mean)

late = tm.Model("late", examples=arrivals, asked_at=tm.after("reported", "1h"),
    label=tm.Label(arrivals, "arr_delay", within="2d"), estimator=LinearRegression(),
    features=[tm.Latest("usual", usual, by="carrier", columns="usual"), "carrier"])
system = tm.System("flights", late)
"""


def encoded(arrivals: pl.LazyFrame) -> pl.LazyFrame:
    """The same by carrier, without a time: what one would join on by hand."""
    return arrivals.group_by("carrier").agg(usual=(pl.col("arr_delay") > 15).mean())


def test_an_encoding_without_times_does_not_show_in_the_past(tables: dict[str, pl.DataFrame]) -> None:
    """Its rows are known from the day they were computed on, so questions of the past find nothing."""
    table = derived(encoded, key=["carrier"])
    built = replay(table, {"arrivals": tables["arrivals"]}, tick=NOW)
    rows = stamped(built.drop(KNOWN_AT, TOMBSTONE), built[KNOWN_AT])
    assert rows.height > 10
    made = training_set(
        model(tm.Latest("usual", table, by="carrier", columns="usual")), {**tables, "encoded": rows}, NOW
    )
    assert made.frame.height > 5_000
    assert made.frame["usual__usual"].null_count() == made.frame.height


def test_an_expression_over_other_rows_is_refused(tables: dict[str, pl.DataFrame]) -> None:
    usual = tm.OnDemand("usual", {"far": pl.col("distance") / pl.col("distance").mean().over("carrier")})
    said = faults(model(usual), {"schedules": dict(tables["schedules"].schema)})
    assert any("'far' depends on other rows of the batch it is computed in" in each for each in said)
    mean = tm.Aggregation(
        "mean",
        arrivals,
        by="carrier",
        features={"x": tm.mean(pl.col("arr_delay") - pl.col("arr_delay").mean(), over="1d")},
    )
    said = faults(model(mean), {"arrivals": dict(tables["arrivals"].schema)})
    assert any("'x' depends on other rows of the batch it is computed in" in each for each in said)


# Same-hour mean


def same_hour(arrivals: pl.LazyFrame) -> pl.LazyFrame:
    """The share of late landings in the hour, at the airport, as of the hour's beginning."""
    hour = pl.col("landed").dt.truncate("1h")
    return arrivals.group_by("origin", hour.alias("hour")).agg(late=(pl.col("arr_delay") > 15).mean())


@pytest.mark.parametrize("known_at", ["hour", tm.after("hour", "30m")])
def test_a_same_hour_mean_fails_the_cut_test(tables: dict[str, pl.DataFrame], known_at: Any) -> None:
    table = derived(same_hour, key=["origin", "hour"], event_time="hour", known_at=known_at)
    fault = cut_test(table, {"arrivals": tables["arrivals"]}, [parse_time("2013-03-20T18:45")])
    assert fault is not None
    assert "its rows depend on what was not known yet: at 2013-03-20T18:45:00Z" in fault.what


def test_a_same_hour_mean_declared_honestly_passes_and_does_not_show(tables: dict[str, pl.DataFrame]) -> None:
    """Known when the last report can have come, it passes, and a question two hours ahead sees no row of its hour."""
    first = {"arrivals": tables["arrivals"].unique("flight_id", keep="first", maintain_order=True)}
    table = derived(same_hour, key=["origin", "hour"], event_time="hour", known_at=tm.after("hour", "151m"))
    assert cut_test(table, first, [parse_time("2013-03-20T18:45"), parse_time("2013-04-02T03:10")]) is None


def test_a_same_hour_mean_made_elsewhere_is_warned_about(tables: dict[str, pl.DataFrame]) -> None:
    made = trained(model("same_hour"), tables)
    (what,) = warned(made, "giveaway")
    assert "feature 'same_hour' by itself orders the labels with an AUC of 0.8" in what


# The delay of departure


def test_the_delay_of_departure_is_warned_about(tables: dict[str, pl.DataFrame]) -> None:
    made = trained(model("dep_delay"), tables)
    (what,) = warned(made, "giveaway")
    assert "feature 'dep_delay' by itself orders the labels with an AUC of 0.8" in what
    assert auc(made) > 0.85  # it would have looked splendid


def test_the_delay_of_departure_as_it_arrives_does_not_show(
    flights: pl.DataFrame, tables: dict[str, pl.DataFrame]
) -> None:
    """Declared as a source of its own, it happens after the question and is not seen by it."""
    departures = Source("departures", tm.files("departures/*.csv"), key="flight_id", event_time="departed")
    rows = flights.select(
        "flight_id", "dep_delay", departed=pl.col("scheduled") + pl.duration(minutes="dep_delay")
    ).drop_nulls()
    own = tm.Latest("own", departures, by="flight_id", columns="dep_delay")
    made = training_set(model(own), {**tables, "departures": stamped(rows, pl.col("departed"))}, NOW)
    assert made.frame["own__dep_delay"].null_count() == made.frame.height


# Closed windows and the current event


def test_windows_cannot_be_closed_on_the_right() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'closed'"):
        tm.mean("arr_delay", over="1d", closed="right")  # type: ignore[call-arg]


def test_the_current_event_is_in_no_window() -> None:
    """Asked at the very microsecond at which a flight lands and is reported: neither its window nor Latest has it."""
    t = parse_time("2013-03-20T18:00")
    landings = pl.DataFrame(
        {
            "flight_id": ["before", "now", "happened before, known now"],
            "carrier": "UA",
            "landed": [t - 1, t, t - HOUR],
            "reported": [t - 1, t, t],
            "arr_delay": [1.0, 100.0, 1000.0],
        }
    ).with_columns(pl.col("landed", "reported").cast(pl.Datetime("us", "UTC")))
    last = tm.Latest("last", arrivals, by="carrier", columns="arr_delay")
    declared = model(last)
    request = pl.DataFrame({"carrier": "UA", "origin": "EWR", "distance": 1, "scheduled": [t]}).with_columns(
        pl.col("scheduled").cast(pl.Datetime("us", "UTC"))
    )
    seen = features(declared, {"arrivals": stamped(landings, pl.col("reported"))}, request, np.array([t]))
    assert seen.row(0, named=True)["carrier__delay_6h"] == 1.0
    assert seen.row(0, named=True)["last__arr_delay"] == 1.0
    later = features(declared, {"arrivals": stamped(landings, pl.col("reported"))}, request, np.array([t + 1]))
    assert later.row(0, named=True)["carrier__delay_6h"] == (1.0 + 100.0 + 1000.0) / 3


def test_a_question_about_the_current_event_is_refused() -> None:
    """Asked when the row itself happens, the row is not known yet: there is nothing to ask about."""
    landed = Source("landed", tm.files("landed/*.csv"), key="flight_id", event_time="landed")
    asked = model(
        examples=landed, asked_at="landed", label=Label(landed, pl.col("late"), within="2d"), features=["carrier"]
    )
    said = faults(asked)
    assert any(
        "is asked at 'landed', but a row of source 'landed' is known at 'landed': no example can exist." in each
        for each in said
    )


# Columns of the label


def test_the_labels_column_in_the_examples_own_row_is_refused() -> None:
    flat = Source(
        "flat", tm.files("flat/*.csv"), key="flight_id", event_time="landed", known_at=tm.before("landed", "30d")
    )
    label = Label(flat, pl.col("arr_delay") > 15, within="2d")
    for planted in ("arr_delay", tm.OnDemand("hours", {"late": pl.col("arr_delay") / 60})):
        said = faults(model(planted, examples=flat, asked_at=tm.before("landed", "8h"), label=label))
        assert any(
            "gives the label away: the label is computed from 'arr_delay' of the same row" in each for each in said
        )


def test_the_labels_column_that_the_examples_lack_is_refused(tables: dict[str, pl.DataFrame]) -> None:
    schema = {name: dtype for name, dtype in tables["schedules"].schema.items() if not name.startswith("_")}
    said = faults(model("arr_delay"), {"schedules": schema})
    assert any("source 'schedules' has no column 'arr_delay'" in each for each in said)


def test_a_copy_of_the_labels_column_is_warned_about_twice(tables: dict[str, pl.DataFrame]) -> None:
    """By its name, and under any other name by what it tells."""
    renamed = {**tables, "schedules": tables["schedules"].rename({"landed_late": "arr_delay"})}
    made = trained(model("arr_delay"), renamed)
    (by_name,) = warned(made, "label_used")
    assert "feature 'arr_delay' reads arr_delay, of which the label is made, in the example's own row" in by_name
    (by_skill,) = warned(made, "giveaway")
    assert "feature 'arr_delay' by itself orders the labels" in by_skill
    assert warned(trained(model("landed_late"), tables), "giveaway")


def test_the_labels_table_looked_up_by_the_key_does_not_show(tables: dict[str, pl.DataFrame]) -> None:
    own = tm.Latest("own", arrivals, by="flight_id", columns="arr_delay")
    window = tm.Aggregation(
        "window",
        arrivals,
        by="flight_id",
        features={"delay": tm.mean("arr_delay", over="7d"), "n": tm.count(over="7d")},
    )
    frame = training_set(model(own, window), tables, NOW).frame
    assert frame["own__arr_delay"].null_count() == frame.height
    assert frame["window__delay_7d"].null_count() == frame.height
    assert frame["window__n_7d"].sum() == 0


# Corrections


def test_a_correction_is_not_known_before_its_time(tables: dict[str, pl.DataFrame]) -> None:
    """Between report and correction, windows hold the wrong value: so it was, and so it is learned."""
    rows = tables["arrivals"]
    second = rows.filter(pl.col("flight_id").is_duplicated() & (pl.col(SEQ) > pl.col(SEQ).min().over("flight_id")))
    key, moment = second.select("flight_id", "reported").row(0)
    versions = rows.filter(pl.col("flight_id") == key).sort(SEQ)
    wrong, right = versions["arr_delay"].to_list()
    own = tm.Latest("own", arrivals, by="flight_id", columns="arr_delay")
    declared = model(own, features=[own])
    at = int(pl.Series([moment]).to_physical()[0])
    request = pl.DataFrame({"flight_id": [key, key]})
    seen = features(declared, {"arrivals": rows}, request, np.array([at, at + 1]))
    assert seen["own__arr_delay"].to_list() == [wrong, right]
    assert wrong != right
    assert at - versions["landed"].to_physical()[0] >= DAY
