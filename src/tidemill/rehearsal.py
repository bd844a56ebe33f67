"""Composes mills over memory: to rehearse policies on the past, and to replay the record of a live run.

Trainings run in this process, on one thread as live ones do, and each only once, whichever policies call for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import threadpoolctl

from tidemill.adapters import adapter
from tidemill.base.clock import FOREVER, SystemClock, VirtualClock, format_duration, format_time
from tidemill.base.errors import WorkspaceError
from tidemill.base.schema import SEQ
from tidemill.engine.evaluate.interval import Interval
from tidemill.engine.example.example import ASKED_AT, examples
from tidemill.engine.mill.compare import Decisions, decisions, differences, figures, mature
from tidemill.engine.mill.mill import Mill, Ports
from tidemill.engine.mill.rehearse import (
    Difference,
    PastReader,
    Record,
    RecordReader,
    past_questions,
    record,
    rehearse,
    replay,
    seed,
)
from tidemill.engine.predict import records
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.table.ingest import Intake
from tidemill.engine.table.table import timeless
from tidemill.engine.train.form import restore
from tidemill.engine.train.train import Order, Rival
from tidemill.ports.executor import Progress
from tidemill.ports.reader import Reader
from tidemill.project import TRAINING_THREADS, Project, carry_out
from tidemill.spec.model import Model
from tidemill.spec.source import Files, Source
from tidemill.spec.system import Policy, System
from tidemill.workspace import FORMS

#: All versions of the rows of each source, with system columns.
Past = Mapping[str, pl.DataFrame]

#: Told how far a rehearsal is: ticks done, ticks in all, and what it is doing.
Tell = Callable[[int, int, str], None]

_SHARE = 10  # so many times the live run must last as long as what would be rehearsed without it


class Trainings:
    """Carries out trainings, each fingerprint once, and keeps what they made.

    ``count`` of them have been carried out, in ``seconds``.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.tell: Callable[[str], None] = lambda _: None
        self._models = adapter("models", "memory")()
        self._made: dict[str, dict[str, Any]] = {}
        self._as_of: dict[str, int] = {}

    def load(self, _: str, training: str) -> Predictor:
        """Return the predictor that ``training`` made."""
        made = self._made[training]
        return restore(
            self.encoding(training),
            made["estimator"],
            made["served"],
            load=self._models.load,
            form=self._models.load_form,
            forms=FORMS,
        )

    def encoding(self, training: str) -> Encoding:
        """Return the encoding of the predictor that ``training`` made."""
        return Encoding.from_json(self._made[training]["encoding"])

    def run(self, model: Model, rows: Callable[[str], pl.DataFrame], order: Order) -> dict[str, Any]:
        """Return the result of ``order``, as ``project.carry_out`` does; ``rows``: of each table at that time."""
        if order.training not in self._made:
            began = time.perf_counter()
            frames = {
                name: rows(name).filter(pl.col(SEQ) < number) if number else pl.DataFrame()
                for name, number in order.next_seq.items()
            }
            rival = order.rival and Rival(self.load(model.name, order.rival), self._as_of[order.rival])
            made = carry_out(model, order, frames, rival or None, self._report, self._models)
            self._made[order.training], self._as_of[order.training] = made, order.as_of
            self.seconds += time.perf_counter() - began
            self.count += 1
        return self._made[order.training]

    def _report(self, progress: Progress) -> None:
        self.tell(f"training: {progress.doing}")


class Stage:
    """An empty workspace in memory with the mill that is to turn on it."""

    def __init__(self, system: System, readers: Mapping[str, Reader], trainings: Trainings) -> None:
        self.lake = adapter("lake", "memory")()
        self.journal = adapter("journal", "memory")()
        self.fence = self.journal.acquire()
        self.logs = {name: adapter("log", "memory")() for name in records.RESERVED_TABLES}
        models = {model.name: model for model in system.models}

        def run(payload: dict[str, Any], _: object) -> dict[str, Any]:
            return trainings.run(models[payload["model"]], self.rows, Order(**payload))

        ports = Ports(
            lake=self.lake,
            journal=self.journal,
            online=adapter("online", "memory")(),
            executor=adapter("executor", "inline")({"train": run}, threads=TRAINING_THREADS),
            readers=readers,
            logs=self.logs,
            scratch=lambda: nullcontext(adapter("scratch", "memory")()),
        )
        self.mill = Mill(system, ports, self.fence)

    def rows(self, table: str) -> pl.DataFrame:
        """Return all versions of all rows of a table."""
        return pl.DataFrame(self.lake.scan(table))


