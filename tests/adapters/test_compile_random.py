"""Random pipelines of what compiles, against hostile rows: the compiled form gives or refuses what the estimator does.

Each seed draws what is done to numbers and to texts, and a model; rows have in each cell a plain value or one of those
that break arithmetic: no value, infinities, denormals, numbers beyond float32, texts unseen, empty or huge.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
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
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression, Ridge, SGDClassifier
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
from threadpoolctl import threadpool_limits
from xgboost import XGBClassifier, XGBRegressor

from tidemill.adapters.compilers import Compilers
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train import form
from tidemill.kernels import predictors
from tidemill.testing.predictor_suite import labels, rows

SEEDS = 80
NUMBERS = ["x0", "x1", "x2", "x3", "n", "flag"]
TEXTS = ["kind", "side"]
HOSTILE = [
    None, math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -1e-310, 1e300, -1.7e308, 3.5e38, -3.4028235677973366e38,
    16777217.0, 2.0**63,
]  # fmt: skip
UNSEEN = [None, "", "nobody's", "\x00", "🚂" * 20_000]
WRONG = ["1", b"1", [1.0], {"a": 1}, 1j, 10**400, object()]

Draw = np.random.Generator


def one(draw: Draw, *choices: Callable[[], Any]) -> Any:
    return choices[draw.integers(len(choices))]()


def imputer(draw: Draw) -> Any:
    strategy = str(draw.choice(["mean", "median", "most_frequent"]))
    return one(
        draw,
        lambda: SimpleImputer(strategy=strategy, add_indicator=bool(draw.random() < 0.3)),
        lambda: SimpleImputer(strategy="constant", fill_value=float(draw.normal())),
    )


def scaler(draw: Draw) -> Any:
    return one(
        draw, StandardScaler, RobustScaler, MaxAbsScaler, lambda: StandardScaler(with_mean=False),
        lambda: MinMaxScaler(clip=bool(draw.random() < 0.5)),
    )  # fmt: skip


def encoder(draw: Draw) -> Any:
    return one(
        draw,
        lambda: OneHotEncoder(handle_unknown="ignore", sparse_output=bool(draw.random() < 0.5)),
        lambda: OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=int(draw.integers(5, 40))),
        lambda: OneHotEncoder(drop="if_binary", handle_unknown="ignore"),
        lambda: OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
        OrdinalEncoder,  # refuses what it has not seen
        lambda: TargetEncoder(random_state=1, cv=3),
    )


def model(draw: Draw) -> Any:
    count = int(draw.integers(3, 15))
    return one(
        draw,
        lambda: LogisticRegression(max_iter=200, C=float(draw.choice([0.1, 1.0]))),
        LinearRegression,
        Ridge,
        lambda: ElasticNet(0.05),
        lambda: SGDClassifier("log_loss", random_state=1),
        lambda: DecisionTreeClassifier(max_depth=7, random_state=1),
        lambda: RandomForestClassifier(count, max_depth=8, random_state=1),
        lambda: RandomForestRegressor(count, max_depth=8, random_state=1),
        lambda: ExtraTreesClassifier(count, max_depth=8, random_state=1),
        lambda: GradientBoostingClassifier(n_estimators=count, random_state=1),
        lambda: HistGradientBoostingClassifier(max_iter=count),
        lambda: HistGradientBoostingRegressor(max_iter=count),
        lambda: XGBClassifier(n_estimators=count, n_jobs=1),
        lambda: XGBRegressor(n_estimators=count, n_jobs=1),
        lambda: LGBMClassifier(n_estimators=count, n_jobs=1, verbose=-1),
        lambda: LGBMRegressor(n_estimators=count, n_jobs=1, verbose=-1),
    )


def pipeline(draw: Draw) -> Any:
    parts = []
    for group in np.array_split(draw.permutation(NUMBERS), draw.integers(1, 4)):
        steps = [imputer(draw), *([scaler(draw)] if draw.random() < 0.7 else [])]
        parts.append((make_pipeline(*steps), group.tolist()))
    parts += [(encoder(draw), [text]) for text in TEXTS if draw.random() < 0.9]
    columns = make_column_transformer(*(parts[place] for place in draw.permutation(len(parts))), sparse_threshold=0)
    return make_pipeline(columns, *([StandardScaler()] if draw.random() < 0.2 else []), model(draw))


def hostile_rows(draw: Draw, count: int) -> pl.DataFrame:
    """Return rows, most with one or two hostile cells, some with nothing else."""
    made = rows(count, int(draw.integers(1 << 30))).select(*(pl.col(name).cast(pl.Float64) for name in NUMBERS), *TEXTS)
    share = draw.choice([0.0, 0.15, 0.15, 1.0], count)

    def planted(name: str, values: list[Any]) -> pl.Series:
        held = made[name].to_list()
        for row in np.flatnonzero(draw.random(count) < share).tolist():
            held[row] = values[draw.integers(len(values))]
        return pl.Series(name, held, dtype=made[name].dtype)

    return made.with_columns(*(planted(name, HOSTILE) for name in NUMBERS), *(planted(name, UNSEEN) for name in TEXTS))


def fitted(draw: Draw, frame: pl.DataFrame) -> Predictor:
    estimator = pipeline(draw)
    classify = is_classifier(estimator[-1])
    classes = int(draw.choice([2, 4])) if classify else 0
    label = labels(frame, {0: "number", 2: "binary", 4: "classes"}[classes], 2)  # type: ignore[arg-type]
    texts = {name: tuple(frame[name].drop_nulls().unique().sort()) for name in TEXTS}
    encoding = Encoding((*NUMBERS, *TEXTS), texts, (), tuple(range(classes)))
    return Predictor(encoding, estimator.fit(encoding.frame(frame), encoding.truth(label)))


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 20 else []) for seed in range(SEEDS)]
)
@pytest.mark.filterwarnings("ignore")
def test_a_random_pipeline_is_compiled_and_answers_hostile_rows_alike(seed: int) -> None:
    draw = np.random.default_rng(seed)
    frame = rows(400, seed)
    with threadpool_limits(1), warnings.catch_warnings():
        predictor = fitted(draw, frame)
        columns = form.columns_of(predictor.encoding)
        compiled = Compilers().compile(predictor.estimator, columns, len(predictor.encoding.classes))
        runner = form.open_form(compiled, predictor.encoding)
        asked = hostile_rows(draw, 120)
        taken = []
        for row, values in enumerate(asked.iter_rows()):
            answer = outcome(runner.row, list(values))
            if answer is not None:
                taken.append((row, answer))
            else:
                assert outcome(predictor.predict, asked[row]) is None, asked.row(row, named=True)
        assert taken
        places = [row for row, _ in taken]
        given = np.array([answer for _, answer in taken]).reshape(len(taken), -1)
        some = asked[places]
        assert runner.batch(some).tobytes() == given.tobytes()
        assert_alike(runner, some, given, predictor.predict(some).reshape(len(taken), -1))
    for place in range(len(columns)):
        for wrong in WRONG:
            row_ = list(asked.row(0))
            row_[place] = wrong
            if not (place >= len(NUMBERS) and isinstance(wrong, str)):
                with pytest.raises(ValueError, match="Column"):
                    runner.row(row_)


def outcome(function: Callable[[Any], Any], asked: Any) -> Any:
    """Return what ``function`` makes of ``asked``, None when it raises ValueError."""
    try:
        return function(asked)
    except ValueError:
        return None


def assert_alike(runner: Any, asked: pl.DataFrame, given: Any, wanted: Any) -> None:
    """Assert that trees are equal to the bit, and sums to 1e-12 of what they add up, with the same label."""
    program = runner.opened.program
    same = (given == wanted) | ~(np.isfinite(given) | np.isfinite(wanted))
    if not program.exact:
        with np.errstate(all="ignore"):
            magnitude = predictors.magnitude(program, runner.columns(asked), asked.height)
            room = magnitude if program.link == predictors.IDENTITY else np.maximum(1.0, magnitude) * np.abs(wanted)
            same |= np.abs(given - wanted) <= 1e-12 * room
            same |= ~np.isfinite(magnitude)  # what overflows on the way hangs on the order of the sum
        if program.link != predictors.IDENTITY:
            label = [each[:, 0] > 0.5 if each.shape[1] == 1 else each.argmax(axis=1) for each in (given, wanted)]
            same &= (label[0] == label[1])[:, None] | ~np.isfinite(magnitude)
    wrong = np.flatnonzero(~same.all(axis=1))
    assert len(wrong) == 0, (asked.row(int(wrong[0]), named=True), given[wrong[0]], wanted[wrong[0]])
