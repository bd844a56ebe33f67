"""Labels, gates and models."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tidemill.base.clock import parse_duration
from tidemill.spec import argument
from tidemill.spec.expression import Expression
from tidemill.spec.feature import Aggregation, Latest, OnDemand, View
from tidemill.spec.source import Source, Table
from tidemill.spec.split import Split, by_time
from tidemill.spec.time import Offset

if TYPE_CHECKING:
    import polars as pl

Task = Literal["classification", "regression"]
Metric = Literal["log_loss", "brier", "roc_auc", "average_precision", "accuracy", "f1", "mae", "rmse", "mape", "r2"]


@dataclass(frozen=True, slots=True, init=False)
class Label:
    """What came true: ``value`` over the rows of ``table`` that share the example's key.

    A row counts if its event time lies in ``(asked_at, asked_at + within]``; the last such row is the label. An example
    is mature ``within + settle`` after it was asked. ``otherwise`` is the label when no row came; None leaves the
    example out and counts it. ``on`` renames key columns: ``{table's column: example's column}``.
    """

    table: Source | Table
    value: Expression
    within: int
    settle: int
    otherwise: Any
    on: tuple[tuple[str, str], ...]

    def __init__(
        self,
        table: Source | Table,
        value: str | pl.Expr,
        *,
        within: str,
        otherwise: bool | float | str | None = None,
        settle: str = "0s",
        on: Mapping[str, str] | None = None,
    ) -> None:
        argument.require(table, Source | Table, "the table of a label", "Pass the declaration itself.")
        argument.require(otherwise, bool | int | float | str | None, "otherwise= of a label", "Write a plain value.")
        for attribute, each in (
            ("table", table),
            ("value", Expression.of(value)),
            ("within", parse_duration(within)),
            ("settle", parse_duration(settle)),
            ("otherwise", otherwise),
            ("on", argument.renaming(on, "on= of a label")),
        ):
            object.__setattr__(self, attribute, each)


@dataclass(frozen=True, slots=True)
class Gate:
    """The rule a candidate must pass before it is promoted.

    A refresh of the champion's own recipe passes when it is not worse on ``metric`` by more than ``margin`` (in the
    metric's own unit) with the stated ``confidence``; a changed recipe must be better with that confidence. Below
    ``min_rows`` common mature rows the verdict is to keep going.
    """

    metric: Metric
    confidence: float = 0.95
    margin: float = 0.0
    min_rows: int = 500

    def __post_init__(self) -> None:
        argument.require(self.metric, str, "the metric of a gate", "Name one: tm.Gate('log_loss').")
        for what in ("confidence", "margin", "min_rows"):
            argument.number(getattr(self, what), f"{what}= of a gate")


@dataclass(frozen=True, slots=True, init=False)
class Model:
    """A model: the question, the label, the features, the estimator and how it is judged.

    ``examples``: the table whose rows are the things asked about. ``asked_at``: when, a column or an offset of one.
    ``features``: views, and columns of ``examples`` by name. ``retired``: more of them, from which new versions do not
    learn, but which those that learned from them are still asked with: to change or drop a feature, put it there until
    a version without it is the champion. ``kpis``: named functions ``(truth, prediction) -> float``
    of two NumPy arrays. ``slices``: columns of ``examples`` or features by which metrics are broken down.
    ``tolerance``: by how much a served prediction may differ from the fitted estimator's, which lets one that cannot be
    compiled be served by ONNX Runtime; None is not at all.
    """

    name: str
    examples: Source | Table
    asked_at: str | Offset
    label: Label
    features: tuple[View | str, ...]
    retired: tuple[View | str, ...]
    estimator: Any
    task: Task
    split: Split
    metrics: tuple[Metric, ...]
    kpis: tuple[tuple[str, Callable[..., float]], ...]
    slices: tuple[str, ...]
    gate: Gate
    tolerance: float | None

    def __init__(
        self,
        name: str,
        *,
        examples: Source | Table,
        asked_at: str | Offset,
        label: Label,
        features: View | str | Iterable[View | str],
        retired: View | str | Iterable[View | str] = (),
        estimator: Any,
        task: Task | None = None,
        split: Split | None = None,
        metrics: Metric | Iterable[Metric] | None = None,
        kpis: Mapping[str, Callable[..., float]] | None = None,
        slices: str | Iterable[str] = (),
        gate: Gate | None = None,
        tolerance: float | None = None,
    ) -> None:
        argument.name(name, "a model")
        what = f"model {name!r}"
        do = "Pass the declaration itself: a tm.Source, or what @tm.table or tm.clean made."
        argument.require(examples, Source | Table, f"examples= of {what}", do)
        do = "Name a column, or write tm.before('column', '2h') or tm.after('column', '2h')."
        argument.require(asked_at, str | Offset, f"asked_at= of {what}", do)
        argument.require(label, Label, f"label= of {what}", "Write tm.Label(table, value, within='2d').")
        do = "Write tm.by_time(test='30d') or tm.by_key(test=0.2)."
        argument.require(split, Split | None, f"split= of {what}", do)
        argument.require(gate, Gate | None, f"gate= of {what}", "Write tm.Gate('log_loss').")
        argument.require(tolerance, float | int | None, f"tolerance= of {what}", "Write a number.")
        if task not in (None, "classification", "regression"):
            raise ValueError(f"task= of {what} cannot be {task!r}. Write 'classification' or 'regression'.")
        do = "Features are views (tm.Aggregation, tm.Latest, tm.OnDemand) and names of columns of the examples."
        learned = argument.listed(features, View | str, f"features= of {what}", do)
        old = argument.listed(retired, View | str, f"retired= of {what}", do)
        functions = argument.named(kpis or {}, f"kpis= of {what}", "Write names and functions: {'cost': cost}.")
        kind: Task = task or _task(estimator)
        default: tuple[Metric, ...] = (
            ("log_loss", "roc_auc", "brier") if kind == "classification" else ("mae", "rmse", "r2")
        )
        chosen = default if metrics is None else argument.listed(metrics, str, f"metrics= of {what}", "Name metrics.")
        for attribute, value in (
            ("name", name),
            ("examples", examples),
            ("asked_at", asked_at),
            ("label", label),
            ("features", (*learned, *old)),
            ("retired", old),
            ("estimator", estimator),
            ("task", kind),
            ("split", split or by_time(test="30d")),
            ("metrics", chosen),
            ("kpis", tuple(functions.items())),
            ("slices", argument.names(slices, f"slices= of {what}")),
            ("gate", gate or Gate((chosen or default)[0])),
            ("tolerance", tolerance),
        ):
            object.__setattr__(self, attribute, value)

    @property
    def learned(self) -> tuple[View | str, ...]:
        """Those of ``features`` that new versions learn from: all but the retired."""
        return self.features[: len(self.features) - len(self.retired)]

    def reading(self, columns: Collection[str]) -> Model:
        """Return the model with only those of its features that yield one of ``columns``."""
        kept = tuple(feature for feature in self.features if any(name in columns for name in _columns([feature])))
        made = copy.copy(self)
        object.__setattr__(made, "features", kept)
        object.__setattr__(made, "retired", ())
        return made

    @property
    def views(self) -> tuple[View, ...]:
        """The feature views among ``features``."""
        return tuple(feature for feature in self.features if isinstance(feature, Aggregation | Latest | OnDemand))

    @property
    def plain(self) -> tuple[str, ...]:
        """The columns of ``examples`` among ``features``."""
        return tuple(feature for feature in self.features if isinstance(feature, str))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of ``features``, in order."""
        return _columns(self.features)

    @property
    def learned_columns(self) -> tuple[str, ...]:
        """Names of the columns that new versions learn from, in the order in which their estimator sees them."""
        return _columns(self.learned)

    @property
    def request_columns(self) -> tuple[str, ...]:
        """Columns of ``examples`` that a request must bring: the key, then what the features read, in order of use."""
        names = dict.fromkeys(self.examples.key)
        for feature in self.features:
            names.update(dict.fromkeys((feature,) if isinstance(feature, str) else feature.request_columns))
        return tuple(names)


