"""The policy as a table of cases."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tidemill.base.clock import DAY, HOUR
from tidemill.base.hashing import canonical
from tidemill.engine.mill.policy import Situation, decide
from tidemill.spec.system import Policy, every, on_drift, on_drop

ALL = Policy(retrain=[every("30d"), on_drift(cooldown="7d"), on_drop(cooldown="3d")])
NOW = 100 * DAY

# name, policy, last training started this long ago, what else differs, kind, a part of the reasons
CASES: list[tuple[str, Policy, int | None, dict[str, Any], str, str]] = [
    ("never trained", ALL, None, {}, "train", "no model yet"),
    ("never trained, no triggers", Policy(), None, {}, "train", "no model yet"),
    ("never trained, nothing mature", ALL, None, {"new_mature_rows": 0}, "none", "no mature example"),
    ("never trained, under way", ALL, None, {"in_flight": True}, "none", "under way"),
    ("quiet", ALL, 10 * DAY, {}, "none", "nothing calls for it"),
    ("no triggers", Policy(), 500 * DAY, {"drift": True, "drop": True}, "none", "nothing calls for it"),
    ("due", ALL, 31 * DAY, {}, "train", "scheduled every 30d"),
    ("due exactly now", ALL, 30 * DAY, {}, "train", "scheduled every 30d"),
    ("due in a moment", ALL, 30 * DAY - 1, {}, "none", "nothing calls for it"),
    ("due, under way", ALL, 31 * DAY, {"in_flight": True}, "none", "under way"),
    ("due, no new labels", ALL, 31 * DAY, {"new_mature_rows": 0}, "none", "no label has matured since"),
    ("drift", ALL, 8 * DAY, {"drift": True}, "train", "drift is reported"),
    ("drift at the end of the cooldown", ALL, 7 * DAY, {"drift": True}, "train", "drift is reported"),
    ("drift in the cooldown", ALL, 6 * DAY, {"drift": True}, "none", "drift is reported, but .*cooldown 7d"),
    ("drift not listened to", Policy(retrain=[every("30d")]), 8 * DAY, {"drift": True}, "none", "nothing calls"),
    ("drop", ALL, 4 * DAY, {"drop": True}, "train", "drop of performance is reported"),
    ("drop in the cooldown", ALL, 2 * DAY, {"drop": True}, "none", "cooldown 3d"),
    ("drop not listened to", Policy(retrain=[on_drift()]), 9 * DAY, {"drop": True}, "none", "nothing calls"),
    ("by hand", ALL, 1 * HOUR, {"by_hand": "new sensor"}, "train", "asked for by hand: new sensor"),
    ("by hand without words", Policy(), 1 * HOUR, {"by_hand": ""}, "train", "asked for by hand"),
    ("by hand, no new labels", ALL, 1 * HOUR, {"by_hand": "x", "new_mature_rows": 0}, "train", "by hand"),
    ("no champion yet", Policy(), DAY, {"undecided": True}, "train", "no champion yet"),
    ("no champion yet, tried today", Policy(), DAY - 1, {"undecided": True}, "none", "nothing calls for it"),
    ("no champion yet, no new labels", Policy(), DAY, {"undecided": True, "new_mature_rows": 0}, "none", "nothing"),
    ("judged otherwise", Policy(), 1 * HOUR, {"rejudged": True}, "train", "how the model is judged has changed"),
    ("judged otherwise, under way", Policy(), 1, {"rejudged": True, "in_flight": True}, "none", "under way"),
    ("changed recipe", Policy(), 1 * HOUR, {"changed": True}, "train", "the recipe has changed"),
    ("changed recipe, no new labels", ALL, 1, {"changed": True, "new_mature_rows": 0}, "train", "recipe has changed"),
    ("changed recipe, under way", ALL, 1, {"changed": True, "in_flight": True}, "none", "under way"),
    ("by hand, under way", ALL, 1 * HOUR, {"by_hand": "x", "in_flight": True}, "none", "waits"),
]


@pytest.mark.parametrize(
    ("policy", "age", "how", "kind", "says"),
    [each[1:] for each in CASES],
    ids=[each[0] for each in CASES],
)
def test_cases(policy: Policy, age: int | None, how: dict[str, Any], kind: str, says: str) -> None:
    situation: dict[str, Any] = {
        "now": NOW,
        "last_started": None if age is None else NOW - age,
        "in_flight": False,
        "new_mature_rows": 1,
    }
    decision = decide(policy, Situation(**{**situation, **how}))
    assert decision.kind == kind
    assert re.search(says, "; ".join(decision.reasons))
    assert canonical(decision.as_json())


def test_every_reason_is_given() -> None:
    situation = Situation(NOW, NOW - 40 * DAY, False, 10, drift=True, drop=True, by_hand="look")
    decision = decide(ALL, situation)
    assert [reason.split(":")[0] for reason in decision.reasons] == [
        "asked for by hand",
        "scheduled every 30d",
        "drift is reported",
        "a drop of performance is reported",
    ]
