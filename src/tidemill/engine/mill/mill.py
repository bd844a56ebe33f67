"""The mill: what one tick does, live and in a backtest alike.

A tick takes in rows, derives tables, drains predictions, watches, decides, and writes all of it down. The order is that
of safety: the lake first, then the journal, then online state, then the end of the tick, then the logs are trimmed.
Each step can be repeated, so a crash anywhere is mended by ``start``: it writes the entries that a crash left out,
brings online state up to the lake, and takes up the training that was under way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import polars as pl

from tidemill.base.clock import DAY
from tidemill.base.errors import SourceError, TidemillError, TrainingError, WorkspaceError
from tidemill.base.hashing import fingerprint
from tidemill.base.schema import HISTORY, SEQ, TICK
from tidemill.engine.check.change import changes
from tidemill.engine.check.fingerprint import describe, judging, of, operations, origins, recipe, recipe_fingerprint
from tidemill.engine.evaluate.gate import Case
from tidemill.engine.example import ledger
from tidemill.engine.example.example import ASKED_AT, examples
from tidemill.engine.feature.freshness import Rebuilding
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.mill.policy import Decision, Situation, decide
from tidemill.engine.monitor.canary import Trial, asked_for, let_in, pointed, routed
from tidemill.engine.monitor.watch import Watch
from tidemill.engine.predict import records
from tidemill.engine.predict.route import PLAIN, route
from tidemill.engine.predict.state import ModelState, State, Training, fold
from tidemill.engine.table.derive import Derivation
from tidemill.engine.table.ingest import Intake
from tidemill.engine.train.train import Order
from tidemill.ports.executor import Executor, Job, Progress
from tidemill.ports.journal import Draft, Entry, Journal, Request
from tidemill.ports.lake import Fence, Lake
from tidemill.ports.log import Log
from tidemill.ports.online import Online
from tidemill.ports.reader import Reader
from tidemill.ports.scratch import Scratch
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model
from tidemill.spec.source import Files, Table
from tidemill.spec.system import Canary, System

#: A table is tidied when it has more new versions than this, and keeps as many of the newest as that.
TIDY_VERSIONS = 128
KEPT_VERSIONS = 64
#: Rows of a tick that stay in memory until online state takes them in. More are read back from the lake.
HELD_ROWS = 500_000


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside that a mill works with.

    ``readers`` by source, ``logs`` by table of the ledger, ``pushed`` the logs of pushed rows by source. ``scratch``
    opens an empty one, which is gone when it is closed.
    """

    lake: Lake
    journal: Journal
    online: Online
    executor: Executor
    readers: Mapping[str, Reader]
    logs: Mapping[str, Log]
    scratch: Callable[[], AbstractContextManager[Scratch]]
    pushed: Mapping[str, Log] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turned:
    """What a tick did: the entries it wrote, and the rows it took in by table."""

    tick: int
    entries: tuple[Entry, ...]
    rows: Mapping[str, int]


