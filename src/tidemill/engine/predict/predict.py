"""Predictors, and the one way to answer a question: look features up, predict, remember.

The server, the batch and the backtest answer through ``Answerer``, so what is rehearsed is what is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import numpy as np
import polars as pl

from tidemill.base.errors import RequestError
from tidemill.base.schema import picker
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.table.plain import plain, storable_rows


class Runner(Protocol):
    """Another form of a fitted estimator that gives its predictions: compiled, or run by ONNX Runtime."""

    def batch(self, features: pl.DataFrame) -> np.ndarray[Any, Any]:
        """Return predictions, float64 (rows, outputs), for the encoding's columns of ``features``."""
        ...

    def row(self, values: Sequence[Any]) -> float | list[float]:
        """Return the prediction for one row of the encoding's columns, in their order: the same bits as ``batch``."""
        ...


@dataclass(frozen=True, slots=True)
class Predictor:
    """A fitted estimator with the encoding of its input, or another form of it (``runner``), which then answers.

    With a runner, ``estimator`` may be None: what is served needs none of its libraries.
    """

    encoding: Encoding
    estimator: Any
    runner: Runner | None = None

    def predict(self, features: pl.DataFrame) -> np.ndarray[Any, Any]:
        """Return one float64 a row for ``features`` (columns of the model, any number of rows).

        The probability of the second of two classes, the value of a regression, or for more classes an array (rows,
        classes) of probabilities. Raises ValueError when the estimator does not take the values.
        """
        if self.runner is not None:
            predicted = self.runner.batch(features)
            return predicted if predicted.shape[1] > 1 else predicted[:, 0]
        frame = self.encoding.frame(features)
        if not self.encoding.classes:
            return np.asarray(self.estimator.predict(frame), dtype=np.float64)
        probabilities = np.asarray(self.estimator.predict_proba(frame), dtype=np.float64)
        return probabilities[:, 1] if len(self.encoding.classes) == 2 else probabilities

    def row(self, values: Sequence[Any]) -> float | list[float]:
        """Return the prediction for one row: a list of the values of ``encoding.columns``, in their order.

        Values are float, int, bool or None, and str or None where the encoding has categories. The same bits as
        ``predict`` gives where there is a runner. Raises ValueError as ``predict``.
        """
        if self.runner is not None:
            return self.runner.row(values)
        schema = {name: pl.String if name in self.encoding.categories else pl.Float64 for name in self.encoding.columns}
        made = self.predict(pl.DataFrame([list(values)], schema=schema, orient="row", strict=False))[0].tolist()
        predicted: float | list[float] = made
        return predicted


class Features(Protocol):
    """Looks features up as of what has been applied."""

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Any]:
        """Return the model's columns for ``requests``, in their order, and what had been applied."""
        ...


class Logged(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction as it is logged: everything that is needed to trace it and to compute it again.

    ``asked``: the t it was answered at, microseconds. ``applied``: rows of each table that the features could see, by
    sequence number. ``request``: its columns and values. ``columns``: the names of the model's columns, in their order;
    ``features``: the values of those that the request did not bring, storable (``table/plain.py``). ``id``: see
    ``prediction_id``; ``prediction``: see ``Predictor.predict``.
    """

    id: str
    model: str
    version: int
    route: str
    asked: int
    journal: int
    nonce: str
    applied: Mapping[str, int]
    key: list[Any]
    request: dict[str, Any]
    features: dict[str, Any]
    prediction: float | list[float]
    columns: msgspec.Raw

    def whole(self) -> dict[str, Any]:
        """Return the values of all of the model's columns, in their order."""
        return {
            name: self.features[name] if name in self.features else self.request[name]
            for name in _names(bytes(self.columns))
        }


@lru_cache(64)
def _names(columns: bytes) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(columns))


@dataclass(frozen=True, slots=True)
class Columns:
    """A model's columns as predictions log them. ``names``: see ``Logged.columns``; ``looked``: those of ``features``.

    ``pick`` takes the values of ``looked`` from those of all columns.
    """

    names: msgspec.Raw
    looked: tuple[str, ...]
    pick: Callable[[Sequence[Any]], tuple[Any, ...]]

    @staticmethod
    def of(columns: Sequence[str], plain: Sequence[str] = ()) -> Columns:
        """Return the ``columns`` of a model, of which requests bring ``plain``."""
        looked = {name: place for place, name in enumerate(columns) if name not in plain}
        return Columns(msgspec.Raw(_encode(list(columns))), tuple(looked), picker(list(looked.values())))


_encode = msgspec.json.Encoder().encode


def prediction_id(model: str, key: Sequence[Any], t: int, nonce: str) -> str:
    """Return the id of the prediction of ``model`` for ``key`` at ``t``: 24 hexadecimal digits of their hash.

    ``nonce`` tells apart two questions about one key at one moment.
    """
    return hashlib.blake2b(_encode((model, [str(part) for part in key], t, nonce)), digest_size=12).hexdigest()


@dataclass(slots=True)
class Answerer:
    """Answers questions to one model version.

    ``name`` and ``version`` are stated in every answer; ``key`` names the key columns of a request, ``columns`` the
    model's.
    """

    name: str
    version: int
    key: tuple[str, ...]
    lookup: Features
    predictor: Predictor
    columns: Columns

    def answer(self, requests: pl.DataFrame, *, nonces: Sequence[str], route: str = "champion") -> list[Logged]:
        """Return one prediction a row of ``requests`` (the model's request columns), in order.

        ``nonces``: see ``prediction_id``. Raises RequestError when the rows' values are such that a feature cannot be
        computed, the estimator refuses them, or a prediction is not finite.
        """
        try:
            features, applied = self.lookup.features(requests)
        except pl.exceptions.PolarsError as error:
            raise RequestError(f"The features cannot be computed from these rows: {_first_line(error)}") from error
        try:
            predicted = self.predictor.predict(features)
        except ValueError as error:
            raise RequestError(f"The model cannot take the features of these rows: {_first_line(error)}") from error
        if not np.isfinite(predicted).all():
            raise RequestError("The model gives no finite prediction for these rows.")
        predictions = predicted.tolist()
        looked = list(storable_rows(features.select(self.columns.looked))) or [{}] * requests.height
        return [
            Logged(
                id=prediction_id(self.name, [row[column] for column in self.key], applied.t, nonce),
                model=self.name,
                version=self.version,
                route=route,
                asked=applied.t,
                journal=applied.journal,
                nonce=nonce,
                applied=applied.next_seq,
                key=[row[column] for column in self.key],
                request=row,
                features=values,
                prediction=prediction,
                columns=self.columns.names,
            )
            for row, values, prediction, nonce in zip(
                plain(requests).iter_rows(named=True), looked, predictions, nonces, strict=True
            )
        ]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
