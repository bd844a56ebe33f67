"""How fast is a compiled predictor, and how many of its answers differ from the estimator's?

Five models on 20 numbers and 5 texts: one row from Python values, and 1000 rows, on one thread; by scikit-learn (with
XGBoost and LightGBM in it), by ONNX Runtime, by treelite where it reads the model (its inputs encoded beforehand, which
is work that the others do), and by Tidemill. Differences are counted on 20,000 rows held out, of these models and of
more, with every kind of scaler and encoder.

The goals: HGB-100 one row in at most 6 µs, 1000 rows in at most 2 µs a row; each model's one row at least 3 times
faster than by the fastest rival; not one answer of a tree different by a single bit, nor a sum by more than 1e-12 of
what it adds up, nor a label.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import polars as pl
from common import alternate, arguments, ask, finish, goal, medians, rival, say, seconds
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.base import is_classifier
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier, XGBRegressor

from tidemill.adapters.onnx_models import OnnxModels
from tidemill.engine.predict.encode import learn
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.form import Served, choose, columns_of
from tidemill.kernels.predictors import IDENTITY, magnitude
from tidemill.workspace import FORMS

NUMBERS = [f"x{i}" for i in range(20)]
TEXTS = [f"c{i}" for i in range(5)]

#: Times a treelite model in its own process: one row, and 1000 rows, in seconds.
TREELITE = """
import json, sys, time
import numpy as np, treelite, tl2cgen
model = treelite.frontend.load_xgboost_model(sys.argv[1])
library = sys.argv[1] + ".so"
tl2cgen.export_lib(model, toolchain="gcc", libpath=library, params={}, verbose=False)
predictor = tl2cgen.Predictor(library, nthread=1)
rows = np.load(sys.argv[2])
one, many = tl2cgen.DMatrix(rows[:1], dtype="float32"), tl2cgen.DMatrix(rows[:1000], dtype="float32")
def timed(data, times):
    took = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(times):
            predictor.predict(data)
        took.append((time.perf_counter() - began) / times)
    return sorted(took)[len(took) // 2]
answers = predictor.predict(tl2cgen.DMatrix(rows, dtype="float32")).reshape(len(rows), -1)[:, -1]
print(json.dumps({"one": timed(one, 500), "many": timed(many, 20), "answers": answers.astype(float).tolist()}))
"""


def data(rows: int, seed: int) -> tuple[pl.DataFrame, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    numbers = np.where(random.random((rows, 20)) < 0.05, np.nan, np.round(random.normal(size=(rows, 20)), 3))
    texts = random.integers(0, 30, (rows, 5))
    frame = pl.DataFrame(
        {name: pl.Series(numbers[:, i]).fill_nan(None) for i, name in enumerate(NUMBERS)}
        | {name: [f"value {code}" for code in texts[:, i].tolist()] for i, name in enumerate(TEXTS)}
    )
    score = np.nansum(numbers[:, :6], axis=1) + (texts % 3).sum(axis=1) / 2 + random.normal(size=rows)
    return frame, (score > np.median(score)).astype(np.int64)


def scaled(scaler: Any = None, **encoder: Any) -> Any:
    """Impute and scale numbers, one-hot texts."""
    return make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), scaler or StandardScaler()), NUMBERS),
        (OneHotEncoder(**({"handle_unknown": "ignore"} | encoder)), TEXTS),
    )


def ordinal() -> Any:
    """Impute numbers, number texts."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return make_column_transformer((SimpleImputer(), NUMBERS), (encoder, TEXTS))


def more(trees: int) -> dict[str, Any]:
    """Return models that are held against their estimators and not timed."""
    rare = {"handle_unknown": "infrequent_if_exist", "min_frequency": 1_300}
    return {
        "linear": make_pipeline(scaled(RobustScaler()), LinearRegression()),
        "ridge": make_pipeline(scaled(MinMaxScaler(), sparse_output=False), Ridge()),
        "logistic, rare texts together": make_pipeline(scaled(MaxAbsScaler(), **rare), LogisticRegression()),
        "logistic, target encoder": make_pipeline(
            make_column_transformer(
                (TargetEncoder(random_state=1), TEXTS), (SimpleImputer(add_indicator=True), NUMBERS)
            ),
            StandardScaler(), LogisticRegression(),
        ),
        "tree": make_pipeline(ordinal(), DecisionTreeClassifier(max_depth=12)),
        "extra trees": make_pipeline(scaled(), ExtraTreesClassifier(trees // 4, max_depth=12, random_state=1)),
        "forest, regression": make_pipeline(ordinal(), RandomForestRegressor(trees // 4, max_depth=12)),
        "gradient boosting": make_pipeline(ordinal(), GradientBoostingClassifier(n_estimators=trees // 4)),
        "HGB, regression": HistGradientBoostingRegressor(max_iter=trees, categorical_features="from_dtype"),
        "HGB after one-hot": make_pipeline(
            scaled(sparse_output=False), HistGradientBoostingClassifier(max_iter=trees)
        ),
        "XGBoost, categories": XGBClassifier(n_estimators=trees, n_jobs=1, enable_categorical=True),
        "XGBoost, regression": make_pipeline(ordinal(), XGBRegressor(n_estimators=trees, n_jobs=1)),
        "LightGBM, regression": make_pipeline(ordinal(), LGBMRegressor(n_estimators=trees, n_jobs=1, verbose=-1)),
    }  # fmt: skip


def models(trees: int) -> dict[str, Any]:
    return {
        "HGB": HistGradientBoostingClassifier(max_iter=trees, categorical_features="from_dtype"),
        "random forest": make_pipeline(ordinal(), RandomForestClassifier(trees, max_depth=12, random_state=1)),
        "logistic": make_pipeline(scaled(sparse_output=False), LogisticRegression(max_iter=500)),
        "XGBoost": make_pipeline(ordinal(), XGBClassifier(n_estimators=trees, n_jobs=1)),
        "LightGBM": make_pipeline(ordinal(), LGBMClassifier(n_estimators=trees, n_jobs=1, verbose=-1)),
    }


def repeated(function: Callable[[], Any], times: int) -> Callable[[], float]:
    """Return a contestant: the seconds that one call takes, over ``times`` of them."""

    def run() -> None:
        for _ in range(times):
            function()

    return lambda: seconds(run) / times


def onnx(predictor: Predictor, frame: pl.DataFrame) -> Any:
    """Return a session of ONNX Runtime with its columns, or None where the estimator cannot be converted."""
    try:
        converter = OnnxModels()
        form = converter.convert(predictor.estimator, columns_of(predictor.encoding))[-1]
        return converter.open(form, 2)
    except Exception as error:
        say(f"  ONNX: {str(error)[:90]}")
        return None


def as_onnx(frame: pl.DataFrame) -> list[Any]:
    return [
        column.to_numpy() if column.dtype == pl.Float64 else column.cast(pl.String).fill_null("").to_numpy()
        for column in frame
    ]


def treelite(predictor: Predictor, held: pl.DataFrame) -> dict[str, Any] | None:
    """Time treelite on the XGBoost model itself (its inputs already encoded), in an environment of its own."""
    try:
        python = rival("treelite", "treelite==4.8.1", "tl2cgen==1.0.0", "numpy", "scipy", "packaging")
        with tempfile.TemporaryDirectory() as folder:
            *steps, last = [step for _, step in predictor.estimator.steps]
            rows = predictor.encoding.frame(held)
            for step in steps:
                rows = step.transform(rows)
            last.get_booster().save_model(Path(folder) / "model.json")
            np.save(Path(folder) / "rows.npy", np.asarray(rows, np.float32))
            said: dict[str, Any] = ask(python, TREELITE, f"{folder}/model.json", f"{folder}/rows.npy")
            return said
    except RuntimeError as error:
        say(f"  treelite: {str(error).strip().splitlines()[-1][:120]}")
        return None


def differing(fitted: Predictor, chosen: Served, held: pl.DataFrame) -> dict[str, Any]:
    """Return how many rows of ``held`` get another answer, for sums one further off than 1e-12, or another label."""
    wanted, given = fitted.predict(held), chosen.predictor.predict(held)
    runner: Any = chosen.predictor.runner
    if runner is None:
        return {"served": chosen.kind, "rows": held.height, "labels": held.height}
    apart = np.abs(given - wanted)
    program = runner.opened.program
    if program.exact:
        wrong = given != wanted
    else:
        room = magnitude(program, runner.columns(held), held.height)[:, 0]
        wrong = apart > 1e-12 * (room if program.link == IDENTITY else np.maximum(1.0, room) * np.abs(wanted))
    labels = (given > 0.5) != (wanted > 0.5) if fitted.encoding.classes else np.zeros(1)
    return {"served": chosen.kind, "rows": int(wrong.sum()), "labels": int(labels.sum()), "largest": float(apart.max())}


def main() -> None:
    given = arguments(__doc__, trees=100)
    warnings.simplefilter("ignore")
    rounds = 3 if given.quick else 7
    frame, label = data(8_000 if given.quick else 40_000, 1)
    held, _ = data(20_000, 2)
    thousand = held[:1000]
    results: dict[str, Any] = {}
    equal: dict[str, Any] = {}
    for name, estimator in models(given.trees).items():
        encoding = learn(frame, pl.Series(label), classify=True)
        fitted = Predictor(encoding, estimator.fit(encoding.frame(frame), label))
        began = time.perf_counter()
        chosen = choose(fitted, frame, FORMS)
        took = time.perf_counter() - began
        ours, wanted = chosen.predictor, fitted.predict(held)
        answers = {"tidemill": ours.predict(held)}
        values = list(held.select(encoding.columns).row(0))
        contestants_one = {
            "tidemill": repeated(lambda ours=ours, values=values: ours.row(values), 2000),
            "estimator": repeated(lambda fitted=fitted: fitted.predict(held[0]), 20),
        }
        contestants_many = {
            "tidemill": repeated(lambda ours=ours: ours.predict(thousand), 20),
            "estimator": repeated(lambda fitted=fitted: fitted.predict(thousand), 3),
        }
        session = onnx(fitted, frame)
        if session is not None:
            one, many = as_onnx(encoding.frame(held[:1])), as_onnx(encoding.frame(thousand))
            contestants_one["ONNX"] = repeated(lambda session=session, one=one: session.run(one), 300)
            contestants_many["ONNX"] = repeated(lambda session=session, many=many: session.run(many), 5)
            answers["ONNX"] = session.run(as_onnx(encoding.frame(held)))[:, 0]
        one_row = {each: took_ * 1e6 for each, took_ in medians(alternate(contestants_one, rounds=rounds)).items()}
        a_row = {each: took_ * 1e3 for each, took_ in medians(alternate(contestants_many, rounds=rounds)).items()}
        if name == "XGBoost" and (said := treelite(fitted, held)) is not None:
            one_row["treelite, encoded"], a_row["treelite, encoded"] = said["one"] * 1e6, said["many"] * 1e3
            answers["treelite, encoded"] = np.array(said["answers"])
        results[name] = {
            "served": chosen.kind,
            "accepted in s": round(took, 2),
            "one row, µs": {each: round(value, 2) for each, value in one_row.items()},
            "of 1000 rows, µs a row": {each: round(value, 3) for each, value in a_row.items()},
            "rows that differ, of 20000": {each: int((given_ != wanted).sum()) for each, given_ in answers.items()},
            "labels that differ": {
                each: int(((given_ > 0.5) != (wanted > 0.5)).sum()) for each, given_ in answers.items()
            },
            "largest difference": {each: float(np.abs(given_ - wanted).max()) for each, given_ in answers.items()},
        }
        say(f"{name}: {json.dumps(results[name], ensure_ascii=False)}")
        equal[name] = differing(fitted, chosen, held)
    for name, estimator in more(given.trees).items():
        classify = is_classifier(estimator)
        encoding = learn(frame, pl.Series(label), classify=classify)
        fitted = Predictor(encoding, estimator.fit(encoding.frame(frame), encoding.truth(pl.Series(label))))
        equal[name] = differing(fitted, choose(fitted, frame, FORMS), held)
        say(f"{name}: {json.dumps(equal[name])}")
    hgb = results["HGB"]
    one, many = hgb["one row, µs"], hgb["of 1000 rows, µs a row"]
    fastest = {name: min(v for k, v in r["one row, µs"].items() if k != "tidemill") for name, r in results.items()}
    others = {
        "HGB, one row, µs": goal(one["tidemill"], 6.0, 1.0),
        "HGB, of 1000 rows, µs a row": goal(many["tidemill"], 2.0, 1.0),
        "rows that differ, plus 1": goal(sum(each["rows"] for each in equal.values()) + 1.0, 1.0, 1.0),
        "labels that differ, plus 1": goal(sum(each["labels"] for each in equal.values()) + 1.0, 1.0, 1.0),
    } | {
        f"{name}, one row": goal(result["one row, µs"]["tidemill"], fastest[name], 3.0, holds=">=", of="rival / ours")
        for name, result in results.items()
    }
    finish(
        "predictors",
        goal(one["tidemill"], one["estimator"], 100.0, holds=">=", of="rival / ours"),
        quick=given.quick, others=others, results=results, equal=equal, trees=given.trees,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
