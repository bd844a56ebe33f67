"""The prediction log as a table to look at."""

from __future__ import annotations

from typing import Any

import polars as pl
from sklearn.tree import DecisionTreeRegressor

import tidemill as tm
from tidemill.engine.example.answered import answered
from tidemill.engine.example.ledger import PREDICTION_SCHEMA

TYPES = {"id": pl.String(), "at": pl.Datetime("us", "UTC"), "version": pl.Int64()}


def test_columns_of_the_request_do_not_clash_with_those_of_the_log() -> None:
    visits = tm.Source("visits", tm.files("visits.csv"), key="id", event_time="at")
    model = tm.Model(
        "model", examples=visits, asked_at="at", label=tm.Label(visits, "spent", within="1h"), features=["version"],
        estimator=DecisionTreeRegressor(),
    )  # fmt: skip
    logged: dict[str, Any] = {
        "id": "p1", "model": "model", "version": 3, "route": "champion", "key": '["k"]',
        "request": '{"id": "k", "version": 7}', "features": '{"version": 7}', "prediction": "0.5",
    }  # fmt: skip
    found = answered(model, TYPES, pl.DataFrame([logged], schema=PREDICTION_SCHEMA), None, 0)
    (row,) = found.to_dicts()
    assert (row["id"], row["version"], row["prediction"]) == ("p1", 3, 0.5)
    assert (row["request__id"], row["request__version"]) == ("k", 7)
