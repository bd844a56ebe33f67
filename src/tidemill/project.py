"""The composition root: the only place that joins the engine and the adapters.

``tidemill.open(".")`` gives a ``Project``: what notebooks, the command line, the server and the worker stand on.
Adapters are loaded when they are first used, so a server never loads the lake's library, and a training no server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tidemill.adapters import adapter
from tidemill.adapters.signing import open_key
from tidemill.adapters.system_file import load_system
from tidemill.base.clock import parse_time
from tidemill.base.errors import NotFoundError
from tidemill.base.schema import SEQ, SYSTEM_COLUMNS, nearest
from tidemill.engine import ledger
from tidemill.engine.encode import Encoding
from tidemill.engine.example import TrainingSet, asked_at, training_set
from tidemill.engine.feature import features
from tidemill.engine.fingerprint import origins
from tidemill.engine.mill import Mill, Ports, tables_of
from tidemill.engine.predict import Predictor
from tidemill.engine.state import State, Version, fold
from tidemill.engine.table import visible
from tidemill.engine.train import Order, Report, Rival, train
from tidemill.ports.artefacts import Artefacts
from tidemill.ports.executor import Executor, Job
from tidemill.ports.journal import Journal
from tidemill.ports.lake import Fence, Lake
from tidemill.ports.log import Log
from tidemill.ports.models import Models
from tidemill.ports.online import Online
from tidemill.ports.reader import Reader
from tidemill.spec.model import Model
from tidemill.spec.source import Files, Push, Source, Table
from tidemill.spec.system import System

#: Threads of a training: OpenMP spins when it shares cores with a server, and one thread leaves them room.
TRAINING_THREADS = 1

_TASKS = {"train": "tidemill.loop.training:run"}


class Workspace:
    """The folder ``.tidemill`` with everything a system has made. Parts are opened when first used."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def exists(self) -> bool:
        """True when a worker has run here."""
        return (self.root / "journal.db").exists()

    @cached_property
    def journal(self) -> Journal:
        """The journal: SQLite."""
        journal: Journal = adapter("journal", "sql")(self.root / "journal.db")
        return journal

    @cached_property
    def lake(self) -> Lake:
        """The lake: Lance datasets."""
        lake: Lake = adapter("lake", "lance")(self.root / "lake")
        return lake

    @cached_property
    def online(self) -> Online:
        """Online state: LMDB."""
        online: Online = adapter("online", "lmdb")(self.root / "online")
        return online

    @cached_property
    def artefacts(self) -> Artefacts:
        """Artefacts: content-addressed files."""
        artefacts: Artefacts = adapter("artefacts", "files")(self.root / "artefacts")
        return artefacts

    @cached_property
    def models(self) -> Models:
        """Fitted estimators, signed with this workspace's key (kept beside the lake, not in it)."""
        models: Models = adapter("models", "files")(self.artefacts, open_key(self.root / "key"))
        return models

    def log(self, name: str) -> Log:
        """Return the log called ``name``: "predictions", "feedback", or "push-<source>"."""
        log: Log = adapter("log", "segments")(self.root / "log" / name)
        return log


@dataclass(frozen=True, slots=True)
class _Trainer:
    """Adds to each training where the project lies."""

    inner: Executor
    path: Path

    def submit(self, task: str, payload: dict[str, Any]) -> Job:
        return self.inner.submit(task, {**payload, "project": str(self.path)})


class Project:
    """A declared system and its workspace."""

    def __init__(self, path: Path, system: System, workspace: Workspace) -> None:
        self.path = path
        self.system = system
        self.workspace = workspace

    # Looking ----------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return the live state as of the newest journal entry."""
        return fold(self.workspace.journal.read()) if self.workspace.exists else State()

    def declared_model(self, name: str) -> Model:
        """Return the declaration of model ``name``. Raises NotFoundError with the nearest name."""
        found = {model.name: model for model in self.system.models}
        if name not in found:
            raise NotFoundError(f"There is no model {name!r} in {self.path.name}.{nearest(name, found)}")
        return found[name]

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
        """Return the same, as ``engine.feature`` takes it: a frame without columns when there has been no row."""
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

    def training_set(self, model: str, *, as_of: str | int | None = None) -> TrainingSet:
        """Return what ``model`` may learn from at ``as_of`` (an ISO time or microseconds; None is now)."""
        declared = self.declared_model(model)
        frames = {name: self.rows_so_far(name) for name in tables_of(declared)}
        return training_set(declared, frames, self._moment(as_of), self.system.policy.window)

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

    # What the server, the worker and the trainings are made of --------------------------------------------------------

    def load_predictor(self, model: str, training: str) -> Predictor:
        """Return the predictor that a training made. Raises NotFoundError when its result is not recorded."""
        step = self.workspace.journal.step(training)
        if step is None:
            raise NotFoundError(f"model {model!r}: the result of training {training} is not in this workspace.")
        return Predictor(Encoding.from_json(step["encoding"]), self.workspace.models.load(step["estimator"]))

    def request_schema(self, model: str) -> dict[str, pl.DataType]:
        """Return the types of the columns that a request to ``model`` brings.

        Kept with each training, so that a server need not open the lake. Raises NotFoundError before the first version.
        """
        declared, state = self.declared_model(model), self.state().model(model)
        step = self.workspace.journal.step(state.resolve("champion").training)
        if step is None:
            raise NotFoundError(f"model {model!r}: the champion's training is not in this workspace.")
        types: dict[str, str] = step["request"]
        return {name: dtype_from_text(types[name]) for name in declared.request_columns}

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
        """Return the mill over this workspace, for the holder of the lease."""
        workspace = self.workspace
        executor = adapter("executor", "process")(_TASKS, workspace.root / "work", threads=TRAINING_THREADS)
        ports = Ports(
            lake=workspace.lake,
            journal=workspace.journal,
            online=workspace.online,
            executor=_Trainer(executor, self.path),
            readers=self.readers(),
            logs={name: workspace.log(name) for name in ledger.RESERVED_TABLES},
            pushed={
                source.name: workspace.log(f"push-{source.name}")
                for source in self.system.sources
                if isinstance(source.reader, Push)
            },
        )
        return Mill(self.system, ports, fence)

    def carry_out(self, order: Order, report: Report) -> dict[str, Any]:
        """Carry out a training and return its result as plain data: the estimator stored, judged, profiled."""
        model = self.declared_model(order.model)
        frames = {name: self.rows_so_far(name, before=number) for name, number in order.next_seq.items()}
        rival = None
        if order.rival is not None:
            version = next(each for each in self.state().model(model.name).versions if each.training == order.rival)
            rival = Rival(self.load_predictor(model.name, order.rival), version.as_of)
        return carry_out(model, order, frames, rival, report, self.workspace.models)


