"""What is called for at a tick: by the requests of people, and by the policy of each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import polars as pl

from tidemill.base.clock import format_time
from tidemill.base.errors import TidemillError
from tidemill.base.hashing import fingerprint
from tidemill.engine.check.fingerprint import judging, recipe_fingerprint
from tidemill.engine.evaluate.gate import Case
from tidemill.engine.example.example import ASKED_AT, examples
from tidemill.engine.mill.policy import Decision, Situation, decide
from tidemill.engine.mill.refuse import check_champion
from tidemill.engine.monitor.canary import asked_for, pointed, routed
from tidemill.engine.predict import records
from tidemill.engine.predict.route import PLAIN, route
from tidemill.engine.predict.state import ModelState, State, fold
from tidemill.ports.journal import Draft, Entry, Journal, Request
from tidemill.ports.lake import Lake
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model
from tidemill.spec.system import System


def tables_of(model: Model) -> tuple[str, ...]:
    """Return the names of the tables that a training of ``model`` reads, in alphabetical order."""
    views = {view.table.name for view in model.views if not isinstance(view, OnDemand)}
    return tuple(sorted({model.examples.name, model.label.table.name, *views}))


def foreseen(state: State, drafts: Sequence[Draft], tick: int) -> State:
    """Return ``state`` as it will be once ``drafts`` are written."""
    number = state.number
    return fold(
        (Entry(number + i, tick, draft.kind, draft.body, draft.meta) for i, draft in enumerate(drafts, 1)), state
    )


class Decider:
    """Drafts the entries that requests and policies call for."""

    def __init__(self, system: System, lake: Lake, journal: Journal) -> None:
        self._system, self._lake, self._journal = system, lake, journal
        self._recipes = {model.name: recipe_fingerprint(model, system.policy) for model in system.models}

    def decide(self, state: State, tick: int, drafts: list[Draft]) -> tuple[str, ...]:
        """Add to ``drafts``, with which ``state`` goes on, what is called for; return the requests answered by it."""
        answered = []
        by_hand: dict[str, list[Request]] = {}
        for request in self._journal.requests():
            if request.kind == "retrain":
                by_hand.setdefault(request.body["model"], []).append(request)
                continue
            answered.append(request.id)
            if request.kind == "rebuild":
                drafts.append(_taken_up(tick, request))
                continue
            carry_out = _route if request.kind == "route" else self._point
            try:
                done = carry_out(request.body, tick, foreseen(state, drafts, tick))
            except TidemillError as error:  # asked for what there is not, or cannot be; the mill turns on
                drafts.append(_taken_up(tick, request, refused=str(error)))
            else:
                drafts += [_taken_up(tick, request), *done]
        for model in self._system.models:
            asked = by_hand.pop(model.name, [])
            ahead = foreseen(state, drafts, tick)
            decision = self._weigh(model, ahead.model(model.name), tick, asked[0].body["reason"] if asked else None)
            if decision.kind == "train":
                drafts += [_taken_up(tick, request) for request in asked]
                drafts.append(self._order(model, ahead, tick, decision))
                answered += [request.id for request in asked]
        for request in (request for requests in by_hand.values() for request in requests):
            answered.append(request.id)
            drafts.append(_taken_up(tick, request, refused=f"There is no model {request.body['model']!r}."))
        return tuple(answered)

    def _weigh(self, model: Model, state: ModelState, tick: int, by_hand: str | None) -> Decision:
        watched = (
            state.watched if state.watched_at is not None and state.watched_at >= (state.last_started or 0) else None
        )
        situation = Situation(
            now=tick,
            last_started=state.last_started,
            in_flight=state.training is not None,
            new_mature_rows=1,
            drift=bool(watched and (watched["drift"] or {}).get("drifted")),
            drop=bool(watched and (watched["performance"] or {}).get("drop")),
            by_hand=by_hand,
            undecided="champion" not in state.aliases
            and (state.judged is None or state.judged["verdict"]["outcome"] == "wait"),
            rejudged="champion" not in state.aliases and state.rejudge,
            changed=state.tried is not None and state.tried != self._recipes[model.name],
        )
        decision = decide(self._system.policy, situation)
        if decision.kind == "none":
            return decision
        # Something calls for a training: now it pays to count what has matured.
        return decide(self._system.policy, replace(situation, new_mature_rows=self._matured(model, state, tick)))

    def _matured(self, model: Model, state: ModelState, tick: int) -> int:
        """Return how many examples matured since the last training started, or at all when there was none."""
        # An ``otherwise`` alone is nothing to learn from.
        if self._lake.head(model.examples.name) is None or self._lake.head(model.label.table.name) is None:
            return 0
        ripe = self._ripe(model, tick)
        since = state.last_started if state.last_started is not None else -(2**62)
        return int(((ripe >= since) & (ripe < tick + 1)).sum())

    def _ripe(self, model: Model, tick: int) -> pl.Series:
        """Return when each example that is known at ``tick`` is mature, in microseconds."""
        rows = pl.DataFrame(self._lake.scan(model.examples.name))
        found, _ = examples(model, rows, tick + 1)
        return found[ASKED_AT].dt.epoch("us") + (model.label.within + model.label.settle)

    def waits(self, state: State, tick: int) -> Iterator[tuple[str, str]]:
        """Yield the models that no training has been started for yet, and what each waits for."""
        for model in self._system.models:
            if state.model(model.name).last_started is None:
                yield model.name, self._awaited(model, tick)

    def _awaited(self, model: Model, tick: int) -> str:
        for table, use in ((model.examples, "examples"), (model.label.table, "labels")):
            if self._lake.head(table.name) is None:
                return f"the first rows of {table.name}, its {use}"
        first = self._ripe(model, tick).min()
        when = f"; the first is due at {format_time(first)}" if isinstance(first, int) else ""
        return f"an example that is old enough to have its label{when}"

    def _point(self, body: Mapping[str, object], tick: int, state: State) -> list[Draft]:
        """Draft the pointing of an alias at another version, as somebody asked.

        Another champion is everybody's: the arms of a route end with it. Raises WorkspaceError when the file no longer
        declares what it needs, for it could not answer.
        """
        name = str(body["model"])
        model = state.model(name)
        version = model.resolve(str(body["version"]))
        reason = f"asked for by hand: {body['reason']}"
        if body["alias"] == "champion":
            for declared in self._system.models:
                if declared.name == name:
                    check_champion(declared, version.number, self._journal.step(version.training))
            drafts = pointed(name, replace(model, route=PLAIN), version.number, tick, [reason])
            if model.route.arms:
                plain = route(name, (), model.route.shadows)
                drafts.append(routed(name, model, plain, tick, [f"v{version.number} is champion, {reason}"]))
            return drafts
        alias = str(body["alias"])
        named = {"alias": alias, "version": version.number, "previous": model.aliases.get(alias)}
        return [Draft(tick, "alias", {"model": name, **named, "reasons": [reason]})]

    def _order(self, model: Model, ahead: State, tick: int, decision: Decision) -> Draft:
        """Draft the start of a training: what it reads, and when it takes effect."""
        state, own = ahead.model(model.name), self._recipes[model.name]
        champion = state.version(state.aliases["champion"]) if "champion" in state.aliases else None
        case: Case = "first" if champion is None else "refresh" if champion.recipe == own else "changed"
        heard = records.RESERVED_TABLES if ahead.rows.get(records.FEEDBACK) else ()
        next_seq = {name: ahead.rows.get(name, 0) for name in (*tables_of(model), *heard)}
        rival = champion.training if champion is not None else None
        body = {
            "model": model.name,
            "training": fingerprint(own, judging(model), tick, next_seq, rival)[:16],
            "recipe": own,
            "case": case,
            "reasons": list(decision.reasons),
            "as_of": tick + 1,
            "ready": tick + self._system.policy.takes,
            "next_seq": next_seq,
            "rival": rival,
        }
        return Draft(tick, "train", body)


def _route(body: Mapping[str, object], tick: int, state: State) -> list[Draft]:
    """Draft another route, as somebody asked."""
    name = str(body["model"])
    model = state.model(name)
    new = asked_for(name, model, dict(body))
    return [routed(name, model, new, tick, [f"asked for by hand: {body['reason']}"])]


def _taken_up(tick: int, request: Request, *, refused: str | None = None) -> Draft:
    return Draft(tick, "request", {"request": request.kind, "body": request.body, "refused": refused})
