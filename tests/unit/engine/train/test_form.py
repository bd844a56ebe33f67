from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from tidemill.adapters.compilers import Compilers
from tidemill.adapters.memory_models import MemoryModels
from tidemill.base.errors import ArtefactError, NotCompiledError
from tidemill.engine.predict.encode import learn
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.form import Forms, Served, choose, restore
from tidemill.engine.train.probe import probes
from tidemill.kernels.program import Program
from tidemill.testing.predictor_suite import labels, rows


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with threadpool_limits(1):
        yield


def fitted(estimator: Any, *columns: str, nulls: bool = True, target: Any = "binary") -> tuple[Predictor, pl.DataFrame]:
    frame = rows(600, 1, nulls=nulls)
    label = labels(frame, target, 2)
    frame = frame.select(columns or frame.columns)
    encoding = learn(frame, label, classify=target != "number")
    return Predictor(encoding, estimator.fit(encoding.frame(frame), encoding.truth(label))), frame


def boosted() -> tuple[Predictor, pl.DataFrame]:
    return fitted(HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=5))


class Spoiling:
    """A compiler that does something to what another has compiled."""

    def __init__(self, spoil: Callable[[Program], Program]) -> None:
        self.spoil = spoil

    def compile(self, estimator: Any, columns: Sequence[tuple[str, tuple[str, ...] | None]], classes: int) -> bytes:
        return self.spoil(Program.decode(Compilers().compile(estimator, columns, classes))).encode()


def no_converter() -> Any:
    raise NotCompiledError("there is no converter")


FORMS = Forms(Compilers, no_converter)


def changed(program: Program, name: str, change: Callable[[Any], Any]) -> Program:
    array = program.arrays[name].copy()
    array[...] = change(array)
    return replace(program, arrays={**program.arrays, name: array})


def nudged(array: Any) -> Any:
    """Move the last threshold that is one by one unit in the last place."""
    at = np.flatnonzero(array)[-1]
    array[at] = np.nextafter(array[at], np.inf)
    return array


def test_the_report_says_what_is_served_and_why() -> None:
    predictor, frame = boosted()
    chosen = choose(predictor, frame, FORMS)
    assert (chosen.kind, chosen.report["why"]) == ("compiled", "it equals the estimator bit for bit")
    assert chosen.report["thresholds"] == chosen.report["probed"] > 50
    assert chosen.report["bytes"] == len(chosen.form or b"")
    assert 0 < chosen.report["micros"] < chosen.report["estimator_micros"]
    stored = chosen.store(MemoryModels())
    assert json.loads(json.dumps(stored)) == stored
    assert {"kind", "reference", "why", "rows", "micros", "estimator_micros"} <= set(stored)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda program: changed(program, "threshold", nudged), "rows differ"),
        (lambda program: changed(program, "missing", lambda array: 1 - array), "rows differ"),
        (lambda program: changed(program, "bits", lambda array: ~array), "rows differ"),
        (lambda program: changed(program, "base", lambda array: array + 1e-9), "rows differ"),
        (lambda program: replace(program, columns=program.columns[:-1]), "malformed|not of the columns"),
    ],
    ids=["threshold", "missing", "categories", "base", "columns"],
)
def test_what_differs_in_anything_is_not_served(spoil: Callable[[Program], Program], why: str) -> None:
    predictor, frame = boosted()

    def spoiled(program: Program) -> Program:
        try:
            return spoil(program)
        except ValueError as error:
            raise NotCompiledError(str(error)) from error

    chosen = choose(predictor, frame, Forms(lambda: Spoiling(spoiled), no_converter))
    assert chosen.kind == "estimator"
    assert chosen.predictor is predictor
    assert chosen.form is None
    assert re.search(why, chosen.report["why"]), chosen.report["why"]


def test_a_linear_model_may_differ_by_rounding_only() -> None:
    model = make_pipeline(StandardScaler(), LogisticRegression())
    predictor, frame = fitted(model, "x0", "x1", "n", nulls=False)
    chosen = choose(predictor, frame, FORMS)
    assert (chosen.kind, chosen.report["why"]) == (
        "compiled", "it equals the estimator within 1e-12 and with the same label",
    )  # fmt: skip
    for factor, kind in ((1 + 1e-15, "compiled"), (1 + 1e-9, "estimator")):
        off = Spoiling(partial(scaled, factor))
        assert choose(predictor, frame, Forms(partial(_given, off), no_converter)).kind == kind


def scaled(factor: float, program: Program) -> Program:
    return changed(program, "weights", lambda array: array * factor)


def _given(value: Any) -> Any:
    return value


