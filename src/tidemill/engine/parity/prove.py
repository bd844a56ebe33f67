"""Proof before promotion: a candidate must answer alike however it is asked, and after it was stored.

A sample of the training rows is predicted as a batch, and then again: as the same batch (repeat), each row by itself
(row against batch), in another order (order), with the values as a request and the log carry them (dtype), and by the
estimator stored and loaded back (save and load). An answer may hang on nothing but the row's own values.

Bits are compared. Linear algebra rounds by the size and the order of the batch, so there a difference within
``ROUNDING`` passes and is said; beyond it, and anywhere else, a difference is a failure. Only of an estimator that does
not repeat its own bits (threads that add up in any order) no check asks for more than ``ROUNDING``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.hashing import seed
from tidemill.engine.evaluate.metric import Floats, Ints
from tidemill.engine.example.outcome import feature_frame
from tidemill.engine.parity.parity import ROUNDING
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.table.plain import plain

ROWS = 500  # sampled at most
ALONE = 50  # of these, asked one by one: one row costs a scikit-learn pipeline milliseconds

Outcome = Literal["same bits", "rounded", "differs"]

#: What a check's second answer was given to, in words that follow "otherwise".
_SAID = {
    "repeat": "when asked again",
    "row against batch": "alone than in a batch",
    "order": "in another order",
    "dtype": "with the same values as JSON carries them",
    "save and load": "once stored and loaded back",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One check of ``rows`` rows. ``reason`` says what differed in how many rows, which first, and by which columns."""

    name: str
    outcome: Outcome
    rows: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """The checks of one candidate, in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the candidate must not be promoted; () when it may."""
        return tuple(f"{check.name}: {check.reason}" for check in self.checks if check.outcome == "differs")

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data for the journal: outcome, rows and reason by check."""
        return {
            check.name: {"outcome": check.outcome, "rows": check.rows, "reason": check.reason} for check in self.checks
        }


def prove(
    predictor: Predictor,
    rows: pl.DataFrame,
    key: Sequence[str],
    training: str,
    load: Callable[[], Predictor] | None = None,
) -> Proof:
    """Return the proof of ``predictor`` on a sample of ``rows``: its training rows, with their ``key`` columns.

    ``training``: the id that decides the sample. ``load`` loads the stored predictor back; None leaves that check
    out. The same arguments give the same proof. Never raises for what the estimator does: an error is a failure.
    """
    frame = sample(rows, predictor.encoding.columns, training)
    checks: dict[str, Callable[[Predictor, pl.DataFrame], Floats]] = {
        "repeat": lambda asked, some: asked.predict(some),
        "row against batch": _alone,
        "order": lambda asked, some: _shuffled(asked, some, seed(training)),
        "dtype": _as_read,
    }
    if load is not None:
        stored = functools.cache(load)
        checks["save and load"] = lambda _, some: stored().predict(some)
    made: list[Check] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, again in checks.items():
            bitwise = name in ("dtype", "save and load") and made[0].outcome == "same bits"
            made.append(_check(name, predictor, again, frame, key, bitwise=bitwise))
    return Proof(tuple(made))


def sample(rows: pl.DataFrame, columns: Sequence[str], training: str) -> pl.DataFrame:
    """Return up to ``ROWS`` of ``rows``, chosen by ``training``: first one with a null in each column that has any."""
    mixed = rows[np.random.default_rng(seed(training)).permutation(rows.height)]
    nulls = [mixed[name].is_null().arg_max() or 0 for name in columns if mixed[name].null_count()]
    return mixed[list(dict.fromkeys([*sorted(nulls), *range(min(ROWS, rows.height))]))[:ROWS]]


def _alone(predictor: Predictor, frame: pl.DataFrame) -> Floats:
    """Predict row by row as servers do; of another form of the estimator also as batches of one."""
    some = frame.head(ALONE)
    answers = [predictor.row(values) for values in plain(some.select(predictor.encoding.columns)).iter_rows()]
    if predictor.runner is not None:
        ones = [predictor.predict(some[row])[0].tolist() for row in range(some.height)]
        batch = predictor.predict(some).tolist()
        # The one of the two that differs is the answer to compare.
        answers = [one if row == all_ else row for row, one, all_ in zip(answers, ones, batch, strict=True)]
    return np.array(answers, dtype=np.float64)


def _shuffled(predictor: Predictor, frame: pl.DataFrame, number: int) -> Floats:
    order = np.random.default_rng(number).permutation(frame.height)
    answers = predictor.predict(frame[order])
    return _fitting(answers, frame.height)[np.argsort(order)]


def _as_read(predictor: Predictor, frame: pl.DataFrame) -> Floats:
    """Predict the values after a round trip through JSON: numbers as float64 and, where whole, as int64.

    JSON has no infinity, so rows with one keep their values.
    """
    answers = predictor.predict(frame).copy()
    carried = np.flatnonzero(_finite(frame, predictor.encoding))
    if len(carried):
        values = plain(frame[carried].select(predictor.encoding.columns))
        texts = [msgspec.json.encode(row).decode() for row in values.iter_rows(named=True)]
        floats = feature_frame(pl.Series(texts, dtype=pl.String), predictor.encoding)
        whole = floats.with_columns(_whole(column) for column in floats if column.dtype == pl.Float64)
        one, other = predictor.predict(floats), predictor.predict(whole)
        # The first of the two that differs is the answer to compare.
        answers[carried] = np.where(_bits(one) == _bits(answers[carried]), other, one)
    return answers


def _finite(frame: pl.DataFrame, encoding: Encoding) -> npt.NDArray[np.bool_]:
    numbers = [frame[name] for name in encoding.columns if frame[name].dtype.is_float()]
    infinite = np.array([each.is_infinite().fill_null(value=False).to_numpy() for each in numbers], dtype=np.bool_)
    return np.asarray(~infinite.any(axis=0)) if len(numbers) else np.ones(frame.height, dtype=np.bool_)


def _whole(column: pl.Series) -> pl.Series:
    """Return ``column`` as Int64 when that keeps every bit, else as it is."""
    cast = column.cast(pl.Int64, strict=False)
    back = cast.cast(pl.Float64)
    kept = back.is_null().equals(column.is_null()) and (_bits(back.fill_null(0)) == _bits(column.fill_null(0))).all()
    return cast if kept else column


def _check(
    name: str,
    predictor: Predictor,
    again: Callable[[Predictor, pl.DataFrame], Floats],
    frame: pl.DataFrame,
    key: Sequence[str],
    *,
    bitwise: bool,
) -> Check:
    rows = min(ALONE, frame.height) if again is _alone else frame.height
    if not rows:
        return Check(name, "same bits", 0)
    try:
        was = _fitting(predictor.predict(frame), frame.height)[:rows]
        now = _fitting(again(predictor, frame), rows)
        outcome, differing = _compare(was, now, bitwise=bitwise)
    except Exception as error:  # whatever an estimator raises, it cannot be asked in this way
        said = str(error).partition("\n")[0]
        return Check(name, "differs", rows, f"asked {_asked(name)} it raises {type(error).__name__}: {said}")
    if outcome != "differs":
        return Check(name, outcome, rows)
    row = int(differing[0])
    alike = np.setdiff1d(np.arange(rows), differing)
    columns = _columns(predictor, again, frame, int(alike[0]) if len(alike) else row, bitwise=bitwise)
    identity = ", ".join(f"{column} {frame[column][row]}" for column in key)
    return Check(
        name,
        outcome,
        rows,
        f"{len(differing):,} of {rows:,} rows are answered otherwise {_SAID[name]}, {columns}; "
        f"first {identity}: {_shown(now[row])} instead of {_shown(was[row])}",
    )


def _asked(name: str) -> str:
    return "one by one" if name == "row against batch" else _SAID[name].removeprefix("when asked ")


def _compare(was: Floats, now: Floats, *, bitwise: bool) -> tuple[Outcome, Ints]:
    """Return how two arrays of answers compare, and the rows that count as different."""
    unequal = (_bits(was) != _bits(now)).reshape(len(was), -1)
    if not unequal.any():
        return "same bits", np.zeros(0, dtype=np.int64)
    if not bitwise:
        unequal &= ~np.isclose(now, was, rtol=ROUNDING, atol=0.0).reshape(len(was), -1)
    rows = np.flatnonzero(unequal.any(axis=1))
    return ("differs" if len(rows) else "rounded"), rows


def _columns(
    predictor: Predictor, again: Callable[[Predictor, pl.DataFrame], Floats], frame: pl.DataFrame, row: int,
    *, bitwise: bool,
) -> str:  # fmt: skip
    """Name the columns that each bring a difference about while all others are held at their values in ``row``."""

    def differs(*free: str) -> bool:
        held = [pl.repeat(frame[name][row], frame.height, dtype=frame[name].dtype, eager=True).alias(name)
                for name in predictor.encoding.columns if name not in free]  # fmt: skip
        some = frame.with_columns(held)
        try:
            now = again(predictor, some)
            return _compare(predictor.predict(some)[: len(now)], now, bitwise=bitwise)[0] == "differs"
        except Exception:  # nothing can be said of these columns by themselves
            return False

    if differs():
        return "whatever the values"
    guilty = [name for name in predictor.encoding.columns if differs(name)]
    if not guilty:
        return "by several columns together"
    return f"by column{'s' if len(guilty) > 1 else ''} {', '.join(guilty)}"


def _bits(values: Any) -> Ints:
    return np.ascontiguousarray(values, dtype=np.float64).view(np.int64)


def _fitting(answers: Floats, rows: int) -> Floats:
    if len(answers) != rows:
        raise ValueError(f"{len(answers)} answers to {rows} rows")
    return answers


def _shown(answer: Any) -> str:
    return str(np.asarray(answer).tolist())
