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
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tidemill.base.clock import DAY
from tidemill.base.errors import DeclarationError, SourceError, TrainingError, WorkspaceError
from tidemill.base.schema import HISTORY, SEQ, TICK
from tidemill.engine.check.fingerprint import of
from tidemill.engine.example import ledger
from tidemill.engine.feature.freshness import Rebuilding
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.mill.decider import Decider, foreseen
from tidemill.engine.mill.declaration import declared, recipe_changes
from tidemill.engine.mill.refuse import refusals
from tidemill.engine.mill.trainings import Trainings
from tidemill.engine.monitor.canary import Trial
from tidemill.engine.monitor.watch import Watch
from tidemill.engine.predict.state import State, fold
from tidemill.engine.table.derive import Derivation
from tidemill.engine.table.ingest import Intake
from tidemill.ports.executor import Executor, Progress
from tidemill.ports.journal import Draft, Entry, Journal
from tidemill.ports.lake import Fence, Lake
from tidemill.ports.log import Log
from tidemill.ports.online import Online
from tidemill.ports.reader import Reader
from tidemill.ports.scratch import Scratch
from tidemill.spec.source import Table
from tidemill.spec.system import System

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
        self._decider = Decider(system, ports.lake, ports.journal)
        self._trainings = Trainings(system, ports.journal, ports.executor, fence)
        self._rebuilding: Rebuilding | None = None
        # Derived tables that this process has brought up to date, and the tick from which they change without new rows.
        self._wakes: dict[str, int | None] = {}
        self._tidied: dict[str, int] = {}  # the newest version of a table when it was last tidied
        self._tidied_at: int | None = None

    # Starting ---------------------------------------------------------------------------------------------------------

    def start(self) -> tuple[Entry, ...]:
        """Recover from whatever the last process left behind; return the entries that had been left out.

        Raises WorkspaceError when a table in the lake was built by a declaration that gives its rows another meaning,
        or has lost rows.
        """
        self.ports.lake.claim(self._fence)
        self._online.claim()
        self._intake.recover()
        self.state = fold(self.ports.journal.read(), self.state)
        self._check_lake()
        drafts = [
            Draft(commit.tick, "commit", json.loads(commit.entry), {"version": commit.version})
            for table in self.ports.lake.tables()
            for commit in self.ports.lake.commits(table, after=self.state.storage.get(table, 0))
            if commit.entry
        ]
        parts = declared(self.system)
        if parts != self.state.declared:
            if reasons := tuple(refusals(self.system, self.state, self.ports.journal.step)):
                raise WorkspaceError("\n".join(reasons))
            tick = max([*self.ports.journal.ticks(), *(draft.tick for draft in drafts)], default=0)
            drafts.append(
                Draft(tick, "declare", {"declared": parts, "changes": recipe_changes(self.state.declared, parts)})
            )
        entries = self._write(drafts)
        self._catch_up()
        for model in self.system.models:
            training = self.state.model(model.name).training
            if training is not None:
                self._trainings.launch(training)
        return entries

    def _check_lake(self) -> None:
        """Raise WorkspaceError when the lake lacks rows that the journal knows: loaded again, they would be new."""
        for name, rows in self.state.rows.items():
            head = self.ports.lake.head(name)
            there = head.next_seq if head is not None else 0
            if there < rows:
                raise WorkspaceError(
                    f"table {name!r}: the journal knows {rows:,} rows of it, the lake has {there:,}. "
                    "Restore the lake from a copy, or begin with a new workspace folder."
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
        drafts += self._trainings.finish(self.state, tick)
        self._watch(tick, drafts)
        answered = self._decider.decide(self.state, tick, drafts)
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
                self._trainings.launch(training)
        return Turned(tick, entries, fresh.counts)

    @property
    def rebuilding(self) -> Rebuilding | None:
        """How far the rebuild of online state under way is; None while there is none."""
        return self._rebuilding

    def progress(self) -> dict[str, Progress]:
        """Return how far the trainings under way are, by model."""
        return self._trainings.progress()

    def results(self) -> dict[str, dict[str, Any] | TrainingError]:
        """Wait for the trainings under way and record what they made; return it, or why one failed, by model.

        Nothing takes effect by this: that is for the tick at which a training is ready.
        """
        made: dict[str, dict[str, Any] | TrainingError] = {}
        for model in self.system.models:
            training = self.state.model(model.name).training
            if training is not None:
                try:
                    made[model.name] = self._trainings.result(training)
                except TrainingError as error:
                    made[model.name] = error
        return made

    def waits(self, tick: int) -> dict[str, str]:
        """Return the models that no training has been started for yet, and what each waits for."""
        return dict(self._decider.waits(self.state, tick))

    def stop(self) -> None:
        """Stop trainings under way; the next ``start`` takes them up again."""
        self._trainings.stop()

    def _write(self, drafts: list[Draft], *, answered: tuple[str, ...] = ()) -> tuple[Entry, ...]:
        if not drafts and not answered:
            return ()
        entries = self.ports.journal.append(drafts, self._fence, answered=answered)
        self.state = fold(entries, self.state)
        return entries

    def _take(self, tick: int, drafts: list[Draft], fresh: Fresh) -> None:
        for source in self.system.sources:
            history = source.has_history and source.name not in self.state.loaded
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
            try:
                taken = self._derivation.update(table, tick=tick, code=of(table), history=self._after_load(table))
            except DeclarationError as error:  # of these rows; the table stays as it was until others come
                if self.state.halted.get(table.name) != str(error):
                    drafts.append(Draft(tick, "halt", {"source": table.name, "reason": str(error), "derived": True}))
                continue
            if table.name in self.state.halted:
                drafts.append(Draft(tick, "resume", {"source": table.name, "derived": True}))
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

    def _watch(self, tick: int, drafts: list[Draft]) -> None:
        """Draft what is decided about the canaries, and then what is seen in the champions."""
        for model in self.system.models:
            drafts += self._trials[model.name].look(foreseen(self.state, drafts, tick).model(model.name), tick)
        for model in self.system.models:
            report = self._watches[model.name].look(foreseen(self.state, drafts, tick).model(model.name), tick)
            if report is not None:
                drafts.append(Draft(tick, "watch", report))

    def _trim(self) -> None:
        for table, log in (*self.ports.logs.items(), *self.ports.pushed.items()):
            head = self.ports.lake.head(table)
            if head is not None and head.cursor:
                log.trim(json.loads(head.cursor))

    def _tidy(self, tick: int) -> None:
        """Join small fragments and drop old versions of the tables that have many new ones, at most once a day.

        What a table says stays the same, so this is no decision and makes no entry. Not while a training reads.
        """
        if self._trainings or (self._tidied_at is not None and tick - self._tidied_at < DAY):
            return
        self._tidied_at = tick
        lake = self.ports.lake
        for table in lake.tables():
            head = lake.head(table)
            if head is not None and head.version - self._tidied.get(table, 0) > TIDY_VERSIONS:
                lake.compact(table, self._fence)
                lake.cleanup(table, keep=KEPT_VERSIONS, fence=self._fence)
                self._tidied[table] = head.version
