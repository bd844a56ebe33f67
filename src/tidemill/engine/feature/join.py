"""As-of joins of frames, by the rules by which feature views look rows up (time rules 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from tidemill.base.clock import parse_duration
from tidemill.base.errors import RequestError
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, SYSTEM_COLUMNS, TICK, TOMBSTONE, nearest
from tidemill.engine.feature.feature import compute
from tidemill.engine.table.table import TIME
from tidemill.engine.table.tally import tell
from tidemill.spec.feature import Latest
from tidemill.spec.source import Source, push
from tidemill.spec.time import Offset

_ROW = ".row"
_LONG_AGO = -(2**62)  # a row without a time asks before anything was known


def join_asof(
    left: pl.LazyFrame | pl.DataFrame,
    right: pl.LazyFrame | pl.DataFrame,
    *,
    on: str | Iterable[str] | Mapping[str, str],
    at: str,
    event_time: str | None = None,
    known_at: str | Offset | None = None,
    columns: Iterable[str] | None = None,
    within: str | None = None,
    prefix: str = "",
) -> pl.LazyFrame:
    """Return ``left`` with ``columns`` of the last row of ``right`` that each of its rows could know.

    For use in the function of a derived table. ``on``: the columns that are alike, or ``{"right's": "left's"}``.
    ``at``: the column of ``left`` with the time that it asks at; let it be no later than the row's known-at.
    ``event_time``, ``known_at``: of ``right``; both lie before ``at``, and the latest by event time is taken, with
    ``within`` no older than that. Without an event time the last known is taken; without a known-at it is the event
    time. ``columns``: all but those of ``on``, unless given; ``prefix`` is put before their names. No row of ``left``
    is lost: where nothing is found, the columns are null. Rows matched are counted with the table's commit. Raises
    RequestError when a column is missing, or a name would come twice.
    """
    ours, theirs = (frame.collect() if isinstance(frame, pl.LazyFrame) else frame for frame in (left, right))
    pairs = dict(on) if isinstance(on, Mapping) else {name: name for name in ((on,) if isinstance(on, str) else on)}
    known = known_at if known_at is not None else event_time
    if known is None:
        raise RequestError("join_asof() needs the right side's event_time= or known_at=: without one, nothing says "
                           "what was known.")  # fmt: skip
    times = [known.column if isinstance(known, Offset) else known, *([event_time] if event_time else [])]
    wanted = [name for name in theirs.columns if name not in pairs] if columns is None else list(columns)
    for side, frame, names in (("left", ours, (at, *pairs.values())), ("right", theirs, (*pairs, *times, *wanted))):
        for name in names:
            if name not in frame.columns:
                raise RequestError(f"the {side} side has no column {name!r}.{nearest(name, frame.columns)}", field=name)
    for name in wanted:
        if prefix + name in ours.columns:
            raise RequestError(f"both sides have a column {prefix + name!r}. Give a prefix='…_'.", field=name)

    moment = pl.col(known).cast(TIME) if isinstance(known, str) else (
        pl.col(known.column).cast(TIME) + pl.duration(microseconds=known.micros)
    )  # fmt: skip
    rows = theirs.drop(SYSTEM_COLUMNS, strict=False).with_columns(
        moment.alias(KNOWN_AT),
        pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQ),
        pl.int_range(pl.len(), dtype=pl.Int64).alias(_ROW),
        pl.lit(value=False).alias(TOMBSTONE),
        pl.lit(None, dtype=TIME).alias(TICK),
        pl.lit(value=False).alias(HISTORY),
    )
    table = Source("right", push(), key=_ROW, event_time=event_time, known_at=KNOWN_AT)
    view = Latest(
        "found", table, by=list(pairs), columns=[_ROW, *wanted], within=within if event_time else None, on=pairs
    )
    asked = ours[at].cast(TIME).to_physical().fill_null(_LONG_AGO).to_numpy()
    found = compute(view, rows, ours, asked.astype(np.int64))
    if within is not None and event_time is None:
        age = pl.Series(asked) - rows[KNOWN_AT].to_physical().gather(found[f"found__{_ROW}"])
        stale = (age > parse_duration(within)).fill_null(value=False)
        found = found.select(found[name].set(stale, None) for name in found.columns)
    tell({"step": f"join {', '.join(pairs)}", "rows": ours.height, "matched": found[f"found__{_ROW}"].count()})
    joined = ours.with_columns(found[f"found__{name}"].alias(prefix + name) for name in wanted)
    return joined.lazy()
