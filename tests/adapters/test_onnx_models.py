from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tidemill.adapters.compilers import Compilers
from tidemill.adapters.memory_models import MemoryModels
from tidemill.adapters.onnx_models import OnnxModels
from tidemill.base.errors import ArtefactError, NotCompiledError
from tidemill.engine.predict.encode import learn
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.form import Forms, choose, restore
from tidemill.testing.predictor_suite import labels, rows

FORMS = Forms(Compilers, OnnxModels)


def with_kind(frame: pl.DataFrame) -> pl.DataFrame:
    """Return three numbers with gaps, and a text without: to the encoder of a graph a null is a text never seen."""
    return frame.select("x0", "x1", "x2", pl.col("kind").fill_null("none"))


def fitted(target: Any = "binary") -> tuple[Predictor, Any]:
    frame = rows(500, 1)
    label = labels(frame, target, 2)
    frame = with_kind(frame)
    encoding = learn(frame, label, classify=target != "number")
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler(), PCA(2)), ["x0", "x1", "x2"]),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["kind"]),
    )
    model = make_pipeline(columns, LinearRegression() if target == "number" else LogisticRegression())
    return Predictor(encoding, model.fit(encoding.frame(frame), encoding.truth(label))), frame


@pytest.mark.parametrize("target", ["binary", "classes", "number"])
def test_what_does_not_compile_may_be_served_within_a_tolerance(target: str) -> None:
    predictor, frame = fitted(target)
    assert choose(predictor, frame, FORMS).kind == "estimator"
    chosen = choose(predictor, frame, FORMS, tolerance=1e-3)
    assert chosen.kind == "onnx", chosen.report["why"]
    assert chosen.report["why"].startswith("not compiled: the step PCA is not one that compiles; by ONNX Runtime")
    assert chosen.report["difference"] <= 1e-3
    models = MemoryModels()
    back = restore(
        predictor.encoding, "-", chosen.store(models), load=models.load, form=models.load_form, forms=FORMS
    )  # fmt: skip
    new = with_kind(rows(100, 5))
    np.testing.assert_allclose(back.predict(new), predictor.predict(new), atol=1e-3)
    alone = [back.row(list(row)) for row in new.head(10).iter_rows()]
    np.testing.assert_allclose(alone, predictor.predict(new.head(10)), atol=1e-3)


def test_beyond_the_tolerance_it_is_not() -> None:
    predictor, frame = fitted()
    chosen = choose(predictor, frame, FORMS, tolerance=0.0)
    assert chosen.kind == "estimator"
    assert "not by ONNX Runtime: a prediction differs by" in chosen.report["why"]


def test_what_cannot_be_converted_or_run_is_named() -> None:
    with pytest.raises(NotCompiledError, match="cannot be converted"):
        OnnxModels().convert(object(), [("x", None)])
    with pytest.raises(ArtefactError, match="ONNX Runtime cannot run"):
        OnnxModels().open(b"nothing", 2)
