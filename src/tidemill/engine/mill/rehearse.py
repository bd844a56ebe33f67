"""Rehearsal: the past, or the record of a live run, turned through the mill again under a virtual clock.

**The past** is all versions of every source's rows. What was known at the start is put into an empty lake as it was;
the rest is delivered at the tick by which it was known, and questions are answered as of the tick before they would
have been asked.
**The record** of a live run is what came in from outside: the ticks, the rows of each commit, who asked what when, the
requests by hand. Fed to a fresh mill, it gives the same journal entries, byte for byte.

Everything between is the code that runs live.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from tidemill.base.clock import VirtualClock, to_datetime
from tidemill.base.errors import SourceError
from tidemill.base.hashing import canonical
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, SYSTEM_COLUMNS, TICK
from tidemill.engine.check.fingerprint import of
from tidemill.engine.example.example import ASKED_AT, examples
from tidemill.engine.example.ledger import request_frame
from tidemill.engine.feature.layout import Applied
from tidemill.engine.feature.lookup import Lookup
from tidemill.engine.mill.mill import Mill, Turned
from tidemill.engine.predict import records
from tidemill.engine.predict.predict import Answerer, Columns, Features, Logged, Predictor
from tidemill.engine.predict.route import CHAMPION, SHADOW, mirrors, shadow_nonce, split
from tidemill.engine.table.derive import Derivation
from tidemill.engine.table.ingest import numbered, quarantine_table, to_arrow
from tidemill.engine.table.plain import plain
from tidemill.engine.table.table import TIME, timeless
from tidemill.ports.journal import Draft, Entry, Journal
from tidemill.ports.lake import Commit, Fence, Lake
from tidemill.ports.log import LogWriter
from tidemill.ports.reader import Batch
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table
from tidemill.spec.system import System

#: Gives the predictor that a training (its id) of a model (its name) made.
Load = Callable[[str, str], Predictor]

_FIRST = -(2**62)  # earlier than any start

# The past ---------------------------------------------------------------------------------------------------------


def due(source: Source) -> pl.Expr:
    """Return when a row of the past is delivered, in microseconds: once it was known, or once it was ingested.

    A row of history came in bulk, so what counts is its known-at; one without was there from the first, and so were
    those of a table without times. Other rows came at their tick, and may have been known in advance.
    """
    first = pl.lit(_FIRST, dtype=pl.Int64)
    known = first if timeless(source) else pl.col(KNOWN_AT).cast(TIME).dt.epoch("us").fill_null(first)
    return pl.when(pl.col(HISTORY)).then(known).otherwise(pl.col(TICK).cast(TIME).dt.epoch("us"))


def seed(
    system: System, past: Mapping[str, pl.DataFrame], start: int, *, lake: Lake, journal: Journal, fence: Fence
) -> None:
    """Make of an empty workspace the one that a mill would have had at ``start`` (microseconds).

    ``past``: all versions of the rows of each source, with system columns. What is due by ``start`` goes into the lake
    with the known-at it had; derived tables are built over it as history. ``Mill.start`` does the rest.
    """
    at = pl.lit(to_datetime(start), dtype=TIME)
    for source in system.sources:
        rows = past[source.name].sort(SEQ).filter(due(source) <= start).with_columns(at.alias(TICK))
        if rows.is_empty():
            continue
        body = {
            "table": source.name,
            "rows": rows.height,
            "quarantined": 0,
            "first_seq": 0,
            "next_seq": rows.height,
            "tick": start,
        }
        commit = Commit(source.name, 0, start, "", rows.height, rows.height, None, canonical(body).decode())
        lake.append(source.name, to_arrow(numbered(rows, 0)), commit, fence)
    derivation = Derivation(lake, fence)
    for table in system.tables:
        if isinstance(table, Table):
            derivation.update(table, tick=start, code=of(table), history=True)
    loaded = [source.name for source in system.sources if source.has_history]
    journal.append([Draft(start, "loaded", {"source": name}) for name in loaded], fence)
    journal.end_tick(start, fence)


class PastReader:
    """Delivers the rows of one source that are due after ``start``, as a virtual clock passes the moments they are due.

    Implements ports.reader; the cursor is the number of rows delivered.
    """

    def __init__(self, source: Source, rows: pl.DataFrame, start: int, clock: VirtualClock) -> None:
        ordered = rows.with_columns(due(source).alias("_due")).filter(pl.col("_due") > start).sort("_due", SEQ)
        self._due = ordered["_due"]
        self._rows = ordered.drop("_due", *SYSTEM_COLUMNS)
        self._clock = clock

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        """Yield what is due by now beyond ``cursor``."""
        done = int(cursor or 0)
        end = int(self._due.search_sorted(self._clock.now(), side="right"))
        if end > done:
            yield Batch(to_arrow(self._rows[done:end]), str(end))


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions to one model that came together; ``nonces`` tell apart two about one key."""

    model: str
    requests: pl.DataFrame
    nonces: Sequence[str]

    def part(self, places: Sequence[int]) -> Asked:
        """Return the questions at ``places``."""
        if len(places) == self.requests.height:
            return self
        return Asked(self.model, self.requests[list(places)], [self.nonces[place] for place in places])