def test_what_the_estimator_refuses_is_refused() -> None:
    predictor, frame = fitted(LinearRegression(), "x0", "x1", nulls=False, target="number")
    chosen = choose(predictor, frame, FORMS)
    assert (chosen.kind, chosen.report["why"]) == ("compiled", "it equals the estimator within 1e-12")
    for value in (None, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="Column 'x1' holds a value that the model does not take"):
            chosen.predictor.row([1.0, value])
        with pytest.raises(ValueError, match="Column 'x1'"):
            chosen.predictor.predict(pl.DataFrame({"x0": [1.0, 2.0], "x1": [1.0, value]}))


def test_what_has_no_compiled_form_is_served_by_itself() -> None:
    predictor, frame = fitted(GaussianNB(), "x0", "x1", nulls=False)
    chosen = choose(predictor, frame, FORMS, tolerance=0.1)
    assert chosen.kind == "estimator"
    assert chosen.report["why"] == (
        "not compiled: GaussianNB is not a model that compiles; not by ONNX Runtime: there is no converter"
    )
    assert chosen.predictor.row([1.0, 2.0]) == predictor.predict(pl.DataFrame({"x0": [1.0], "x1": [2.0]}))[0]
    models = MemoryModels()
    estimator = models.save(predictor.estimator)
    back = restored(chosen, predictor, models, estimator)
    assert back.estimator is not None
    assert np.array_equal(back.predict(frame), predictor.predict(frame))


def restored(chosen: Served, predictor: Predictor, models: MemoryModels, estimator: str = "none") -> Predictor:
    stored = chosen.store(models)
    return restore(
        predictor.encoding, estimator, stored, load=models.load, form=models.load_form, forms=FORMS
    )  # fmt: skip


def test_a_compiled_form_comes_back_without_the_estimator() -> None:
    predictor, frame = boosted()
    back = restored(choose(predictor, frame, FORMS), predictor, MemoryModels())
    assert back.estimator is None
    assert np.array_equal(back.predict(frame), predictor.predict(frame))
    values = [list(row) for row in frame.select(predictor.encoding.columns).head(20).iter_rows()]
    assert [back.row(row) for row in values] == predictor.predict(frame.head(20)).tolist()


def test_a_damaged_form_is_an_error_and_a_step_without_one_is_the_estimator() -> None:
    predictor, frame = boosted()
    models = MemoryModels()
    chosen = choose(predictor, frame, FORMS)
    for form in (b"", (chosen.form or b"")[:-1], b"tidemill predictor 1\n" + bytes(100)):
        stored = {"kind": "compiled", "reference": models.save_form(form)}
        with pytest.raises(ArtefactError, match="Retrain its model"):
            restore(predictor.encoding, "-", stored, load=models.load, form=models.load_form, forms=FORMS)
    old = restore(
        predictor.encoding, models.save(predictor.estimator), None,
        load=models.load, form=models.load_form, forms=None,
    )  # fmt: skip
    assert np.array_equal(old.predict(frame), predictor.predict(frame))


def test_a_form_of_other_columns_is_an_error() -> None:
    predictor, frame = boosted()
    models = MemoryModels()
    stored = choose(predictor, frame, FORMS).store(models)
    other = replace(predictor.encoding, categories={**predictor.encoding.categories, "side": ("left", "right")})
    with pytest.raises(ArtefactError, match="not of the columns"):
        restore(other, "-", stored, load=models.load, form=models.load_form, forms=FORMS)


def test_threads_are_given_back() -> None:
    forest = RandomForestClassifier(5, random_state=1, n_jobs=2)
    predictor, frame = fitted(forest, "x0", "x1", "n")
    assert choose(predictor, frame, FORMS).kind == "compiled"
    assert forest.n_jobs == 2


def test_probes_lie_at_and_beside_every_threshold() -> None:
    predictor, frame = fitted(HistGradientBoostingClassifier(max_iter=3), "x0", "n")
    program = Program.decode(Compilers().compile(predictor.estimator, (("x0", None), ("n", None)), 2))
    made = probes(program, predictor.encoding, frame)
    near = set(made.frames[-1]["x0"].to_list())
    assert near <= set(pl.concat(made.frames)["x0"].to_list())
    for threshold in program.arrays["threshold"][program.arrays["feature"] == 0].tolist():
        assert {threshold, np.nextafter(threshold, np.inf), np.nextafter(threshold, -np.inf)} <= near
    assert all(
        one.equals(other)
        for one, other in zip(made.frames, probes(program, predictor.encoding, frame).frames, strict=True)
    )
    assert any(one["x0"].is_infinite().any() for one in made.frames)
