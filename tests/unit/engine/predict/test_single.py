"""Few rows answered value by value are answered and logged as a frame of them, bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.base.errors import RequestError
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.predict.request import FEW
from tidemill.engine.predict.route import Arm, route

ROW = {"id": "a", "x": 1.0, "n": 2, "ok": True, "at": 5}
COLUMNS = ("ok", "x", "n")
BROKEN = 4.0  # of the version that fails whatever it is asked


class Runner:
    """Adds up what it is given, and ``more``; a null counts 7, and a number below -1e9 is refused."""

    def __init__(self, more: float = 0.0) -> None:
        self.more = more

    def batch(self, features: pl.DataFrame) -> np.ndarray[Any, Any]:
        rows = features.select(COLUMNS).rows()
        return np.array([[self.row(row)] for row in rows])

    def row(self, values: Sequence[Any]) -> float:
        if any(value is not None and value < -1e9 for value in values):
            raise ValueError("too low\nmore")
        if self.more == BROKEN:
            raise KeyError("broken")
        return self.more + float(sum(7.0 if value is None else float(value) for value in values))


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
        return Predictor(Encoding(COLUMNS, {}, (), ()), None, Runner(float(training.removeprefix("risk-"))))

    stage.serving._load = load
    for version in (2, 3, 4):
        stage.made("risk", version, None, ())
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


def asked(stage: Any, ask: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what is said when ``ask`` is called, or what is wrong, and what is logged: shadows after the rest."""
    before = len(stage.predictions())
    try:
        kept = ask()
    except RequestError as error:
        assert len(stage.predictions()) == before
        return (str(error), error.field), []
    answered = len(stage.predictions())
    if kept.mirror is not None:
        kept.mirror()
    logged = [json.dumps(each) for each in stage.records("predictions")[before:]]
    answers = answered - before
    assert answers == len(kept.answers)
    return kept.answers, sorted(logged[:answers]) + sorted(logged[answers:])


arms = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0.2, 0.3])), max_size=3)


@given(st.lists(values, min_size=1, max_size=4), arms, st.lists(st.integers(1, 4), max_size=2), st.booleans())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_few_rows_are_answered_and_logged_as_by_a_frame(
    compiled: Any, rows: list[dict[str, Any]], arms: list[tuple[int, float]], shadows: list[int], paired: bool
) -> None:
    serving, share = compiled.serving, [Arm(f"arm{i}", version, part) for i, (version, part) in enumerate(arms)]
    made = route("risk", share, shadows, paired=paired)
    compiled.write("route", model="risk", route=made.as_json(), previous="", judged=None, reasons=[])
    serving.refresh()
    live = serving.live("risk")
    assert live.by_value
    columns = {name: [row[name] for row in rows] for name in ROW}
    failed = Counter(serving.answering.failures)
    looked = compiled.rows.asked
    ways = [
        lambda: serving.answering.frame(live, live.rows.read(json.dumps({"rows": rows}).encode()), nonce="n"),
        lambda: serving.predict("risk", json.dumps({"rows": rows}).encode(), nonce="n"),
        lambda: serving.predict_columns(live, columns, nonce="n"),
    ]
    if len(rows) == 1:
        ways.append(lambda: serving.predict("risk", json.dumps(rows[0]).encode(), nonce="n"))
    by_frame, *others = [asked(compiled, way) for way in ways]
    (wanted, logged_by_frame) = by_frame
    for said, logged in others:
        if logged_by_frame:
            assert (said, logged) == by_frame
        else:
            assert not logged
            if len(rows) == 1:  # of the faults of several rows another may be named
                assert (said[0], bare(said[1])) == (wanted[0], bare(wanted[1]))
    if logged_by_frame:
        assert compiled.rows.asked > looked
    if serving.answering.failures != failed:
        assert 4 in made.versions


def bare(field: str | None) -> str:
    """Return the column alone: where a single row was not in a list, no place precedes it."""
    return (field or "").removeprefix("rows[0].")


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


def test_a_version_that_takes_only_frames_gets_them(compiled: Any) -> None:
    compiled.serving._load = compiled.load  # as version 3 will be
    compiled.made("risk", 3, 0.75)
    made = route("risk", [], [3])
    compiled.write("route", model="risk", route=made.as_json(), previous="", judged=None, reasons=[])
    compiled.serving.refresh()
    assert compiled.serving.predict("risk", json.dumps(ROW).encode()).mirror is not None
    assert compiled.rows.asked == 0


def test_many_rows_make_a_frame(compiled: Any) -> None:
    for count, alone in ((FEW, FEW), (FEW + 1, 0)):
        compiled.rows.asked = 0
        rows = [{**ROW, "id": str(place)} for place in range(count)]
        kept = compiled.serving.predict("risk", json.dumps({"rows": rows}).encode())
        assert (len(kept.answers), compiled.rows.asked) == (count, alone)


def test_a_turn_holds_what_a_list_of_rows_says(compiled: Any) -> None:
    turn = compiled.serving.turn()
    kept = compiled.serving.predict("risk", json.dumps({"rows": [ROW, ROW]}).encode(), turn=turn)
    assert kept.held
    assert compiled.predictions() == []
    turn.end()
    assert len(compiled.predictions()) == 2
