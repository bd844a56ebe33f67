"""Which form of a fitted estimator is served: compiled, by ONNX Runtime, or the estimator itself; and the proof.

A compiled form is accepted only if it equals the estimator: bit for bit, or, where linear algebra adds up in another
order, within ``RELATIVE`` of the sum's terms and with the same label. It is held against the estimator on training
rows, their extremes, nulls, unseen categories, infinities and denormals, and on values next to every threshold and
every tabled value that it compares with. What the estimator refuses it must refuse.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from tidemill.base.errors import ArtefactError, NotCompiledError
from tidemill.engine.predict.arrays import Arrays
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.probe import Probes, probes
from tidemill.kernels import predictors
from tidemill.kernels.predictors import MalformedError
from tidemill.ports.models import Compiler, Converter, Models, Session

Kind = Literal["compiled", "onnx", "estimator"]

#: Largest difference of a compiled linear model, relative to the magnitude of what it adds up.
RELATIVE = 1e-12

_ALONE = 200  # rows asked one by one
_REFUSED = 6  # rows of a refused batch that the estimator is asked one by one
_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class Forms:
    """What makes other forms of an estimator, each loaded when it is first needed."""

    compiler: Callable[[], Compiler]
    converter: Callable[[], Converter]


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: its ``kind``, its stored form (None: the estimator) and the report, as plain data.

    The report says ``why`` this kind, on how many ``rows`` and ``thresholds`` it was held against the estimator, its
    ``bytes``, and the ``micros`` of one row beside the ``estimator_micros``.
    """

    predictor: Predictor
    kind: Kind
    form: bytes | None
    report: Mapping[str, Any]

    def store(self, models: Models) -> dict[str, Any]:
        """Keep the form in ``models``; return the report with its ``kind`` and ``reference``, for ``restore``."""
        reference = None if self.form is None else models.save_form(self.form)
        return {"kind": self.kind, "reference": reference, **self.report}


def restore(
    encoding: Encoding,
    estimator: str,
    served: Mapping[str, Any] | None,
    *,
    load: Callable[[str], Any],
    form: Callable[[str], bytes],
    forms: Forms | None,
) -> Predictor:
    """Return the predictor that ``store`` described (None: by an older version, which had only estimators).

    ``load`` gives the estimator of a reference and is asked only where that itself answers; ``form`` gives the bytes of
    a stored form, and ``forms`` runs those that are not compiled. Raises ArtefactError when the form is missing or
    damaged, or of another version.
    """
    kind = (served or {}).get("kind", "estimator")
    if served is None or kind == "estimator":
        return Predictor(encoding, load(estimator))
    content = form(served["reference"])
    if kind == "compiled":
        return Predictor(encoding, None, open_form(content, encoding))
    if forms is None:
        raise ArtefactError("A model is served by ONNX Runtime, which is not at hand here.")
    return Predictor(encoding, None, _Converted(encoding, forms.converter().open(content, len(encoding.classes))))


def open_form(content: bytes, encoding: Encoding) -> _Compiled:
    """Return the runner of a compiled form. Raises ArtefactError when it is damaged or not of this ``encoding``."""
    try:
        opened = predictors.open_program(content)
    except MalformedError as error:
        raise ArtefactError(f"A compiled predictor cannot be used: {error}. Retrain its model.") from error
    if opened.program.columns != columns_of(encoding):
        raise ArtefactError("A compiled predictor is not of the columns that its training names. Retrain its model.")
    return _Compiled(encoding, opened)


def columns_of(encoding: Encoding) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """Return the estimator's input columns, each with its categories, or None for a number."""
    return tuple((name, encoding.categories.get(name)) for name in encoding.columns)


class _Compiled:
    """Runs a compiled form; see engine.predict.predict.Runner."""

    def __init__(self, encoding: Encoding, opened: predictors.Predictor) -> None:
        self.opened = opened
        self.row = opened.row
        self.columns = Arrays(columns_of(encoding))

    def batch(self, features: pl.DataFrame) -> np.ndarray[Any, Any]:
        parts = self.columns.parts(features, _AT_ONCE)
        made = [self.opened.batch(columns, rows) for rows, columns in parts]
        return made[0] if len(made) == 1 else np.concatenate(made)


class _Converted:
    """Runs a form through ONNX Runtime; see engine.predict.predict.Runner."""

    def __init__(self, encoding: Encoding, session: Session) -> None:
        self._encoding, self._session = encoding, session

    def batch(self, features: pl.DataFrame) -> np.ndarray[Any, Any]:
        frame = self._encoding.frame(features)
        return np.asarray(
            self._session.run(
                [
                    column.to_numpy() if column.dtype == pl.Float64 else column.cast(pl.String).to_numpy()
                    for column in frame
                ]
            )
        )

    def row(self, values: Sequence[Any]) -> float | list[float]:
        known = self._encoding.categories
        columns = []
        for name, value in zip(self._encoding.columns, values, strict=True):
            if name in known:
                columns.append(np.array([value if value in known[name] else None], dtype=object))
            else:
                columns.append(np.array([np.nan if value is None else value], dtype=np.float64))
        made: list[float] = np.asarray(self._session.run(columns))[0].tolist()
        return made[0] if len(made) == 1 else made


