"""What a candidate must show before promotion, with estimators that break one thing each."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import threadpoolctl
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tidemill as tm
from tidemill.adapters.memory_models import MemoryModels
from tidemill.base.clock import DAY
from tidemill.base.errors import ArtefactError
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.parity.prove import ALONE, ROWS, Proof, prove, sample
from tidemill.engine.predict.encode import Encoding, learn
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.train import Order, train

TIME = pl.Datetime("us", "UTC")


def rows(count: int = 700, *, nulls: bool = True) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    frame = pl.DataFrame({
        "id": np.arange(count), "x": rng.normal(size=count), "y": rng.normal(size=count),
        "n": rng.integers(0, 9, count), "ok": rng.integers(0, 2, count).astype(bool),
        "site": rng.choice(["n", "s", "w"], count),
    })  # fmt: skip
    if nulls:
        gone = pl.int_range(count) % 350 == 7  # two rows of seven hundred
        frame = frame.with_columns(pl.when(~gone).then(pl.col(name)).alias(name) for name in ("x", "n", "site"))
    return frame


FRAME = rows()
COLUMNS = ("x", "y", "n", "ok", "site")
ENCODING = Encoding(COLUMNS, {"site": ("n", "s", "w")}, (), ())


class Weighted:
    """A regressor that breaks nothing: exact sums, row by row."""

    def fit(self, frame: pl.DataFrame, truth: Any) -> Weighted:
        return self

    def predict(self, frame: pl.DataFrame) -> Any:
        numbers = frame.with_columns(pl.col(pl.Enum).to_physical()).cast(pl.Float64).fill_nan(0).fill_null(-1)
        return np.array([math.fsum(row) for row in numbers.iter_rows()])


class Centred(Weighted):
    """Breaks row against batch: centres x by the mean of the batch."""

    def predict(self, frame: pl.DataFrame) -> Any:
        return np.subtract(super().predict(frame), np.nanmean(frame["x"].to_numpy()))


class Running(Weighted):
    """Breaks order: adds a little for every place of y in the batch."""

    def predict(self, frame: pl.DataFrame) -> Any:
        return np.add(super().predict(frame), np.cumsum(frame["y"].to_numpy()))


class Signed(Weighted):
    """Breaks dtype: sees the sign bit of a NaN, which JSON does not carry."""

    def predict(self, frame: pl.DataFrame) -> Any:
        return np.add(super().predict(frame), np.signbit(frame["x"].to_numpy()))


class Forgetful(Weighted):
    """Breaks save and load: loses an attribute on the way."""

    offset = 0.0

    def fit(self, frame: pl.DataFrame, truth: Any) -> Forgetful:
        self.offset = 1.5
        return self

    def predict(self, frame: pl.DataFrame) -> Any:
        return super().predict(frame) + self.offset

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Random(Weighted):
    """Breaks repeat."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def predict(self, frame: pl.DataFrame) -> Any:
        return super().predict(frame) + self.rng.normal(size=frame.height)


class Grudging(Weighted):
    """Refuses a row by itself."""

    def predict(self, frame: pl.DataFrame) -> Any:
        if frame.height == 1:
            raise ValueError("expected 2 rows or more\nand more lines")
        return super().predict(frame)


def proved(estimator: Any, frame: pl.DataFrame = FRAME, training: str = "t") -> Proof:
    models = MemoryModels()
    reference = models.save(estimator)
    return prove(
        Predictor(ENCODING, estimator), frame, ["id"], training, lambda: Predictor(ENCODING, models.load(reference))
    )


def outcomes(proof: Proof) -> dict[str, str]:
    return {check.name: check.outcome for check in proof.checks}


def test_an_honest_estimator_passes_to_the_bit() -> None:
    proof = proved(Weighted().fit(FRAME, None))
    assert set(outcomes(proof).values()) == {"same bits"}
    assert list(outcomes(proof)) == ["repeat", "row against batch", "order", "dtype", "save and load"]
    assert proof.failures == ()
    assert [check.rows for check in proof.checks] == [ROWS, ALONE, ROWS, ROWS, ROWS]
    assert json.loads(json.dumps(proof.as_json()))["order"] == {"outcome": "same bits", "rows": ROWS, "reason": ""}


