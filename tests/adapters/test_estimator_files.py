from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pickle  # noqa: TID251  # to make what must be refused
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import skops.io
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import tidemill.adapters.estimator_files as estimator_files
from tidemill.adapters.artefact_files import ArtefactFiles
from tidemill.adapters.estimator_files import EstimatorFiles, describe_estimator, dump_estimator, load_estimator
from tidemill.adapters.signing import Key, open_key
from tidemill.base.errors import ArtefactError, TrainingError


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return open_key(tmp_path / "key")


def _frame(rows: int = 200) -> tuple[pl.DataFrame, np.ndarray[Any, Any]]:
    random = np.random.default_rng(3)
    names = np.array(["JFK", "LGA", "EWR"])
    frame = pl.DataFrame(
        {
            "delay": random.normal(size=rows),
            "origin": pl.Series(names[random.integers(0, 3, rows)], dtype=pl.Categorical),
        }
    )
    return frame, (frame["delay"].to_numpy() + random.normal(size=rows) > 0).astype(int)


def _flagship() -> Any:
    frame, label = _frame()
    return HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=5).fit(frame, label)


def _pipeline() -> Any:
    frame, label = _frame()
    columns = make_column_transformer((StandardScaler(), ["delay"]), (OneHotEncoder(), ["origin"]))
    return make_pipeline(columns, LogisticRegression()).fit(frame, label)


def _forest() -> Any:
    frame, label = _frame()
    return RandomForestRegressor(5, random_state=1).fit(frame.select("delay").to_numpy(), label)


@pytest.mark.parametrize("fit", [_flagship, _pipeline, _forest])
def test_skops_reads_back_the_same_model(key: Key, fit: Any) -> None:
    estimator = fit()
    frame, _ = _frame()
    sample = frame.select("delay").to_numpy() if fit is _forest else frame
    form, content = dump_estimator(estimator, key, sample=sample)
    assert form == "skops"
    again = load_estimator(content, key)
    method = "predict_proba" if hasattr(estimator, "predict_proba") else "predict"
    assert np.array_equal(getattr(estimator, method)(sample), getattr(again, method)(sample))
    versions = describe_estimator(content, key)["versions"]
    assert versions["scikit-learn"] == importlib.metadata.version("scikit-learn")
    assert {"python", "numpy", "scipy"} <= set(versions)


