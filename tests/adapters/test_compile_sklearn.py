from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    SGDClassifier,
    TweedieRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from tidemill.adapters.compilers import Compilers
from tidemill.base.errors import NotCompiledError
from tidemill.engine.train import form
from tidemill.ports.models import Compiler
from tidemill.testing.predictor_suite import Make, PredictorSuite, Target

NUMBERS = ["x0", "x1", "x2", "x3", "n", "flag"]
TEXTS = ["kind", "side"]


def scaled(*, sparse: bool = True, scaler: Any = None, **encoder: Any) -> Any:
    """Impute and scale numbers, one-hot texts."""
    return make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), scaler or StandardScaler()), NUMBERS),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=sparse, **encoder), TEXTS),
    )


def ordinal() -> Any:
    """Number texts, leave numbers with their gaps."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)
    return make_column_transformer((encoder, TEXTS), remainder="passthrough")


class TestLinearModels(PredictorSuite):
    engine: ClassVar[ModuleType] = form
    compiler: ClassVar[type[Compiler]] = Compilers
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {
        "logistic": (lambda: make_pipeline(scaled(), LogisticRegression(max_iter=300)), "binary"),
        "logistic, four classes": (lambda: make_pipeline(scaled(), LogisticRegression(max_iter=300)), "classes"),
        "linear": (lambda: make_pipeline(scaled(sparse=False), LinearRegression()), "number"),
        "ridge, min-max": (lambda: make_pipeline(scaled(scaler=MinMaxScaler(clip=True)), Ridge()), "number"),
        "elastic net, robust": (lambda: make_pipeline(scaled(scaler=RobustScaler()), ElasticNet(0.01)), "number"),
        "huber": (lambda: make_pipeline(scaled(sparse=False), HuberRegressor(max_iter=500)), "number"),
        "poisson": (lambda: make_pipeline(scaled(), PoissonRegressor(max_iter=500)), "positive"),
        "tweedie": (lambda: make_pipeline(scaled(sparse=False), TweedieRegressor(power=1.5)), "positive"),
        "stochastic": (lambda: make_pipeline(scaled(), SGDClassifier("log_loss", random_state=1)), "binary"),
        "stochastic, four classes": (
            lambda: make_pipeline(scaled(), SGDClassifier("log_loss", random_state=1)), "classes",
        ),
        "rare categories together, one dropped": (
            lambda: make_pipeline(
                make_column_transformer(
                    (make_pipeline(SimpleImputer(add_indicator=True), MaxAbsScaler()), NUMBERS),
                    (OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=15, drop="first"), TEXTS),
                ),
                LogisticRegression(max_iter=300),
            ),
            "binary",
        ),
        "sparse, scaled by the reciprocal": (
            lambda: make_pipeline(scaled(), StandardScaler(with_mean=False), LogisticRegression(max_iter=300)),
            "binary",
        ),
        "target encoder": (
            lambda: make_pipeline(
                make_column_transformer(
                    (TargetEncoder(random_state=1, cv=3), TEXTS), (SimpleImputer(strategy="mean"), NUMBERS)
                ),
                StandardScaler(),
                LogisticRegression(),
            ),
            "binary",
        ),
        "the best columns": (
            lambda: make_pipeline(scaled(sparse=False), SelectKBest(k=5), LogisticRegression()), "binary",
        ),
    }  # fmt: skip


class TestTrees(PredictorSuite):
    engine: ClassVar[ModuleType] = form
    compiler: ClassVar[type[Compiler]] = Compilers
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {
        "tree": (lambda: make_pipeline(ordinal(), DecisionTreeClassifier(max_depth=9)), "binary"),
        "tree, regression": (lambda: make_pipeline(ordinal(), DecisionTreeRegressor(max_depth=9)), "number"),
        "forest": (lambda: make_pipeline(ordinal(), RandomForestClassifier(12, random_state=1)), "binary"),
        "forest, threads": (
            lambda: make_pipeline(ordinal(), RandomForestClassifier(12, random_state=1, n_jobs=2)), "binary",
        ),
        "forest, four classes": (
            lambda: make_pipeline(scaled(), RandomForestClassifier(12, random_state=1)), "classes",
        ),
        "forest, regression": (lambda: make_pipeline(ordinal(), RandomForestRegressor(8, random_state=1)), "number"),
        "extra trees": (
            lambda: make_pipeline(scaled(sparse=False), ExtraTreesClassifier(8, random_state=1)), "binary",
        ),
        "extra trees, regression": (
            lambda: make_pipeline(scaled(), ExtraTreesRegressor(8, random_state=1)), "number",
        ),
        "boosted": (lambda: make_pipeline(scaled(), GradientBoostingClassifier(n_estimators=12)), "binary"),
        "boosted, exponential": (
            lambda: make_pipeline(scaled(), GradientBoostingClassifier(n_estimators=12, loss="exponential")), "binary",
        ),
        "boosted, four classes": (
            lambda: make_pipeline(scaled(), GradientBoostingClassifier(n_estimators=6)), "classes",
        ),
        "boosted, regression": (
            lambda: make_pipeline(scaled(), GradientBoostingRegressor(n_estimators=12, loss="huber")), "number",
        ),
        "boosted, from zero": (
            lambda: make_pipeline(scaled(), GradientBoostingRegressor(n_estimators=6, init="zero")), "number",
        ),
        "bins": (
            lambda: make_pipeline(
                make_column_transformer(
                    (make_pipeline(SimpleImputer(), KBinsDiscretizer(4, encode="ordinal")), ["x0", "x1"]),
                    (make_pipeline(SimpleImputer(), KBinsDiscretizer(3, quantile_method="linear")), ["x2"]),
                    (OneHotEncoder(handle_unknown="ignore"), ["n", "flag"]),
                    (make_pipeline(SimpleImputer(missing_values=None, strategy="most_frequent"),
                                   OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)), TEXTS),
                ),
                RandomForestClassifier(6, random_state=1),
            ),
            "binary",
        ),
        "side by side": (
            lambda: make_pipeline(
                ordinal(), SimpleImputer(), make_union(StandardScaler(), FunctionTransformer()),
                DecisionTreeRegressor(max_depth=6),
            ),
            "number",
        ),
    }  # fmt: skip


class TestHistogramBoosting(PredictorSuite):
    engine: ClassVar[ModuleType] = form
    compiler: ClassVar[type[Compiler]] = Compilers
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {
        "categories": (
            lambda: HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=15), "binary",
        ),
        "four classes": (
            lambda: HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=8), "classes",
        ),
        "regression": (
            lambda: HistGradientBoostingRegressor(categorical_features="from_dtype", max_iter=10), "number",
        ),
        "poisson": (
            lambda: HistGradientBoostingRegressor("poisson", categorical_features="from_dtype", max_iter=10),
            "positive",
        ),
        "numbers as categories": (
            lambda: HistGradientBoostingClassifier(categorical_features=["n", "kind", "side", "flag"], max_iter=10),
            "binary",
        ),
        "after one-hot": (
            lambda: make_pipeline(scaled(sparse=False), HistGradientBoostingClassifier(max_iter=10)), "binary",
        ),
    }  # fmt: skip


class TestNumbersAlone(PredictorSuite):
    engine: ClassVar[ModuleType] = form
    compiler: ClassVar[type[Compiler]] = Compilers
    columns = ("x0", "x1", "x2", "x3", "n", "flag")
    nulls = False
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {
        "boosted": (lambda: HistGradientBoostingClassifier(max_iter=8), "binary"),
        "logistic": (lambda: LogisticRegression(max_iter=3000), "binary"),
        "forest": (lambda: RandomForestClassifier(8, random_state=1), "classes"),
    }


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (GaussianNB(), "GaussianNB is not a model that compiles"),
        (make_pipeline(FunctionTransformer(np.log1p), LinearRegression()), "runs a function of its own"),
        (SGDClassifier("modified_huber"), "modified_huber"),
    ],
    ids=["model", "step", "loss"],
)
def test_what_is_not_known_is_named(estimator: Any, why: str) -> None:
    numbers = np.random.default_rng(1).random((50, 2))
    estimator.fit(numbers, (numbers[:, 0] > 0.5).astype(int))
    with pytest.raises(NotCompiledError, match=why):
        Compilers().compile(estimator, [("a", None), ("b", None)], 2 if hasattr(estimator, "classes_") else 0)