# Rehearsing policies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One model under one policy: what was decided, and how good its predictions were.

    ``figures``: the gate's metric, the declared metrics and the KPIs on the ``mature`` of the ``predictions``.
    ``against``: the difference to the first policy on the questions that both answered; None for the first itself.
    """

    policy: str
    model: str
    decisions: Decisions
    predictions: int
    mature: int
    figures: Mapping[str, Interval]
    against: Mapping[str, Interval] | None


@dataclass(frozen=True, slots=True)
class Backtest:
    """What a backtest found. ``trainings`` were carried out (shared ones once), in ``training_seconds``."""

    start: int
    end: int
    rehearsed: tuple[Rehearsed, ...]
    trainings: int
    training_seconds: float
    seconds: float


def past_of(project: Project) -> Past:
    """Return the past of a project: what its workspace has taken in, else what its readers bring, taken in in memory.

    Raises WorkspaceError when there are no rows, or when only their ingest would say when they were known.
    """
    if project.workspace.exists and project.workspace.lake.tables():
        lake = project.workspace.lake
    else:
        lake = adapter("lake", "memory")()
        fence = adapter("journal", "memory")().acquire()
        intake = Intake(project.system.sources, project.readers(), lake, fence)
        now = SystemClock().now()
        for source in project.system.sources:
            if source.known_at is None and not isinstance(source.reader, Files):
                raise WorkspaceError(
                    f"source {source.name!r}: its rows are known from when they are taken in, and none were. Run "
                    "tidemill up for a while, or declare known_at=, to have a past to rehearse."
                )
            for _ in intake.take(source.name, tick=now, history=True):
                pass
    there = set(lake.tables())
    missing = [source.name for source in project.system.sources if source.name not in there]
    if missing:
        raise WorkspaceError(f"There is no past to rehearse: {', '.join(missing)} has no rows.")
    return {source.name: pl.DataFrame(lake.scan(source.name)) for source in project.system.sources}


def with_policy(system: System, policy: Policy, tick: int) -> System:
    """Return ``system`` under another policy and with another time between ticks (microseconds)."""
    return System(
        system.name,
        *system.models,
        endpoint=system.endpoint,
        monitor=system.monitor,
        policy=policy,
        tick=format_duration(tick),
    )


def asking(system: System, past: Past) -> dict[str, pl.DataFrame]:
    """Return all versions of the rows of each model's examples; derived ones are derived from the whole past."""
    if all(isinstance(model.examples, Source) for model in system.models):
        return {model.name: past[model.examples.name] for model in system.models}
    stage = Stage(system, {}, Trainings())
    seed(system, past, _last(system, past), lake=stage.lake, journal=stage.journal, fence=stage.fence)
    return {model.name: stage.rows(model.examples.name) for model in system.models}


def _last(system: System, past: Past) -> int:
    """Return when the last row of the past became known or was taken in."""
    times = [
        past[source.name].select(pl.max_horizontal("_known_at", "_tick").dt.epoch("us").max()).item()
        for source in system.sources
        if not timeless(source)
    ]
    return max((time for time in times if time is not None), default=0)


