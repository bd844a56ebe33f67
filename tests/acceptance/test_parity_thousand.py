"""A thousand served predictions, between arrivals and corrections, derived again by the oracle and by the offline path.

The flagship system on seven weeks of three carriers: real files, lake, online state, log, training process and serving.
Each prediction is read back from the lake's ledger, so its JSON has made the whole way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, parse_time, to_datetime
from tidemill.base.schema import KNOWN_AT, SEQ
from tidemill.cli.flights import feeds
from tidemill.engine.example.ledger import request_frame
from tidemill.engine.feature.feature import features
from tidemill.engine.mill.decider import tables_of
from tidemill.engine.parity.parity import compare, derive, same
from tidemill.engine.predict.records import PREDICTIONS
from tidemill.engine.table.plain import plain
from tidemill.project import Project
from tidemill.server.main import serving
from tidemill.spec.model import Model
from tidemill.testing.oracle import Oracle

MODEL = "late_arrival"
CARRIERS = ("US", "9E", "WN")
FIRST, OPENS, CLOSES = parse_time("2013-01-21"), parse_time("2013-03-04"), parse_time("2013-03-12T12:00")
ENOUGH = 1000


@dataclass(frozen=True)
class Served:
    """What was served: the project, the ledger's rows, and all versions of every table as the lake holds them."""

    project: Project
    model: Model
    ledger: pl.DataFrame
    tables: dict[str, pl.DataFrame]
    types: dict[str, pl.DataType]


def slice_of_flights() -> pl.DataFrame:
    first, last = to_datetime(FIRST), to_datetime(CLOSES + DAY)
    return feeds.read_flights().filter(
        pl.col("carrier").is_in(CARRIERS) & pl.col("scheduled").is_between(first, last, closed="left")
    )


def feed(name: str, rows: pl.DataFrame, known: pl.Expr) -> feeds.Feed:
    return feeds.Feed(name, rows.with_columns(_known=known).sort("_known", maintain_order=True))


