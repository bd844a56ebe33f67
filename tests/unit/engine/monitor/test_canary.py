"""Letting versions in: canaries judged on pairs, and the whole of it rehearsed over memory adapters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from sklearn.tree import DecisionTreeClassifier

import tidemill as tm
from tidemill.adapters.row_reader import RowReader
from tidemill.base.clock import DAY, HOUR, VirtualClock, format_time, parse_time
from tidemill.base.errors import TidemillError
from tidemill.engine.mill.rehearse import past_questions, rehearse
from tidemill.engine.monitor import canary
from tidemill.engine.monitor.canary import asked_for, judge
from tidemill.engine.predict.records import PREDICTIONS
from tidemill.engine.predict.route import Arm, Route, choose, served_nonce
from tidemill.engine.predict.state import ModelState, Version
from tidemill.ports.journal import Entry
from tidemill.rehearsal import Stage, Trainings
from tidemill.spec.model import Gate

START = parse_time("2020-03-01")
DAYS = 16
GATE = Gate("brier", confidence=0.95, margin=0.01, min_rows=100)


def pairs(seed: int, harm: float, rows: int = 600) -> dict[str, Any]:
    """Answers to the same questions, where the candidate's are off by ``harm`` more."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, rows).astype(float)
    rival = np.clip(0.5 + 0.3 * (truth - 0.5) + random.normal(0, 0.1, rows), 0.01, 0.99)
    candidate = np.clip(rival - harm * (truth - 0.5) + random.normal(0, 0.05, rows), 0.01, 0.99)
    times = np.sort(random.integers(0, 10 * DAY, rows))
    return {"truth": truth, "candidate": candidate, "rival": rival, "times": times, "seed": seed}


@pytest.mark.parametrize(
    ("harm", "over", "rows", "outcome", "said"),
    [
        (0.0, True, 600, "promote", "not shown to be worse"),
        (0.0, False, 600, "wait", "its stretch is not over"),
        (0.0, True, 60, "wait", "100 in three blocks of time are needed"),
        (0.4, False, 600, "withdraw", "margin 0.01"),
        (0.4, True, 600, "withdraw", "worse by at least|by at least"),
    ],
)
def test_what_becomes_of_a_canary(harm: float, over: bool, rows: int, outcome: str, said: str) -> None:
    judged, decided, reason = judge(GATE, **pairs(1, harm, rows), look=1, over=over)
    assert decided == outcome
    assert any(each in reason for each in said.split("|"))
    assert judged["rows"] == rows
    assert judge(GATE, **pairs(1, harm, rows), look=1, over=over) == (judged, decided, reason)


def test_a_metric_that_is_not_defined_waits() -> None:
    gate = Gate("roc_auc", min_rows=10)
    one_class = {**pairs(1, 0.0), "truth": np.ones(600)}
    assert judge(gate, **one_class, look=1, over=True)[1] == "wait"


def test_looking_often_seldom_withdraws_what_is_as_good() -> None:
    """Ten looks at each of 60 canaries that are exactly as good as the margin allows: the bound is 5 in a hundred."""
    gate = Gate("brier", confidence=0.95, margin=0.0, min_rows=100)
    withdrawn = 0
    for seed in range(60):
        data = pairs(seed, 0.0, 1000)
        data["candidate"], data["rival"] = swapped(seed, data["candidate"], data["rival"])
        for look in range(1, 11):
            part = {name: value[: look * 100] if name != "seed" else value for name, value in data.items()}
            if judge(gate, **part, look=look, over=False)[1] == "withdraw":
                withdrawn += 1
                break
    assert withdrawn <= 7  # P(more) < 0.02 at 5 %


def swapped(seed: int, one: Any, other: Any) -> tuple[Any, Any]:
    """Swap the two row by row at random: then neither is better."""
    swap = np.random.default_rng(seed + 1000).random(len(one)) < 0.5
    return np.where(swap, other, one), np.where(swap, one, other)


# Rehearsed ------------------------------------------------------------------------------------------------------------


