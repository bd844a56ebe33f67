from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import tidemill as tm
from tidemill.base.errors import NotFoundError, NotReadyError, RequestError
from tidemill.engine.example.ledger import feedback_rows, prediction_rows

ROW = {"id": "a", "x": 1.0, "n": 2, "ok": True, "at": 5}


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_an_answer_names_its_version_and_route_and_is_logged_whole(stage: Any) -> None:
    (answer,) = stage.serving.predict("risk", body(ROW)).answers
    assert (answer.prediction, answer.version, answer.route) == (0.25, 1, "champion")
    assert answer.asked == "1970-01-01T00:00:01.000001Z"
    (logged,) = stage.predictions()
    assert logged.id == answer.id
    assert (logged.model, logged.version, logged.asked, logged.journal) == ("risk", 1, 1_000_001, 4)
    assert logged.applied == {"things": 3}
    assert logged.key == ["a"]
    assert logged.request == ROW
    assert logged.whole() == {"x": 1.0, "n": 2, "ok": True, "at": 5}
    assert prediction_rows(each.payload for each in stage.logs["predictions"].read({})).height == 1


def test_ids_repeat_with_the_nonce_and_differ_by_row(stage: Any) -> None:
    first = stage.serving.predict("risk", body({"rows": [ROW, ROW]}), nonce="n").answers
    again = stage.serving.predict("risk", body({"rows": [ROW, ROW]}), nonce="n").answers
    assert [each.id for each in first] == [each.id for each in again]
    assert first[0].id != first[1].id
    assert stage.serving.predict("risk", body(ROW)).answers[0].id != first[0].id


@pytest.mark.parametrize(
    ("classes", "values", "prediction", "probabilities"),
    [
        ((0, 1), (0.25, 0.75), 0.75, None),
        (("no", "yes"), (0.25, 0.75), "yes", {"no": 0.25, "yes": 0.75}),
        ((1, 2, 3), (0.25, 0.5, 0.25), 2, {"1": 0.25, "2": 0.5, "3": 0.25}),
    ],
)
def test_classes_with_names_are_answered_by_name(
    stage: Any, classes: tuple[Any, ...], values: tuple[float, ...], prediction: Any, probabilities: Any
) -> None:
    stage.made("risk", 2, values, classes)
    stage.point("risk", 2)
    stage.serving.refresh()
    (answer,) = stage.serving.predict("risk", body(ROW)).answers
    assert (answer.prediction, answer.probabilities) == (prediction, probabilities)


def test_nothing_is_logged_when_the_endpoint_says_so(make_stage: Callable[..., Any]) -> None:
    stage = make_stage(tm.Endpoint(log="none"))
    stage.made("cost", 1, (3.0,), ())
    stage.point("cost", 1)
    stage.apply(0)
    stage.serving.refresh()
    kept = stage.serving.predict("cost", body({"id": "a", "x": 1, "n": 2}))
    assert (kept.answers[0].prediction, kept.synced, stage.predictions()) == (3.0, None, [])


def test_rows_that_the_model_refuses_are_the_callers_fault(stage: Any) -> None:
    with pytest.raises(RequestError, match=r"cannot take the features of these rows: x must not be negative$"):
        stage.serving.predict("risk", body({**ROW, "x": -1}))
    with pytest.raises(RequestError, match="no finite prediction"):
        stage.serving.predict("cost", body({"id": "a", "x": 1.7e308, "n": 2}) if overflow(stage) else b"")
    assert stage.predictions() == []


def overflow(stage: Any) -> bool:
    stage.made("cost", 2, (float("inf"),), ())
    stage.point("cost", 2)
    return bool(stage.serving.refresh())


def test_nothing_is_answered_before_a_champion_and_the_online_state(make_stage: Callable[..., Any]) -> None:
    stage = make_stage()
    with pytest.raises(NotReadyError, match="no champion yet"):
        stage.serving.predict("risk", body(ROW))
    with pytest.raises(NotFoundError, match="Did you mean 'risk'"):
        stage.serving.predict("rsk", body(ROW))
    assert stage.serving.waiting_for() == "The online state is not built yet."
    stage.apply(0)
    assert stage.serving.waiting_for() == "No model has a champion yet."
    stage.online.clear()
    stage.made("risk", 1, 0.5)
    stage.point("risk", 1)
    stage.serving.refresh()
    with pytest.raises(NotReadyError, match="online state"):
        stage.serving.predict("risk", body(ROW))
    stage.apply(0)
    assert stage.serving.waiting_for() is None


