"""Predictions for many rows: read in chunks, asked like a single row, and put down chunk by chunk.

The features are those of ``build.py`` and the predictor is the one that serves, so a row gets the prediction here that
it would get by itself. A chunk that has been predicted is a piece on disk; what was interrupted goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tidemill.base.errors import RequestError
from tidemill.base.schema import nearest
from tidemill.engine.example.build import Pace, Partitions, Report, Step, carry
from tidemill.engine.example.example import asked_at
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.table.contract import conform
from tidemill.engine.table.table import TIME, visible
from tidemill.ports.bulk import Bulk, Chunk
from tidemill.ports.executor import Executor
from tidemill.ports.scratch import Scratch
from tidemill.spec.model import Model
from tidemill.spec.source import Source, Table
from tidemill.spec.time import Offset

#: The column of an input that says when each row is asked, and of the output that says when it was.
ASKED = "asked_at"
PREDICTION = "prediction"

Array = npt.NDArray[Any]


def moments(model: Model, frame: pl.DataFrame, as_of: int | None, now: int) -> Array:
    """Return when each row of ``frame`` is asked, int64 microseconds: at ``as_of`` when it is given.

    Else at the time in the column ``asked_at``, else at the model's own asked-at where its column is there; ``now``
    where there is no time, or one that lies ahead.
    """
    if as_of is not None:
        return np.full(frame.height, as_of, dtype=np.int64)
    if ASKED in frame.columns:
        times = frame.select(pl.col(ASKED).cast(TIME)).to_series()
    elif asking_column(model) in frame.columns:
        times = frame.select(asked_at(model)).to_series()
    else:
        return np.full(frame.height, now, dtype=np.int64)
    micros: Array = times.to_physical().fill_null(now).to_numpy()
    return np.minimum(micros, np.int64(now))


def asking_column(model: Model) -> str:
    """Return the column of the examples by which the model's asked-at is declared."""
    return model.asked_at.column if isinstance(model.asked_at, Offset) else model.asked_at


