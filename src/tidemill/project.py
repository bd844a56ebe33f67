"""The composition root: the only place that joins the engine and the adapters.

``tidemill.open(".")`` gives a ``Project``: what notebooks, the command line, the server and the worker stand on.
Adapters are loaded when they are first used, so a server never loads the lake's library, and a training no server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tidemill.adapters import adapter
from tidemill.adapters.system_file import load_system
from tidemill.adapters.work_folder import passing, resumable, sweep
from tidemill.base.clock import parse_time
from tidemill.base.errors import NotFoundError, RequestError, WorkspaceError
from tidemill.base.hashing import fingerprint
from tidemill.base.schema import SEQ, SYSTEM_COLUMNS, nearest
from tidemill.engine.check.fingerprint import origins, recipe_fingerprint
from tidemill.engine.example import ledger
from tidemill.engine.example.answered import answered
from tidemill.engine.example.batch import moments
from tidemill.engine.example.build import Partitions, Plan, build
from tidemill.engine.example.example import TrainingSet, training_set
from tidemill.engine.expression.program import proofs
from tidemill.engine.feature.feature import features
from tidemill.engine.feature.partition import needs
from tidemill.engine.mill.decider import tables_of
from tidemill.engine.mill.mill import Mill, Ports
from tidemill.engine.parity.explain import libraries
from tidemill.engine.predict import records
from tidemill.engine.predict.live import jsonable
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.predict.route import SHADOW
from tidemill.engine.predict.state import Version
from tidemill.engine.table.contract import conform
from tidemill.engine.table.table import visible
from tidemill.engine.table.tally import report
from tidemill.engine.train.train import Order, Report, Rival, train
from tidemill.ports.executor import Executor, Job, Progress
from tidemill.ports.lake import Fence
from tidemill.ports.models import Models
from tidemill.ports.reader import Reader
from tidemill.ports.scratch import Scratch
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model
from tidemill.spec.source import Files, Push, Source, Table
from tidemill.workspace import FORMS, Served, Workspace, dtype_to_text, find

#: Threads of a training: OpenMP spins when it shares cores with a server, and one thread leaves them room.
TRAINING_THREADS = 1

#: Partitions that are worked on at the same time, where a machine has the cores: each takes its share of memory.
MOST_WORKERS = 4

_EXAMPLE_ROWS = 1000  # of the newest: one of them becomes the example of a request
_TASKS = {"train": "tidemill.loop.training:run", "partition": "tidemill.loop.partition:run"}


@dataclass(frozen=True, slots=True)
class _Placed:
    """Adds to each payload where things lie: the project, and the pieces of the work."""

    inner: Executor
    where: dict[str, str]

    def submit(self, task: str, payload: dict[str, Any]) -> Job:
        return self.inner.submit(task, {**payload, **self.where})

    def map(self, task: str, payloads: Sequence[dict[str, Any]]) -> Generator[tuple[int, dict[str, Any]], None, None]:
        return self.inner.map(task, [{**payload, **self.where} for payload in payloads])

    def close(self) -> None:
        self.inner.close()


class Project(Served):
    """A declared system and its workspace, with all that can be done with them."""

    # Looking ----------------------------------------------------------------------------------------------------------

    def declared_table(self, name: str) -> Source | Table:
        """Return the declaration of source or table ``name``. Raises NotFoundError with the nearest name."""
        found = {table.name: table for table in self.system.tables}
        if name not in found:
            raise NotFoundError(f"There is no table {name!r} in {self.path.name}.{nearest(name, found)}")
        return found[name]

    def rows(self, name: str, *, version: int | None = None, before: int | None = None) -> pl.DataFrame:
        """Return all versions of all rows of a table in the lake, system columns too, at storage ``version``.

        ``before``: only those with a sequence number below it. Raises NotFoundError when the table has no rows yet.
        """
        frame = pl.DataFrame(self.workspace.lake.scan(name, version=version))
        return frame if before is None else frame.filter(pl.col(SEQ) < before)

    def rows_so_far(self, name: str, *, before: int | None = None) -> pl.DataFrame:
        """Return the same, as the feature engine takes it: a frame without columns when there has been no row."""
        return (
            pl.DataFrame() if before == 0 or self.workspace.lake.head(name) is None else self.rows(name, before=before)
        )

    def table(self, name: str, *, as_of: str | int | None = None, version: int | None = None) -> pl.DataFrame:
        """Return a table as a question asked at ``as_of`` sees it: the last visible version of each key.

        ``as_of``: an ISO time or microseconds; None is now, everything ingested. ``version`` pins what was committed.
        """
        declared = self.declared_table(name)
        frame = visible(self.rows(name, version=version), declared, self._moment(as_of))
        return frame.drop(SYSTEM_COLUMNS)

    def cleaning(self, name: str) -> pl.DataFrame:
        """Return what each cleaning step did to the rows that came of it in table ``name``, in order; none: no rows.

        Columns: ``step``, ``rows`` (seen), rows ``dropped``, values ``filled``, ``changed``, ``emptied``, rows
        ``flagged``; of joins, rows ``matched``. See docs/clean.md.
        """
        self.declared_table(name)
        bodies = (entry.body for entry in self.workspace.journal.read() if entry.kind == "commit")
        return pl.DataFrame(report(bodies).get(name, []), infer_schema_length=None)

    def training_set(
        self, model: str, *, as_of: str | int | None = None, workers: int | None = None, report: Report | None = None
    ) -> TrainingSet:
        """Return what ``model`` may learn from at ``as_of`` (an ISO time or microseconds; None is now).

        Of large tables it is built partition by partition in ``workers`` threads (None: as many as there are cores, at
        most four); one that was interrupted goes on where it was. ``report`` is told how far that is; None says so on
        a terminal.
        """
        declared = self.declared_model(model)
        heads = {name: self.workspace.lake.head(name) for name in tables_of(declared)}
        rows = {name: head.next_seq if head else 0 for name, head in heads.items()}
        moment, window = self._moment(as_of), self.system.policy.window
        plan = self.plan(declared, rows)
        if plan.large:
            return self.build(declared, plan, moment, window, {}, report or say, workers=workers or cores())
        frames = {name: self.rows_so_far(name, before=number) for name, number in rows.items()}
        return training_set(declared, frames, moment, window)

    def predictions(
        self,
        model: str,
        *,
        since: str | int | None = None,
        until: str | int | None = None,
        versions: Collection[int] = (),
        routes: Collection[str] = (),
    ) -> pl.DataFrame:
        """Return the logged predictions of ``model`` asked in [since, until), with features, routes and labels.

        Times are ISO or microseconds. ``versions`` and ``routes`` keep only those; without routes, what shadows said is
        left out. The columns are those of ``answered``; labels are as known now. Rows in order of asking.
        """
        declared, lake = self.declared_model(model), self.workspace.lake
        there = set(lake.tables()) if self.workspace.exists else set()
        if declared.examples.name not in there:
            raise NotFoundError(f"model {model!r}: table {declared.examples.name!r} has no rows yet.")
        types = pl.DataFrame(lake.schema(declared.examples.name).empty_table()).schema
        logged = pl.DataFrame(schema=ledger.PREDICTION_SCHEMA)
        if records.PREDICTIONS in there:
            wanted = pl.col("model") == model
            wanted &= pl.col("route").is_in(list(routes)) if routes else pl.col("route") != SHADOW
            if versions:
                wanted &= pl.col("version").is_in(list(versions))
            if since is not None:
                wanted &= pl.col("asked").dt.epoch("us") >= self._moment(since)
            if until is not None:
                wanted &= pl.col("asked").dt.epoch("us") < self._moment(until)
            logged = self.rows(records.PREDICTIONS).filter(wanted).sort("asked", SEQ)
        label, feedback = declared.label.table.name, None
        if records.FEEDBACK in there:
            feedback = ledger.feedback_by_key(self.rows(records.FEEDBACK), logged, declared, types)
        known = self.rows(label) if label in there else None
        return answered(declared, types, logged, known, self.now(), feedback)

    def model(self, reference: str) -> FittedModel:
        """Return a fitted model: ``"name@champion"``, ``"name@v2"``, or ``"name"`` for the champion.

        Raises NotFoundError when there is no such model, version or alias.
        """
        name, _, which = reference.partition("@")
        declared = self.declared_model(name)
        version = self.state().model(name).resolve(which or "champion")
        return FittedModel(self, declared, version, self.load_predictor(name, version.training))

    def now(self) -> int:
        """Return the moment just after the newest tick, in microseconds; 0 before the first."""
        ticks = self.workspace.journal.ticks() if self.workspace.exists else ()
        return ticks[-1] + 1 if ticks else 0

    def _moment(self, as_of: str | int | None) -> int:
        if as_of is None:
            return self.now()
        return parse_time(as_of) if isinstance(as_of, str) else as_of

    # Work in partitions -----------------------------------------------------------------------------------------------

    def plan(self, model: Model, rows: Mapping[str, int]) -> Plan:
        """Plan how a training set is built from the first ``rows`` of each table."""
        schemas = {name: self.workspace.lake.schema(name) for name, number in rows.items() if number}
        together = (model.examples.name, model.label.table.name)
        return Plan.of(needs(model, schemas, rows, learning=True), together=together)

    def build(
        self,
        model: Model,
        plan: Plan,
        as_of: int,
        window: int | None,
        heard: Mapping[str, int],
        report: Report,
        *,
        executor: str = "threads",
        workers: int = 1,
    ) -> TrainingSet:
        """Build a training set by ``plan``; ``heard``: rows of the ledger's tables that hold feedback.

        ``executor``: "inline", "threads" or "processes". Raises WorkspaceError while another process builds this one.
        """
        recipe = recipe_fingerprint(model, self.system.policy)
        made = fingerprint("training set", recipe, as_of, window, dict(heard), plan.as_data(), pl.__version__)
        with resumable(self.workspace.root / "work" / f"build-{made[:16]}") as folder:
            scratch = adapter("scratch", "files")(folder)
            scratch.put("run", [pl.DataFrame().to_arrow()], {"model": model.name, "plan": plan.as_data()})
            partitions = Partitions(model, self.workspace.lake, scratch, plan)
            with closing(self.executor(executor, folder, partitions.run, workers)) as runs:
                return build(partitions, runs, as_of, window, report, heard)

    def executor(
        self,
        kind: str,
        folder: Path,
        run: Callable[[Mapping[str, Any]], dict[str, Any]],
        workers: int,
        *,
        numerical: bool = True,
    ) -> Executor:
        """Return what carries out the steps of the work in ``folder``: "inline", "threads" or "processes".

        In this process they are done by ``run``; another makes that anew from the piece "run". ``numerical``: it uses
        libraries that compute in threads of their own.
        """
        made: Executor
        if kind == "processes":
            work = self.workspace.root / "work"
            inner = adapter("executor", "process")(_TASKS, work, threads=TRAINING_THREADS, workers=workers)
            return _Placed(inner, {"project": str(self.path), "folder": str(folder)})
        tasks = {"partition": lambda payload, _: run(payload)}
        if kind == "threads":
            made = adapter("executor", "threads")(tasks, threads=1 if numerical else None, workers=workers)
        else:
            made = adapter("executor", "inline")(tasks, threads=TRAINING_THREADS)
        return made

    # What the server, the worker and the trainings are made of --------------------------------------------------------

    def readers(self) -> dict[str, Reader]:
        """Return a reader for every source."""
        return {source.name: self.reader(source) for source in self.system.sources}

    def reader(self, source: Source) -> Reader:
        """Return the reader of ``source``."""
        reader: Reader
        match source.reader:
            case Files(pattern):
                reader = adapter("reader", "files")(pattern, self.path.parent)
            case Push():
                reader = adapter("reader", "log")(self.workspace.log(f"push-{source.name}"))
            case rows:
                reader = adapter("reader", "rows")(rows.function)
        return reader

    def pending(self, source: Source) -> int | None:
        """Return how many files (for pushes: rows) wait to be taken in; None for rows of a function, not asked."""
        head = self.workspace.lake.head(source.name) if self.workspace.exists else None
        cursor = head.cursor if head else None
        match source.reader:
            case Files(pattern):
                waiting: int = adapter("reader", "files")(pattern, self.path.parent).pending(cursor)
                return waiting
            case Push():
                if not (self.workspace.root / "log" / f"push-{source.name}").exists():
                    return 0  # opening a log would make it
                rows: int = sum(batch.rows.num_rows for batch in self.reader(source).poll(cursor))
                return rows
        return None

    def mill(self, fence: Fence) -> Mill:
        """Return the mill over this workspace, for the holder of the lease; what killed work left behind is swept."""
        workspace = self.workspace
        sweep(workspace.root / "work")
        executor = adapter("executor", "process")(_TASKS, workspace.root / "work", threads=TRAINING_THREADS)
        ports = Ports(
            lake=workspace.lake,
            journal=workspace.journal,
            online=workspace.online,
            executor=_Placed(executor, {"project": str(self.path)}),
            readers=self.readers(),
            logs={name: workspace.log(name) for name in records.RESERVED_TABLES},
            scratch=self._scratch,
            pushed={
                source.name: workspace.log(f"push-{source.name}")
                for source in self.system.sources
                if isinstance(source.reader, Push)
            },
        )
        return Mill(self.system, ports, fence)

    @contextmanager
    def _scratch(self) -> Iterator[Scratch]:
        """Open a scratch in a directory of its own, which is deleted in the end; of a killed process, by ``mill``."""
        with passing(self.workspace.root / "work", "scratch") as folder:
            yield adapter("scratch", "files")(folder)

    def carry_out(self, order: Order, report: Report) -> dict[str, Any]:
        """Carry out a training and return its result as plain data: the estimator stored, judged, profiled."""
        model = self.declared_model(order.model)
        plan = self.plan(model, {name: order.next_seq[name] for name in tables_of(model)})
        made: TrainingSet | None = None
        if plan.large:
            heard = {name: number for name, number in order.next_seq.items() if name in records.RESERVED_TABLES}
            made = self.build(model, plan, order.as_of, order.window, heard, report, executor="inline")
            newest = max(order.next_seq[model.examples.name] - _EXAMPLE_ROWS, 0)
            rows = self.workspace.lake.scan(model.examples.name, since=newest, limit=_EXAMPLE_ROWS)
            frames = {model.examples.name: pl.DataFrame(rows)}
        else:
            frames = {name: self.rows_so_far(name, before=number) for name, number in order.next_seq.items()}
        rival = None
        if order.rival is not None:
            version = next(each for each in self.state().model(model.name).versions if each.training == order.rival)
            rival = Rival(self.load_predictor(model.name, order.rival), version.as_of)
        return carry_out(model, order, frames, rival, report, self.workspace.models, made)


def carry_out(
    model: Model,
    order: Order,
    frames: Mapping[str, pl.DataFrame],
    rival: Rival | None,
    report: Report,
    models: Models,
    training: TrainingSet | None = None,
) -> dict[str, Any]:
    """Train ``model`` on ``frames``, store the estimator in ``models``, and return the result as plain data.

    ``training``: the training set, where it has been built; then some rows of the examples' table are enough.
    """
    made = train(model, frames, order, rival, report, models, FORMS, training)
    schema = frames[model.examples.name].schema
    return {
        "estimator": made.stored,
        "served": made.served,
        "expressions": proved(model, schema),
        "libraries": libraries(),
        "encoding": made.predictor.encoding.as_json(),
        "profile": made.profile.as_json(),
        "judged": made.judged,
        "origins": origins(model),
        "request": {name: dtype_to_text(schema[name]) for name in model.request_columns},
        "example": example_row(frames[model.examples.name].select(model.request_columns)),
    }


def proved(model: Model, schema: Mapping[str, pl.DataType]) -> dict[str, str | None]:
    """Return the proofs of the on-demand expressions of ``model`` over requests of ``schema``."""
    expressions = {
        f"{view.name}__{name}": each
        for view in model.views
        if isinstance(view, OnDemand)
        for name, each in view.features
    }
    return proofs(expressions, schema)


def example_row(rows: pl.DataFrame) -> dict[str, Any] | None:
    """Return the last of ``rows`` that has no null, else the last, as JSON takes it: times as ISO 8601."""
    if rows.is_empty():
        return None
    whole = rows.drop_nulls()
    row = (rows if whole.is_empty() else whole)[-1].row(0, named=True)
    return {name: jsonable(value) for name, value in row.items()}


class FittedModel:
    """A version of a model, ready to predict."""

    def __init__(self, project: Project, declared: Model, version: Version, predictor: Predictor) -> None:
        self._project = project
        self._declared = declared
        self.version = version
        self._predictor = predictor

    def __repr__(self) -> str:
        return f"<{self._declared.name} v{self.version.number}>"

    @property
    def predictor(self) -> Predictor:
        """What predicts. Raises WorkspaceError where the file declares its inputs otherwise than it was trained on."""
        if gone := self._project.lost(self._declared.name, self.version.training):
            raise WorkspaceError(f"v{self.version.number} of {gone} Put that declaration back.")
        return self._predictor

    @property
    def served(self) -> dict[str, Any] | None:
        """In which form it is served and why: ``kind``, ``why``, and what that costs; see ``Served.served``."""
        return self._project.served(self.version.training)

    @property
    def classes(self) -> tuple[Any, ...]:
        """The label's values in the order of the columns of ``predict``; empty for a regression."""
        return self._predictor.encoding.classes

    @property
    def estimator(self) -> Any:
        """The fitted estimator itself, whatever form of it serves: for its coefficients and importances."""
        return self._project.load_estimator(self._declared.name, self.version.training)

    def predict(self, frame: pl.DataFrame, *, as_of: str | int | None = None) -> np.ndarray[Any, Any]:
        """Return one prediction for each row of ``frame``: the model's request columns.

        Features are looked up as of ``as_of`` (an ISO time or microseconds); None asks each row at the time in its
        column ``asked_at``, else at the model's own asked-at, and now where that lies ahead or is not there. Raises
        RequestError when a column is missing or a value is not of its column's type.
        """
        predictor = self.predictor
        return predictor.predict(self.features(frame, as_of=as_of))

    def features(self, frame: pl.DataFrame, *, as_of: str | int | None = None) -> pl.DataFrame:
        """Return the features of each row of ``frame``, as ``predict`` sees them."""
        project, declared = self._project, self._declared
        questions = self._typed(frame)
        moment = parse_time(as_of) if isinstance(as_of, str) else as_of
        asked = moments(declared, questions, moment, project.now())
        frames = {name: project.rows_so_far(name) for name in tables_of(declared)}
        return features(declared, frames, questions, asked)

    def _typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return ``frame`` with the types of a request. Raises RequestError, naming the row, when a value is none."""
        if not isinstance(frame, pl.DataFrame):
            raise RequestError(f"The questions are of type {type(frame).__name__}; give a Polars DataFrame.")
        types = self._project.request_types(self._declared.name, self.version.training)
        there = {name: dtype for name, dtype in types.items() if name in frame.columns}  # what lacks is named later
        fitted, faults = conform(frame.select(list(there)), there)
        if faults.null_count() < frame.height:
            row = int(faults.is_not_null().arg_true()[0])
            raise RequestError(f"Row {row} of the questions: {faults[row]}.")
        return frame.with_columns(fitted.get_columns())


def cores() -> int:
    """Return how many partitions are worked on at the same time when nobody says."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def say(progress: Progress) -> None:
    """Tell on a terminal how far something is: one line that is written over."""
    if sys.stderr.isatty():
        end = "\n" if progress.done >= progress.total else ""
        sys.stderr.write(f"\r\x1b[K{progress.doing} ({progress.done} of {progress.total}){end}")
        sys.stderr.flush()


def open(path: str | Path = ".") -> Project:
    """Open the project at ``path``: a folder with ``system.py``, or a declared file.

    Its workspace is the folder ``.tidemill`` beside the file. Raises NotFoundError when there is no such file, and
    DeclarationError when it does not declare a system.
    """
    file = find(Path(path))
    return Project(file, load_system(file), Workspace(file.parent / ".tidemill"))
