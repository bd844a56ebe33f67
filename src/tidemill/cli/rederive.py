"""Deriving logged predictions again: what ``trace`` and ``parity`` share."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from tidemill.base.errors import NotFoundError
from tidemill.cli.plan import recipes_declared
from tidemill.engine.fingerprint import recipe
from tidemill.engine.parity import Parity, compare, derive
from tidemill.project import Project, dtype_from_text
from tidemill.spec.feature import OnDemand

#: What of a recipe decides the features of a request; the estimator as fitted is kept with its version.
_DECIDING = ("examples", "columns", "feature views")
_AT_ONCE = 50_000  # predictions


@dataclass(slots=True)
class Rederiving:
    """Derives the predictions of one model again, from the lake as it lies there."""

    project: Project
    model: str
    _tables: dict[str, pl.DataFrame] = field(default_factory=dict)

    def possible(self, number: int) -> bool:
        """Tell whether the features of version ``number`` are still declared as they were."""
        project = self.project
        then = recipes_declared(project).get(project.state().model(self.model).version(number).recipe)
        now = recipe(project.declared_model(self.model), project.system.policy)
        return then is not None and all(then[part] == now[part] for part in _DECIDING)

    def run(self, number: int, logged: pl.DataFrame) -> Parity:
        """Derive ``logged`` predictions of version ``number`` again. Raises NotFoundError when that is gone."""
        project, model = self.project, self.project.declared_model(self.model)
        training = project.state().model(self.model).version(number).training
        step = project.workspace.journal.step(training)
        if step is None:
            raise NotFoundError(f"model {self.model!r}: the result of training {training} is not in this workspace.")
        types = {name: dtype_from_text(step["request"][name]) for name in model.request_columns}
        if not self._tables:
            names = {view.table.name for view in model.views if not isinstance(view, OnDemand)}
            self._tables = {name: project.rows_so_far(name) for name in sorted(names)}
        predictor = project.load_predictor(self.model, training)
        found = Parity()
        for part in logged.iter_slices(_AT_ONCE):
            found += compare(part, derive(model, types, self._tables, part), predictor)
        return found
