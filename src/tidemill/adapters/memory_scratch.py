"""Scratch in memory: for tests and for work in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tidemill.base.errors import NotFoundError
from tidemill.base.hashing import canonical


class MemoryScratch:
    """Pieces held as they were given. Threads may share it."""

    def __init__(self) -> None:
        self._pieces: dict[str, tuple[tuple[pa.Table, ...], bytes]] = {}

    def has(self, name: str) -> bool:
        """Tell whether piece ``name`` is there."""
        return name in self._pieces

    def put(self, name: str, tables: Sequence[pa.Table], note: Mapping[str, Any] | None = None) -> None:
        """Keep a piece."""
        self._pieces[name] = (tuple(tables), canonical(dict(note or {})))

    def get(self, name: str, place: int = 0) -> pa.Table:
        """Return one table of a piece."""
        return self._piece(name)[0][place]

    def note(self, name: str) -> dict[str, Any]:
        """Return a piece's note."""
        note: dict[str, Any] = json.loads(self._piece(name)[1])
        return note

    def _piece(self, name: str) -> tuple[tuple[pa.Table, ...], bytes]:
        if name not in self._pieces:
            raise NotFoundError(f"there is no piece {name!r}.")
        return self._pieces[name]
