from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import tidemill as tm
from tidemill.base.errors import NotFoundError, RequestError
from tidemill.engine.example.ledger import prediction_rows
from tidemill.engine.predict.route import Arm, choose, route

ROW = {"id": "a", "x": 1.0, "n": 2, "ok": True, "at": 5}


def body(*ids: str) -> bytes:
    return json.dumps({"rows": [{**ROW, "id": id} for id in ids]}).encode()


def share_out(stage: Any, *arms: Arm, shadows: tuple[int, ...] = (), paired: bool = False) -> Any:
    made = route("risk", arms, shadows, paired=paired)
    stage.write("route", model="risk", route=made.as_json(), previous="", judged=None, reasons=[])
    stage.serving.refresh()
    return made


@pytest.fixture
def three(stage: Any) -> Any:
    """Versions 1 (0.25), 2 (0.5) and 3 (0.75); the champion is 1."""
    stage.made("risk", 2, 0.5)
    stage.made("risk", 3, 0.75)
    stage.serving.refresh()
    return stage


def test_a_canary_answers_its_keys_and_the_champion_the_rest(three: Any) -> None:
    made = share_out(three, Arm("canary", 2, 0.3))
    ids = [f"k{i}" for i in range(300)]
    answers = three.serving.predict("risk", body(*ids)).answers
    for id, answer in zip(ids, answers, strict=True):
        arm = choose(made, [id])
        assert (answer.route, answer.version) == (("canary", 2) if arm else ("champion", 1))
        assert answer.prediction == (0.5 if arm else 0.25)
    assert 50 < sum(answer.route == "canary" for answer in answers) < 130
    logged = {one.id: (one.key, one.route, one.version) for one in three.predictions()}
    assert logged == {a.id: ([id], a.route, a.version) for id, a in zip(ids, answers, strict=True)}


def test_a_single_row_is_routed_too(three: Any) -> None:
    share_out(three, Arm("b", 3, 1.0))
    (answer,) = three.serving.predict("risk", json.dumps(ROW).encode()).answers
    assert (answer.route, answer.version, answer.prediction) == ("b", 3, 0.75)


def test_shadows_are_logged_and_never_answer(three: Any) -> None:
    share_out(three, Arm("canary", 2, 0.5), shadows=(3,), paired=True)
    ids = [f"k{i}" for i in range(40)]
    kept = three.serving.predict("risk", body(*ids))
    assert {answer.route for answer in kept.answers} == {"champion", "canary"}
    assert len(three.predictions()) == 40
    kept.mirror()
    logged = three.predictions()
    by_canary = sum(answer.route == "canary" for answer in kept.answers)
    assert Counter((one.route, one.version) for one in logged) == {
        ("champion", 1): 40 - by_canary,
        ("canary", 2): by_canary,
        ("shadow", 3): 40,
        ("shadow", 1): by_canary,  # the champion, on what the canary answered
    }
    assert {one.prediction for one in logged if one.version == 3} == {0.75}
    assert prediction_rows(each.payload for each in three.logs["predictions"].read({})).height == len(logged)


def test_an_arm_that_fails_costs_no_answer(three: Any) -> None:
    three.made("risk", 4, KeyError("broken"))
    share_out(three, Arm("canary", 4, 1.0), shadows=(4,))
    kept = three.serving.predict("risk", body("a"))
    assert [(one.route, one.version) for one in kept.answers] == [("champion", 1)]
    assert three.serving.answering.failures == {("risk", 4): 1}
    kept.mirror()
    assert three.serving.answering.failures == {("risk", 4): 2}
    assert len(three.predictions()) == 1
    with pytest.raises(RequestError):  # what is wrong with the question is the caller's fault, and no failure
        three.serving.predict("risk", json.dumps({**ROW, "x": -1}).encode())
    assert three.serving.answering.failures == {("risk", 4): 2}


def test_an_arm_that_cannot_be_loaded_leaves_its_keys_to_the_champion(three: Any) -> None:
    three.made("risk", 4, 0.9)
    del three.fits["risk-4"]
    share_out(three, Arm("canary", 4, 1.0))
    assert "version 4 cannot be loaded" in three.serving.troubles["risk"]
    assert three.serving.predict("risk", body("a")).answers[0].route == "champion"