@pytest.mark.parametrize(
    ("estimator", "fails", "said"),
    [
        (Centred(), {"row against batch"}, "alone than in a batch, by column x; first id "),
        (Running(), {"row against batch", "order"}, "in another order, whatever the values; first id "),
        (
            Forgetful().fit(FRAME, None),
            {"save and load"},
            "once stored and loaded back, whatever the values; first id ",
        ),
        (Grudging(), {"row against batch"}, "asked one by one it raises ValueError: expected 2 rows or more"),
    ],
)
def test_each_check_names_what_breaks_it(estimator: Any, fails: set[str], said: str) -> None:
    proof = proved(estimator)
    assert {check.name for check in proof.checks if check.outcome == "differs"} == fails
    assert any(said in reason for reason in proof.failures), proof.failures
    assert {reason.partition(":")[0] for reason in proof.failures} == fails
    assert not any("\n" in reason for reason in proof.failures)
    assert proved(estimator).as_json() == proof.as_json()  # the same every time


def test_values_that_json_does_not_carry_alike() -> None:
    signed = FRAME.with_columns(pl.Series("x", np.where(np.arange(FRAME.height) % 9, FRAME["x"].fill_null(0), -np.nan)))
    proof = proved(Signed(), signed)
    failing = {check.name: check.reason for check in proof.checks if check.outcome == "differs"}
    assert "dtype" in failing
    assert "as JSON carries them, by column x" in failing["dtype"]
    assert set(outcomes(proved(Weighted(), signed)).values()) == {"same bits"}


def test_an_answer_that_is_not_repeated() -> None:
    proof = proved(Random())
    assert outcomes(proof)["repeat"] == "differs"
    assert "when asked again" in proof.failures[0]


def test_infinities_are_left_as_they_are() -> None:
    frame = FRAME.with_columns(pl.when(pl.col("id") % 5 == 0).then(math.inf).otherwise("y").alias("y"))
    assert set(outcomes(proved(Weighted(), frame)).values()) == {"same bits"}


def test_what_cannot_be_loaded_fails_and_does_not_raise() -> None:
    def load() -> Predictor:
        raise ArtefactError("A model cannot be read.")

    proof = prove(Predictor(ENCODING, Weighted()), FRAME, ["id"], "t", load)
    assert proof.failures == (
        "save and load: asked once stored and loaded back it raises ArtefactError: A model cannot be read.",
    )
    assert "save and load" not in outcomes(prove(Predictor(ENCODING, Weighted()), FRAME, ["id"], "t"))