def test_a_rollback_is_a_swap_like_any_other(stage: Any) -> None:
    stage.made("risk", 2, 0.5)
    assert stage.serving.refresh() == stage.journal.last()
    assert stage.serving.predict("risk", body(ROW)).answers[0].version == 1
    for version in (2, 1):
        entry = stage.point("risk", version)
        assert stage.serving.applied == entry.number - 1
        assert stage.serving.refresh() == entry.number
        assert stage.serving.predict("risk", body(ROW)).answers[0].version == version


def test_only_the_newest_champion_is_loaded_and_only_once(stage: Any) -> None:
    stage.loads.clear()
    for version in (2, 3, 4):
        stage.made("risk", version, 0.5)
        stage.point("risk", version)
    stage.serving.refresh()
    stage.write("watch", model="risk", version=4, drift={}, performance={})
    stage.serving.refresh()
    assert stage.loads == ["risk-4"]


def test_a_champion_in_flight_answers_by_its_own_version(stage: Any) -> None:
    live = stage.serving.live("risk")
    requests = live.rows.read(body(ROW))
    stage.made("risk", 2, 0.5)
    stage.point("risk", 2)
    stage.serving.refresh()
    (answer,) = stage.serving.answering.frame(live, requests).answers
    assert (answer.version, answer.prediction) == (1, 0.25)


def test_a_champion_that_cannot_be_loaded_leaves_the_old_one_and_is_tried_again(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.made("risk", 2, 0.5)
    lost = stage.fits.pop("risk-2")
    before = stage.serving.applied
    stage.point("risk", 2)
    assert stage.serving.refresh() == before
    assert "version 2 cannot be loaded: KeyError" in stage.serving.troubles["risk"]
    assert stage.serving.predict("risk", body(ROW)).answers[0].version == 1
    stage.fits["risk-2"] = lost
    assert stage.serving.refresh() == before  # not before its time
    monkeypatch.setattr(stage.serving, "_retry_at", 0.0)
    assert stage.serving.refresh() == stage.journal.last()
    assert stage.serving.troubles == {}
    assert stage.serving.predict("risk", body(ROW)).answers[0].version == 2


def test_feedback_by_prediction_and_by_key(stage: Any) -> None:
    stage.serving.inbox.feedback(body({"model": "risk", "prediction": "abc", "value": True}), nonce="k")
    stage.serving.inbox.feedback(body({"model": "cost", "key": {"id": "a"}, "value": 2.5}))
    first, second = stage.feedback()
    assert (first["model"], first["prediction"], first["key"], first["value"]) == ("risk", "abc", None, True)
    assert (second["prediction"], second["key"], second["value"]) == (None, ["a"], 2.5)
    stage.serving.inbox.feedback(body({"model": "risk", "prediction": "abc", "value": True}), nonce="k")
    assert feedback_rows(each.payload for each in stage.logs["feedback"].read({})).height == 2


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], None),
        ({"prediction": "abc", "value": 1}, "model"),
        ({"model": 5, "prediction": "abc", "value": 1}, "model"),
        ({"model": "risk", "prediction": "abc"}, "value"),
        ({"model": "risk", "value": True}, "prediction"),
        ({"model": "risk", "prediction": "abc", "key": {"id": "a"}, "value": True}, "prediction"),
        ({"model": "risk", "prediction": "", "value": True}, "prediction"),
        ({"model": "risk", "prediction": "abc", "value": None}, "value"),
        ({"model": "risk", "prediction": "abc", "value": "true"}, "value"),
        ({"model": "risk", "prediction": "abc", "value": [True]}, "value"),
        ({"model": "cost", "prediction": "abc", "value": True}, "value"),
        ({"model": "cost", "prediction": "abc", "value": 2**70}, "value"),
        ({"model": "risk", "key": "a", "value": True}, "key"),
        ({"model": "risk", "key": {}, "value": True}, "key.id"),
        ({"model": "risk", "key": {"id": None}, "value": True}, "key.id"),
        ({"model": "risk", "predicton": "abc", "value": True}, "predicton"),
    ],
)
def test_feedback_that_is_refused(stage: Any, value: Any, field: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        stage.serving.inbox.feedback(body(value))
    assert caught.value.field == field
    assert stage.feedback() == []


def test_rows_are_pushed_to_the_sources_that_take_them(stage: Any) -> None:
    assert stage.serving.inbox.push("things", body({"rows": [{"id": "a", "x": 1}]}), idempotency_key="k")[0] == 1
    assert stage.records("things") == [{"source": "things", "rows": [{"id": "a", "x": 1}], "idempotency_key": "k"}]
    with pytest.raises(RequestError, match="declared with another reader"):
        stage.serving.inbox.push("results", body({"rows": [{"id": "a"}]}))
    with pytest.raises(NotFoundError, match="Did you mean 'things'"):
        stage.serving.inbox.push("thing", body({"rows": [{"id": "a"}]}))