def _columns(features: Iterable[View | str]) -> tuple[str, ...]:
    names: list[str] = []
    for feature in features:
        names.extend((feature,) if isinstance(feature, str) else feature.columns)
    return tuple(names)


def stated_task(estimator: Any) -> Task | None:
    """Return what an estimator says it does, in scikit-learn's ways, old and new; None when it does not say."""
    stated = getattr(estimator, "_estimator_type", None)
    if stated is None:
        with contextlib.suppress(Exception):
            stated = estimator.__sklearn_tags__().estimator_type
    tasks: dict[str | None, Task] = {"classifier": "classification", "regressor": "regression"}
    return tasks.get(stated)


def offers(estimator: Any, method: str) -> bool:
    """Tell whether an estimator will have ``method`` once it is fitted.

    Stacked estimators hide theirs until they have made their final estimator, which they do when none is given.
    """
    if callable(getattr(estimator, method, None)):
        return True
    if isinstance(steps := getattr(estimator, "steps", None), list) and steps:
        return offers(steps[-1][-1], method)
    return getattr(estimator, "final_estimator", estimator) is None and hasattr(type(estimator), method)


def _task(estimator: Any) -> Task:
    """Tell a regressor from a classifier without importing scikit-learn: by its word, else by its probabilities."""
    return stated_task(estimator) or ("classification" if offers(estimator, "predict_proba") else "regression")
