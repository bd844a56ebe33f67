"""A single row answered value by value is answered as a frame of that row, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.base.errors import RequestError
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.predict.route import route

ROW = {"id": "a", "x": 1.0, "n": 2, "ok": True, "at": 5}
COLUMNS = ("ok", "x", "n")


class Runner:
    """Adds up what it is given; a null counts 7, and a number below -1e9 is refused."""

    def batch(self, features: pl.DataFrame) -> np.ndarray[Any, Any]:
        rows = features.select(COLUMNS).rows()
        return np.array([[self.row(row)] for row in rows])

    def row(self, values: Sequence[Any]) -> float:
        if any(value is not None and value < -1e9 for value in values):
            raise ValueError("too low\nmore")
        return float(sum(7.0 if value is None else float(value) for value in values))


class Rows:
    """The stage's features, which also come row by row."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asked = inner, 0

    def features(self, requests: pl.DataFrame) -> Any:
        return self.inner.features(requests)

    def row(self, request: Mapping[str, Any], schema: Mapping[str, pl.DataType], snapshot: Any = None) -> Any:
        self.asked += 1
        _, applied = self.inner.features(pl.DataFrame([dict(request)], schema=dict(schema), strict=False))
        return [request[name] for name in self.inner.columns], applied


@pytest.fixture
def compiled(stage: Any) -> Any:
    """Return a stage whose champion of ``risk`` has a runner, and its look-up as ``rows``."""
    inner = stage.load

    def load(model: str, training: str) -> Predictor:
        if model == "cost":
            made: Predictor = inner(model, training)
            return made
        return Predictor(Encoding(COLUMNS, {}, (), ()), None, Runner())

    stage.serving._load = load
    stage.made("risk", 2, None, ())
    stage.point("risk", 2)
    stage.serving.refresh()
    model = stage.serving.model("risk")
    stage.rows = Rows(stage.serving._lookup(model))
    stage.serving._lookups.risk = stage.rows
    return stage


values = st.fixed_dictionaries(
    {
        "id": st.text(max_size=3),
        "x": st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.integers(-9, 9),
        "n": st.integers(-(2**63), 2**63 - 1) | st.none() | st.sampled_from([3.0]),
        "ok": st.booleans() | st.none(),
        "at": st.none() | st.integers(0, 10**15) | st.sampled_from(["2024-05-01", "2024-05-01T12:00:00.5+02:00"]),
    }
)


@given(values)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_says_and_logs_what_a_frame_would(compiled: Any, row: dict[str, Any]) -> None:
    before, asked = len(compiled.predictions()), compiled.rows.asked
    said: list[tuple[list[Any], Any]] = []
    for body in (row, {"rows": [row]}):
        try:
            kept = compiled.serving.predict("risk", json.dumps(body).encode(), nonce="n")
            said.append(([(a.id, a.prediction, a.version, a.route, a.asked) for a in kept.answers], None))
        except RequestError as error:
            said.append(([], (str(error), (error.field or "").removeprefix("rows[0]."))))
    assert said[0] == said[1]
    logged = compiled.records("predictions")[before:]
    assert len(logged) == 2 * len(said[0][0])
    if logged:
        assert json.dumps(logged[0]) == json.dumps(logged[1])
        assert compiled.rows.asked == asked + 1


@pytest.mark.parametrize(
    ("change", "field"),
    [({"x": "1"}, "x"), ({"id": None}, "id"), ({"y": 1}, "y"), ({"n": 2.5}, "n"), ({"at": "soon"}, "at")],
)
def test_what_is_wrong_is_said_as_for_a_frame(compiled: Any, change: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled.serving.predict("risk", json.dumps({**ROW, **change}).encode())
    assert caught.value.field == field
    assert compiled.predictions() == []


def test_a_prediction_that_is_not_finite_is_refused(compiled: Any) -> None:
    compiled.serving.live("risk").champion.predictor.runner.row = lambda _: float("nan")
    with pytest.raises(RequestError, match="no finite prediction"):
        compiled.serving.predict("risk", json.dumps(ROW).encode())


def test_a_route_takes_the_way_of_frames(compiled: Any) -> None:

    made = route("risk", [], [1])
    compiled.write("route", model="risk", route=made.as_json(), previous="", judged=None, reasons=[])
    compiled.serving.refresh()
    assert compiled.serving.predict("risk", json.dumps(ROW).encode()).mirror is not None
    assert compiled.rows.asked == 0
