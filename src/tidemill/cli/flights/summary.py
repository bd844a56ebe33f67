"""The end of the demo: what was built, what was decided and why, and how good it was."""

from __future__ import annotations

import os
from dataclasses import dataclass

import polars as pl
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidemill.base.clock import DAY
from tidemill.cli.flights.picture import Scene
from tidemill.cli.words import when
from tidemill.engine.evaluate.interval import Interval, interval
from tidemill.engine.example.example import ASKED_AT
from tidemill.engine.example.outcome import feature_frame, outcomes, predictions, truth
from tidemill.engine.mill.decider import tables_of
from tidemill.engine.predict import records
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.train import fit
from tidemill.project import Project
from tidemill.spec.feature import OnDemand
from tidemill.spec.model import Model

MODEL = "late_arrival"


@dataclass(frozen=True, slots=True)
class Scores:
    """Quality on the questions whose label is known: as served, by the first version alone, and from schedules only."""

    example: str
    questions: int
    known: int
    served: Interval
    frozen: Interval
    schedule_only: Interval


def score(project: Project) -> Scores:
    """Judge every logged prediction after the fact, and the two rivals on the same rows."""
    model = project.declared_model(MODEL)
    logged = project.rows(records.PREDICTIONS).filter(pl.col("model") == MODEL)
    schema = project.rows(model.examples.name).schema
    known = outcomes(model, logged, project.rows(model.label.table.name), schema, project.now())
    state = project.state().model(MODEL)
    first = project.load_predictor(MODEL, state.version(1).training)
    actual, asked = truth(known, first.encoding), known[ASKED_AT].to_physical().to_numpy()
    features = feature_frame(known["features"], first.encoding)

    def auc(predictor: Predictor | None) -> Interval:
        if known.is_empty():
            return interval("roc_auc", [], [], [], seed=0, block=DAY)
        prediction = predictions(known["prediction"]) if predictor is None else predictor.predict(features)
        return interval("roc_auc", actual, prediction, asked, seed=0, block=DAY)

    bare = _schedule_only(project, state.version(1).as_of)
    return Scores(logged["id"][-1], logged.height, known.height, auc(None), auc(first), auc(bare))


def _schedule_only(project: Project, as_of: int) -> Predictor:
    """Return the same estimator fitted on the same rows, without a single looked-up feature."""
    model = project.declared_model(MODEL)
    bare = Model(
        model.name,
        examples=model.examples,
        asked_at=model.asked_at,
        label=model.label,
        features=[feature for feature in model.features if isinstance(feature, str | OnDemand)],
        estimator=model.estimator,
        task=model.task,
    )
    return fit(bare, {name: project.rows(name) for name in tables_of(bare)}, as_of)


def summarise(project: Project, scene: Scene) -> RenderableType:
    """Return the closing page."""
    scores = score(project)
    built = Table.grid(padding=(0, 2))
    built.add_column(style="dim")
    built.add_column()
    rows = scene.state.rows
    built.add_row(
        "data", ", ".join(f"{rows[name]:,} {name}" for name in ("schedules", "arrivals", "weather", "planes"))
    )
    built.add_row("model", f"{MODEL}: {len(scene.state.model(MODEL).versions)} versions")
    built.add_row(
        "served", f"{scores.questions:,} predictions, each logged with its features; {scores.known:,} labels known"
    )
    figures = Table(box=None, padding=(0, 2), show_edge=False)
    for title in ("AUC, asked two hours ahead", "", "95 % interval"):
        figures.add_column(title, justify="left", style="bold" if not title else "")
    for name, value in (
        ("Tidemill, as served under its policy", scores.served),
        ("the first model, frozen", scores.frozen),
        ("the same estimator, schedule only", scores.schedule_only),
    ):
        ends = f"{value.low:.4f} to {value.high:.4f}" if value.low is not None else ""
        figures.add_row(name, "no label yet" if value.value is None else f"{value.value:.4f}", ends)
    told = Table.grid(padding=(0, 2))
    told.add_column(style="dim", no_wrap=True)
    told.add_column()
    for at, style, text in scene.decided:
        told.add_row(when(at), Text(text, style=style))
    return Group(
        Panel(Group(built, Text(), figures), title="what was built, and how good it was", title_align="left"),
        Panel(told, title="what was decided, and why", title_align="left"),
        Panel(_next(project, scores.example), title="try next", title_align="left"),
    )


def _next(project: Project, prediction: str) -> RenderableType:
    folder = os.path.relpath(project.path.parent)
    commands = Table.grid(padding=(0, 2))
    commands.add_column(style="bold", no_wrap=True)
    commands.add_column(style="dim")
    for command, why in (
        (f"cd {folder}", "system.py there declares everything you saw"),
        (f"tidemill trace {prediction[:12]}", "account for one prediction: data, features, model, label"),
        ("tidemill parity --limit 1000", "derive a thousand of them again from the lake, bit for bit"),
        ("tidemill journal --kind judge --kind alias", "every verdict and promotion, with its reasons"),
        ("tidemill history late_arrival --at 2013-11-15", "who was live then"),
        ("tidemill backtest", "rehearse this policy against never retraining"),
    ):
        commands.add_row(command, why)
    return commands
