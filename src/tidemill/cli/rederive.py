"""Deriving logged predictions again: what ``trace`` and ``parity`` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import polars as pl

from tidemill.base.errors import NotFoundError
from tidemill.engine.check.fingerprint import origins
from tidemill.engine.mill.refuse import lost
from tidemill.engine.parity.explain import Past, explain, late, states
from tidemill.engine.parity.parity import Difference, Parity, compare, derive, differences, summary
from tidemill.project import Project
from tidemill.spec.feature import OnDemand
from tidemill.workspace import dtype_from_text

_AT_ONCE = 20_000  # predictions

#: Told what is being done, how much of it is done, and of how much.
Tell = Callable[[str, int, int], None]


@dataclass(slots=True)
class Rederiving:
    """Derives the predictions of one model again, from the lake as it lies there."""

    project: Project
    model: str
    _tables: dict[str, pl.DataFrame] = field(default_factory=dict)

    def possible(self, number: int) -> bool:
        """Tell whether the features that version ``number`` needs are declared as when it was trained."""
        training = self.project.state().model(self.model).version(number).training
        step = self.project.workspace.journal.step(training)
        return step is None or not lost(self.project.declared_model(self.model), step)

    def run(self, number: int, logged: pl.DataFrame) -> Parity:
        """Derive ``logged`` predictions of version ``number`` again. Raises NotFoundError when that is gone."""
        past = self._past(number, [])
        derived = derive(past.model, past.types, past.tables, logged)
        return compare(logged, derived, past.predictor)

    def explained(self, number: int, logged: pl.DataFrame, whole: pl.DataFrame, tell: Tell) -> Parity:
        """Do the same, and look into what lies behind each mismatch.

        ``whole``: rows of the ledger that tell the states by which this model answered.
        """
        past = self._past(number, states(whole))
        parity, found = Parity(), list[Difference]()
        for done, part in enumerate(logged.iter_slices(_AT_ONCE)):
            tell("deriving again", done * _AT_ONCE, logged.height)
            derived = derive(past.model, past.types, past.tables, part)
            mismatched, rounded = differences(part, derived, past.predictor)
            found += mismatched
            parity += replace(summary(part.height, mismatched, rounded), findings=late(past, part, derived))
        tell("deriving again", logged.height, logged.height)
        findings = explain(past, logged, found, lambda done, total: tell("looking into mismatches", done, total))
        return replace(parity, findings=(*parity.findings, *findings))

    def _past(self, number: int, answered: list[tuple[int, Mapping[str, int]]]) -> Past:
        project, declared = self.project, self.project.declared_model(self.model)
        training = project.state().model(self.model).version(number).training
        step = project.workspace.journal.step(training)
        if step is None:
            raise NotFoundError(f"model {self.model!r}: the result of training {training} is not in this workspace.")
        now = origins(declared)
        then = step.get("origins", now)
        model = declared.reading([name for name in now if now[name] == then.get(name)])
        types = {name: dtype_from_text(step["request"][name]) for name in model.request_columns}
        if not self._tables:
            names = {view.table.name for view in declared.views if not isinstance(view, OnDemand)}
            self._tables = {name: project.rows_so_far(name) for name in sorted(names)}
        predictor = project.load_predictor(self.model, training)
        return Past(model, types, self._tables, answered, predictor, step.get("libraries", {}))
