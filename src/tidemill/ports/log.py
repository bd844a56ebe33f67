"""The log in front of the lake: records that processes append and the worker drains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """One record and its place: ``end`` is the offset in bytes just after it in ``segment``."""

    segment: str
    end: int
    payload: bytes


class LogWriter(Protocol):
    """The one writer of one segment, made anew at every start of a process. Threads may share it."""

    def append(self, *payloads: bytes) -> Future[None]:
        """Write records to the operating system before returning; the future is done once they are on disk (≤ 10 ms).

        They follow one another. Raises TidemillError when they cannot be written; none of them is then.
        """
        ...

    def close(self) -> None:
        """Sync and close. Idempotent."""
        ...


class Log(Protocol):
    """Append-only segments of checksummed records, one segment a writer."""

    def writer(self) -> LogWriter:
        """Start a new segment with a random id."""
        ...

    def read(self, cursor: Mapping[str, int], *, limit: int = 10_000) -> Iterator[Record]:
        """Yield up to ``limit`` records past ``cursor`` (segment to offset), by segment in order of creation.

        A torn record ends the reading of its segment; what comes before it is whole.
        """
        ...

    def trim(self, cursor: Mapping[str, int]) -> None:
        """Delete segments that are read to their end and have no living writer."""
        ...