def period(project: Project, asked: Mapping[str, pl.DataFrame]) -> tuple[int, int]:
    """Return the stretch to rehearse by default, as ``stretch`` gives it. Raises WorkspaceError when there is none."""
    ticks = project.workspace.journal.ticks() if project.workspace.exists else ()
    moments = [
        examples(model, asked[model.name], FOREVER // 2)[0][ASKED_AT].to_physical() for model in project.system.models
    ]
    return stretch(pl.concat(moments), ticks)


def stretch(moments: pl.Series, ticks: Sequence[int]) -> tuple[int, int]:
    """Return the last third of the time in which questions were asked; ``moments``: when (microseconds).

    A live run (its ``ticks``) that is at least a tenth as long is taken instead; a shorter one has hardly a question to
    rehearse. Raises WorkspaceError when there is neither.
    """
    live = (ticks[0], ticks[-1]) if len(ticks) > 1 else None
    past = moments.filter(moments <= ticks[-1]) if ticks else moments  # schedules hold questions of days to come
    first, last = past.min(), past.max()
    if not isinstance(first, int) or not isinstance(last, int):
        if live is None:
            raise WorkspaceError("There is no question in the past: no example has a time at which it is asked.")
        return live
    third = (last - first) // 3
    return live if live and (live[1] - live[0]) * _SHARE >= third else (last - third, last)


def backtest(
    project: Project, policies: Mapping[str, Policy], past: Past, asked: Mapping[str, pl.DataFrame],
    start: int, end: int, tick: int, tell: Tell,
) -> Backtest:  # fmt: skip
    """Rehearse each of ``policies`` from ``start`` to ``end`` (microseconds), tick by tick side by side."""
    began = time.perf_counter()
    ticks = range(start - start % tick, end + 1, tick)
    if len(ticks) < 2:
        raise WorkspaceError(f"From {format_time(start)} to {format_time(end)} there are not two ticks to rehearse.")
    trainings = Trainings()
    questions = [past_questions(model, asked[model.name], ticks) for model in project.system.models]
    stages: dict[str, Stage] = {}
    turning = []
    # Live trainings have one thread, too; and many small predictions are faster on one.
    with threadpoolctl.threadpool_limits(TRAINING_THREADS):
        for name, policy in policies.items():
            clock = VirtualClock(ticks[0])
            readers = {
                source.name: PastReader(source, past[source.name], ticks[0], clock) for source in project.system.sources
            }
            system = with_policy(project.system, policy, tick)
            stage = stages[name] = Stage(system, readers, trainings)
            seed(system, past, ticks[0], lake=stage.lake, journal=stage.journal, fence=stage.fence)
            stage.mill.start()
            writer = stage.logs[records.PREDICTIONS].writer()
            turning.append(rehearse(stage.mill, clock, ticks, questions, trainings.load, writer))
        for done, moment in enumerate(ticks):
            trainings.tell = partial(tell, done, len(ticks))
            trainings.tell(format_time(moment)[:10])
            for each in turning:
                next(each)
        tell(len(ticks), len(ticks), "judging the predictions")
        rehearsed = tuple(_judged(stages, trainings, ticks[-1] + 1))
    return Backtest(ticks[0], ticks[-1], rehearsed, trainings.count, trainings.seconds, time.perf_counter() - began)


def _judged(stages: Mapping[str, Stage], trainings: Trainings, now: int) -> Iterator[Rehearsed]:
    first: dict[str, pl.DataFrame] = {}
    for name, stage in stages.items():
        for model in stage.mill.system.models:
            decided = decisions(model.name, stage.journal.read())
            versions = stage.mill.state.model(model.name).versions
            if not versions or stage.lake.head(records.PREDICTIONS) is None:
                yield Rehearsed(name, model.name, decided, 0, 0, {}, None)
                continue
            logged = stage.rows(records.PREDICTIONS).filter(pl.col("model") == model.name)
            schema = stage.rows(model.examples.name).schema
            known = mature(model, logged, stage.rows(model.label.table.name), schema, now)
            encoding = trainings.encoding(versions[0].training)
            rival = first.setdefault(model.name, known)
            yield Rehearsed(
                name, model.name, decided, logged.height, known.height, figures(model, known, encoding),
                None if rival is known else differences(model, known, rival, encoding),
            )  # fmt: skip


# Replaying a live run ---------------------------------------------------------------------------------------------


def recorded(project: Project) -> Record:
    """Return the record of the live run in the project's workspace. Raises WorkspaceError when nothing has run."""
    if not project.workspace.exists:
        raise WorkspaceError("Nothing has run here yet; start with: tidemill up")
    return record(project.system, project.workspace.lake, project.workspace.journal)


def replay_record(system: System, run: Record) -> Iterator[tuple[int, Difference | None]]:
    """Turn a mill over memory by the record of a live run; yields each tick, and at last the first difference."""
    clock = VirtualClock(run.ticks[0] if run.ticks else 0)
    readers = {
        source.name: RecordReader(run.taken.get(source.name, ()), run.halts[source.name], clock)
        for source in system.sources
    }
    trainings = Trainings()
    stage = Stage(system, readers, trainings)
    writers = {name: log.writer() for name, log in stage.logs.items()}
    with threadpoolctl.threadpool_limits(TRAINING_THREADS):
        yield from replay(stage.mill, clock, run, trainings.load, writers, stage.fence)
