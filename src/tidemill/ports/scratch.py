"""Scratch: where the pieces of a long computation lie until it is done, so that an interrupted one can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


class Scratch(Protocol):
    """Named pieces, each written once. A piece is a list of Arrow tables of one schema, and a note (JSON data)."""

    def has(self, name: str) -> bool:
        """Tell whether piece ``name`` is there, whole."""
        ...

    def put(self, name: str, tables: Sequence[pa.Table], note: Mapping[str, Any] | None = None) -> None:
        """Write a piece: it is there whole or not at all. One that was there is replaced."""
        ...

    def get(self, name: str, place: int = 0) -> pa.Table:
        """Return one table of a piece, without reading the others. Raises NotFoundError when there is no such piece."""
        ...

    def note(self, name: str) -> dict[str, Any]:
        """Return a piece's note. Raises NotFoundError when there is no such piece."""
        ...
