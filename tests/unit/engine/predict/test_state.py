"""The state as a fold over the journal."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.base.errors import NotFoundError
from tidemill.engine.predict.state import KINDS, State, fold
from tidemill.ports.journal import Entry

JUDGED = {"verdict": {"outcome": "pass"}, "metrics": {"log_loss": {"value": 0.3}}}


def entries(*given: tuple[int, str, dict[str, Any]]) -> list[Entry]:
    return [Entry(number, tick, kind, body) for number, (tick, kind, body) in enumerate(given, 1)]


def training(tick: int, name: str, rival: str | None = None) -> tuple[int, str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": "late", "training": name, "recipe": "r", "case": "first", "rival": rival, "reasons": [],
        "as_of": tick + 1, "ready": tick + 10, "next_seq": {"a": 3},
    }  # fmt: skip
    return tick, "train", body


def promoted(tick: int, name: str, number: int) -> list[tuple[int, str, dict[str, Any]]]:
    head = {"model": "late", "training": name}
    return [
        (tick, "judge", {**head, "judged": JUDGED}),
        (tick, "version", {**head, "version": number, "recipe": "r", "as_of": tick - 9}),
        (tick, "alias", {"model": "late", "alias": "champion", "version": number, "previous": None, "reasons": []}),
    ]


def test_commits_count_rows_and_remember_storage() -> None:
    state = fold([Entry(1, 5, "commit", {"table": "a", "next_seq": 4}, {"version": 7})])
    assert state.rows == {"a": 4}
    assert state.storage == {"a": 7}
    assert state.number == 1


def test_a_source_halts_and_resumes_and_its_first_load_ends_once() -> None:
    halted = fold(entries((1, "halt", {"source": "a", "reason": "gone"}), (2, "loaded", {"source": "b"})))
    assert halted.halted == {"a": "gone"}
    assert halted.loaded == {"b"}
    assert fold([Entry(3, 3, "resume", {"source": "a"})], halted).halted == {}


def test_a_training_is_under_way_until_it_is_judged() -> None:
    state = fold(entries(training(10, "t1")))
    under_way = state.model("late").training
    assert under_way is not None
    assert (under_way.id, under_way.as_of, under_way.ready, under_way.next_seq) == ("t1", 11, 20, {"a": 3})
    after = fold(entries(training(10, "t1"), *promoted(20, "t1", 1))).model("late")
    assert after.training is None
    assert after.last_started == 10
    assert after.resolve("champion").judged == JUDGED


def test_a_failed_training_leaves_the_champion_alone() -> None:
    failed = (50, "fail", {"model": "late", "training": "t2", "reason": "no"})
    state = fold(entries(training(10, "t1"), *promoted(20, "t1", 1), training(40, "t2", "t1"), failed)).model("late")
    assert state.training is None
    assert state.aliases == {"champion": 1}
    assert state.last_started == 40


def test_who_was_live_at_a_tick_and_after_a_rollback() -> None:
    back = (60, "alias", {"model": "late", "alias": "champion", "version": 1, "previous": 2, "reasons": []})
    given = [training(10, "t1"), *promoted(20, "t1", 1), training(30, "t2"), *promoted(40, "t2", 2), back]
    state = fold(entries(*given)).model("late")
    assert [state.at("champion", tick) for tick in (19, 20, 39, 40, 59, 60, 99)] == [None, 1, 1, 2, 2, 1, 1]
    assert state.aliases == {"champion": 1}


def test_references_to_versions() -> None:
    state = fold(entries(training(10, "t1"), *promoted(20, "t1", 1))).model("late")
    assert state.resolve("v1") is state.resolve("1") is state.resolve("champion")
    with pytest.raises(NotFoundError, match="versions go from 1 to 1"):
        state.resolve("v2")
    with pytest.raises(NotFoundError, match="Did you mean 'champion'"):
        state.resolve("champoin")


def test_folding_in_two_parts_gives_the_same_state() -> None:
    given = entries(training(10, "t1"), *promoted(20, "t1", 1), (21, "commit", {"table": "a", "next_seq": 9}))
    whole = fold(given)
    for cut in range(len(given) + 1):
        assert fold(given[cut:], fold(given[:cut])) == whole


def test_every_kind_is_folded_without_error_or_is_only_noted() -> None:
    assert fold([Entry(1, 0, "something new", {})]) == State(number=1)
    assert {"commit", "train", "judge", "version", "alias", "watch"} <= set(KINDS)


def test_another_judging_is_noticed_until_the_next_training() -> None:
    def declare(confidence: float) -> tuple[int, str, dict[str, Any]]:
        return 0, "declare", {"declared": {"models": {"late": {"judging": {"gate": confidence}}}}, "changes": []}

    began = [declare(0.9), training(10, "t")]
    assert not fold(entries(*began)).model("late").rejudge
    assert not fold(entries(*began, declare(0.9))).model("late").rejudge
    assert fold(entries(*began, declare(0.8))).model("late").rejudge
    assert not fold(entries(*began, declare(0.8), training(20, "u"))).model("late").rejudge