class Fresh:
    """What a tick took in: how many rows of each table, and the rows themselves, unless they are many."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._rows: dict[str, list[pl.DataFrame]] = {}

    def add(self, table: str, rows: pl.DataFrame) -> None:
        """Take note of ``rows``, which are in the lake."""
        self.counts[table] = self.counts.get(table, 0) + rows.height
        if sum(self.counts.values()) > HELD_ROWS:
            self._rows.clear()
        else:
            self._rows.setdefault(table, []).append(rows)

    def rows(self) -> dict[str, pl.DataFrame] | None:
        """Return the rows by table; None when they are many."""
        if sum(self.counts.values()) > HELD_ROWS:
            return None
        return {name: pl.concat(parts) for name, parts in self._rows.items()}


def tables_of(model: Model) -> tuple[str, ...]:
    """Return the names of the tables that a training of ``model`` reads, in alphabetical order."""
    views = {view.table.name for view in model.views if not isinstance(view, OnDemand)}
    return tuple(sorted({model.examples.name, model.label.table.name, *views}))


def declared(system: System) -> dict[str, Any]:
    """Return the parts of everything declared, for plans and for noticing a change."""
    return {
        "tables": {table.name: describe(table) for table in system.tables},
        "views": {view.name: describe(view) for view in system.views if not isinstance(view, OnDemand)},
        "models": {
            model.name: {"recipe": recipe(model, system.policy), "judging": judging(model)} for model in system.models
        },
        "operations": operations(system),
    }


class Mill:
    """The one writer of a workspace. ``start`` once, then ``tick`` with ever later ticks."""

    def __init__(self, system: System, ports: Ports, fence: Fence) -> None:
        self.system = system
        self.ports = ports
        self.state = State()
        self._fence = fence
        self._intake = Intake(system.sources, ports.readers, ports.lake, fence)
        self._derivation = Derivation(ports.lake, fence)
        self._online = OnlineState(system.views, ports.online, epoch=fence.epoch)
        self._watches = {model.name: Watch(system, model, ports.lake, ports.journal) for model in system.models}
        self._trials = {model.name: Trial(system, model, ports.lake, ports.journal) for model in system.models}
        self._recipes = {model.name: recipe_fingerprint(model, system.policy) for model in system.models}
        self._jobs: dict[str, Job] = {}
        self._rebuilding: Rebuilding | None = None
        # Derived tables that this process has brought up to date, and the tick from which they change without new rows.
        self._wakes: dict[str, int | None] = {}
        self._tidied: dict[str, int] = {}  # the newest version of a table when it was last tidied
        self._tidied_at: int | None = None

    # Starting ---------------------------------------------------------------------------------------------------------

    def start(self) -> tuple[Entry, ...]:
        """Recover from whatever the last process left behind; return the entries that had been left out.

        Raises WorkspaceError when a table in the lake was built by a declaration that gives its rows another meaning.
        """
        self.ports.lake.claim(self._fence)
        self._online.claim()
        self._intake.recover()
        self.state = fold(self.ports.journal.read(), self.state)
        drafts = [
            Draft(commit.tick, "commit", json.loads(commit.entry), {"version": commit.version})
            for table in self.ports.lake.tables()
            for commit in self.ports.lake.commits(table, after=self.state.storage.get(table, 0))
            if commit.entry
        ]
        parts = declared(self.system)
        if parts != self.state.declared:
            self._refuse_new_meaning(self.state.declared, parts)
            self._refuse_lost_features()
            tick = max([*self.ports.journal.ticks(), *(draft.tick for draft in drafts)], default=0)
            drafts.append(
                Draft(tick, "declare", {"declared": parts, "changes": _recipe_changes(self.state.declared, parts)})
            )
        entries = self._write(drafts)
        self._catch_up()
        for model in self.system.models:
            training = self.state.model(model.name).training
            if training is not None:
                self._launch(model, training)
        return entries

    def _refuse_new_meaning(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        for name, parts in after["tables"].items():
            old = before.get("tables", {}).get(name)
            if old is None or old["kind"] != "source" or name not in self.state.rows:
                continue
            kept = ("reader", "checks")  # these decide which rows come, not what the rows that came mean
            why = changes(
                {key: value for key, value in old.items() if key not in kept},
                {key: value for key, value in parts.items() if key not in kept},
            )
            if why:
                raise WorkspaceError(
                    f"source {name!r}: its {self.state.rows[name]:,} rows were taken in under another declaration "
                    f"({'; '.join(why)}). Give the source a new name, or start with a new workspace folder."
                )

    def _refuse_lost_features(self) -> None:
        """Refuse a declaration by which a champion, which answers until another is promoted, would get other inputs."""
        for model in self.system.models:
            state = self.state.model(model.name)
            step = self.ports.journal.step(state.resolve("champion").training) if "champion" in state.aliases else None
            if step is None:
                continue
            now, then = origins(model), step["origins"]
            lost = [name for name in step["encoding"]["columns"] if now.get(name) != then[name]]
            if lost:
                raise WorkspaceError(
                    f"model {model.name!r}: its champion v{state.aliases['champion']} needs {', '.join(lost)}, which "
                    f"{'are' if len(lost) > 1 else 'is'} no longer declared as when it was trained. Add a changed view "
                    "under a new name beside the old one; to drop one, declare a new model beside this one."
                )

    def _catch_up(self) -> None:
        """Bring online state to the journaled rows: the tail alone, or everything when it is not of this history."""
        tick = max(self.ports.journal.ticks(), default=None)
        names = [table.name for table in self.system.tables if table.name in self.state.rows]
        if tick is None and not names:
            self._online.clear()
            return
        tick = tick or 0  # rows may have come in a first tick that did not end
        applied = self._online.applied()
        behind = applied is not None and all(applied.next_seq.get(name, 0) <= self.state.rows[name] for name in names)
        if applied is None or not behind or applied.journal > self.state.number or self._asked_since(applied.journal):
            self._rebuild(tick)
            return
        if applied.journal < self.state.number or any(
            applied.next_seq.get(name, 0) < self.state.rows[name] for name in names
        ):
            self._follow(max(applied.tick, tick))

    def _asked_since(self, number: int) -> bool:
        """Tell whether somebody asked for a rebuild of online state after journal entry ``number``, to no avail."""
        entries = self.ports.journal.read(after=number, kinds=("request",))
        return any(entry.body["request"] == "rebuild" for entry in entries)

    def _follow(self, tick: int) -> None:
        """Bring online state to ``tick``, or that of the newest row, with the rows of the lake that it lacks.

        A load, which brings many rows and more than were there, is made from all of them instead, a slice at a time.
        """
        applied = self._online.applied()
        reached = {} if applied is None else applied.next_seq
        every = {table.name: self.state.rows.get(table.name, 0) for table in self.system.tables}
        missing = sum(number - reached.get(name, 0) for name, number in every.items())
        if missing > HELD_ROWS and 2 * missing > sum(every.values()):
            self._rebuild(tick)
            return
        tail = {
            name: pl.DataFrame(self.ports.lake.scan(name, since=reached.get(name, 0)))
            for name, number in every.items()
            if reached.get(name, 0) < number
        }
        self._bring_online(max(tick, self._newest_tick(tail)), tail)

    def _bring_online(self, tick: int, rows: Mapping[str, pl.DataFrame]) -> None:
        """Bring online state to ``tick`` with the new ``rows``; from all rows when they go back behind its time.

        They do when a first load that stood still or was interrupted is continued.
        """
        try:
            self._online.apply(tick, rows, dict(self.state.rows), self.state.number)
        except WorkspaceError:
            self._rebuild(tick)

    def _rebuild(self, tick: int) -> None:
        """Make online state anew from the lake, at ``tick`` or that of the newest row."""
        names = [table.name for table in self.system.tables if self.state.rows.get(table.name)]
        newest = {name: self._read(name, (TICK, SEQ), self.state.rows[name] - 1, 1) for name in names}
        tick = max(tick, self._newest_tick(newest))
        try:
            with self.ports.scratch() as scratch:
                self._online.rebuild(tick, self._read, dict(self.state.rows), self.state.number, scratch, self._told)
        finally:
            self._rebuilding = None

    def _told(self, rebuilding: Rebuilding) -> None:
        self._rebuilding = rebuilding

    def _read(self, table: str, columns: Sequence[str], since: int, limit: int) -> pl.DataFrame:
        return pl.DataFrame(self.ports.lake.scan(table, columns=columns, since=since, limit=limit))

    @staticmethod
    def _newest_tick(frames: Mapping[str, pl.DataFrame]) -> int:
        ticks = [frame["_tick"].dt.epoch("us").max() for frame in frames.values() if frame.height]
        return max((int(tick) for tick in ticks if isinstance(tick, int)), default=0)

    # One tick ---------------------------------------------------------------------------------------------------------

    def tick(self, tick: int) -> Turned:
        """Do everything that is due at ``tick`` (microseconds, later than every tick before)."""
        drafts: list[Draft] = []
        fresh = Fresh()
        self._take(tick, drafts, fresh)
        self._derive(tick, drafts, fresh)
        self._drain(tick, drafts)
        self._finish(tick, drafts)
        self._try(tick, drafts)
        self._look(tick, drafts)
        answered = self._decide(tick, drafts)
        launched = [draft.body["model"] for draft in drafts if draft.kind == "train"]
        entries = self._write(drafts, answered=answered)
        rows = fresh.rows()
        if any(entry.kind == "request" and entry.body["request"] == "rebuild" for entry in entries):
            self._rebuild(tick)
        elif rows is None:
            self._follow(tick)
        else:
            self._bring_online(tick, rows)
        self.ports.journal.end_tick(tick, self._fence)
        self._trim()
        self._tidy(tick)
        for model in self.system.models:
            training = self.state.model(model.name).training
            if model.name in launched and training is not None:
                self._launch(model, training)
        return Turned(tick, entries, fresh.counts)

    @property
    def rebuilding(self) -> Rebuilding | None:
        """How far the rebuild of online state under way is; None while there is none."""
        return self._rebuilding

    def progress(self) -> dict[str, Progress]:
        """Return how far the trainings under way are, by model."""
        return {name: job.progress() for name, job in tuple(self._jobs.items())}

    def results(self) -> dict[str, dict[str, Any] | TrainingError]:
        """Wait for the trainings under way and record what they made; return it, or why one failed, by model.

        Nothing takes effect by this: that is for the tick at which a training is ready.
        """
        made: dict[str, dict[str, Any] | TrainingError] = {}
        for model in self.system.models:
            training = self.state.model(model.name).training
            if training is not None:
                try:
                    made[model.name] = self._result(model, training)
                except TrainingError as error:
                    made[model.name] = error
        return made

    def stop(self) -> None:
        """Stop trainings under way; the next ``start`` takes them up again."""
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()

    def _write(self, drafts: list[Draft], *, answered: tuple[str, ...] = ()) -> tuple[Entry, ...]:
        if not drafts and not answered:
            return ()
        entries = self.ports.journal.append(drafts, self._fence, answered=answered)
        self.state = fold(entries, self.state)
        return entries

    def _take(self, tick: int, drafts: list[Draft], fresh: Fresh) -> None:
        for source in self.system.sources:
            history = isinstance(source.reader, Files) and source.name not in self.state.loaded
            came = False
            try:
                for taken in self._intake.take(source.name, tick=tick, history=history):
                    came = True
                    self._commit(drafts, taken.commit.entry, taken.commit.version, tick)
                    fresh.add(source.name, taken.rows)
            except SourceError as error:
                if self.state.halted.get(source.name) != str(error):
                    drafts.append(Draft(tick, "halt", {"source": source.name, "reason": str(error)}))
                continue
            if source.name in self.state.halted:
                drafts.append(Draft(tick, "resume", {"source": source.name}))
            if history and (came or source.name in self.state.rows):  # or before a crash, which left this entry out
                drafts.append(Draft(tick, "loaded", {"source": source.name}))

    @staticmethod
    def _commit(drafts: list[Draft], entry: str, version: int, tick: int) -> None:
        drafts.append(Draft(tick, "commit", json.loads(entry), {"version": version}))

    def _derive(self, tick: int, drafts: list[Draft], fresh: Fresh) -> None:
        for table in self.system.tables:
            if not isinstance(table, Table):
                continue
            wakes = self._wakes.get(table.name, tick)
            if (wakes is None or wakes > tick) and not any(name in fresh.counts for name in table.inputs):
                continue
            taken = self._derivation.update(table, tick=tick, code=of(table), history=self._after_load(table))
            head = self.ports.lake.head(table.name)
            self._wakes[table.name] = json.loads(head.cursor)["wakes"] if head and head.cursor else None
            if taken is not None:
                self._commit(drafts, taken.commit.entry, taken.commit.version, tick)
                fresh.add(table.name, taken.rows)

    def _after_load(self, table: Table) -> bool:
        """Tell whether ``table`` has yet to be built and the newest rows of its inputs are of a first load.

        Asked of the lake and not of what this tick took in: a crash may lie between the load and the first build.
        """
        heads = [self.ports.lake.head(name) for name in table.inputs]
        if self.ports.lake.head(table.name) is not None or any(head is None for head in heads):
            return False
        newest = max(head.tick for head in heads if head is not None)
        inputs = [pl.DataFrame(self.ports.lake.scan(name, columns=(TICK, HISTORY))) for name in table.inputs]
        return any(bool(rows.filter(pl.col(TICK).dt.epoch("us") == newest)[HISTORY].any()) for rows in inputs)

    def _drain(self, tick: int, drafts: list[Draft]) -> None:
        for table, log in sorted(self.ports.logs.items()):
            drained = ledger.drain(table, log, self.ports.lake, self._fence, tick)
            if drained is not None:
                self._commit(drafts, drained.commit.entry, drained.commit.version, tick)
                for watch in self._watches.values():
                    watch.remember(table, drained.rows)

    def _trim(self) -> None:
        for table, log in (*self.ports.logs.items(), *self.ports.pushed.items()):
            head = self.ports.lake.head(table)
            if head is not None and head.cursor:
                log.trim(json.loads(head.cursor))

    def _tidy(self, tick: int) -> None:
        """Join small fragments and drop old versions of the tables that have many new ones, at most once a day.

        What a table says stays the same, so this is no decision and makes no entry. Not while a training reads.
        """
        if self._jobs or (self._tidied_at is not None and tick - self._tidied_at < DAY):
            return
        self._tidied_at = tick
        lake = self.ports.lake
        for table in lake.tables():
            head = lake.head(table)
            if head is not None and head.version - self._tidied.get(table, 0) > TIDY_VERSIONS:
                lake.compact(table, self._fence)
                lake.cleanup(table, keep=KEPT_VERSIONS, fence=self._fence)
                self._tidied[table] = head.version

    # Deciding ---------------------------------------------------------------------------------------------------------

    def _look(self, tick: int, drafts: list[Draft]) -> None:
        for model in self.system.models:
            state = _with(self.state, drafts, tick).model(model.name)
            report = self._watches[model.name].look(state, tick)
            if report is not None:
                drafts.append(Draft(tick, "watch", report))

    def _try(self, tick: int, drafts: list[Draft]) -> None:
        """Draft what is decided about the canaries."""
        for model in self.system.models:
            drafts += self._trials[model.name].look(_with(self.state, drafts, tick).model(model.name), tick)

    def _decide(self, tick: int, drafts: list[Draft]) -> tuple[str, ...]:
        """Draft what the policy and the requests call for; return the requests that are answered by it."""
        answered = []
        by_hand: dict[str, list[Request]] = {}
        for request in self.ports.journal.requests():
            if request.kind == "retrain":
                by_hand.setdefault(request.body["model"], []).append(request)
                continue
            answered.append(request.id)
            if request.kind == "rebuild":
                drafts.append(_taken_up(tick, request))
                continue
            carry_out = self._route if request.kind == "route" else self._point
            try:
                done = carry_out(request.body, tick, _with(self.state, drafts, tick))
            except TidemillError as error:  # asked for what there is not, or cannot be; the mill turns on
                drafts.append(_taken_up(tick, request, refused=str(error)))
            else:
                drafts += [_taken_up(tick, request), *done]
        for model in self.system.models:
            asked = by_hand.pop(model.name, [])
            state = _with(self.state, drafts, tick).model(model.name)
            decision = self._weigh(model, state, tick, asked[0].body["reason"] if asked else None)
            if decision.kind == "train":
                drafts += [_taken_up(tick, request) for request in asked]
                drafts.append(self._order(model, state, tick, decision, drafts))
                answered += [request.id for request in asked]
        for request in (request for requests in by_hand.values() for request in requests):
            answered.append(request.id)
            drafts.append(_taken_up(tick, request, refused=f"There is no model {request.body['model']!r}."))
        return tuple(answered)

    def _point(self, body: Mapping[str, Any], tick: int, state: State) -> list[Draft]:
        """Draft the pointing of an alias at another version, as somebody asked.

        Another champion is everybody's: the arms of a route end with it.
        """
        model = state.model(body["model"])
        version = model.resolve(str(body["version"]))
        reason = f"asked for by hand: {body['reason']}"
        if body["alias"] == "champion":
            drafts = pointed(body["model"], replace(model, route=PLAIN), version.number, tick, [reason])
            if model.route.arms:
                plain = route(body["model"], (), model.route.shadows)
                drafts.append(routed(body["model"], model, plain, tick, [f"v{version.number} is champion, {reason}"]))
            return drafts
        named = {"alias": body["alias"], "version": version.number, "previous": model.aliases.get(body["alias"])}
        return [Draft(tick, "alias", {"model": body["model"], **named, "reasons": [reason]})]

    def _route(self, body: Mapping[str, Any], tick: int, state: State) -> list[Draft]:
        """Draft another route, as somebody asked."""
        model = state.model(body["model"])
        new = asked_for(body["model"], model, dict(body))
        return [routed(body["model"], model, new, tick, [f"asked for by hand: {body['reason']}"])]

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
            changed=state.tried is not None and state.tried != self._recipes[model.name],
        )
        decision = decide(self.system.policy, situation)
        if decision.kind == "none":
            return decision
        # Something calls for a training: now it pays to count what has matured.
        return decide(self.system.policy, replace(situation, new_mature_rows=self._matured(model, state, tick)))

    def _matured(self, model: Model, state: ModelState, tick: int) -> int:
        """Return how many examples matured since the last training started, or at all when there was none."""
        if model.examples.name not in self.state.rows and self.ports.lake.head(model.examples.name) is None:
            return 0
        if self.ports.lake.head(model.label.table.name) is None:
            return 0  # an ``otherwise`` alone is nothing to learn from
        rows = pl.DataFrame(self.ports.lake.scan(model.examples.name))
        found, _ = examples(model, rows, tick + 1)
        asked = found[ASKED_AT].dt.epoch("us")
        ripe = asked + (model.label.within + model.label.settle)
        since = state.last_started if state.last_started is not None else -(2**62)
        return int(((ripe >= since) & (ripe < tick + 1)).sum())

    def _order(self, model: Model, state: ModelState, tick: int, decision: Decision, drafts: list[Draft]) -> Draft:
        """Draft the start of a training: what it reads, and when it takes effect."""
        policy = self.system.policy
        own = self._recipes[model.name]
        champion = state.version(state.aliases["champion"]) if "champion" in state.aliases else None
        case: Case = "first" if champion is None else "refresh" if champion.recipe == own else "changed"
        rows = _with(self.state, drafts, tick).rows
        heard = records.RESERVED_TABLES if rows.get(records.FEEDBACK) else ()
        next_seq = {name: rows.get(name, 0) for name in (*tables_of(model), *heard)}
        rival = champion.training if champion is not None else None
        training = fingerprint(own, judging(model), tick, next_seq, rival)[:16]
        body = {
            "model": model.name,
            "training": training,
            "recipe": own,
            "case": case,
            "reasons": list(decision.reasons),
            "as_of": tick + 1,
            "ready": tick + policy.takes,
            "next_seq": next_seq,
            "rival": rival,
        }
        return Draft(tick, "train", body)

    # Training ---------------------------------------------------------------------------------------------------------

    def _launch(self, model: Model, training: Training) -> None:
        if self.ports.journal.step(training.id) is not None:
            return  # a known fingerprint is not computed again
        order = Order(
            model.name,
            training.id,
            training.case,
            training.as_of,
            self.system.policy.window,
            training.next_seq,
            training.rival,
        )
        self._jobs[model.name] = self.ports.executor.submit("train", asdict(order))

    def _finish(self, tick: int, drafts: list[Draft]) -> None:
        """Draft the outcome of every training that takes effect by now, waiting for it if it is not done."""
        for model in self.system.models:
            training = self.state.model(model.name).training
            if training is None or tick < training.ready:
                continue
            try:
                result = self._result(model, training)
            except TrainingError as error:
                reason = str(error).splitlines()[0]
                drafts.append(
                    Draft(
                        tick,
                        "fail",
                        {"model": model.name, "training": training.id, "reason": reason},
                        {"error": str(error)},
                    )
                )
                continue
            drafts += _outcome(self.state.model(model.name), training, result, self.system.endpoint.canary, tick)

    def _result(self, model: Model, training: Training) -> dict[str, Any]:
        known = self.ports.journal.step(training.id)
        if known is None:
            if model.name not in self._jobs:
                self._launch(model, training)
            known = self._jobs[model.name].result()
            self.ports.journal.record_step(training.id, known, self._fence)
        self._jobs.pop(model.name, None)
        return known


def _taken_up(tick: int, request: Request, *, refused: str | None = None) -> Draft:
    return Draft(tick, "request", {"request": request.kind, "body": request.body, "refused": refused})


def _recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return in words what changed in the recipes of models that both declarations have."""
    known = before.get("models", {})
    return [
        f"{name}: {change}"
        for name, parts in after["models"].items()
        if name in known
        for change in changes(known[name]["recipe"], parts["recipe"])
    ]


def _with(state: State, drafts: list[Draft], tick: int) -> State:
    """Return ``state`` as it will be once ``drafts`` are written."""
    number = state.number
    return fold(
        (Entry(number + i, tick, draft.kind, draft.body, draft.meta) for i, draft in enumerate(drafts, 1)), state
    )


def _outcome(
    state: ModelState, training: Training, result: Mapping[str, Any], canary: Canary | None, tick: int
) -> list[Draft]:
    """Return the entries of a finished training: the judgement and, when it passed, a version and how it is let in."""
    judged = result["judged"]
    head = {"model": training.model, "training": training.id}
    drafts = [Draft(tick, "judge", {**head, "judged": judged})]
    if judged["verdict"]["outcome"] != "pass":
        return drafts
    number = len(state.versions) + 1
    made = {**head, "version": number, "recipe": training.recipe, "as_of": training.as_of}
    reasons = judged["verdict"]["reasons"]
    return [*drafts, Draft(tick, "version", made), *let_in(training.model, state, number, canary, tick, reasons)]