def declare(**endpoint: Any) -> tm.System:
    visits = tm.Source("visits", tm.files("v.csv"), key="id", event_time="at", known_at=tm.before("at", "3d"))
    outcomes = tm.Source("outcomes", tm.files("o.csv"), key="id", event_time="told")
    good = tm.Model(
        "good", examples=visits, asked_at="at", label=tm.Label(outcomes, "good", within="1d"), features=["amount"],
        estimator=DecisionTreeClassifier(max_depth=2, min_samples_leaf=5), split=tm.by_time(test="8d"),
        gate=tm.Gate("brier", margin=1.0, min_rows=10),
    )  # fmt: skip
    policy = tm.Policy(retrain=[tm.every("6d")], takes="1d")
    return tm.System(
        "small", good, tick="1d", policy=policy, endpoint=tm.Endpoint(**endpoint),
        monitor=tm.Monitor(drift=tm.psi(), every="1d"),
    )  # fmt: skip


def rows() -> dict[str, list[dict[str, Any]]]:
    visits, outcomes = [], []
    for number in range(12 * (DAYS + 20)):
        at = START + int((number / 12 - 20) * DAY) + HOUR
        amount = number * 13 % 100
        visits.append({"id": f"v{number}", "at": format_time(at), "amount": amount})
        outcomes.append({"id": f"v{number}", "told": format_time(at + 2 * HOUR), "good": amount > 50})
    return {"visits": visits, "outcomes": outcomes}


def turn(system: tm.System, ask: dict[int, tuple[str, dict[str, Any]]] | None = None) -> tuple[Stage, list[Entry]]:
    """Rehearse DAYS days; ``ask``: requests by hand (kind, body), by the day before which they are made."""
    given, trainings = rows(), Trainings()
    readers = {name: RowReader(lambda taken, name=name: given[name][taken:]) for name in given}  # type: ignore[misc]
    stage = Stage(system, readers, trainings)
    stage.mill.start()
    ticks = [START + day * DAY for day in range(DAYS)]
    stage.mill.tick(START - DAY)
    (model,) = system.models
    questions = [past_questions(model, stage.rows("visits"), ticks)]
    clock = VirtualClock(ticks[0])
    writer = stage.logs[PREDICTIONS].writer()
    turning = rehearse(stage.mill, clock, ticks, questions, trainings.load, writer)
    for day in range(DAYS):
        if ask and day in ask:
            stage.journal.request(*ask[day])
        next(turning)
    return stage, list(stage.journal.read())


