"""One question answered value by value, without a frame: what most requests are, and the shortest way through them.

It gives what ``Answerer`` gives for a frame of that one row, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import polars as pl

from tidemill.base.errors import RequestError
from tidemill.engine.predict.live import Live
from tidemill.engine.predict.predict import Features, Logged, prediction_id
from tidemill.ports.online import Snapshot


class RowFeatures(Features, Protocol):
    """Looks features up as of what has been applied: of many requests, or of one without a frame."""

    def row(
        self, request: dict[str, Any], schema: Mapping[str, pl.DataType], snapshot: Snapshot | None = None
    ) -> tuple[list[Any], Any]:
        """Return the values of the model's columns for ``request``, and what had been applied."""
        ...


def answer(
    live: Live, lookup: RowFeatures, snapshot: Snapshot, request: dict[str, Any], nonce: str, route: str
) -> tuple[Logged, float]:
    """Return the champion's prediction for ``request`` (see RequestRows.row), and the seconds the look-up took.

    Raises RequestError as ``Answerer.answer``, WorkspaceError as the look-up.
    """
    champion = live.champion
    assert champion.pick is not None
    began = time.perf_counter()
    values, applied = lookup.row(request, live.rows.schema, snapshot)
    looking = time.perf_counter() - began
    try:
        predicted = champion.predictor.row(champion.pick(values))
    except ValueError as error:
        first = str(error).partition("\n")[0]
        raise RequestError(f"The model cannot take the features of these rows: {first}") from error
    if not (math.isfinite(predicted) if isinstance(predicted, float) else all(map(math.isfinite, predicted))):
        raise RequestError("The model gives no finite prediction for these rows.")
    key = [request[column] for column in live.rows.key]
    name = live.model.name
    logged = Logged(
        id=prediction_id(name, key, applied.t, nonce),
        model=name,
        version=champion.version,
        route=route,
        asked=applied.t,
        journal=applied.journal,
        nonce=nonce,
        applied=applied.next_seq,
        key=key,
        request=request,
        features=dict(zip(live.columns.looked, live.columns.pick(values), strict=True)),
        prediction=predicted,
        columns=live.columns.names,
    )
    return logged, looking
