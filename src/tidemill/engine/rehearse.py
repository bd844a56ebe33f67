"""Rehearsal: the past, or the record of a live run, turned through the mill again under a virtual clock.

Rows are delivered at the tick at which they were, or could have been, known; questions are asked at the tick at which
they were, or would have been, asked. Everything between is the code that runs live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import polars as pl

from tidemill.base.clock import VirtualClock
from tidemill.base.schema import SEQ, SYSTEM_COLUMNS
from tidemill.engine.example import ASKED_AT, examples
from tidemill.engine.ingest import to_arrow
from tidemill.engine.mill import Mill, Turned
from tidemill.engine.online import Lookup
from tidemill.engine.predict import Answerer, Logged, Predictor
from tidemill.engine.table import TIME
from tidemill.ports.log import LogWriter
from tidemill.ports.reader import Batch
from tidemill.spec.model import Model


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions to one model at one moment; ``nonces`` tell apart two about one key."""

    requests: pl.DataFrame
    nonces: Sequence[str]


#: What is asked after a tick, by model.
Questions = Callable[[int], Mapping[str, Asked]]


class PastReader:
    """Delivers the rows of one source as a virtual clock passes the moments they are due. Implements ports.reader."""

    def __init__(self, rows: pl.DataFrame, clock: VirtualClock, *, due: str) -> None:
        """Deliver ``rows`` (system columns too) by the time column ``due``; a null there is due at once."""
        moments = rows[due].cast(TIME).to_physical().fill_null(-(2**62)).alias("_due")
        ordered = rows.with_columns(moments).sort("_due", SEQ)
        self._due = ordered["_due"]
        self._rows = ordered.drop("_due", *SYSTEM_COLUMNS)
        self._clock = clock

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        """Yield what is due by now beyond ``cursor`` (a number of rows)."""
        start = int(cursor or 0)
        end = int(self._due.search_sorted(self._clock.now(), side="right"))
        if end > start:
            yield Batch(to_arrow(self._rows[start:end]), str(end))


def past_questions(model: Model, rows: pl.DataFrame, ticks: Sequence[int]) -> dict[int, Asked]:
    """Return every example of ``rows`` (all versions of the examples' table) at the first tick after its asked-at.

    Those asked before the first tick or after the last are left out.
    """
    found, _ = examples(model, rows, 2**62)
    asked = found[ASKED_AT].to_physical()
    grid = pl.Series(ticks, dtype=pl.Int64)
    place = grid.search_sorted(asked, side="left")
    inside = found.select(model.request_columns).with_columns(place.cast(pl.Int64).alias("_place"))
    inside = inside.filter((asked > ticks[0]) & (pl.col("_place") < len(ticks)))
    parts = inside.partition_by("_place", as_dict=True, include_key=False, maintain_order=True)
    return {ticks[int(place)]: Asked(part, [""] * part.height) for (place,), part in parts.items()}


def recorded_questions(model: Model, predictions: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> dict[int, Asked]:
    """Return the questions in a prediction ledger by the tick after which they were asked (t less a microsecond)."""
    own = predictions.filter(pl.col("model") == model.name).sort(SEQ)
    asked: dict[int, Asked] = {}
    for (moment,), part in own.partition_by("asked", as_dict=True, maintain_order=True).items():
        rows = [msgspec.json.decode(text) for text in part["request"]]
        columns = []
        for name in model.request_columns:
            dtype = schema[name]
            plain = pl.Int64() if isinstance(dtype, pl.Datetime) else dtype
            columns.append(pl.Series(name, [row[name] for row in rows], dtype=plain).cast(dtype))
        tick = int(pl.Series([moment]).to_physical()[0]) - 1
        asked[tick] = Asked(pl.DataFrame(columns), part["nonce"].to_list())
    return asked


def rehearse(
    mill: Mill,
    clock: VirtualClock,
    ticks: Sequence[int],
    questions: Questions,
    load: Callable[[str, str], Predictor],
    log: LogWriter,
) -> Iterator[Turned]:
    """Turn ``mill`` at each of ``ticks``, asking after each what ``questions`` says; yields what each tick did.

    ``load`` gives the predictor of a model's training; ``log`` takes what was answered, to be drained at the next tick.
    Questions to a model that has no champion yet are not asked.
    """
    answerers: dict[tuple[str, int], Answerer] = {}
    lookups = {model.name: Lookup(model, mill.ports.online) for model in mill.system.models}

    def keep(logged: Sequence[Logged]) -> None:
        for one in logged:
            log.append(msgspec.json.encode(one))

    for tick in ticks:
        clock.advance_to(tick)
        yield mill.tick(tick)
        for name, asked in questions(tick).items():
            state = mill.state.model(name)
            if "champion" not in state.aliases or asked.requests.is_empty():
                continue
            number = state.aliases["champion"]
            if (name, number) not in answerers:
                key = next(model.examples.key for model in mill.system.models if model.name == name)
                predictor = load(name, state.version(number).training)
                answerers[name, number] = Answerer(name, number, key, lookups[name], predictor, keep)
            answerers[name, number].answer(asked.requests, nonces=asked.nonces)