def said(entries: list[Entry], *kinds: str) -> list[tuple[int, str, Any]]:
    """Return (day, kind, version or route) of the entries."""
    found = []
    for entry in entries:
        if entry.kind in kinds:
            what = entry.body["version"] if entry.kind == "alias" else entry.body["route"]["arms"]
            found.append(((entry.tick - START) // DAY, entry.kind, what))
    return found


def test_without_a_canary_a_version_that_passed_is_promoted_at_once() -> None:
    _, entries = turn(declare())
    assert [kind for _, kind, _ in said(entries, "alias", "route")] == ["alias", "alias", "alias"]


def test_a_canary_gets_its_share_and_is_promoted_after_its_stretch() -> None:
    stage, entries = turn(declare(canary=tm.Canary(share=0.5, over="3d")))
    story = said(entries, "alias", "route")
    first, opened, *looks, ended, promoted = [each for each in story if each[0] <= 10]
    arm = [{"name": "canary", "version": 2, "share": 0.5}]
    assert (first[1:], opened[1:], ended[1:], promoted[1:]) == (
        ("alias", 1), ("route", arm), ("route", []), ("alias", 2)
    )  # fmt: skip
    assert promoted[0] == opened[0] + 4  # three days, and a day until enough labels were mature
    assert [what for _, _, what in looks] == [arm] * 3
    assert stage.mill.state.model("good").versions[1].number == 2

    trial = next(entry.body["route"] for entry in entries if entry.kind == "route")
    logged = stage.rows(PREDICTIONS)
    routes = Counter(logged.select("route", "version").rows())
    assert routes["canary", 2] == routes["shadow", 1] > 5
    assert len(set(logged["id"])) == logged.height
    canaries = logged.filter((pl.col("route") == "canary") & (pl.col("version") == 2))
    shadows = logged.filter(pl.col("route") == "shadow")
    mirrored = {(key, served_nonce(nonce)) for key, nonce in shadows.select("key", "nonce").rows()}
    assert set(canaries.select("key", "nonce").rows()) <= mirrored
    during = logged.filter((pl.col("asked") >= canaries["asked"].min()) & (pl.col("asked") <= canaries["asked"].max()))
    made = tm_route(trial)
    for key, route, version in during.select("key", "route", "version").rows():
        chosen = choose(made, msgspec.json.decode(key))
        assert (route == "shadow") or (route, version) == (("canary", 2) if chosen else ("champion", 1))


def tm_route(data: dict[str, Any]) -> Route:
    return Route.from_json(data)


def test_what_shadows_said_is_not_watched() -> None:
    stage, entries = turn(declare(canary=tm.Canary(share=0.5, over="30d")))
    logged = stage.rows(PREDICTIONS)
    newest = [entry for entry in entries if entry.kind == "watch"][-1]
    recent = logged.filter(
        (pl.col("asked").dt.epoch("us") > newest.tick - 7 * DAY) & (pl.col("_tick").dt.epoch("us") <= newest.tick)
    )
    assert newest.body["predictions"] == recent.filter(pl.col("route") != "shadow").height < recent.height


def test_a_canary_that_is_worse_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "judge", lambda *_, **__: ({"rows": 9}, "withdraw", "it is worse"))
    stage, entries = turn(declare(canary=tm.Canary(share=0.5, over="3d")))
    assert stage.mill.state.model("good").aliases == {"champion": 1}
    ends = [entry.body["reasons"] for entry in entries if entry.kind == "route" and not entry.body["route"]["arms"]]
    assert ends[0] == ["v2 is withdrawn: it is worse"]


def test_the_same_past_gives_the_same_decisions() -> None:
    system = declare(canary=tm.Canary(share=0.5, over="3d"))
    (_, one), (_, other) = turn(system), turn(system)
    assert [(each.tick, each.kind, each.body) for each in one] == [(each.tick, each.kind, each.body) for each in other]


def test_routes_by_hand() -> None:
    arms = [{"name": "b", "version": "1", "share": 0.5}]
    body = {"model": "good", "arms": arms, "shadows": [], "reason": "to see"}
    wrong = {**body, "arms": [{"name": "b", "version": "9", "share": 0.5}]}
    system = declare(canary=tm.Canary(share=0.5, over="1d"))
    stage, entries = turn(system, {3: ("route", body), 4: ("route", wrong)})
    story = said(entries, "route", "alias")
    assert story[1] == (3, "route", [{"name": "b", "version": 1, "share": 0.5}])
    assert stage.mill.state.model("good").route.arms == (Arm("b", 1, 0.5),)
    # versions that pass the gate meanwhile wait: an experiment is not changed under the hands of who runs it
    assert stage.mill.state.model("good").aliases == {"champion": 1}
    assert any("waits" in reason for entry in entries if entry.kind == "route" for reason in entry.body["reasons"])
    refused = [entry.body["refused"] for entry in entries if entry.kind == "request"]
    assert refused[0] is None
    assert "There is no version 9" in refused[1]


def test_the_champion_is_not_its_own_canary() -> None:
    def ask(name: str | None, *, versions: int, shadows: tuple[str, ...] = ()) -> Route:
        made = tuple(Version("good", number, "t", "r", 0, 0, {}) for number in range(1, versions + 1))
        arms = [{"name": name, "version": "champion", "share": 0.5}] if name else []
        body = {"arms": arms, "shadows": [*shadows]}
        return asked_for("good", ModelState(versions=made, aliases={"champion": 1}), body)

    with pytest.raises(TidemillError, match="v1 is the champion; it answers"):
        ask(None, versions=2, shadows=("v2", "v1"))
    assert ask("b", versions=2, shadows=("v1",)).shadows == (1,)  # asked what the arm answers
    with pytest.raises(TidemillError, match=r"v1 is the champion; a canary is another version. Name one of v2, v3\."):
        ask("canary", versions=3)
    with pytest.raises(TidemillError, match="Make one first: tidemill retrain good"):
        ask("canary", versions=1)
    assert ask("same", versions=2).arms == (Arm("same", 1, 0.5),)  # the side of a test that stays as it is


def test_another_champion_by_hand_ends_the_arms() -> None:
    back = {"model": "good", "alias": "champion", "version": "1", "reason": "back"}
    test = {"model": "good", "arms": [{"name": "b", "version": "2", "share": 0.5}], "shadows": [], "reason": "to see"}
    stage, _ = turn(declare(), {9: ("route", test), 11: ("rollback", back)})
    known = stage.mill.state.model("good")
    assert known.tenures[-1][1:] != ("champion", 2)
    assert known.route.arms == ()
