"""A stage for serving tests: one system with memory adapters, tiny estimators, and a journal to write by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

import tidemill as tm
from tidemill.adapters.memory_journal import MemoryJournal
from tidemill.adapters.memory_log import MemoryLog
from tidemill.adapters.memory_online import MemoryOnline
from tidemill.base.errors import WorkspaceError
from tidemill.engine.feature.layout import Applied
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Logged, Predictor
from tidemill.engine.predict.records import FEEDBACK, PREDICTIONS
from tidemill.engine.predict.serving import Serving
from tidemill.ports.journal import Draft, Entry
from tidemill.ports.online import Online, Snapshot
from tidemill.spec.model import Model
from tidemill.spec.system import System

TIME = pl.Datetime("us", "UTC")
SCHEMA = {"id": pl.String(), "x": pl.Float64(), "n": pl.Int64(), "ok": pl.Boolean(), "at": TIME}


class Constant:
    """A classifier that answers the same probabilities to every row, and refuses rows whose x is negative."""

    def __init__(self, *probabilities: float) -> None:
        self.probabilities = probabilities

    def predict_proba(self, frame: pl.DataFrame) -> np.ndarray[Any, Any]:
        if (frame["x"] < 0).any():
            raise ValueError("x must not be negative\nand more lines")
        return np.tile(self.probabilities, (frame.height, 1))


class Fixed:
    """A regressor or classifier that answers the same to every row, or raises the same."""

    def __init__(self, *values: float, error: Exception | None = None) -> None:
        self.values, self.error = values, error

    def predict(self, frame: pl.DataFrame) -> np.ndarray[Any, Any]:
        return self.predict_proba(frame)[:, 0]

    def predict_proba(self, frame: pl.DataFrame) -> np.ndarray[Any, Any]:
        if self.error is not None:
            raise self.error
        return np.tile(self.values, (frame.height, 1))


def estimator(answers: Any) -> Any:
    """Return an estimator that answers 1 - p and p for a number p, a tuple as it is, and raises an exception."""
    match answers:
        case float(p):
            return Fixed(1.0 - p, p)
        case tuple(values):
            return Fixed(*values)
        case Exception() as error:
            return Fixed(error=error)
    return answers


class Sum:
    """A regressor: the sum of its columns."""

    def fit(self, frame: pl.DataFrame, truth: Any) -> Sum:
        return self

    def predict(self, frame: pl.DataFrame) -> np.ndarray[Any, Any]:
        return frame.sum_horizontal().to_numpy()


class Plain:
    """Features that are columns of the request, as of what the online state has applied."""

    def __init__(self, model: Model, online: Online) -> None:
        self.columns, self.online = model.columns, online

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Applied]:
        with self.online.snapshot() as snapshot:
            return requests.select(self.columns), self.applied(snapshot)

    def row(
        self, request: dict[str, Any], schema: Mapping[str, pl.DataType], snapshot: Snapshot | None = None
    ) -> tuple[list[Any], Applied]:
        assert snapshot is not None
        return [request[name] for name in self.columns], self.applied(snapshot)

    def applied(self, snapshot: Snapshot) -> Applied:
        mark = snapshot.mark()
        if mark is None:
            raise WorkspaceError("the online state is empty")
        return Applied.decode(mark)


def declared(endpoint: tm.Endpoint | None = None) -> System:
    things = tm.Source("things", tm.push(), key="id", event_time="at")
    results = tm.Source("results", tm.files("results/*.csv"), key="id", event_time="at")
    shared: dict[str, Any] = {
        "examples": things,
        "asked_at": "at",
        "label": tm.Label(results, "outcome", within="1d"),
        "features": ["x", "n", "ok", "at"],
    }
    risk = tm.Model("risk", estimator=Constant(0.5, 0.5), task="classification", **shared)
    cost = tm.Model("cost", estimator=Sum(), task="regression", **{**shared, "features": ["x", "n"]})
    return tm.System("stage", risk, cost, endpoint=endpoint)


@dataclass
class Stage:
    """Everything around one ``Serving``.

    ``fits`` maps a training to its estimator and classes, ``reads`` to the columns that it reads where they are others.
    """

    system: System
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    online: MemoryOnline = field(default_factory=MemoryOnline)
    logs: dict[str, MemoryLog] = field(default_factory=dict)
    fits: dict[str, tuple[Any, tuple[Any, ...]]] = field(default_factory=dict)
    reads: dict[str, tuple[str, ...]] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lease = self.journal.acquire()
        self.serving = Serving(
            self.system,
            self.journal,
            self.online,
            lookup=Plain,
            load=self.load,
            schema=lambda model: SCHEMA if model == "risk" else {name: SCHEMA[name] for name in ("id", "x", "n")},
            log=lambda table: self.logs.setdefault(table, MemoryLog()).writer(),
        )

    def load(self, model: str, training: str) -> Predictor:
        self.loads.append(training)
        estimator, classes = self.fits[training]
        columns = self.reads.get(training, ("x",) if classes else ("x", "n"))
        return Predictor(Encoding(columns, {}, (), classes), estimator)

    def write(self, kind: str, **body: Any) -> Entry:
        return self.journal.append([Draft(0, kind, body)], self.lease)[0]

    def made(self, model: str, version: int, answers: Any, classes: Sequence[Any] = (False, True)) -> None:
        """Journal that ``version`` of ``model`` was made; its training is ``<model>-<version>``.

        ``answers``: an estimator, or what it says (see ``estimator``).
        """
        training = f"{model}-{version}"
        self.fits[training] = (estimator(answers), tuple(classes))
        self.write("version", model=model, version=version, training=training, recipe="r", as_of=0)

    def point(self, model: str, version: int) -> Entry:
        """Journal that the champion of ``model`` is ``version``."""
        return self.write("alias", model=model, alias="champion", version=version, previous=None, reasons=[])

    def apply(self, tick: int, **next_seq: int) -> None:
        """Say that the online state is at ``tick``."""
        self.online.apply([], Applied(tick, tick + 1, next_seq, self.journal.last()).encode())

    def records(self, table: str) -> list[Any]:
        """Return what has been written to the log of ``table``, decoded."""
        return [msgspec.json.decode(each.payload) for each in self.logs[table].read({})]

    def predictions(self) -> list[Logged]:
        """Return the predictions in the log."""
        return [msgspec.json.decode(each.payload, type=Logged) for each in self.logs[PREDICTIONS].read({})]

    def feedback(self) -> list[Any]:
        """Return the feedback in the log."""
        return self.records(FEEDBACK)


@pytest.fixture
def make_stage() -> Callable[..., Stage]:
    """Return a function from an endpoint to a stage with nothing journaled yet."""
    return lambda endpoint=None: Stage(declared(endpoint))


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """Return a stage where version 1 of ``risk`` answers 0.25 and version 1 of ``cost`` answers x + n."""
    made = make_stage()
    made.made("risk", 1, Constant(0.75, 0.25))
    made.made("cost", 1, Sum(), ())
    made.point("risk", 1)
    made.point("cost", 1)
    made.apply(1_000_000, things=3)
    made.serving.refresh()
    return made
