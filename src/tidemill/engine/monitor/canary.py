"""Letting a version in: at once, or first as a canary that is compared with the champion on what it really answered.

While a canary answers its share of the keys, the champion answers the same questions unseen. Once their labels are
mature, both are judged on these pairs by the gate's metric. It is looked at every ``LOOK``, and the chance of an error
is shared out over the looks (look k has 1 / (k (k + 1)) of it), so the bound holds however often one looks.

- Shown to be worse by more than the gate's margin: withdrawn, at any look.
- Else, once the declared stretch is over and the gate's ``min_rows`` pairs are mature: promoted.
- Else it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy.typing as npt
import polars as pl

from tidemill.base.clock import DAY, HOUR, format_duration
from tidemill.base.errors import TidemillError
from tidemill.base.hashing import seed
from tidemill.base.schema import SEQ
from tidemill.engine.evaluate.interval import paired
from tidemill.engine.evaluate.metric import worsening
from tidemill.engine.example import ledger
from tidemill.engine.example.example import ASKED_AT
from tidemill.engine.example.outcome import label_columns, outcomes, predictions, truth
from tidemill.engine.predict import records
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.route import CANARY, CHAMPION, PLAIN, SHADOW, Arm, Route, route, served_nonce
from tidemill.engine.predict.state import ModelState
from tidemill.engine.table.table import TIME
from tidemill.ports.journal import Draft, Journal
from tidemill.ports.lake import Lake
from tidemill.spec.model import Gate, Model
from tidemill.spec.split import BLOCK
from tidemill.spec.system import Canary, System

#: Microseconds between two looks at a canary.
LOOK = DAY

_COLUMNS = ("id", "model", "version", "route", "asked", "key", "nonce", "prediction", SEQ)

Outcome = Literal["promote", "withdraw", "wait"]


def pointed(model: str, state: ModelState, version: int, tick: int, reasons: Sequence[str]) -> list[Draft]:
    """Draft that ``version`` is the champion; a canary of that version or of one before it ends with that."""
    body = {
        "model": model,
        "alias": CHAMPION,
        "version": version,
        "previous": state.aliases.get(CHAMPION),
        "reasons": list(reasons),
    }
    drafts = [Draft(tick, "alias", body)]
    if state.route.until is not None:
        drafts.append(routed(model, state, route(model, (), state.route.shadows), tick, [f"v{version} is champion"]))
    return drafts


def routed(
    model: str, state: ModelState, new: Route, tick: int, reasons: Sequence[str], judged: dict[str, Any] | None = None
) -> Draft:
    """Draft that questions are shared out by ``new``, or that a canary was looked at and goes on."""
    body = {
        "model": model,
        "route": new.as_json(),
        "previous": str(state.route),
        "judged": judged,
        "reasons": list(reasons),
    }
    return Draft(tick, "route", body)


def let_in(
    model: str, state: ModelState, version: int, canary: Canary | None, tick: int, reasons: Sequence[str]
) -> list[Draft]:
    """Draft what becomes of ``version``, which has passed the gate for ``reasons``.

    The first version, and any where no canary is declared, is promoted at once. While a route with arms that somebody
    set by hand stands, it waits: an experiment is not to be changed under the hands of who runs it.
    """
    if canary is None or CHAMPION not in state.aliases:
        return pointed(model, state, version, tick, reasons)
    if state.route.arms and state.route.until is None:
        waits = f"v{version} passed the gate and waits: the route set by hand stands. Point at it, or end the route."
        return [routed(model, state, state.route, tick, [waits])]
    arm = Arm(CANARY, version, canary.share)
    new = route(model, [arm], state.route.shadows, paired=True, until=tick + canary.over)
    over = format_duration(canary.over)
    return [routed(model, state, new, tick, [f"{canary.share:.0%} of the keys for {over}", *reasons])]


class Trial:
    """Looks at the canary of one model."""

    def __init__(self, system: System, model: Model, lake: Lake, journal: Journal) -> None:
        self._canary, self._model, self._lake, self._journal = system.endpoint.canary, model, lake, journal

    def look(self, state: ModelState, tick: int) -> list[Draft]:
        """Draft what is decided about the canary at ``tick``; nothing when there is none, or none is due."""
        trial = state.route
        if trial.until is None or not trial.arms or state.routed_at is None or CHAMPION not in state.aliases:
            return []
        due = min(state.routed_at + (state.looks + 1) * LOOK, max(trial.until, state.routed_at + state.looks * LOOK))
        if tick < due:
            return []
        version, name = trial.arms[0].version, self._model.name
        length = trial.until - state.routed_at
        pairs = self._pairs(state, tick)
        if pairs is None:
            judged, outcome, reason = {"rows": 0}, "wait", "no pair of answers is mature yet; keep going"
        else:
            judged, outcome, reason = judge(
                self._model.gate,
                truth=pairs[0],
                candidate=pairs[1],
                rival=pairs[2],
                times=pairs[3],
                seed=seed(f"{trial.id}/{state.looks}"),
                look=state.looks + 1,
                over=tick >= trial.until,
                block=max(min(BLOCK, length // 8), HOUR),
            )
        plain = route(name, (), trial.shadows)
        match outcome:
            case "promote":
                said = routed(name, state, plain, tick, [f"v{version} is promoted: {reason}"], judged)
                quiet = pointed(name, state, version, tick, [reason])[:1]
                return [said, *quiet]
            case "withdraw":
                return [routed(name, state, plain, tick, [f"v{version} is withdrawn: {reason}"], judged)]
            case _:
                return [routed(name, state, trial, tick, [reason], judged)]

    def _pairs(self, state: ModelState, tick: int) -> tuple[npt.NDArray[Any], ...] | None:
        """Return truth, the canary's and the champion's predictions, and times of what both answered and is mature."""
        model, trial = self._model, state.route
        arm = trial.arms[0]
        step = self._journal.step(state.version(arm.version).training)
        labels = model.label.table.name
        if step is None or any(self._lake.head(name) is None for name in (records.PREDICTIONS, labels)):
            return None
        since = pl.lit(state.routed_at, dtype=TIME)
        logged = pl.DataFrame(self._lake.scan(records.PREDICTIONS, columns=_COLUMNS)).filter(
            (pl.col("model") == model.name) & (pl.col("asked") >= since)
        )
        asked = pl.col("nonce").map_elements(served_nonce, return_dtype=pl.String)
        mirrored = (pl.col("route") == SHADOW) & (pl.col("version") == state.aliases[CHAMPION])
        unseen = logged.filter(mirrored).select("key", "asked", asked, pl.col("prediction").alias("_rival"))
        own = logged.filter((pl.col("route") == arm.name) & (pl.col("version") == arm.version))
        both = own.join(unseen.unique(["key", "asked", "nonce"]), on=["key", "asked", "nonce"])
        if both.is_empty():
            return None
        schema = pl.DataFrame(self._lake.schema(model.examples.name).empty_table()).schema
        rows = pl.DataFrame(self._lake.scan(labels, columns=label_columns(model)))
        feedback = None
        if self._lake.head(records.FEEDBACK) is not None:
            said = pl.DataFrame(self._lake.scan(records.FEEDBACK))
            feedback = ledger.feedback_by_key(said, both, model, schema)
        known = outcomes(model, both, rows, schema, tick + 1, feedback)
        candidate, rival = predictions(known["prediction"]), predictions(known["_rival"])
        if not known.height or candidate.shape != rival.shape:
            return None
        times = known[ASKED_AT].to_physical().to_numpy()
        return truth(known, Encoding.from_json(step["encoding"])), candidate, rival, times


def judge(
    gate: Gate,
    *,
    truth: npt.ArrayLike,
    candidate: npt.ArrayLike,
    rival: npt.ArrayLike,
    times: npt.ArrayLike,
    seed: int,
    look: int,
    over: bool,
    block: int = BLOCK,
) -> tuple[dict[str, Any], Outcome, str]:
    """Return the figures, what to do with a canary, and why. ``look`` counts from 1; ``over``: its stretch has passed.

    ``truth``, ``candidate``, ``rival``, ``times`` as ``gate.decide`` takes them. The same arguments give the same.
    """
    doubt = (1 - gate.confidence) / (look * (look + 1))
    pair = paired(gate.metric, truth, candidate, rival, times, seed=seed, confidence=1 - 2 * doubt, block=block)
    gap = pair.difference
    judged = {"rows": gap.rows, "look": look, "metric": gate.metric, "difference": gap.as_json()}
    if gap.value is None:
        return judged, "wait", f"{gate.metric} is not defined on {gap.rows:,} mature pairs; keep going"
    worse = worsening(gate.metric, gap.value)
    said = f"{gate.metric} {'worse' if worse > 0 else 'better'} by {abs(worse):.4g} on {gap.rows:,} mature pairs"
    if gap.low is not None and gap.high is not None:
        at_best = min(worsening(gate.metric, end) for end in (gap.low, gap.high))
        if at_best > gate.margin:
            return judged, "withdraw", f"{said}, by at least {at_best:.4g} (margin {gate.margin:.4g}): worse"
    if not over:
        return judged, "wait", f"{said}; its stretch is not over"
    if gap.rows < gate.min_rows or gap.low is None:
        return judged, "wait", f"{said}; {gate.min_rows:,} in three blocks of time are needed, keep going"
    return judged, "promote", f"{said}: not shown to be worse"


def asked_for(model: str, state: ModelState, body: dict[str, Any]) -> Route:
    """Return the route that a request by hand asks for: ``arms`` ([{name, version, share}]) and ``shadows``.

    Raises NotFoundError for a version that there is not, TidemillError for shares and names that cannot be, and for the
    champion as its own canary, or as a shadow where it answers everything. (An arm of another name may be the
    champion's: a test has a side that stays as it is.)
    """
    arms = [Arm(arm["name"], state.resolve(str(arm["version"])).number, arm["share"]) for arm in body["arms"]]
    shadows = [state.resolve(str(version)).number for version in body["shadows"]]
    champion = state.aliases.get(CHAMPION)
    if any(arm.name == CANARY and arm.version == champion for arm in arms):
        others = ", ".join(f"v{version.number}" for version in state.versions if version.number != champion)
        raise TidemillError(
            f"model {model!r}: v{champion} is the champion; a canary is another version. "
            + (f"Name one of {others}." if others else f"Make one first: tidemill retrain {model}")
        )
    if champion in shadows and not arms:
        raise TidemillError(f"model {model!r}: v{champion} is the champion; it answers, and is asked no second time.")
    return route(model, arms, shadows) if arms or shadows else PLAIN
