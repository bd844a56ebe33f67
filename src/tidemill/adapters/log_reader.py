"""Pushed rows, drained from the log in front of the lake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa

from tidemill.adapters.row_reader import columns_of
from tidemill.base.hashing import canonical
from tidemill.ports.log import Log
from tidemill.ports.reader import Batch

#: Records drained into one batch, at most.
BATCH_RECORDS = 10_000


class LogReader:
    """Reads records ``{"rows": [{…}, …], "idempotency_key": text or null}``. The cursor maps segments to offsets.

    A record that is not of this form is broken as a whole. Repeated keys are left to the intake.
    """

    def __init__(self, log: Log) -> None:
        self._log = log

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        """Yield what was pushed after ``cursor``, in batches of up to ``BATCH_RECORDS`` records."""
        offsets: dict[str, int] = json.loads(cursor) if cursor else {}
        while True:
            rows: list[dict[str, Any]] = []
            pushes: list[tuple[str | None, int]] = []
            broken: list[tuple[str, str]] = []
            drained = 0
            for record in self._log.read(offsets, limit=BATCH_RECORDS):
                drained += 1
                offsets = {**offsets, record.segment: record.end}
                try:
                    push = msgspec.json.decode(record.payload, type=_Push)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    broken.append((record.payload.decode(errors="replace"), f"not a push of rows: {error}"))
                    continue
                rows += push.rows
                pushes.append((push.idempotency_key, len(push.rows)))
            if not drained:
                return
            table = columns_of(rows) if rows else pa.table({})
            yield Batch(table, canonical(offsets).decode(), tuple(broken), pushes=tuple(pushes))

    def trim(self, cursor: str | None) -> None:
        """Let the log delete what lies before ``cursor``, once that is committed."""
        self._log.trim(json.loads(cursor) if cursor else {})


class _Push(msgspec.Struct):
    rows: list[dict[str, Any]]
    idempotency_key: str | None = None
