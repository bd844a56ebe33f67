"""When to retrain: a pure function from what is known now to a decision with its reasons.

Never two trainings of a model at once. A request by hand and a changed recipe always count; the schedule and the
reports count from the start of the last training, and only when labels have matured since, because without new rows a
training would make the same model again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tidemill.base.clock import DAY, format_duration
from tidemill.spec.system import Every, OnDrift, OnDrop, Policy, Trigger

#: How long after an undecided first try the next is made, in microseconds, when labels have matured since.
RETRY = DAY


@dataclass(frozen=True, slots=True)
class Situation:
    """What the policy of one model looks at. Times in microseconds.

    ``last_started``: when its last training started, whether or not it was promoted; None when there was none.
    ``in_flight``: a training of it has started and not yet taken effect. ``drift`` and ``drop``: what the newest
    reports say. ``by_hand``: the words with which somebody asked for a training, None when nobody did.
    ``new_mature_rows``: examples that matured since the last training started (all of them when there was none).
    ``changed``: the declared recipe is not the one of the last training. ``undecided``: there is no champion yet, and
    the last try failed or had too few rows to be judged on. ``rejudged``: there is no champion yet, and the model is
    judged otherwise than when the last training started.
    """

    now: int
    last_started: int | None
    in_flight: bool
    new_mature_rows: int
    drift: bool = False
    drop: bool = False
    by_hand: str | None = None
    changed: bool = False
    undecided: bool = False
    rejudged: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Train now, or not, and why: every trigger that fired, or what held the training back."""

    kind: Literal["train", "none"]
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data for the journal."""
        return {"kind": self.kind, "reasons": list(self.reasons)}


def decide(policy: Policy, situation: Situation) -> Decision:
    """Return whether to start a training at ``situation.now``.

    While one is under way the answer is "none", also to a request by hand, which then waits its turn. A model that was
    never trained is trained as soon as it has a mature row. A cooldown or period that ends exactly now has passed.
    """
    if situation.in_flight:
        waits = (f"asked for by hand ({situation.by_hand}), and waits for it",) if situation.by_hand is not None else ()
        return Decision("none", ("a training is under way", *waits))
    fired, held = [], []
    if situation.by_hand is not None:
        fired.append(f"asked for by hand: {situation.by_hand}")
    if situation.last_started is None:
        if situation.new_mature_rows > 0:
            fired.append("there is no model yet")
        else:
            held.append("there is no model yet, and no mature example to learn from")
    else:
        if situation.changed:
            fired.append("the recipe has changed")
        if situation.rejudged:
            fired.append("there is no champion yet, and how the model is judged has changed")
        age = situation.now - situation.last_started
        if situation.undecided and age >= RETRY and situation.new_mature_rows > 0:
            fired.append("there is no champion yet, and labels have matured since the last try")
        for trigger in policy.retrain:
            due, reason = _fires(trigger, situation, age)
            if due and situation.new_mature_rows > 0:
                fired.append(reason)
            elif due:
                held.append(f"{reason}, but no label has matured since")
            elif reason:
                held.append(reason)
    return Decision("train", tuple(fired)) if fired else Decision("none", tuple(held) or ("nothing calls for it",))


def _fires(trigger: Trigger, situation: Situation, age: int) -> tuple[bool, str]:
    """Return whether ``trigger`` calls for a training, and why or why not; no words when it has no say."""
    since = f"the last training started {format_duration(age)} ago"
    match trigger:
        case Every(period):
            if age >= period:
                return True, f"scheduled every {format_duration(period)}: {since}"
            return False, ""
        case OnDrift(cooldown):
            seen, said = situation.drift, "drift is reported"
        case OnDrop(cooldown):
            seen, said = situation.drop, "a drop of performance is reported"
    if not seen:
        return False, ""
    if age < cooldown:
        return False, f"{said}, but {since} (cooldown {format_duration(cooldown)})"
    return True, f"{said}: {since}"
