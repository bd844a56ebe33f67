"""Features of more rows than memory should hold, partition by partition, and training sets made that way.

Each step is a function from pieces to a piece (``ports.scratch``), named by JSON data, so that an executor can run it
in another thread, process or machine. In order, where a table is large:

- **split**: a slice of the table's rows, by the partition of their key;
- **spread**: all versions of the keys of one partition, by the partition of the group that each view looks up;
- **examples** (training sets): the mature examples of one partition of keys; then all of them are put in order;
- **deal**: a chunk of questions, by the partition of the group that each asks about;
- **answer**: the columns of one view for the questions of one partition of groups;
- **gather**: all columns for one chunk of questions, in its order. Small tables are looked up here, whole.

A partition has all rows that an answer depends on, and the answer is the one that ``engine.feature`` gives: the result
is that of one piece, bit for bit. A piece that is there is not made again: what was interrupted goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import SECOND, format_duration
from tidemill.base.errors import NotFoundError
from tidemill.base.schema import SEQ
from tidemill.engine.example.example import ASKED_AT, LABEL, TrainingSet, complete, in_order, mature, own_columns
from tidemill.engine.example.ledger import feedback_by_key
from tidemill.engine.feature.feature import assemble, by_columns, compute, require, unanswered
from tidemill.engine.feature.partition import (
    Need,
    deal,
    deal_versions,
    frame_of,
    groups,
    label_key,
    named_things,
    schema_of,
    table_columns,
    table_views,
    things,
    view_columns,
)
from tidemill.engine.predict.records import FEEDBACK, PREDICTIONS
from tidemill.ports.executor import Executor, Progress
from tidemill.ports.lake import Lake
from tidemill.ports.scratch import Scratch
from tidemill.spec.feature import Aggregation, Latest
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table

#: Tables and questions of together so many cells (rows times columns) are looked up in one piece.
WHOLE_CELLS = 16_000_000
#: Cells in one partition, slice or chunk.
PART_CELLS = 4_000_000
#: Partitions at most: each needs a place in every piece.
MOST_PARTS = 256

Array = npt.NDArray[Any]
Report = Callable[[Progress], None]
#: A step's payload, and the names of the pieces that it makes.
Step = tuple[dict[str, Any], tuple[str, ...]]
#: Returns a chunk of questions by its number: their columns, and when each is asked (int64 microseconds).
Ask = Callable[[int], tuple[pl.DataFrame, Array]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read and in how many partitions. ``large``: the tables that are partitioned; the others are read whole.

    Nothing is partitioned when there are none.
    """

    needs: Mapping[str, Need]
    large: tuple[str, ...]
    parts: int
    cells: int

    @staticmethod
    def of(
        needs: Mapping[str, Need],
        *,
        together: Sequence[str] = (),
        whole: int | None = None,
        cells: int | None = None,
    ) -> Plan:
        """Plan how to read what is needed: up to ``whole`` cells in one piece, more in parts of about ``cells``.

        ``together``: tables that are partitioned if one of them is. None stands for ``WHOLE_CELLS`` and ``PART_CELLS``.
        """
        whole, cells = WHOLE_CELLS if whole is None else whole, cells or PART_CELLS
        total = sum(need.cells for need in needs.values())
        over = {name for name, need in needs.items() if need.cells > cells} if total > whole else set()
        over |= set(together) if over & set(together) else set()
        large = tuple(name for name in needs if name in over)
        parts = min(MOST_PARTS, max(2, math.ceil(total / cells))) if large else 1
        return Plan(needs, large, parts, cells)

    def slices(self, table: str) -> range:
        """Return the first row of each slice of ``table``."""
        need = self.needs[table]
        return range(0, need.rows, max(1, self.cells // len(need.columns)))

    def as_data(self) -> dict[str, Any]:
        """Return the plan as JSON data."""
        needs = {name: {"rows": need.rows, "columns": list(need.columns)} for name, need in self.needs.items()}
        return {"needs": needs, "large": list(self.large), "parts": self.parts, "cells": self.cells}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Plan:
        """Return the plan that ``as_data`` wrote."""
        needs = {name: Need(name, need["rows"], tuple(need["columns"])) for name, need in data["needs"].items()}
        return Plan(needs, tuple(data["large"]), data["parts"], data["cells"])


class Pace:
    """Reports how many of ``total`` steps are done, and how much longer the rest will take at the pace so far."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total = report, total
        self._done = self._made = 0
        self._began = time.monotonic()

    def more(self, steps: int) -> None:
        """Expect ``steps`` more."""
        self._total += steps

    def pass_by(self, steps: int) -> None:
        """Count ``steps`` that had been done before."""
        self._done += steps

    def step(self, doing: str) -> None:
        """Count a step that has just been done, of those called ``doing``."""
        self._done += 1
        self._made += 1
        self.say(doing)

    def say(self, doing: str) -> None:
        """Report what is being done now."""
        left = (time.monotonic() - self._began) / self._made * (self._total - self._done) if self._made else 0.0
        later = f", about {format_duration(math.ceil(left) * SECOND)} left" if left >= 1 else ""
        self._report(Progress(min(self._done, self._total), self._total, doing + later))


class Partitions:
    """The steps for the questions that ``ask`` returns. ``model`` says which features, ``lake`` has the tables.

    ``asked_of``: the table whose rows are the questions, when they are neither a training set's nor from outside.
    """

    def __init__(
        self,
        model: Model,
        lake: Lake,
        scratch: Scratch,
        plan: Plan,
        ask: Ask | None = None,
        asked_of: Source | Table | None = None,
    ) -> None:
        self.model, self.lake, self.scratch, self.plan = model, lake, scratch, plan
        self._ask = ask or self._asked
        self._views = {view.name: view for view in table_views(model)}
        tables = (model.examples, model.label.table, *(view.table for view in self._views.values()), asked_of)
        self._declared = {table.name: table for table in tables if table is not None}
        self._whole: dict[str, pl.DataFrame] = {}

    @cached_property
    def schemas(self) -> dict[str, pl.Schema]:
        """The types of the columns of each table that has rows."""
        return {name: schema_of(self.lake.schema(name)) for name in self.plan.needs}

    @property
    def large_views(self) -> tuple[Aggregation | Latest, ...]:
        """The views whose tables are partitioned."""
        return tuple(view for view in self._views.values() if view.table.name in self.plan.large)

    # The steps --------------------------------------------------------------------------------------------------------

    def run(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one step: what makes a training set or features. Returns nothing of its own."""
        match step:
            case {"step": "split", "table": table, "start": start}:
                self._split(table, start)
            case {"step": "spread", "table": table, "part": part, "learning": learning}:
                self._spread(table, part, learning=learning)
            case {"step": "examples", "part": part, "now": now, "window": window}:
                self._examples(part, now, window)
            case {"step": "deal", "number": number}:
                self._deal(number)
            case {"step": "answer", "view": view, "part": part, "questions": questions}:
                self._answer(self._views[view], part, questions)
            case {"step": "gather", "number": number}:
                self.scratch.put(f"gathered-{number}", [self.features(number, *self._ask(number)).to_arrow()])
            case _:
                raise NotFoundError(f"there is no step {dict(step)}.")
        return {}

    def _split(self, table: str, start: int) -> None:
        rows = self._read(table, start, self.plan.slices(table).step)
        places = things(rows, self._declared[table], self.plan.parts)
        self.scratch.put(f"split-{table}-{start}", deal(rows, places, self.plan.parts))

    def _spread(self, table: str, part: int, *, learning: bool) -> None:
        rows = self._of_things(table, part)
        types, parts = self.schemas[table], self.plan.parts
        for view in self.large_views:
            if view.table.name != table:
                continue
            by = by_columns(view)
            places = groups(rows, by, [types[column] for column in by], parts)
            kept = [column for column in rows.columns if column in view_columns(view)]
            self.scratch.put(f"spread-{view.name}-{part}", deal_versions(rows[kept], view.table, places, parts))
        if learning and table == self.model.label.table.name:
            own = self.schemas[self.model.examples.name]
            named = [own[column] for column in self.model.examples.key]
            places = named_things(rows, label_key(self.model), named, parts)
            read = {*table_columns(self.model.label.table), *self.model.label.value.columns, *label_key(self.model)}
            kept = [column for column in rows.columns if column in read]
            dealt = deal_versions(rows[kept], self.model.label.table, places, parts)
            self.scratch.put(f"labels-{part}", dealt)

    def _examples(self, part: int | None, now: int, window: int | None) -> None:
        """Make the mature examples of one partition of keys; of all when ``part`` is None."""
        model = self.model
        if part is None:
            rows, labels = self._table(model.examples.name), self._table(model.label.table.name)
        else:
            rows = self._of_things(model.examples.name, part)
            spread = [self.scratch.get(f"labels-{each}", part) for each in range(self.plan.parts)]
            labels = frame_of(spread).sort(SEQ)
        feedback = frame_of([self.scratch.get("feedback")]) if self.scratch.has("feedback") else None
        found, counts = mature(model, rows, labels, now, window, feedback)
        kept = dict.fromkeys((*in_order(model), *own_columns(model, rows.columns), *model.request_columns, LABEL))
        name = "mature" if part is None else f"mature-{part}"
        self.scratch.put(name, [found.select(list(kept)).to_arrow()], counts)

    def _deal(self, number: int) -> None:
        requests, asked = self._ask(number)
        for view in self.large_views:
            require(requests, view.request_columns)
            types = self.schemas[view.table.name]
            places = groups(requests, view.request_columns, [types[c] for c in by_columns(view)], self.plan.parts)
            own = requests.select(list(dict.fromkeys(view.request_columns))).with_columns(
                pl.Series(".row", np.arange(requests.height)), pl.Series(".asked", asked, dtype=pl.Int64)
            )
            self.scratch.put(f"dealt-{view.name}-{number}", deal(own, places, self.plan.parts))

    def _answer(self, view: Aggregation | Latest, part: int, questions: int) -> None:
        dealt = [self.scratch.get(f"dealt-{view.name}-{number}", part) for number in range(questions)]
        requests = frame_of(dealt)
        spread = [self.scratch.get(f"spread-{view.name}-{each}", part) for each in range(self.plan.parts)]
        rows = frame_of(spread).sort(SEQ)
        columns = compute(view, rows, requests.drop(".row", ".asked"), requests[".asked"].to_numpy())
        answers = columns.with_columns(requests[".row"]).to_arrow()
        ends = np.cumsum([each.num_rows for each in dealt])
        pieces = [answers.slice(int(end) - each.num_rows, each.num_rows) for each, end in zip(dealt, ends, strict=True)]
        self.scratch.put(f"answer-{view.name}-{part}", pieces)

    def features(self, number: int, requests: pl.DataFrame, asked: Array) -> pl.DataFrame:
        """Return the model's columns for chunk ``number`` of the questions, when what is large has been answered."""

        def answer(view: Aggregation | Latest) -> pl.DataFrame:
            if view.table.name in self.plan.large:
                pieces = [self.scratch.get(f"answer-{view.name}-{part}", number) for part in range(self.plan.parts)]
                return frame_of(pieces).sort(".row").drop(".row")
            rows = self._table(view.table.name)
            return compute(view, rows, requests, asked) if rows.width else unanswered(view, requests)

        return assemble(self.model, requests, answer)

    def versions(self, table: str, number: int) -> pl.DataFrame:
        """Return all versions of the keys of partition ``number`` of a table; all rows of a small one."""
        return self._of_things(table, number) if table in self.plan.large else self._table(table)

    # What they read ---------------------------------------------------------------------------------------------------

    def _read(self, table: str, start: int, rows: int) -> pl.DataFrame:
        need = self.plan.needs[table]
        limit = min(rows, need.rows - start)
        return pl.DataFrame(self.lake.scan(table, columns=need.columns, since=start, limit=limit))

    def _table(self, table: str) -> pl.DataFrame:
        """Return the needed rows of a small table, read once; a frame without columns when it has none."""
        if table not in self._whole:
            need = self.plan.needs.get(table)
            self._whole[table] = self._read(table, 0, need.rows) if need else pl.DataFrame()
        return self._whole[table]

    def _of_things(self, table: str, part: int) -> pl.DataFrame:
        """Return all versions of the keys of partition ``part``, in order of sequence."""
        return frame_of([self.scratch.get(f"split-{table}-{start}", part) for start in self.plan.slices(table)])

    def _asked(self, number: int) -> tuple[pl.DataFrame, Array]:
        requests = frame_of([self.scratch.get("asked", number)])
        return requests, requests[ASKED_AT].to_physical().to_numpy()

    # Their order ------------------------------------------------------------------------------------------------------

    def table_steps(self, *, learning: bool) -> list[tuple[str, list[Step]]]:
        """Return the steps that partition the large tables, by what they do; each needs those before it."""
        model, parts = self.model, range(self.plan.parts)
        splits: list[Step] = []
        spreads: list[Step] = []
        for table in self.plan.large:
            splits += [
                ({"step": "split", "table": table, "start": start}, (f"split-{table}-{start}",))
                for start in self.plan.slices(table)
            ]
            made = [f"spread-{view.name}" for view in self.large_views if view.table.name == table]
            labels = learning and table == model.label.table.name
            made += ["labels"] if labels else []
            for part in parts if made else ():
                step = {"step": "spread", "table": table, "part": part, "learning": labels}
                spreads.append((step, tuple(f"{name}-{part}" for name in made)))
        return [("splitting tables by key", splits), ("putting rows of a group together", spreads)]

    def question_steps(self, questions: int) -> list[tuple[str, list[Step]]]:
        """Return the steps that look up what is large for so many chunks of questions; each needs those before it."""
        views = self.large_views
        deals: list[Step] = [
            ({"step": "deal", "number": number}, tuple(f"dealt-{view.name}-{number}" for view in views))
            for number in range(questions if views else 0)
        ]
        answers: list[Step] = [
            (
                {"step": "answer", "view": view.name, "part": part, "questions": questions},
                (f"answer-{view.name}-{part}",),
            )
            for view in views
            for part in range(self.plan.parts)
        ]
        return [("dealing questions out", deals), ("looking features up", answers)]


def carry(
    scratch: Scratch,
    executor: Executor,
    pace: Pace,
    stages: Iterable[tuple[str, Sequence[Step]]],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Have ``executor`` carry out the steps of each stage that have not been done yet, one stage after the other.

    ``after`` is called after each step, while others are under way.
    """
    for doing, steps in stages:
        left = [step for step, pieces in steps if not all(scratch.has(piece) for piece in pieces)]
        pace.pass_by(len(steps) - len(left))
        if left:
            pace.say(doing)
        with closing(executor.map("partition", left)) as results:
            for _ in results:
                pace.step(doing)
                after()


def build(
    partitions: Partitions, executor: Executor, now: int, window: int | None, report: Report, heard: Mapping[str, int]
) -> TrainingSet:
    """Return the training set that ``example.training_set`` returns, built partition by partition.

    ``executor`` runs ``partitions.run`` as the task "partition". ``heard``: rows of the ledger's tables when there is
    feedback. Raises NotFoundError when the examples' or the label's table has no rows.
    """
    model, scratch, plan = partitions.model, partitions.scratch, partitions.plan
    for table in (model.examples, model.label.table):
        if table.name not in plan.needs:
            raise NotFoundError(f"model {model.name!r} reads table {table.name!r}, which has no rows yet")
    if heard.get(FEEDBACK) and not scratch.has("feedback"):
        scratch.put("feedback", [_feedback(partitions, heard).to_arrow()])
    parts = range(plan.parts) if model.examples.name in plan.large else (None,)
    pieces = [_mature(part) for part in parts]
    ages: list[Step] = [
        ({"step": "examples", "part": part, "now": now, "window": window}, (piece,))
        for part, piece in zip(parts, pieces, strict=True)
    ]
    first = [*partitions.table_steps(learning=True), ("finding mature examples", ages)]
    answers = len(partitions.large_views) * plan.parts  # what is known of the steps that follow
    pace = Pace(report, sum(len(steps) for _, steps in first) + answers)
    carry(scratch, executor, pace, first)
    if not scratch.has("asked"):
        found = frame_of([scratch.get(piece) for piece in pieces]).sort(in_order(model))
        chunk = max(1, plan.cells // (len(model.columns) + found.width))
        chunks = [found[start : start + chunk].to_arrow() for start in range(0, max(found.height, 1), chunk)]
        notes = [scratch.note(piece) for piece in pieces]
        counts = {reason: sum(note[reason] for note in notes) for reason in notes[0]}
        scratch.put("asked", chunks, {"counts": counts, "chunks": len(chunks)})
        del found
    note = scratch.note("asked")
    numbers = range(note["chunks"])
    gathers: list[Step] = [({"step": "gather", "number": number}, (f"gathered-{number}",)) for number in numbers]
    second = [*partitions.question_steps(len(numbers)), ("gathering features", gathers)]
    pace.more(sum(len(steps) for _, steps in second) - answers)
    carry(scratch, executor, pace, second)
    pace.say("putting it together")
    rows = frame_of([scratch.get("asked", number) for number in numbers])
    columns = frame_of([scratch.get(f"gathered-{number}") for number in numbers])
    own = own_columns(model, partitions.schemas[model.examples.name])
    return TrainingSet(complete(rows, columns, own).rechunk(), note["counts"])


def _mature(part: int | None) -> str:
    return "mature" if part is None else f"mature-{part}"


def _feedback(partitions: Partitions, heard: Mapping[str, int]) -> pl.DataFrame:
    lake = partitions.lake
    said = pl.DataFrame(lake.scan(FEEDBACK, limit=heard[FEEDBACK]))
    columns = ("id", "model", "key")
    asked = pl.DataFrame(lake.scan(PREDICTIONS, columns=columns, limit=heard.get(PREDICTIONS, 0)))
    return feedback_by_key(said, asked, partitions.model, partitions.schemas[partitions.model.examples.name])