def test_code_of_the_declared_file_travels_with_the_model(key: Key, tmp_path: Path) -> None:
    """The file is loaded by path, so no other process can import it by name."""
    (tmp_path / "declared.py").write_text(
        "from sklearn.base import BaseEstimator\n"
        "FACTOR = 3\n"
        "def triple(rows): return [[FACTOR * value for value in row] for row in rows]\n"
        "class Last(BaseEstimator):\n"
        "    def fit(self, x, y): self.value_ = y[-1]; return self\n"
        "    def predict(self, x): return [self.value_ for _ in x]\n"
    )
    specification = importlib.util.spec_from_file_location("declared", tmp_path / "declared.py")
    assert specification is not None
    assert specification.loader is not None
    declared = importlib.util.module_from_spec(specification)
    sys.modules["declared"] = declared
    specification.loader.exec_module(declared)
    try:
        last_form, last = dump_estimator(declared.Last().fit([1], [7]), key)
        pipeline = make_pipeline(FunctionTransformer(declared.triple), StandardScaler(with_mean=False, with_std=False))
        form, content = dump_estimator(pipeline.fit([[1.0]]), key)
    finally:
        del sys.modules["declared"]
    assert (last_form, form) == ("pickle", "pickle")
    (tmp_path / "last").write_bytes(last)
    (tmp_path / "model").write_bytes(content)
    script = (
        "import sys, pathlib\n"
        "from tidemill.adapters.estimator_files import load_estimator\n"
        "from tidemill.adapters.signing import open_key\n"
        "here = pathlib.Path(sys.argv[1]); key = open_key(here / 'key')\n"
        "print(load_estimator((here / 'last').read_bytes(), key).predict([0, 0]),\n"
        "      load_estimator((here / 'model').read_bytes(), key).transform([[2.0]]).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert (done.stdout, done.stderr) == ("[7, 7] [[6.0]]\n", "")


class Disagreeing:
    """Comes back from skops with another answer."""

    def __init__(self, value: float) -> None:
        self.value = value

    def predict(self, rows: list[Any]) -> list[float]:
        return [self.value for _ in rows]

    def __getstate__(self) -> dict[str, float]:
        return {"value": self.value + 1}


def test_a_model_that_would_answer_differently_is_not_kept_as_skops(key: Key) -> None:
    assert estimator_files._skops(Disagreeing(1.0), None) is not None
    assert estimator_files._skops(Disagreeing(1.0), [1]) is None


def test_what_nothing_can_hold_is_a_training_error(key: Key) -> None:
    model = LogisticRegression()
    model.lock_ = threading.Lock()
    with pytest.raises(TrainingError, match="LogisticRegression cannot be saved"):
        dump_estimator(model, key)


@pytest.mark.parametrize(
    "make", [lambda c: c[:40] + c[41:], lambda c: c[:-1], lambda c: c + b"\0", lambda c: b"", lambda c: c[:30]]
)
def test_a_changed_artefact_is_refused_before_it_is_parsed(
    key: Key, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = dump_estimator(_forest(), key)

    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("an artefact was parsed before its signature was verified")

    monkeypatch.setattr(json, "loads", parsed)
    monkeypatch.setattr(pickle, "loads", parsed)
    monkeypatch.setattr(skops.io, "loads", parsed)
    with pytest.raises(ArtefactError, match="not signed by this workspace"):
        load_estimator(make(content), key)


def test_foreign_and_bare_models_are_refused(key: Key, tmp_path: Path) -> None:
    estimator = _forest()
    foreign = dump_estimator(estimator, open_key(tmp_path / "foreign"))[1]
    bare_pickle = pickle.dumps(estimator)
    bare_skops = skops.io.dumps(estimator)
    for content in (foreign, bare_pickle, bare_skops):
        with pytest.raises(ArtefactError, match="not signed by this workspace"):
            load_estimator(content, key)


def _sealed(key: Key, form: Any, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> bytes:
    estimator = _forest()
    payload = (skops.io if form == "skops" else pickle).dumps(estimator)
    trusted = skops.io.get_untrusted_types(data=payload) if form == "skops" else []
    monkeypatch.setattr(estimator_files, "_versions", lambda _: versions)
    return estimator_files._seal(form, payload, trusted, [], key)


@pytest.mark.parametrize(
    ("form", "versions"),
    [
        ("skops", {"scikit-learn": "1.2.0"}),
        ("pickle", {"scikit-learn": "1.2.0"}),
        ("pickle", {"numpy": "1.20.0"}),
        ("pickle", {"python": "3.8.1"}),
        ("skops", {"lightgbm-that-is-not-here": "4.7.0"}),
    ],
)
def test_other_libraries_are_refused(
    key: Key, form: str, versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _sealed(key, form, versions, monkeypatch)
    with pytest.raises(ArtefactError, match="retrain the model"):
        load_estimator(content, key)


def test_another_numpy_is_a_warning_for_skops(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _sealed(key, "skops", {"numpy": "1.20.0"}, monkeypatch)
    with pytest.warns(UserWarning, match=r"written with numpy 1\.20\.0"):
        load_estimator(content, key)


def test_saved_among_artefacts(key: Key, tmp_path: Path) -> None:
    models = EstimatorFiles(ArtefactFiles(tmp_path / "artefacts"), key)
    reference = models.save(_forest())
    assert models.load(reference).predict([[0.0]]).shape == (1,)
    with pytest.raises(ArtefactError, match="missing"):
        models.load("0" * 40)
