from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from tidemill.adapters.compilers import Compilers
from tidemill.base.errors import NotCompiledError
from tidemill.engine.train import form
from tidemill.ports.models import Compiler
from tidemill.testing.predictor_suite import Make, PredictorSuite, Target


def after_ordinals(last: Any) -> Any:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=np.nan)
    return make_pipeline(make_column_transformer((encoder, ["kind", "side"]), remainder="passthrough"), last)


class TestLightgbm(PredictorSuite):
    engine: ClassVar[ModuleType] = form
    compiler: ClassVar[type[Compiler]] = Compilers
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {
        "binary": (lambda: after_ordinals(LGBMClassifier(n_estimators=12, n_jobs=1, verbose=-1)), "binary"),
        "categories, numbers among them": (
            lambda: after_ordinals(
                LGBMClassifier(n_estimators=12, n_jobs=1, verbose=-1, categorical_feature=[0, 1, 6])
            ),
            "binary",
        ),
        "four classes": (lambda: after_ordinals(LGBMClassifier(n_estimators=6, n_jobs=1, verbose=-1)), "classes"),
        "regression": (lambda: after_ordinals(LGBMRegressor(n_estimators=12, n_jobs=1, verbose=-1)), "number"),
        "poisson": (
            lambda: after_ordinals(LGBMRegressor(n_estimators=12, n_jobs=1, verbose=-1, objective="poisson")),
            "positive",
        ),
        "zero is missing": (
            lambda: after_ordinals(LGBMRegressor(n_estimators=12, n_jobs=1, verbose=-1, zero_as_missing=True)),
            "number",
        ),
        "forest": (
            lambda: after_ordinals(
                LGBMRegressor(boosting_type="rf", n_estimators=8, n_jobs=1, verbose=-1, subsample=0.5, subsample_freq=1)
            ),
            "number",
        ),
        "after sparse one-hot": (
            lambda: make_pipeline(
                make_column_transformer(
                    (OneHotEncoder(handle_unknown="ignore"), ["kind", "side"]), remainder="passthrough"
                ),
                LGBMClassifier(n_estimators=12, n_jobs=1, verbose=-1),
            ),
            "binary",
        ),
        "stumps": (
            lambda: after_ordinals(LGBMClassifier(n_estimators=5, num_leaves=2, n_jobs=1, verbose=-1)), "binary",
        ),
    }  # fmt: skip


class TestLightgbmWithoutGaps(PredictorSuite):
    engine: ClassVar[ModuleType] = form
    compiler: ClassVar[type[Compiler]] = Compilers
    columns = ("x0", "x1", "x2", "x3", "n")
    nulls = False
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {
        "numbers": (lambda: LGBMClassifier(n_estimators=8, n_jobs=1, verbose=-1), "binary")
    }


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (LGBMRegressor(n_estimators=2, linear_tree=True, verbose=-1), "linear models in their leaves"),
        (LGBMRegressor(n_estimators=2, reg_sqrt=True, verbose=-1), "sqrt"),
    ],
    ids=["linear trees", "square root"],
)
def test_what_does_not_compile_is_named(estimator: LGBMRegressor, why: str) -> None:
    numbers = np.random.default_rng(1).random((300, 2)) + 1.0
    estimator.fit(numbers, numbers[:, 0])
    with pytest.raises(NotCompiledError, match=why):
        Compilers().compile(estimator, [("a", None), ("b", None)], 0)