# Choosing ---------------------------------------------------------------------------------------------------------


def choose(
    fitted: Predictor,
    rows: pl.DataFrame,
    forms: Forms,
    *,
    tolerance: float | None = None,
) -> Served:
    """Return the form of ``fitted`` to be served, proved on the training ``rows`` (the model's columns).

    Compiled if that equals the estimator; else by ONNX Runtime if a ``tolerance`` is given and no prediction differs
    by more; else the estimator. Never raises for what an estimator does.
    """
    with _one_at_a_time(fitted.estimator):
        try:
            return prove_form(fitted, rows, forms.compiler())
        except NotCompiledError as error:
            why = f"not compiled: {error}"
        if tolerance is not None:
            try:
                return _convert(fitted, rows, forms.converter(), tolerance, why)
            except Exception as error:  # a missing library, a converter's fault, or a form that is not accepted
                why += f"; not by ONNX Runtime: {str(error).partition(chr(10))[0]}"
        return Served(fitted, "estimator", None, {"why": why, **_cost(fitted, fitted, rows)})


def prove_form(fitted: Predictor, rows: pl.DataFrame, compiler: Compiler) -> Served:
    """Return ``fitted`` in its compiled form. Raises NotCompiledError unless there is one and it equals the estimator.

    See ``choose``, which has an answer in every case.
    """
    encoding = fitted.encoding
    form = compiler.compile(fitted.estimator, columns_of(encoding), len(encoding.classes))
    runner = open_form(form, encoding)
    made = probes(runner.opened.program, encoding, rows)
    _accept(fitted, runner, made)
    program = runner.opened.program
    label = " and with the same label" if encoding.classes else ""
    how = "bit for bit" if program.exact else f"within {RELATIVE:g}{label}"
    served = Predictor(encoding, None, runner)
    report = {
        "why": f"it equals the estimator {how}",
        "rows": made.rows,
        "thresholds": made.thresholds,
        "probed": made.probed,
        "bytes": len(form),
        **_cost(served, fitted, rows),
    }
    return Served(Predictor(encoding, fitted.estimator, runner), "compiled", form, report)


def _convert(fitted: Predictor, rows: pl.DataFrame, converter: Converter, tolerance: float, why: str) -> Served:
    encoding = fitted.encoding
    worst = "no form of it could be tried"
    for form in converter.convert(fitted.estimator, columns_of(encoding)):
        runner = _Converted(encoding, converter.open(form, len(encoding.classes)))
        served = Predictor(encoding, None, runner)
        made = probes(None, encoding, rows)
        differ = 0.0
        for frame in made.frames:
            asked, answered = _outcome(fitted.predict, frame), _outcome(served.predict, frame)
            if asked is not None and answered is not None:
                with np.errstate(invalid="ignore"):
                    gap = np.abs(asked - answered)
                differ = max(differ, float(np.nanmax(np.where(asked == answered, 0.0, gap), initial=0.0)))
            elif asked is not None:
                differ = float("inf")
        if differ <= tolerance:
            report = {
                "why": f"{why}; by ONNX Runtime no prediction differs by more than {differ:.2g}",
                "rows": made.rows,
                "difference": differ,
                "bytes": len(form),
                **_cost(served, fitted, rows),
            }
            return Served(Predictor(encoding, fitted.estimator, runner), "onnx", form, report)
        worst = f"a prediction differs by {differ:.2g}, more than {tolerance:g}"
    raise NotCompiledError(worst)


@contextlib.contextmanager
def _one_at_a_time(estimator: Any) -> Iterator[None]:
    """Have a fitted estimator predict in one thread: several add up in any order, and cost a row milliseconds."""
    held: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # not every estimator speaks of its parameters
        names = {name: value for name, value in estimator.get_params(deep=True).items() if name.endswith("n_jobs")}
        held = {name: value for name, value in names.items() if value not in (None, 1)}
        estimator.set_params(**dict.fromkeys(held, 1))
    try:
        yield
    finally:
        if held:
            estimator.set_params(**held)


# Proving ----------------------------------------------------------------------------------------------------------


def _accept(fitted: Predictor, runner: _Compiled, made: Probes) -> None:
    """Raise NotCompiledError unless ``runner`` gives what the estimator gives on every frame of ``made``."""
    for frame in made.frames:
        _same(fitted, runner, frame)
        _same_alone(runner, frame[:_ALONE])


