"""What every compiler of estimators must do. A test class inherits ``PredictorSuite`` and names its estimators.

An estimator passes when its compiled form is accepted (it equals the estimator on training rows, nulls, unseen
categories, hostile values and values next to every split), equals it on rows that nobody trained on, and gives the same
bits for one row, for a batch, and without the compiled kernel.
"""

# ruff: noqa: D102  # the name of a test says what it holds
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_limits

from tidemill.base.errors import NotCompiledError
from tidemill.kernels import predictors
from tidemill.kernels.program import Program
from tidemill.ports.models import Compiler

Target = Literal["binary", "classes", "number", "positive"]
Make = Callable[[], Any]

CATEGORIES = tuple(f"kind {i:02d}" for i in range(40))


def rows(count: int, seed: int, *, nulls: bool = True) -> pl.DataFrame:
    """Return rows of four numbers, a whole number, a truth value and two texts, some of each null."""
    random = np.random.default_rng(seed)

    def gaps(column: pl.Series) -> pl.Series:
        if not nulls:
            return column
        return pl.select(pl.when(pl.Series(random.random(count) > 0.1)).then(column)).to_series().alias(column.name)

    made = [pl.Series(f"x{i}", np.round(random.normal(size=count) * 10.0**i, 2)) for i in range(4)]
    made.append(pl.Series("n", random.integers(0, 12, count)))
    made.append(pl.Series("flag", random.random(count) < 0.3))
    made.append(pl.Series("kind", [CATEGORIES[i] for i in random.integers(0, len(CATEGORIES), count)]))
    made.append(pl.Series("side", [("left", "right", "ünder")[i] for i in random.integers(0, 3, count)]))
    return pl.DataFrame([gaps(column) for column in made])


def labels(frame: pl.DataFrame, target: Target, seed: int) -> pl.Series:
    """Return a label for each row that hangs on its numbers and its texts."""
    known = frame.select(
        pl.col("x0", "x1", "n").cast(pl.Float64).fill_null(0.0), (pl.col("side") == "left").fill_null(0)
    )
    score = (
        known.select(pl.col("x0") + pl.col("x1") / 10 + pl.col("n") / 4 + pl.col("side") * 2.0).to_series().to_numpy()
    )
    score = score + np.random.default_rng(seed).normal(size=frame.height)
    match target:
        case "binary":
            return pl.Series((score > np.median(score)).astype(np.int64))
        case "classes":
            return pl.Series(np.digitize(score, np.quantile(score, [0.2, 0.5, 0.8])))
        case "positive":
            return pl.Series(np.exp(np.clip(score / 4, -3, 3)))
    return pl.Series(score)


_FITTED: dict[tuple[Any, str], tuple[Any, pl.DataFrame]] = {}


def _fit(suite: type[PredictorSuite], name: str) -> tuple[Any, pl.DataFrame]:
    make, target = suite.estimators[name]
    frame = rows(suite.count, 1, nulls=suite.nulls)
    label = labels(frame, target, 2)
    frame = frame.select(suite.columns)
    texts = {
        each: tuple(frame[each].drop_nulls().unique().sort())
        for each in frame.columns
        if frame[each].dtype == pl.String
    }
    classes = tuple(sorted(label.unique())) if target in ("binary", "classes") else ()
    encoding = suite.engine.Encoding(suite.columns, texts, (), classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return suite.engine.Predictor(encoding, make().fit(encoding.frame(frame), encoding.truth(label))), frame


class PredictorSuite:
    """Inherit as ``class TestX(PredictorSuite)``; set ``compiler`` and ``estimators``: name -> (make, target).

    ``engine`` is the module ``tidemill.engine.train.form``, which accepts forms and which this layer does not import.
    """

    engine: ClassVar[ModuleType]
    compiler: ClassVar[type[Compiler]]
    estimators: ClassVar[Mapping[str, tuple[Make, Target]]] = {}
    columns: ClassVar[tuple[str, ...]] = ("x0", "x1", "x2", "x3", "n", "flag", "kind", "side")
    nulls: ClassVar[bool] = True
    count: ClassVar[int] = 700

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", list(self.estimators))

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        with threadpool_limits(1):  # several of them wait for each other in spins, as trainings know
            yield

    def fitted(self, name: str) -> tuple[Any, pl.DataFrame]:
        """Return the estimator fitted on rows, and those."""
        known = (type(self), name)
        if known not in _FITTED:
            _FITTED[known] = _fit(*known)
        return _FITTED[known]

    def form(self, name: str) -> bytes:
        """Return the compiled form of the estimator."""
        predictor, _ = self.fitted(name)
        encoding = predictor.encoding
        return (
            type(self).compiler().compile(predictor.estimator, self.engine.columns_of(encoding), len(encoding.classes))
        )

    @pytest.mark.filterwarnings("ignore")
    def test_it_is_accepted(self, name: str) -> None:
        predictor, frame = self.fitted(name)
        served = self.engine.prove_form(predictor, frame, type(self).compiler())
        assert served.kind == "compiled", served.report["why"]
        assert served.report["rows"] > frame.height

    @pytest.mark.filterwarnings("ignore")
    def test_it_equals_the_estimator_on_rows_not_seen(self, name: str) -> None:
        predictor, _ = self.fitted(name)
        runner = self.engine.open_form(self.form(name), predictor.encoding)
        new = rows(2000, 9, nulls=self.nulls).select(self.columns)
        wanted = predictor.predict(new).reshape(new.height, -1)
        given = runner.batch(new)
        if runner.opened.program.exact:
            assert np.array_equal(wanted, given)
        else:
            np.testing.assert_allclose(given, wanted, rtol=10 * self.engine.RELATIVE, atol=10 * self.engine.RELATIVE)

    def test_one_row_a_batch_and_the_plain_kernel_agree_bit_for_bit(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        predictor, _ = self.fitted(name)
        form = self.form(name)
        runner = self.engine.open_form(form, predictor.encoding)
        new = rows(150, 10, nulls=self.nulls).select(self.columns)
        together = runner.batch(new)
        monkeypatch.setenv("TIDEMILL_KERNELS", "plain")
        plain = self.engine.open_form(form, predictor.encoding)
        assert np.array_equal(plain.batch(new), together)
        values = [list(row) for row in new.select(predictor.encoding.columns).iter_rows()]
        for each in (runner, plain):
            alone = np.array([each.row(row) for row in values[: 150 if each is runner else 5]])
            assert np.array_equal(alone.reshape(len(alone), -1), together[: len(alone)])

    def test_the_same_estimator_is_the_same_bytes(self, name: str) -> None:
        form = self.form(name)
        assert form == self.form(name)
        assert Program.decode(form).encode() == form
        assert predictors.open_program(form).program.columns == self.engine.columns_of(self.fitted(name)[0].encoding)

    def test_it_says_what_it_cannot_compile(self) -> None:
        with pytest.raises(NotCompiledError):
            type(self).compiler().compile(object(), [("x", None)], 0)
