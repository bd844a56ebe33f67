from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from xgboost import XGBClassifier, XGBRegressor, XGBRFClassifier

from tidemill.adapters.compilers import Compilers
from tidemill.base.errors import NotCompiledError
from tidemill.engine.train import form
from tidemill.ports.models import Compiler
from tidemill.testing.predictor_suite import Make, PredictorSuite, Target


class TestXgboost(PredictorSuite):
    engine: ClassVar[ModuleType] = form
    compiler: ClassVar[type[Compiler]] = Compilers
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {
        "categories": (lambda: XGBClassifier(n_estimators=12, n_jobs=1, enable_categorical=True), "binary"),
        "four classes": (lambda: XGBClassifier(n_estimators=8, n_jobs=1, enable_categorical=True), "classes"),
        "regression": (lambda: XGBRegressor(n_estimators=12, n_jobs=2, enable_categorical=True), "number"),
        "poisson": (
            lambda: XGBRegressor(n_estimators=12, n_jobs=1, enable_categorical=True, objective="count:poisson"),
            "positive",
        ),
        "gamma": (
            lambda: XGBRegressor(n_estimators=12, n_jobs=1, enable_categorical=True, objective="reg:gamma"),
            "positive",
        ),
        "absolute error": (
            lambda: XGBRegressor(n_estimators=6, n_jobs=1, enable_categorical=True, objective="reg:absoluteerror"),
            "number",
        ),
        "forest": (lambda: XGBRFClassifier(n_estimators=12, n_jobs=1, enable_categorical=True), "binary"),
        "after sparse one-hot, where zeros are missing": (
            lambda: make_pipeline(
                make_column_transformer(
                    (OneHotEncoder(handle_unknown="ignore"), ["kind", "side"]), remainder="passthrough"
                ),
                XGBClassifier(n_estimators=12, n_jobs=1),
            ),
            "binary",
        ),
    }


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (XGBClassifier(n_estimators=2, booster="dart"), "booster dart"),
        (XGBClassifier(n_estimators=2, missing=0.0), "0.0 for missing"),
        (XGBClassifier(n_estimators=2, objective="binary:hinge"), "objective binary:hinge"),
    ],
    ids=["booster", "missing", "objective"],
)
def test_what_does_not_compile_is_named(estimator: XGBClassifier, why: str) -> None:
    numbers = np.random.default_rng(1).random((50, 2)) + 1.0
    estimator.fit(numbers, (numbers[:, 0] > 1.5).astype(int))
    with pytest.raises(NotCompiledError, match=why):
        Compilers().compile(estimator, [("a", None), ("b", None)], 2)
