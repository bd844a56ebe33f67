from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.base.errors import TidemillError
from tidemill.engine.predict.route import (
    CHAMPION,
    PINNED,
    PLAIN,
    Arm,
    Route,
    choose,
    mirrors,
    route,
    served_nonce,
    shadow_nonce,
    split,
)

KEYS = [[f"key {i}", i] for i in range(4000)]


def arms(*shares: float) -> list[Arm]:
    return [Arm(f"arm{i}", i + 2, share) for i, share in enumerate(shares)]


def test_an_arm_gets_its_share_and_the_champion_the_rest() -> None:
    shared = {name: len(places) for name, _, places in split(route("m", arms(0.1, 0.3)), 1, KEYS)}
    assert shared[CHAMPION] == pytest.approx(2400, rel=0.08)
    assert shared["arm0"] == pytest.approx(400, rel=0.2)
    assert shared["arm1"] == pytest.approx(1200, rel=0.1)


def test_a_key_stays_with_its_version_and_a_larger_share_keeps_its_keys() -> None:
    small, large = route("m", arms(0.1)), route("m", arms(0.4))
    kept = {place for place, key in enumerate(KEYS) if choose(small, key)}
    grown = {place for place, key in enumerate(KEYS) if choose(large, key)}
    assert kept < grown
    assert kept == {place for place, key in enumerate(KEYS) if choose(route("m", arms(0.1)), key)}


def test_another_version_on_trial_meets_other_keys() -> None:
    one, other = route("m", [Arm("canary", 2, 0.1)]), route("m", [Arm("canary", 3, 0.1)])
    both = [key for key in KEYS if choose(one, key) and choose(other, key)]
    assert len(both) < 100  # 40 of 4000 by chance, 400 were the ids alike


@given(
    st.lists(st.floats(0.001, 0.3), max_size=3),
    st.lists(st.lists(st.text() | st.integers() | st.booleans(), min_size=1, max_size=2), max_size=30),
)
def test_every_key_has_one_answer(shares: list[float], keys: list[list[object]]) -> None:
    made = route("m", arms(*shares))
    parts = split(made, 1, keys)
    assert sorted(place for _, _, places in parts for place in places) == list(range(len(keys)))
    for name, version, places in parts:
        for place in places:
            arm = choose(made, keys[place])
            assert (name, version) == ((CHAMPION, 1) if arm is None else (arm.name, arm.version))


def test_the_whole_line_can_be_given_away() -> None:
    assert [name for name, _, _ in split(route("m", arms(0.5, 0.5)), 1, KEYS)] == ["arm0", "arm1"]


@pytest.mark.parametrize(
    ("given_arms", "said"),
    [
        (arms(0.6, 0.6), "add up to 1.2"),
        ([Arm("a b", 2, 0.1)], "cannot be the name"),
        ([Arm("shadow", 2, 0.1)], "cannot be the name"),
        ([Arm("a", 2, 0.1), Arm("a", 3, 0.1)], "same name"),
        ([Arm("a", 2, 0.0)], "must lie above 0"),
        ([Arm("a", 2, 1.5)], "at most 1"),
    ],
)
def test_what_cannot_be_a_route_is_refused(given_arms: list[Arm], said: str) -> None:
    with pytest.raises(TidemillError, match=said):
        route("m", given_arms)


def test_a_route_reads_back_and_says_what_it_is() -> None:
    made = route("m", arms(0.25), [5, 5], paired=True, until=7)
    assert Route.from_json(made.as_json()) == made
    assert str(made) == "arm0 v2 0.25, shadow v5"
    assert made.versions == (2, 5)
    assert route("m") == PLAIN
    assert str(PLAIN) == "champion only"


def test_who_is_mirrored() -> None:
    made = route("m", arms(0.5), [5, 2], paired=True)
    assert mirrors(made, 1, CHAMPION, 1) == (5, 2)
    assert mirrors(made, 1, "arm0", 2) == (5, 1)  # never the version that answered; the champion, to compare
    assert mirrors(made, 1, PINNED, 3) == ()
    assert mirrors(route("m", arms(0.5)), 1, "arm0", 2) == ()


@given(st.text(), st.integers(1, 99), st.integers(0, 99) | st.none())
def test_a_mirrored_nonce_tells_what_it_mirrors(call: str, version: int, place: int | None) -> None:
    nonce = call.replace(":", "") if place is None else f"{call}:{place}"
    mirrored = shadow_nonce(nonce, version)
    assert mirrored != nonce
    assert served_nonce(mirrored) == nonce