def _same(fitted: Predictor, runner: _Compiled, frame: pl.DataFrame) -> None:
    wanted = _outcome(fitted.predict, frame)
    if wanted is None:
        refused = _refused(runner, frame)
        # The estimator is asked about a few of them, for it is slow by the row.
        for row in refused[:_REFUSED]:
            if _outcome(fitted.predict, frame[row]) is not None:
                raise NotCompiledError(_shown("it refuses a row that the estimator takes", frame, row))
        taken = frame[sorted(set(range(frame.height)) - set(refused))]
        if not refused or (taken.height and _outcome(fitted.predict, taken) is None):
            raise NotCompiledError(_shown("it takes a row that the estimator refuses", taken, 0))
        if taken.height:
            _same(fitted, runner, taken)
        return
    given = _outcome(runner.batch, frame)
    if given is None:
        raise NotCompiledError(_shown("it refuses a row that the estimator takes", frame, _refused(runner, frame)[0]))
    _equal(wanted, given, runner, frame)


def _refused(runner: _Compiled, frame: pl.DataFrame, first: int = 0) -> list[int]:
    """Return the rows of ``frame`` that ``runner`` refuses, counted from ``first``."""
    if _outcome(runner.batch, frame) is not None:
        return []
    if frame.height == 1:
        return [first]
    half = frame.height // 2
    return _refused(runner, frame[:half], first) + _refused(runner, frame[half:], first + half)


def _outcome(
    predict: Callable[[pl.DataFrame], np.ndarray[Any, Any]], frame: pl.DataFrame
) -> np.ndarray[Any, Any] | None:
    """Return predictions (rows, outputs), or None when the frame is refused."""
    try:
        with np.errstate(all="ignore"):
            made = predict(frame)
    except ValueError:
        return None
    return made.reshape(frame.height, -1)


def _equal(wanted: np.ndarray[Any, Any], given: Any, runner: _Compiled, frame: pl.DataFrame) -> None:
    program = runner.opened.program
    if given.shape != wanted.shape:
        raise NotCompiledError(f"it gives {given.shape[1]} values a row, and the estimator {wanted.shape[1]}")
    same = (given == wanted) | (np.isnan(given) & np.isnan(wanted))
    if not program.exact:
        magnitude = predictors.magnitude(program, runner.columns(frame), frame.height)
        # A link turns an error of its argument into a relative one of its result.
        room = magnitude if program.link == predictors.IDENTITY else np.maximum(1.0, magnitude) * np.abs(wanted)
        with np.errstate(invalid="ignore"):
            same |= np.abs(given - wanted) <= RELATIVE * room
        same &= (_label(given) == _label(wanted))[:, None] | (program.link == predictors.IDENTITY)
    if not same.all():
        row = int(np.flatnonzero(~same.all(axis=1))[0])
        what = f"{int((~same.all(axis=1)).sum()):,} of {frame.height:,} rows differ"
        raise NotCompiledError(_shown(f"{what}: {given[row].tolist()} instead of {wanted[row].tolist()}", frame, row))


def _label(predicted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return predicted[:, 0] > 0.5 if predicted.shape[1] == 1 else predicted.argmax(axis=1)


def _same_alone(runner: _Compiled, frame: pl.DataFrame) -> None:
    together = _outcome(runner.batch, frame)
    if together is None:
        return  # its parts were compared
    for row, values in enumerate(_values(frame, runner)):
        alone = np.asarray(runner.row(values), dtype=np.float64).reshape(-1)
        if alone.tobytes() != np.ascontiguousarray(together[row]).tobytes():
            raise NotCompiledError(_shown("it answers one row otherwise than a batch", frame, row))


def _values(frame: pl.DataFrame, runner: _Compiled) -> list[list[Any]]:
    program = runner.opened.program
    chosen = frame.select(
        pl.col(name).cast(pl.Float64 if values is None else pl.String) for name, values in program.columns
    )
    return [list(row) for row in chosen.iter_rows()]


def _shown(what: str, frame: pl.DataFrame, row: int) -> str:
    values = ", ".join(f"{name}={value!r}" for name, value in list(frame.row(row, named=True).items())[:8])
    return f"{what}; one is {values}{', …' if frame.width > 8 else ''}"


def _cost(served: Predictor, fitted: Predictor, rows: pl.DataFrame) -> dict[str, float]:
    """Return microseconds that one row takes, by what is served and by the estimator."""
    some = rows.select(fitted.encoding.columns).head(50)
    typed = some.select(
        pl.col(name).cast(pl.String if name in fitted.encoding.categories else pl.Float64)
        for name in fitted.encoding.columns
    )
    values = [list(row) for row in typed.iter_rows()]
    slow = _micros(fitted.predict, [some[row] for row in range(min(5, some.height))])
    fast = slow if served is fitted else _micros(served.row, values * 4)
    return {"micros": fast, "estimator_micros": slow}


def _micros(ask: Callable[[Any], Any], questions: Sequence[Any]) -> float:
    took = []
    for question in questions:
        began = time.perf_counter()
        with contextlib.suppress(ValueError):
            ask(question)
        took.append(time.perf_counter() - began)
    return round(statistics.median(took) * 1e6, 2) if took else 0.0