def past_questions(model: Model, rows: pl.DataFrame, ticks: Sequence[int]) -> dict[int, Asked]:
    """Return every example of ``rows`` (all versions of the examples' table) by the last tick not after its asked-at.

    That is how a server answers between two ticks: as of the one before. Those asked before the first of ``ticks`` (at
    least two), or later than their distance after the last, are left out.
    """
    found, _ = examples(model, rows, 2**62)
    asked = found[ASKED_AT].to_physical()
    place = pl.Series(ticks, dtype=pl.Int64).search_sorted(asked, side="right").cast(pl.Int64) - 1
    inside = found.select(model.request_columns).with_columns(place.alias("_place"))
    inside = inside.filter((asked >= ticks[0]) & (asked < 2 * ticks[-1] - ticks[-2]))
    parts = inside.partition_by("_place", as_dict=True, include_key=False, maintain_order=True)
    return {ticks[int(place)]: Asked(model.name, part, [""] * part.height) for (place,), part in parts.items()}


def rehearse(
    mill: Mill, clock: VirtualClock, ticks: Sequence[int], questions: Sequence[Mapping[int, Asked]], load: Load,
    log: LogWriter,
) -> Iterator[Turned]:  # fmt: skip
    """Turn ``mill`` at each of ``ticks``, asking after each what ``questions`` (by tick) say; yields what each did.

    ``log`` takes what is answered, to be drained at the next tick. A model without a champion is not asked.
    """
    answering = _Answering(mill, load)
    for tick in ticks:
        clock.advance_to(max(tick, clock.now()))
        yield mill.tick(tick)
        for by_tick in questions:
            asked = by_tick.get(tick)
            if asked is not None:
                for each in answering.share_out(asked):
                    log.append(msgspec.json.encode(each))


@dataclass(frozen=True, slots=True)
class _Looked:
    """Features that have been looked up."""

    found: tuple[pl.DataFrame, Any]

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Any]:
        return self.found

    def part(self, places: Sequence[int]) -> _Looked:
        frame, applied = self.found
        return self if len(places) == frame.height else _Looked((frame[list(places)], applied))


class _Answering:
    """Answers as the server does, by any version of any model."""

    def __init__(self, mill: Mill, load: Load) -> None:
        self._mill, self._load = mill, load
        self._keys = {model.name: model.examples.key for model in mill.system.models}
        self._columns = {model.name: Columns.of(model.columns, model.plain) for model in mill.system.models}
        self._predictors: dict[tuple[str, int], Predictor] = {}
        self.lookups = {model.name: Lookup(model, mill.ports.online) for model in mill.system.models}

    def share_out(self, asked: Asked) -> list[Logged]:
        """Answer by the champion and the arms of the route, then by the shadows; nothing without a champion."""
        state = self._mill.state.model(asked.model)
        champion = state.aliases.get(CHAMPION)
        if champion is None:
            return []
        looked = _Looked(self.lookups[asked.model].features(asked.requests))
        answers: list[Logged] = []
        mirrored: dict[int, list[int]] = {}
        keys = plain(asked.requests.select(self._keys[asked.model])).rows() if state.route.arms else asked.nonces
        for name, version, places in split(state.route, champion, keys):
            answers += self.answer(asked.part(places), version, looked.part(places), name)
            for other in mirrors(state.route, champion, name, version):
                mirrored.setdefault(other, []).extend(places)
        for version, places in sorted(mirrored.items()):
            part = asked.part(sorted(places))
            nonces = [shadow_nonce(nonce, version) for nonce in part.nonces]
            question = Asked(part.model, part.requests, nonces)
            answers += self.answer(question, version, looked.part(sorted(places)), SHADOW)
        return answers

    def answer(self, asked: Asked, version: int, lookup: Features, route: str) -> list[Logged]:
        known = (asked.model, version)
        if known not in self._predictors:
            training = self._mill.state.model(asked.model).version(version).training
            self._predictors[known] = self._load(asked.model, training)
        answerer = Answerer(
            *known, self._keys[asked.model], lookup, self._predictors[known], self._columns[asked.model]
        )
        return answerer.answer(asked.requests, nonces=asked.nonces, route=route)


