"""Watching one model: gathers its recent predictions and matured labels, and hands them to the pure reports.

Predictions of the stretch that reports look at are kept in memory; they are read from the lake once, at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from tidemill.base.hashing import seed
from tidemill.base.schema import SEQ
from tidemill.engine.evaluate.interval import Interval
from tidemill.engine.evaluate.profile import Profile
from tidemill.engine.example import ledger
from tidemill.engine.example.example import ASKED_AT
from tidemill.engine.example.outcome import feature_frame, label_columns, outcomes, predictions, truth
from tidemill.engine.monitor import monitor
from tidemill.engine.predict import records
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.route import SHADOW
from tidemill.engine.predict.state import ModelState, Version
from tidemill.engine.table.table import TIME
from tidemill.ports.journal import Journal
from tidemill.ports.lake import Lake
from tidemill.spec.model import Model
from tidemill.spec.system import System

_COLUMNS = ("id", "model", "version", "route", "asked", "key", "features", "prediction", SEQ)


class Watch:
    """Reports on one model at the monitor's pace."""

    def __init__(self, system: System, model: Model, lake: Lake, journal: Journal) -> None:
        self._monitor = system.monitor
        self._model = model
        self._lake = lake
        self._journal = journal
        self._recent: list[pl.DataFrame] | None = None
        self._profile: tuple[str, Profile, Encoding] | None = None

    def remember(self, table: str, rows: pl.DataFrame) -> None:
        """Take note of newly drained rows of a ledger table."""
        if table == records.PREDICTIONS and self._recent is not None:
            self._recent.append(self._answers(rows))

    def look(self, state: ModelState, tick: int) -> dict[str, Any] | None:
        """Return the report due at ``tick`` as plain data for the journal; None when none is due or nothing is served.

        A report is due ``monitor.every`` after the last one, or after the champion was promoted. Drift is told once the
        champion's recipe has served a whole ``monitor.window``: part of a week differs from a week in its weekdays
        alone. ``alarms`` are drifted features and "performance"; ``raised`` and ``cleared`` are those new or gone since
        the last report.
        """
        rules = self._monitor
        if "champion" not in state.aliases or (rules.drift is None and rules.performance is None):
            return None
        champion = state.version(state.aliases["champion"])
        if tick - max(state.watched_at or 0, champion.tick) < rules.every:
            return None
        recent = self._since(tick)
        fresh = recent.filter(pl.col("asked") > pl.lit(tick - rules.window, dtype=TIME))
        alike = [version for version in state.versions if version.recipe == champion.recipe]
        own = fresh.filter(pl.col("version").is_in([version.number for version in alike]))
        drift = self._drift(champion, own) if tick - alike[0].tick >= rules.window else None
        performance = self._performance(champion, recent, tick)
        alarms = [
            *(drift["drifted"] if drift else ()),
            *(["performance"] if performance and performance["drop"] else ()),
        ]
        before = state.watched["alarms"] if state.watched else []
        if state.watched and state.watched["version"] != champion.number:
            before = [alarm for alarm in before if alarm != "performance"]  # it was another champion's
        return {
            "model": self._model.name,
            "version": champion.number,
            "predictions": fresh.height,
            "drift": drift,
            "performance": performance,
            "alarms": alarms,
            "raised": [alarm for alarm in alarms if alarm not in before],
            "cleared": [alarm for alarm in before if alarm not in alarms],
        }

    def _answers(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return those of the ledger's ``rows`` that this model answered: what shadows said, nobody was told."""
        return rows.select(_COLUMNS).filter((pl.col("model") == self._model.name) & (pl.col("route") != SHADOW))

    def _since(self, tick: int) -> pl.DataFrame:
        """Return the predictions that a report at ``tick`` may look at; older ones are forgotten."""
        if self._recent is None:
            self._recent = []
            if self._lake.head(records.PREDICTIONS) is not None:
                rows = pl.DataFrame(self._lake.scan(records.PREDICTIONS, columns=_COLUMNS))
                self._recent.append(self._answers(rows))
        if not self._recent:
            return pl.DataFrame(schema={name: ledger.PREDICTION_SCHEMA[name] for name in _COLUMNS})
        label = self._model.label
        horizon = tick - self._monitor.window - label.within - label.settle
        kept = (
            pl.concat(self._recent)
            .filter(pl.col("asked") > pl.lit(horizon, dtype=TIME))
            .unique("id", keep="first", maintain_order=True)
        )
        self._recent = [kept]
        return kept

    def _reference(self, champion: Version) -> tuple[Profile, Encoding] | None:
        if self._profile is None or self._profile[0] != champion.training:
            step = self._journal.step(champion.training)
            if step is None:
                return None
            self._profile = (
                champion.training,
                Profile.from_json(step["profile"]),
                Encoding.from_json(step["encoding"]),
            )
        return self._profile[1], self._profile[2]

    def _drift(self, champion: Version, rows: pl.DataFrame) -> dict[str, Any] | None:
        reference = self._reference(champion)
        if self._monitor.drift is None or reference is None:
            return None
        profile, encoding = reference
        values = feature_frame(rows["features"], encoding)
        return monitor.drift(self._monitor.drift, profile, values, predictions(rows["prediction"])).as_json()

    def _feedback(self, logged: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame | None:
        if self._lake.head(records.FEEDBACK) is None:
            return None
        feedback = pl.DataFrame(self._lake.scan(records.FEEDBACK))
        return ledger.feedback_by_key(feedback, logged, self._model, schema)

    def _performance(self, champion: Version, rows: pl.DataFrame, tick: int) -> dict[str, Any] | None:
        rule, model = self._monitor.performance, self._model
        if rule is None or champion.judged.get("gate_metric") is None:
            return None
        own = rows.filter(pl.col("version") == champion.number)
        table, reference = model.label.table, self._reference(champion)
        if self._lake.head(table.name) is None or reference is None:
            return None
        label_rows = pl.DataFrame(self._lake.scan(table.name, columns=label_columns(model)))
        schema = pl.DataFrame(self._lake.schema(model.examples.name).empty_table()).schema
        known = outcomes(model, own, label_rows, schema, tick + 1, self._feedback(own, schema))
        return monitor.performance(
            rule,
            model.gate.metric,
            Interval.from_json(dict(champion.judged["gate_metric"])),
            truth=truth(known, reference[1]),
            prediction=predictions(known["prediction"]),
            times=known[ASKED_AT].to_physical().to_numpy(),
            seed=seed(f"{champion.training}/{tick}"),
        ).as_json()