def carry_out(
    model: Model, order: Order, frames: Mapping[str, pl.DataFrame], rival: Rival | None, report: Report, models: Models
) -> dict[str, Any]:
    """Train ``model`` on ``frames``, store the estimator in ``models``, and return the result as plain data."""
    made = train(model, frames, order, rival, report)
    schema = frames[model.examples.name].schema
    return {
        "estimator": models.save(made.predictor.estimator),
        "encoding": made.predictor.encoding.as_json(),
        "profile": made.profile.as_json(),
        "judged": made.judged,
        "origins": origins(model),
        "request": {name: dtype_to_text(schema[name]) for name in model.request_columns},
    }


class FittedModel:
    """A version of a model, ready to predict."""

    def __init__(self, project: Project, declared: Model, version: Version, predictor: Predictor) -> None:
        self._project = project
        self._declared = declared
        self.version = version
        self.predictor = predictor

    def __repr__(self) -> str:
        return f"<{self._declared.name} v{self.version.number}>"

    def predict(self, frame: pl.DataFrame, *, as_of: str | int | None = None) -> np.ndarray[Any, Any]:
        """Return one prediction for each row of ``frame``: the model's request columns.

        Features are looked up as of ``as_of`` (an ISO time or microseconds); None asks each row at its own asked-at, or
        now where that lies ahead. Raises RequestError when a column is missing.
        """
        return self.predictor.predict(self.features(frame, as_of=as_of))

    def features(self, frame: pl.DataFrame, *, as_of: str | int | None = None) -> pl.DataFrame:
        """Return the features of each row of ``frame``, as ``predict`` sees them."""
        project, declared = self._project, self._declared
        if as_of is None:
            asked = frame.select(asked_at(declared).dt.epoch("us").fill_null(project.now())).to_series()
            moments = np.minimum(asked.to_numpy(), project.now()).astype(np.int64)
        else:
            moment = parse_time(as_of) if isinstance(as_of, str) else as_of
            moments = np.full(frame.height, moment, dtype=np.int64)
        frames = {name: project.rows_so_far(name) for name in tables_of(declared)}
        return features(declared, frames, frame, moments)


def dtype_to_text(dtype: pl.DataType) -> str:
    """Return a Polars type as text that ``dtype_from_text`` reads: the types that the lake holds."""
    if isinstance(dtype, pl.Datetime):
        return "Datetime"
    return str(dtype)


def dtype_from_text(text: str) -> pl.DataType:
    """Return the Polars type of a text made by ``dtype_to_text``."""
    if text == "Datetime":
        return pl.Datetime("us", "UTC")
    made: Callable[[], pl.DataType] = getattr(pl, text)
    return made()


def find(path: Path) -> Path:
    """Return the declared file at ``path``: itself, or ``system.py`` in that folder. Raises NotFoundError."""
    file = path / "system.py" if path.is_dir() else path
    if not file.exists():
        raise NotFoundError(
            f"There is no {file}. Run this in the folder of your system.py, name it with --project, "
            "or see one with: tidemill demo"
        )
    return file.resolve()


def open(path: str | Path = ".") -> Project:
    """Open the project at ``path``: a folder with ``system.py``, or a declared file.

    Its workspace is the folder ``.tidemill`` beside the file. Raises NotFoundError when there is no such file, and
    DeclarationError when it does not declare a system.
    """
    file = find(Path(path))
    return Project(file, load_system(file), Workspace(file.parent / ".tidemill"))