# The record -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """What one call asked: by which version and route it was answered, and when (ticks) each answer was drained."""

    asked: Asked
    version: int
    route: str
    drained: Sequence[int]


@dataclass(frozen=True, slots=True)
class Taken:
    """The rows of one commit to a source's table: those accepted, and (row, reason) of those refused."""

    tick: int
    rows: pl.DataFrame
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What came into a live run from outside, and the ``entries`` that it wrote.

    ``taken`` and ``halts`` by source: its commits, and (tick, why it stood still or None) in order. ``questions`` by
    the tick they were answered as of, ``feedback`` (encoded) by the tick at which it was drained.
    """

    ticks: Sequence[int]
    entries: Sequence[Entry]
    taken: Mapping[str, Sequence[Taken]]
    halts: Mapping[str, Sequence[tuple[int, str | None]]]
    questions: Mapping[int, Sequence[Question]] = field(default_factory=dict)
    feedback: Mapping[int, Sequence[bytes]] = field(default_factory=dict)
    #: Ticks at which all that was drained into a table of the ledger had come before, by table.
    repeats: Mapping[str, frozenset[int]] = field(default_factory=dict)


def record(system: System, lake: Lake, journal: Journal) -> Record:
    """Read the record of the live run that wrote ``lake`` and ``journal``."""
    entries = tuple(journal.read())
    there = set(lake.tables())

    def rows(table: str) -> pl.DataFrame:
        return pl.DataFrame(lake.scan(table))

    taken: dict[str, list[Taken]] = {}
    halts: dict[str, list[tuple[int, str | None]]] = {}
    for source in system.sources:
        commits = [entry for entry in entries if entry.kind == "commit" and entry.body["table"] == source.name]
        if commits:
            quarantine = quarantine_table(source.name)
            refused = rows(quarantine).select("row", "reason").rows() if quarantine in there else []
            taken[source.name] = list(_commits(commits, rows(source.name), refused))
        halts[source.name] = [
            (entry.tick, entry.body["reason"] if entry.kind == "halt" else None)
            for entry in entries
            if entry.kind in ("halt", "resume") and entry.body["source"] == source.name
        ]
    questions: dict[int, list[Question]] = {}
    if records.PREDICTIONS in there:
        logged = rows(records.PREDICTIONS)
        for model in system.models:
            if model.examples.name in there:
                types = pl.DataFrame(lake.schema(model.examples.name).empty_table()).schema
                for tick, question in _questions(model, logged.filter(pl.col("model") == model.name), types):
                    questions.setdefault(tick, []).append(question)
    feedback: dict[int, list[bytes]] = {}
    if records.FEEDBACK in there:
        for row in rows(records.FEEDBACK).with_columns(pl.col(TICK).dt.epoch("us")).iter_rows(named=True):
            key, value = (None if row[name] is None else json.loads(row[name]) for name in ("key", "value"))
            said = records.Feedback(
                id=row["id"], model=row["model"], prediction=row["prediction"], key=key, value=value
            )
            feedback.setdefault(row[TICK], []).append(msgspec.json.encode(said))
    repeats = {
        table: frozenset(
            entry.tick
            for entry in entries
            if entry.kind == "commit" and entry.body["table"] == table and entry.body["rows"] == 0
        )
        for table in records.RESERVED_TABLES
    }
    return Record(journal.ticks(), entries, taken, halts, questions, feedback, repeats)


def _commits(commits: Sequence[Entry], rows: pl.DataFrame, refused: Sequence[tuple[str, str]]) -> Iterator[Taken]:
    done = 0
    for entry in commits:
        first, following, bad = (entry.body[name] for name in ("first_seq", "next_seq", "quarantined"))
        yield Taken(entry.tick, rows[first:following], tuple(refused[done : done + bad]))
        done += bad


def _questions(model: Model, logged: pl.DataFrame, types: Mapping[str, pl.DataType]) -> Iterator[tuple[int, Question]]:
    """Yield the calls by which ``model`` was asked, each with the tick as of which it was answered.

    The rows of a call are put together again: some estimators' last digits hang on the size of the batch.
    """
    columns = {name: types[name] for name in model.request_columns}
    call = pl.col("nonce").str.extract(r"^(.*):\d+$").fill_null("").alias("_call")
    place = pl.col("nonce").str.extract(r":(\d+)$").cast(pl.Int64).fill_null(0).alias("_place")
    ordered = logged.with_columns(call, place).sort("asked", SEQ).with_columns(pl.col("asked", TICK).dt.epoch("us"))
    for (asked, _, version, route), part in ordered.partition_by(
        "asked", "_call", "version", "route", as_dict=True, maintain_order=True
    ).items():
        rows = part.sort("_place", maintain_order=True)
        questions = Asked(model.name, request_frame(rows["request"], columns), rows["nonce"].to_list())
        yield int(asked) - 1, Question(questions, int(version), str(route), rows[TICK].to_list())


class RecordReader:
    """Delivers the rows of one source's commits at the ticks of the commits, and stands still where it stood still.

    Implements ports.reader; the cursor is the number of commits delivered.
    """

    def __init__(self, taken: Sequence[Taken], halts: Sequence[tuple[int, str | None]], clock: VirtualClock) -> None:
        self._taken, self._halts, self._clock = taken, halts, clock

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        """Yield the commits of this tick beyond ``cursor``. Raises SourceError in the recorded words."""
        now = self._clock.now()
        for place in range(int(cursor or 0), len(self._taken)):
            taken = self._taken[place]
            if taken.tick > now:
                break
            yield Batch(to_arrow(taken.rows.drop(SYSTEM_COLUMNS)), str(place + 1), taken.refused)
        reason = next((why for tick, why in reversed(self._halts) if tick <= now), None)
        if reason is not None:
            raise SourceError(reason)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first entry that a replay wrote otherwise; None where one of the two has no entry."""

    live: Entry | None
    replayed: Entry | None


