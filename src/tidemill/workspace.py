"""A declared system and its workspace, as far as servers need them: parts are opened when first used.

``project.py`` builds on it. Nothing here loads the lake, the engine of trainings, or an estimator's library that a
compiled predictor does without: a server starts quickly and stays small.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from tidemill.adapters import adapter
from tidemill.adapters.signing import open_key
from tidemill.adapters.system_file import load_for_serving
from tidemill.base.errors import NotFoundError, WorkspaceError
from tidemill.base.schema import nearest
from tidemill.engine.expression.program import trust
from tidemill.engine.mill.refuse import changed, lost
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.predict.state import State, fold
from tidemill.engine.train.form import Forms, restore
from tidemill.ports.artefacts import Artefacts
from tidemill.ports.journal import Journal
from tidemill.ports.lake import Lake
from tidemill.ports.log import Log
from tidemill.ports.models import Models
from tidemill.ports.online import Online
from tidemill.spec.model import Model
from tidemill.spec.system import System

#: The forms in which estimators are served.
FORMS = Forms(lambda: adapter("compiler", "all")(), lambda: adapter("converter", "onnx")())


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
        """Online state: LMDB, whose readers write, too: into its table of who reads. Raises WorkspaceError."""
        where = self.root / "online"
        if where.exists() and not os.access(where, os.W_OK):
            raise WorkspaceError(f"The online state in {where} can only be read by who can write it, too.")
        online: Online = adapter("online", "lmdb")(where)
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


class Served:
    """A declared system and its workspace: what a server answers from."""

    def __init__(self, path: Path, system: System, workspace: Workspace) -> None:
        self.path = path
        self.system = system
        self.workspace = workspace

    def state(self) -> State:
        """Return the live state as of the newest journal entry."""
        return fold(self.workspace.journal.read()) if self.workspace.exists else State()

    def declared_model(self, name: str) -> Model:
        """Return the declaration of model ``name``. Raises NotFoundError with the nearest name."""
        found = {model.name: model for model in self.system.models}
        if name not in found:
            raise NotFoundError(f"There is no model {name!r} in {self.path.name}.{nearest(name, found)}")
        return found[name]

    def load_predictor(self, model: str, training: str) -> Predictor:
        """Return the predictor that a training made, and take over the proofs of its on-demand expressions.

        Raises NotFoundError when its result is not recorded.
        """
        step = self._step(model, training)
        trust(step.get("expressions", {}))
        encoding, served = Encoding.from_json(step["encoding"]), step.get("served")
        return restore(
            encoding,
            step["estimator"],
            served,
            load=lambda reference: self.workspace.models.load(reference),  # whose libraries a compiled form needs not
            form=self.workspace.artefacts.get,
            forms=FORMS,
        )

    def load_declared(self, model: str, training: str) -> Predictor:
        """Return the predictor as ``load_predictor`` does, where ``model`` still declares its inputs as they were.

        Raises WorkspaceError where the file has changed: other features under the same names would be fed to it.
        """
        if gone := self.lost(model, training):
            raise WorkspaceError(f"{gone} Put that declaration back, and start again: tidemill up")
        return self.load_predictor(model, training)

    def lost(self, model: str, training: str) -> str:
        """Return in a sentence which features of ``training`` are declared otherwise now; empty when none is."""
        names = lost(self.declared_model(model), self._step(model, training))
        return f"model {model!r} needs {changed(names)}." if names else ""

    def _step(self, model: str, training: str) -> dict[str, Any]:
        step = self.workspace.journal.step(training)
        if step is None:
            raise NotFoundError(f"model {model!r}: the result of training {training} is not in this workspace.")
        return step

    def classes(self, training: str) -> tuple[Any, ...]:
        """Return the classes in the order of their probabilities; none of a regression or an unrecorded training."""
        step = self.workspace.journal.step(training)
        return Encoding.from_json(step["encoding"]).classes if step else ()

    def load_estimator(self, model: str, training: str) -> Any:
        """Return the estimator that a training fitted, with its libraries. Raises NotFoundError when not recorded."""
        return self.workspace.models.load(self._step(model, training)["estimator"])

    def served(self, training: str) -> dict[str, Any] | None:
        """Return in which form what a training made is served, and why; None when its result is not recorded.

        ``kind`` ("compiled", "onnx" or "estimator"), ``why``, the microseconds that one row takes by it (``micros``)
        and by the estimator (``estimator_micros``), and how it was tried: docs/predictors.md names the rest.
        """
        step = self.workspace.journal.step(training)
        if step is None:
            return None
        served = step.get("served") or {"kind": "estimator", "why": "trained before models were compiled"}
        return {name: value for name, value in served.items() if name != "reference"}

    def request_schema(self, model: str) -> dict[str, pl.DataType]:
        """Return the types of the columns that a request to ``model`` brings.

        Kept with each training, so that a server need not open the lake. Raises NotFoundError before the first version.
        """
        return self.request_types(model, self.state().model(model).resolve("champion").training)

    def request_types(self, model: str, training: str) -> dict[str, pl.DataType]:
        """Return the types of the columns of a request to ``model``, as ``training`` saw them. Raises NotFoundError.

        Those of a column that is asked for since then only the lake knows.
        """
        declared = self.declared_model(model)
        types: dict[str, str] = self._step(model, training)["request"]
        found = {name: dtype_from_text(types[name]) for name in declared.request_columns if name in types}
        if len(found) == len(declared.request_columns):
            return found
        table = declared.examples.name
        now = pl.DataFrame(self.workspace.lake.schema(table).empty_table()).schema
        for name in declared.request_columns:
            if name not in found and name not in now:
                raise NotFoundError(f"model {model!r}: table {table!r} has no column {name!r}.{nearest(name, now)}")
        return {name: found.get(name) or now[name] for name in declared.request_columns}

    def request_example(self, model: str) -> dict[str, Any] | None:
        """Return a request row that the champion of ``model`` was trained on, as JSON takes it; None when not known."""
        known = self.state().model(model)
        step = self.workspace.journal.step(known.resolve("champion").training) if known.versions else None
        return None if step is None else step.get("example")


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


def open_served(path: Path, workspace: Path | None = None) -> Served:
    """Open the declared file at ``path`` (or in that folder) for serving; libraries of estimators stay unloaded.

    ``workspace``: None is the folder ``.tidemill`` beside the file. Raises NotFoundError when there is no such file,
    and DeclarationError when it does not declare a system.
    """
    file = find(path)
    return Served(file, load_for_serving(file), Workspace(workspace or file.parent / ".tidemill"))
