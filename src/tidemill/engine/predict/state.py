"""Live state as a fold over the journal: versions, aliases, trainings under way, the newest reports.

Nothing here is stored: ``fold`` over the entries gives the state, so a crash loses nothing and no table can disagree
with the journal. The kinds of entries and their bodies are listed in ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tidemill.base.errors import NotFoundError
from tidemill.base.schema import nearest
from tidemill.engine.predict.route import PLAIN, Route
from tidemill.ports.journal import Entry

#: Every kind of entry, and what its body says.
KINDS: Mapping[str, str] = {
    "commit": "rows were committed to a table: table, rows, quarantined, first_seq, next_seq, cleaned",
    "loaded": "the first load of a source ended; from now on known-at is at least the tick: source",
    "halt": "a source stands still because an input cannot be read, or a derived table because its function failed: "
    "source, reason, derived",
    "resume": "a source that stood still is read again: source",
    "declare": "the declared system is new or has changed: declared, changes (of recipes, in words)",
    "train": "a training started: model, training, recipe, case, reasons, as_of, ready, next_seq, rival",
    "fail": "a training failed: model, training, reason",
    "judge": "a candidate was judged: model, training, judged (verdict, proof, metrics, kpis, slices, warnings, …)",
    "version": "a model version was made: model, version, training, recipe, as_of",
    "alias": "an alias was pointed at a version: model, alias, version, previous, reasons",
    "route": "questions are shared out anew: model, route (arms, shadows, …), previous, judged (or null), reasons",
    "watch": "predictions were watched: model, version, predictions, drift, performance, alarms, raised, cleared",
    "request": "somebody's request was taken up: request, body, refused (why, or null)",
}


@dataclass(frozen=True, slots=True)
class Version:
    """A fitted model: its number (from 1), the training that made it, and the fingerprint of its recipe."""

    model: str
    number: int
    training: str
    recipe: str
    tick: int
    as_of: int
    judged: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Training:
    """A training under way: it reads what was known before ``as_of`` and takes effect at tick ``ready``."""

    model: str
    id: str
    recipe: str
    case: Literal["first", "refresh", "changed"]
    rival: str | None
    started: int
    as_of: int
    ready: int
    next_seq: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model: its versions, its aliases with their history, its training under way and its newest report.

    ``tenures``: (tick, alias, version) whenever an alias was pointed. ``last_started``, ``tried``: tick and recipe of
    the last training; ``rejudge``: how the model is judged has changed since it started. ``watched``: the newest
    report, of tick ``watched_at``. ``route``: how questions are shared out since tick ``routed_at``; ``looks``: how
    often an automatic canary has been judged.
    """

    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    tenures: tuple[tuple[int, str, int], ...] = ()
    training: Training | None = None
    last_started: int | None = None
    tried: str | None = None
    rejudge: bool = False
    judged: Mapping[str, Any] | None = None
    watched: Mapping[str, Any] | None = None
    watched_at: int | None = None
    route: Route = PLAIN
    routed_at: int | None = None
    looks: int = 0

    def version(self, number: int) -> Version:
        """Return version ``number``. Raises NotFoundError."""
        if not 1 <= number <= len(self.versions):
            raise NotFoundError(f"There is no version {number}; versions go from 1 to {len(self.versions)}.")
        return self.versions[number - 1]

    def at(self, alias: str, tick: int) -> int | None:
        """Return the version that ``alias`` pointed at during ``tick`` (set at that tick or before), or None."""
        return next((version for at, name, version in reversed(self.tenures) if name == alias and at <= tick), None)

    def resolve(self, reference: str) -> Version:
        """Return the version that ``reference`` names: a number, ``v3`` or an alias. Raises NotFoundError."""
        number = reference.removeprefix("v")
        if number.isdigit():
            return self.version(int(number))
        named = {arm.name: arm.version for arm in self.route.arms} | dict(self.aliases)
        if reference not in named:
            known = ", ".join(sorted(named)) or "none yet"
            raise NotFoundError(f"There is no alias {reference!r} (aliases: {known}).{nearest(reference, named)}")
        return self.version(named[reference])


@dataclass(frozen=True, slots=True)
class State:
    """The whole live state after entry ``number``.

    ``rows``: rows of each table. ``storage``: the storage version of each table's newest journaled commit. ``loaded``:
    sources whose first load has ended. ``declared``: parts of the system as last declared.
    """

    number: int = 0
    models: Mapping[str, ModelState] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    storage: Mapping[str, int] = field(default_factory=dict)
    loaded: frozenset[str] = frozenset()
    halted: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, Any] = field(default_factory=dict)

    def model(self, name: str) -> ModelState:
        """Return the state of model ``name``; empty when nothing has happened to it yet."""
        return self.models.get(name, ModelState())

    def apply(self, entry: Entry) -> State:
        """Return the state after ``entry``."""
        body = entry.body
        state = replace(self, number=entry.number)
        match entry.kind:
            case "commit":
                return replace(
                    state,
                    rows={**state.rows, body["table"]: body["next_seq"]},
                    storage={**state.storage, body["table"]: entry.meta.get("version", 0)},
                )
            case "loaded":
                return replace(state, loaded=state.loaded | {body["source"]})
            case "halt":
                return replace(state, halted={**state.halted, body["source"]: body["reason"]})
            case "resume":
                return replace(state, halted={k: v for k, v in state.halted.items() if k != body["source"]})
            case "declare":
                models = {
                    name: replace(model, rejudge=True)
                    if _judged(self.declared, name) != _judged(body["declared"], name)
                    else model
                    for name, model in self.models.items()
                }
                return replace(state, declared=body["declared"], models=models)
            case "train" | "fail" | "judge" | "version" | "alias" | "route" | "watch":
                name = body["model"]
                return replace(state, models={**state.models, name: _advance(state.model(name), entry)})
        return state


def fold(entries: Iterable[Entry], state: State | None = None) -> State:
    """Return the state after ``entries``, starting from ``state`` or from nothing."""
    state = state or State()
    for entry in entries:
        state = state.apply(entry)
    return state


def _judged(declared: Mapping[str, Any], name: str) -> Any:
    """Return how the model ``name`` is judged, as far as it is ``declared``."""
    return declared.get("models", {}).get(name, {}).get("judging")


def _advance(model: ModelState, entry: Entry) -> ModelState:
    body, tick = entry.body, entry.tick
    match entry.kind:
        case "train":
            training = Training(
                body["model"],
                body["training"],
                body["recipe"],
                body["case"],
                body["rival"],
                tick,
                body["as_of"],
                body["ready"],
                body["next_seq"],
            )
            return replace(model, training=training, last_started=tick, tried=body["recipe"], rejudge=False)
        case "fail":
            return replace(model, training=None)
        case "judge":
            return replace(model, training=None, judged=body["judged"])
        case "version":
            version = Version(
                body["model"],
                body["version"],
                body["training"],
                body["recipe"],
                tick,
                body["as_of"],
                model.judged or {},
            )
            return replace(model, versions=(*model.versions, version))
        case "alias":
            return replace(
                model,
                aliases={**model.aliases, body["alias"]: body["version"]},
                tenures=(*model.tenures, (tick, body["alias"], body["version"])),
            )
        case "route":
            route = Route.from_json(body["route"])
            looked = body["judged"] is not None and route == model.route
            return replace(
                model,
                route=route,
                routed_at=model.routed_at if looked else tick,
                looks=model.looks + 1 if looked else 0,
            )
        case _:
            return replace(model, watched=body, watched_at=tick)