def test_the_sample_is_the_same_every_time_and_has_the_rare_nulls_first() -> None:
    chosen = sample(FRAME, COLUMNS, "t")
    assert chosen.height == ROWS
    assert chosen.equals(sample(FRAME, COLUMNS, "t"))
    assert not chosen.equals(sample(FRAME, COLUMNS, "u"))
    assert chosen["id"].n_unique() == ROWS
    assert all(chosen.head(ALONE)[name].null_count() for name in ("x", "n", "site"))
    assert sample(FRAME.head(3), COLUMNS, "t").height == 3
    assert outcomes(prove(Predictor(ENCODING, Weighted()), FRAME.head(0), ["id"], "t"))["order"] == "same bits"


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(), HistGradientBoostingClassifier(max_iter=10), RandomForestClassifier(5, n_jobs=2),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)  # fmt: skip
@pytest.mark.parametrize("classes", [2, 3])
def test_honest_classifiers_are_not_refused(estimator: Any, classes: int) -> None:
    frame = rows(nulls=False)
    label = ((frame["x"] * 2 + frame["y"]).rank("ordinal") * classes // (frame.height + 1)).cast(pl.String)
    names = ["x", "y", "n", "ok"]
    encoding = learn(frame.select(names), label, classify=True)
    estimator.fit(encoding.frame(frame), encoding.truth(label).astype(np.int64))
    models = MemoryModels()
    reference = models.save(estimator)
    loaded = Predictor(encoding, models.load(reference))
    with threadpoolctl.threadpool_limits(1):  # as trainings are held to
        proof = prove(Predictor(encoding, estimator), frame, ["id"], "t", lambda: loaded)
    assert proof.failures == ()


@pytest.mark.parametrize(
    "estimator", [Ridge(), MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=3)], ids=["ridge", "network"]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_linear_algebra_may_round_by_the_size_of_the_batch(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({f"x{each}": rng.normal(size=600) * 1.5**each for each in range(12)})
    encoding = Encoding(tuple(frame.columns), {}, (), ())
    estimator.fit(encoding.frame(frame), frame.sum_horizontal().to_numpy())
    models = MemoryModels()
    loaded = Predictor(encoding, models.load(models.save(estimator)))
    proof = prove(Predictor(encoding, estimator), frame.with_row_index("id"), ["id"], "t", lambda: loaded)
    assert proof.failures == ()
    assert {outcomes(proof)[name] for name in ("repeat", "dtype", "save and load")} == {"same bits"}


# In a training ------------------------------------------------------------------------------------------------------

visits = tm.Source("visits", tm.files("v.csv"), key="id", event_time="at", known_at=tm.before("at", "1d"))
results = tm.Source("results", tm.files("r.csv"), key="id", event_time="done")


class Learned(Weighted):
    """Predicts x, which is nearly the truth."""

    def predict(self, frame: pl.DataFrame) -> Any:
        return frame["x"].fill_nan(0.0).to_numpy()


class LearnedOfBatches(Learned):
    """As good, but by the mean of its batch."""

    def predict(self, frame: pl.DataFrame) -> Any:
        return np.add(super().predict(frame), 1e-3 * np.mean(super().predict(frame)))


def tables() -> dict[str, pl.DataFrame]:
    rng, count = np.random.default_rng(2), 1200
    at = np.sort(rng.integers(0, 40 * DAY, count))
    x = rng.normal(size=count)
    system = {SEQ: np.arange(count), TOMBSTONE: [False] * count, TICK: np.zeros(count, dtype=np.int64),
              HISTORY: [True] * count}  # fmt: skip
    seen = pl.DataFrame({"id": np.arange(count), "at": at, "x": x, KNOWN_AT: at - DAY, **system})
    came = pl.DataFrame({"id": np.arange(count), "done": at + 100, "value": x + rng.normal(size=count) / 10,
                         KNOWN_AT: at + 100, **system})  # fmt: skip
    return {
        "visits": seen.with_columns(pl.col("at", KNOWN_AT, TICK).cast(TIME)),
        "results": came.with_columns(pl.col("done", KNOWN_AT, TICK).cast(TIME)),
    }


@pytest.mark.parametrize(("estimator", "passes"), [(Learned(), True), (LearnedOfBatches(), False)])
def test_a_training_refuses_what_fails_and_says_so(estimator: Any, passes: bool) -> None:
    model = tm.Model(
        "m", examples=visits, asked_at="at", label=tm.Label(results, "value", within="1d"), features=["x"],
        estimator=estimator, task="regression", split=tm.by_time(test="10d", gap="1d"), metrics=["mae"],
        gate=tm.Gate("mae", min_rows=50),
    )  # fmt: skip
    order = Order("m", "t1", "first", 40 * DAY, None, {}, None)
    made = train(model, tables(), order, None, lambda progress: None, MemoryModels())
    verdict, proof = made.judged["verdict"], made.judged["proof"]
    assert verdict["outcome"] == ("pass" if passes else "refuse")
    assert set(proof) == {"repeat", "row against batch", "order", "dtype", "save and load"}
    if passes:
        assert {each["outcome"] for each in proof.values()} == {"same bits"}
        assert made.stored is not None
    else:
        assert verdict["reasons"][0].startswith("row against batch: 50 of 50 rows are answered otherwise alone")
        assert "better than the baseline" in verdict["reasons"][1]  # the gate alone would have let it through
    json.dumps(made.judged, allow_nan=False)