def replay(
    mill: Mill, clock: VirtualClock, recorded: Record, load: Load, logs: Mapping[str, LogWriter], fence: Fence
) -> Iterator[tuple[int, Difference | None]]:
    """Turn a fresh ``mill`` by ``recorded``; yields each tick with the first difference, at which it ends.

    The mill's readers must be RecordReaders of the same clock; ``logs``: a writer to each log of the ledger.
    """
    answering = _Answering(mill, load)
    opening = {name: taken[0] for name, taken in recorded.taken.items()}
    waiting: dict[int, list[tuple[Question, tuple[pl.DataFrame, Applied]]]] = {}
    answers: dict[int, list[Logged]] = {}
    newest: dict[str, tuple[bytes]] = {}
    requests: dict[int, list[Entry]] = {}
    for entry in recorded.entries:
        if entry.kind == "request":
            requests.setdefault(entry.tick, []).append(entry)
    written = mill.start()
    difference = _compare(recorded.entries, written)
    for tick in recorded.ticks:
        if difference is not None:
            yield tick, difference
            return
        clock.advance_to(tick)
        for name in [name for name, first in opening.items() if first.tick <= tick]:
            # Types were inferred from the first load, refused rows included; they are part of the record.
            empty = to_arrow(opening.pop(name).rows.clear())
            mill.ports.lake.append(name, empty, Commit(name, 0, tick, "", 0, 0, None, ""), fence)
        for question, found in waiting.pop(tick, ()):
            made = answering.answer(question.asked, question.version, _Looked(found), question.route)
            for one, drained in zip(made, question.drained, strict=True):
                answers.setdefault(drained, []).append(one)
        said = {
            records.PREDICTIONS: [msgspec.json.encode(one) for one in answers.pop(tick, ())],
            records.FEEDBACK: recorded.feedback.get(tick, ()),
        }
        for table, lines in said.items():
            for each in newest.get(table, ()) if tick in recorded.repeats.get(table, ()) else lines:
                logs[table].append(each)
                newest[table] = (each,)
        for entry in requests.get(tick, ()):
            mill.ports.journal.request(entry.body["request"], entry.body["body"])
        written = mill.tick(tick).entries
        for question in recorded.questions.get(tick, ()):
            # The answer waits for the first drain: a server may know a new version before its features move on.
            looked = answering.lookups[question.asked.model].features(question.asked.requests)
            waiting.setdefault(min(question.drained), []).append((question, looked))
        difference = _compare(recorded.entries, written)
        if difference is None:
            yield tick, None
    if difference is None:
        done = mill.state.number
        difference = Difference(recorded.entries[done], None) if done < len(recorded.entries) else None
    if difference is not None:
        yield recorded.ticks[-1] if recorded.ticks else 0, difference


def _compare(live: Sequence[Entry], written: Sequence[Entry]) -> Difference | None:
    """Return the first of the entries ``written`` whose bytes are not those of the live one of the same number."""
    for entry in written:
        other = live[entry.number - 1] if entry.number <= len(live) else None
        if other is None or content(other) != content(entry):
            return Difference(other, entry)
    return None


def content(entry: Entry) -> bytes:
    """Return all of an entry that is decided: canonical JSON of its number, tick, kind and body."""
    return canonical([entry.number, entry.tick, entry.kind, entry.body])
