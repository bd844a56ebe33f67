"""One question answered value by value, without a frame: the shortest way for requests of few rows, which most are.

It gives what ``Answerer`` gives for a frame of that one row, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import polars as pl

from tidemill.base.errors import RequestError
from tidemill.engine.predict.live import Live, Loaded
from tidemill.engine.predict.predict import Features, Logged, prediction_id
from tidemill.engine.table.plain import storable
from tidemill.ports.online import Snapshot


class RowFeatures(Features, Protocol):
    """Looks features up as of what has been applied: of many requests, or of one without a frame."""

    def row(
        self, request: dict[str, Any], schema: Mapping[str, pl.DataType], snapshot: Snapshot | None = None
    ) -> tuple[list[Any], Any]:
        """Return the values of the model's columns for ``request``, and what had been applied."""
        ...


def answer(
    live: Live, by: Loaded, route: str, request: dict[str, Any], found: tuple[list[Any], Any], nonce: str
) -> Logged:
    """Return the prediction of the version ``by`` for ``request`` (see RequestRows.row).

    ``found``: what ``RowFeatures.row`` found for it. Raises RequestError as ``Answerer.answer``.
    """
    assert by.pick is not None
    values, applied = found
    try:
        predicted = by.predictor.row(by.pick(values))
    except ValueError as error:
        first = str(error).partition("\n")[0]
        raise RequestError(f"The model cannot take the features of these rows: {first}") from error
    if not (math.isfinite(predicted) if isinstance(predicted, float) else all(map(math.isfinite, predicted))):
        raise RequestError("The model gives no finite prediction for these rows.")
    key = [request[column] for column in live.rows.key]
    name = live.model.name
    return Logged(
        id=prediction_id(name, key, applied.t, nonce),
        model=name,
        version=by.version,
        route=route,
        asked=applied.t,
        journal=applied.journal,
        nonce=nonce,
        applied=applied.next_seq,
        key=key,
        request=request,
        features=dict(zip(live.columns.looked, map(storable, live.columns.pick(values)), strict=True)),
        prediction=predicted,
        columns=live.columns.names,
    )