@dataclass(frozen=True, slots=True)
class Asking:
    """How rows of an input become questions.

    ``types``: of the model's request columns. ``as_of`` and ``now`` as in ``moments``. ``keep``: the input's columns
    that are carried over to the output. ``there``: the columns of the input.
    """

    model: Model
    types: Mapping[str, pl.DataType]
    as_of: int | None
    now: int
    keep: tuple[str, ...]
    there: tuple[str, ...]

    def check(self, what: str) -> None:
        """Raise RequestError when the input called ``what`` lacks a column, or its columns would be covered."""
        for column in (*self.types, *self.keep):
            if column not in self.there:
                asks = f"model {self.model.name!r} asks for {', '.join(self.types)}"
                if column not in self.types:
                    asks = "it was to be kept"
                raise RequestError(
                    f"{what} has no column {column!r} ({asks}).{nearest(column, self.there)}", field=column
                )
        for column in self.keep:
            if column == PREDICTION or column.startswith(f"{PREDICTION}_"):
                raise RequestError(
                    f"{what} has a column {column!r}, which the predictions would cover. Keep others, with --keep.",
                    field=column,
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the input that are read."""
        times = (ASKED, asking_column(self.model)) if self.as_of is None else ()
        return tuple(dict.fromkeys((*self.types, *(name for name in times if name in self.there), *self.keep)))

    def questions(self, frame: pl.DataFrame, where: str, first: int) -> tuple[pl.DataFrame, Array]:
        """Return the rows of ``frame`` with the types of a request, and when each is asked.

        Raises RequestError, naming the row counted from ``first``, when a value does not fit.
        """
        types = dict(self.types)
        if self.as_of is None:
            times = [name for name in (ASKED, asking_column(self.model)) if name in frame.columns]
            types |= dict.fromkeys((name for name in times if name not in types), TIME)
        fitted, faults = conform(frame.select(list(types)), types)
        if faults.null_count() < frame.height:
            row = int(faults.is_not_null().arg_true()[0])
            raise RequestError(f"{where}, row {first + row}: {faults[row]}. Mend it, or leave the row out.")
        for name in self.model.examples.key:
            if fitted[name].null_count():
                row = int(fitted[name].is_null().arg_true()[0])
                raise RequestError(
                    f"{where}, row {first + row}: the key {name!r} is null. Leave the row out.", field=name
                )
        fitted = fitted.with_columns(frame[name] for name in self.keep if name not in types)
        return fitted, moments(self.model, fitted, self.as_of, self.now)


class FileQuestions:
    """The chunks of a bulk input as questions."""

    def __init__(self, bulk: Bulk, chunks: Sequence[Chunk], asking: Asking) -> None:
        self._bulk, self._chunks, self._asking = bulk, chunks, asking

    def __call__(self, number: int) -> tuple[pl.DataFrame, Array]:
        """Return chunk ``number``. Raises SourceError and RequestError."""
        chunk = self._chunks[number]
        return self._asking.questions(self._bulk.read(chunk, self._asking.columns), chunk.where, chunk.first)


class TableQuestions:
    """The rows of a lake's table as a question at ``t`` sees them, one partition of keys after the other."""

    def __init__(self, table: Source | Table, t: int, asking: Asking) -> None:
        self.partitions: Partitions | None = None
        self._table, self._t, self._asking = table, t, asking

    def __call__(self, number: int) -> tuple[pl.DataFrame, Array]:
        """Return the rows of partition ``number`` by sequence. Raises RequestError."""
        assert self.partitions is not None
        rows = visible(self.partitions.versions(self._table.name, number), self._table, self._t)
        return self._asking.questions(rows.select(self._asking.columns), f"table {self._table.name!r}", 1)


class Predictions:
    """The steps that predict: those of ``partitions``, and at last "predict" for each chunk."""

    def __init__(
        self, partitions: Partitions, predictor: Predictor, keep: Sequence[str], ask: FileQuestions | TableQuestions
    ) -> None:
        self.partitions, self._predictor, self._keep, self._ask = partitions, predictor, tuple(keep), ask

    @property
    def numerical(self) -> bool:
        """Whether the predictor is an estimator, which may compute in threads of its own."""
        return self._predictor.runner is None

    def run(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one step. Returns how many rows were predicted, for those that do."""
        if step["step"] != "predict":
            return self.partitions.run(step)
        number = step["number"]
        requests, asked = self._ask(number)
        features = self.partitions.features(number, requests, asked)
        try:
            predicted = self._predictor.predict(features)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise RequestError(f"The model cannot take the features of these rows: {reason}") from error
        finite = np.isfinite(predicted)
        if not finite.all():
            row = requests.row(int(np.argmin(finite.reshape(len(predicted), -1).all(axis=1))), named=True)
            key = {name: row[name] for name in self.partitions.model.examples.key}
            raise RequestError(f"The model gives no finite prediction for the row {key}.")
        answers = requests.select(name for name in self._keep if name != ASKED).with_columns(
            pl.Series(ASKED, asked, dtype=pl.Int64).cast(TIME), *self._columns(predicted)
        )
        self.partitions.scratch.put(predicted_piece(number), [answers.to_arrow()], {"rows": answers.height})
        return {"rows": answers.height}

    def _columns(self, predicted: Array) -> list[pl.Series]:
        if predicted.ndim == 1:
            return [pl.Series(PREDICTION, predicted)]
        classes = self._predictor.encoding.classes
        return [
            pl.Series(f"{PREDICTION}_{name}", np.ascontiguousarray(predicted[:, place]))
            for place, name in enumerate(classes)
        ]


def carry_through(
    partitions: Partitions, executor: Executor, chunks: int, report: Report, take: Callable[[pa.Table], None]
) -> int:
    """Have ``executor`` predict for ``chunks`` of questions; return the rows, whose pieces then lie in the scratch.

    ``executor`` runs ``Predictions.run`` as the task "partition". ``take`` is given the predictions of each chunk, in
    order, as soon as those before it are there.
    """
    scratch, taken = partitions.scratch, 0

    def follow() -> None:
        nonlocal taken
        while taken < chunks and scratch.has(predicted_piece(taken)):
            take(scratch.get(predicted_piece(taken)))
            taken += 1

    predicts: list[Step] = [
        ({"step": "predict", "number": number}, (predicted_piece(number),)) for number in range(chunks)
    ]
    stages = [
        *partitions.table_steps(learning=False), *partitions.question_steps(chunks), ("predicting", predicts),
    ]  # fmt: skip
    pace = Pace(report, sum(len(steps) for _, steps in stages))
    carry(scratch, executor, pace, stages, follow)
    follow()
    return sum(int(scratch.note(predicted_piece(number))["rows"]) for number in range(chunks))


def predicted(scratch: Scratch, chunks: int) -> Iterator[pa.Table]:
    """Yield the predictions of each chunk, in order."""
    return (scratch.get(predicted_piece(number)) for number in range(chunks))


def predicted_piece(number: int) -> str:
    """Return the name of the piece with the predictions of chunk ``number``."""
    return f"predicted-{number}"