def deliver(folder: Path, flights: pl.DataFrame) -> feeds.Delivery:
    """Lay the flagship's file down, made for few rows, and return the delivery of its feeds."""
    text = Path(feeds.__file__).with_name("system.py").read_text()
    for declared, instead in (
        ('split=tm.by_time(test="30d", gap="1d", blocks=2)', 'split=tm.by_time(test="14d", gap="1d")'),
        ('tm.Gate("log_loss", confidence=0.95, margin=0.005)', 'tm.Gate("roc_auc")'),
    ):
        assert declared in text
        text = text.replace(declared, instead)
    (folder / "system.py").write_text(text)
    observed = feeds.observed().filter(
        pl.col("observed").is_between(to_datetime(FIRST - DAY), to_datetime(CLOSES + DAY))
    )
    return feeds.Delivery(
        folder,
        (
            feed("schedules", feeds.scheduled(flights), pl.col("scheduled").dt.epoch("us") - 30 * DAY),
            feed("arrivals", feeds.arrived(flights), pl.col("reported").dt.epoch("us")),
            feed("weather", observed, pl.col("observed").dt.epoch("us") + HOUR),
            feed("planes", feeds.registered(), pl.lit(0, dtype=pl.Int64)),
        ),
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Serve every question of eight days, each at the tick after which it is asked."""
    folder = tmp_path_factory.mktemp("flights")
    flights = slice_of_flights()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "WRONG_PER_MILLE", 60)  # corrections enough to matter in so short a time
        delivery = deliver(folder, flights)
    questions = feeds.questions(feeds.scheduled(flights), 2 * HOUR)
    project = projects.open(folder)
    model = project.declared_model(MODEL)
    lease = project.workspace.journal.acquire()
    mill = project.mill(lease)
    answering = serving(project)
    try:
        mill.start()
        asked = 0
        for tick in range(OPENS, CLOSES + 1, project.system.tick):
            delivery.until(tick)
            mill.tick(tick)
            answering.refresh()
            due = questions.filter(pl.col("_asked").is_between(tick - project.system.tick, tick, closed="right"))
            if due.is_empty() or answering.waiting_for(MODEL) is not None:
                continue
            rows = due.select(model.request_columns)
            body = {"rows": rows.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_dicts()}
            asked += len(answering.predict(MODEL, json.dumps(body).encode(), nonce=str(tick)).answers)
        answering.close()
        mill.tick(CLOSES + project.system.tick)  # drains the log into the lake
    finally:
        mill.stop()
        lease.release()
    assert asked, [entry.body for entry in project.workspace.journal.read(kinds=["judge", "fail"])]
    ledger = project.rows(PREDICTIONS)
    assert ledger.height == asked
    return Served(
        project, model, ledger, {name: project.rows(name) for name in tables_of(model)}, project.request_schema(MODEL)
    )


def read_by_views(model: Model) -> set[str]:
    return {"arrivals", "weather", "planes"} & set(tables_of(model))


def around(tables: Mapping[str, pl.DataFrame], t: int, requests: list[dict[str, Any]]) -> dict[str, pl.DataFrame]:
    """Return the rows that can matter to ``requests`` at ``t``, with all versions of their keys."""
    near = tables["arrivals"].filter(pl.col("landed").is_between(to_datetime(t - 7 * DAY), to_datetime(t)))
    hours = tables["weather"].filter(pl.col("observed").is_between(to_datetime(t - 3 * HOUR), to_datetime(t)))
    return {
        "arrivals": tables["arrivals"].join(near.select("flight_id").unique(), on="flight_id", how="semi"),
        "weather": hours,
        "planes": tables["planes"].filter(pl.col("tailnum").is_in([row["tailnum"] for row in requests])),
        "schedules": tables["schedules"].head(0),  # for the types of a request's columns
    }


def test_there_is_something_to_prove(served: Served) -> None:
    """At least a thousand predictions at many moments; rows and corrections came in between, and mattered."""
    ledger, arrivals = served.ledger, served.tables["arrivals"]
    assert ledger.height >= ENOUGH
    assert ledger["asked"].n_unique() >= 70
    assert ledger["applied"].n_unique() >= 70
    during = pl.col(KNOWN_AT).is_between(ledger["asked"].min(), ledger["asked"].max())
    again = arrivals.filter(pl.col("flight_id").is_duplicated()).filter(
        during & (pl.col(SEQ) > pl.col(SEQ).min().over("flight_id"))
    )
    assert again.height >= 20
    uncorrected = arrivals.unique("flight_id", keep="first", maintain_order=True)
    moved = derive(served.model, served.types, {**served.tables, "arrivals": uncorrected}, ledger)
    true = derive(served.model, served.types, served.tables, ledger)
    assert (moved["carrier__delay_7d"] != true["carrier__delay_7d"]).sum() > ENOUGH / 2


def test_the_oracle_gets_every_logged_feature(served: Served) -> None:
    """Bit for bit, from the rows that each prediction had seen, by the literal reading of the time rules."""
    values = 0
    for (moment,), part in served.ledger.partition_by("asked", as_dict=True, maintain_order=True).items():
        assert isinstance(moment, type(to_datetime(0)))
        t = int(part["asked"].to_physical()[0])
        requests = [msgspec.json.decode(text) for text in part["request"]]
        oracle = Oracle.of(around(served.tables, t, requests))
        seen = msgspec.json.decode(part["applied"][0])
        knows = oracle.applied({name: seen[name] - 1 for name in read_by_views(served.model)})
        for request, text in zip(requests, part["features"], strict=True):
            expected = knows.features(served.model, request, t)
            logged = msgspec.json.decode(text)
            assert list(logged) == list(expected)
            wrong = {name: (logged[name], expected[name]) for name in logged if not same(logged[name], expected[name])}
            assert not wrong, (request, wrong)
            values += len(logged)
    assert values >= ENOUGH * len(served.model.columns)


def test_the_offline_path_gets_every_logged_value(served: Served) -> None:
    """Features from the lake by the training's own function, and the predictions from them, bit for bit."""
    for (version,), part in served.ledger.partition_by("version", as_dict=True, maintain_order=True).items():
        assert isinstance(version, int)
        training = served.project.state().model(MODEL).version(version).training
        predictor = served.project.load_predictor(MODEL, training)
        requests = request_frame(part["request"], served.types)
        offline = features(served.model, served.tables, requests, part["asked"].to_physical().to_numpy())
        found = compare(part, offline, predictor)
        assert (found.rows, found.mismatched, found.rounded) == (part.height, 0, 0), found.examples
        cut = compare(part, derive(served.model, served.types, served.tables, part), predictor)
        assert (cut.mismatched, cut.rounded) == (0, 0), cut.examples


def test_the_ledgers_json_reads_back_as_it_was(served: Served) -> None:
    """Encoding what was decoded gives the same bytes: no float loses a bit between the log, the lake and here."""
    for column in ("features", "request", "prediction"):
        for text in served.ledger[column]:
            assert msgspec.json.encode(msgspec.json.decode(text)).decode() == text
    offline = derive(served.model, served.types, served.tables, served.ledger)
    for text, values in zip(served.ledger["features"], plain(offline).iter_rows(named=True), strict=True):
        assert json.loads(text) == values


def test_one_bit_is_noticed(served: Served) -> None:
    """The comparison is not blind: one value, one unit in the last place off, is found and named."""
    part = served.ledger.head(50)
    changed = msgspec.json.decode(part["features"][7])
    changed["carrier__delay_7d"] = math.nextafter(changed["carrier__delay_7d"], math.inf)
    texts = part["features"].to_list()
    texts[7] = msgspec.json.encode(changed).decode()
    tampered = part.with_columns(pl.Series("features", texts))
    training = served.project.state().model(MODEL).version(int(part["version"][0])).training
    found = compare(
        tampered,
        derive(served.model, served.types, served.tables, tampered),
        served.project.load_predictor(MODEL, training),
    )
    assert found.mismatched == 1
    assert found.by_value == {"carrier__delay_7d": 1}