def test_a_route_ends(three: Any) -> None:
    share_out(three, Arm("canary", 2, 1.0))
    assert three.serving.predict("risk", body("a")).answers[0].version == 2
    share_out(three)
    assert three.serving.predict("risk", body("a")).answers[0].version == 1


def test_a_version_that_the_caller_names(three: Any) -> None:
    share_out(three, Arm("canary", 2, 1.0), shadows=(3,))
    serving = three.serving
    three.made("risk", 4, 0.9)
    serving.refresh()
    assert not serving.loaded("risk", 4)
    serving.load("risk", 4)
    kept = serving.predict_columns(serving.live("risk"), {name: [value] for name, value in ROW.items()}, version=4)
    assert [(one.route, one.version, one.prediction) for one in kept.answers] == [("pinned", 4, 0.9)]
    assert kept.mirror is None
    with pytest.raises(NotFoundError, match="There is no version 9"):
        serving.load("risk", 9)


def test_what_no_answering_version_reads_may_be_left_out(three: Any) -> None:
    serving = three.serving
    asked = json.dumps({"id": "a", "x": 1.0}).encode()
    assert serving.predict("risk", asked).answers[0].version == 1
    assert three.predictions()[-1].request == {"id": "a", "x": 1.0, "n": None, "ok": None, "at": None}
    three.reads["risk-4"] = ("x", "n")
    three.made("risk", 4, 0.9)
    serving.refresh()
    serving.load("risk", 4)
    values = {"id": ["a"], "x": [1.0]}
    with pytest.raises(RequestError, match="version 4 reads it") as caught:
        serving.predict_columns(serving.live("risk"), values, version=4)
    assert caught.value.field == "n"
    kept = serving.predict_columns(serving.live("risk"), {**values, "n": [None]}, version=4)
    assert kept.answers[0].version == 4
    share_out(three, Arm("canary", 4, 0.01))
    with pytest.raises(RequestError, match="Missing column") as caught:
        serving.predict("risk", asked)
    assert caught.value.field == "n"
    share_out(three, shadows=(4,))
    with pytest.raises(RequestError, match="Missing column"):
        serving.predict("risk", asked)
    share_out(three)
    assert serving.predict("risk", asked).answers[0].version == 1


def test_models_are_loaded_at_their_first_request_when_so_declared(make_stage: Callable[..., Any]) -> None:
    stage = make_stage(tm.Endpoint(load="use"))
    stage.made("risk", 1, 0.5)
    stage.point("risk", 1)
    stage.apply(0)
    stage.serving.refresh()
    assert stage.loads == []
    assert stage.serving.waiting_for() is None
    assert not stage.serving.loaded("risk")
    stage.serving.load("risk")
    assert stage.loads == ["risk-1"]
    assert stage.serving.predict("risk", body("a")).answers[0].version == 1
    stage.made("risk", 2, 0.6)
    stage.point("risk", 2)
    stage.serving.refresh()  # in use: the next one is loaded before it is swapped in
    assert stage.loads == ["risk-1", "risk-2"]


def test_a_share_is_logged_by_the_ids(make_stage: Callable[..., Any]) -> None:
    stage = make_stage(tm.Endpoint(log=0.25))
    for version in (1, 2):
        stage.made("risk", version, 0.5)
    stage.point("risk", 1)
    stage.apply(0)
    share_out(stage, shadows=(2,))
    kept = stage.serving.predict("risk", body(*(f"k{i}" for i in range(400))))
    kept.mirror()
    ids = {answer.id for answer in kept.answers if int(answer.id[:12], 16) < 0.25 * 16**12}
    logged = stage.predictions()
    assert 60 < len(ids) < 140
    assert {one.id for one in logged if one.route == "champion"} == ids
    assert sum(one.route == "shadow" for one in logged) == len(ids)  # those that mirror what is logged


def test_an_alias_or_an_arm_names_a_version(three: Any) -> None:
    share_out(three, Arm("canary", 2, 0.1))
    known = three.serving.state.model("risk")
    assert (known.resolve("canary").number, known.resolve("champion").number) == (2, 1)
