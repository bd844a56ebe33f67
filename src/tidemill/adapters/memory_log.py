"""A log in memory: for backtests and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future

from tidemill.ports.log import Record


class MemoryLogWriter:
    """Implements ports.log.LogWriter over one list of records."""

    def __init__(self, records: list[bytes]) -> None:
        self._records = records

    def append(self, *payloads: bytes) -> Future[None]:
        """Keep the records; the future is done."""
        self._records += payloads
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close(self) -> None:
        """No-op."""


class MemoryLog:
    """Implements ports.log.Log; offsets count records."""

    def __init__(self) -> None:
        self._segments: list[list[bytes]] = []

    def writer(self) -> MemoryLogWriter:
        """Start a new segment."""
        self._segments.append([])
        return MemoryLogWriter(self._segments[-1])

    def read(self, cursor: Mapping[str, int], *, limit: int = 10_000) -> Iterator[Record]:
        """Yield up to ``limit`` records past ``cursor``."""
        left = limit
        for number, records in enumerate(self._segments):
            start = cursor.get(str(number), 0)
            for end, payload in enumerate(records[start : start + left], start + 1):
                left -= 1
                yield Record(str(number), end, payload)

    def trim(self, cursor: Mapping[str, int]) -> None:
        """No-op: memory is given back with the log."""
