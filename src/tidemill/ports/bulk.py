"""Bulk input: many rows that lie somewhere, read chunk by chunk in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of rows of one input. ``where`` names it, ``first`` is the number of its first row, counted from 1.

    ``start`` and ``end`` are its bounds as the adapter counts them (rows, or bytes).
    """

    where: str
    first: int
    start: int
    end: int

    def as_data(self) -> list[Any]:
        """Return the chunk as JSON data; ``Chunk(*data)`` is the chunk again."""
        return [self.where, self.first, self.start, self.end]


class Bulk(Protocol):
    """Rows of one kind, in a fixed order, that do not change while they are read."""

    def identity(self) -> list[Any]:
        """Return what tells this input from another, and from itself after a change (JSON data)."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the names of its columns. Raises SourceError when its parts do not have the same."""
        ...

    def chunks(self, rows: int) -> list[Chunk]:
        """Return all rows in chunks of about ``rows`` at most, in order."""
        ...

    def read(self, chunk: Chunk, columns: Sequence[str]) -> pl.DataFrame:
        """Return ``columns`` of the rows of ``chunk``, types as found (all text where the input has no types).

        Raises SourceError when they cannot be read.
        """
        ...
