"""Readers: a source's rows from outside, in batches, each with the cursor after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as read (columns as found) and where to continue after them, canonical JSON.

    ``broken`` are pieces of input that could not even be read as a row: pairs of (raw text, reason).
    """

    rows: pa.Table
    cursor: str
    broken: tuple[tuple[str, str], ...] = ()
    #: The file whose header all rows share, so that its columns must be the contract's; None: each row has its own.
    file: str | None = None
    #: False when every value is text whose type is still to be found (CSV).
    typed: bool = True
    #: The pushes that the rows came in, in order: (idempotency key or None, number of rows); empty when not pushed.
    pushes: tuple[tuple[str | None, int], ...] = ()


class Reader(Protocol):
    """Reads what is new since a cursor. Reading twice from one cursor yields the same rows first."""

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        """Yield the batches after ``cursor`` (None: from the beginning) in order, and return when there is no more now.

        Raises SourceError when a whole input cannot be read.
        """
        ...
