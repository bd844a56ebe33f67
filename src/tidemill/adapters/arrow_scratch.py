"""Scratch on local disk: a directory of Arrow files, mapped into memory when they are read.

A piece is one Arrow IPC file with a record batch for each of its tables, so that a table is read without touching the
others. It is written beside its name and renamed, so a killed process leaves no half of one. Nothing is synced: a
machine that goes down may lose pieces, and a file that is not whole is as good as none.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.base.errors import NotFoundError
from tidemill.base.hashing import canonical

_NOTE = b"tidemill.note"
_MAGIC = b"ARROW1"  # the last bytes of a whole file


class ArrowScratch:
    """Pieces in ``root``, which is made when there is none. Threads and processes may share it."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root

    def has(self, name: str) -> bool:
        """Tell whether piece ``name`` is there, whole."""
        try:
            with self._path(name).open("rb") as file:
                file.seek(-len(_MAGIC), os.SEEK_END)
                return file.read() == _MAGIC
        except OSError:
            return False

    def put(self, name: str, tables: Sequence[pa.Table], note: Mapping[str, Any] | None = None) -> None:
        """Write a piece: it is there whole or not at all."""
        schema = tables[0].schema.with_metadata({_NOTE: canonical(dict(note or {}))})
        handle, part = tempfile.mkstemp(prefix=f".{name}-", dir=self._root)
        try:
            with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, schema) as writer:
                for table in tables:
                    batches = table.combine_chunks().to_batches()
                    empty = pa.RecordBatch.from_pylist([], schema=schema)
                    writer.write_batch(batches[0].replace_schema_metadata(schema.metadata) if batches else empty)
            os.replace(part, self._path(name))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    def get(self, name: str, place: int = 0) -> pa.Table:
        """Return one table of a piece, mapped into memory. Raises NotFoundError when there is no such piece."""
        reader = self._open(name)
        table: pa.Table = pa.Table.from_batches([reader.get_batch(place)]).replace_schema_metadata(None)
        return table

    def note(self, name: str) -> dict[str, Any]:
        """Return a piece's note. Raises NotFoundError when there is no such piece."""
        note: dict[str, Any] = json.loads(self._open(name).schema.metadata[_NOTE])
        return note

    def _open(self, name: str) -> Any:
        try:
            return pa.ipc.open_file(pa.memory_map(str(self._path(name))))
        except FileNotFoundError:
            raise NotFoundError(f"there is no piece {name!r} in {self._root}.") from None

    def _path(self, name: str) -> Path:
        return self._root / f"{name}.arrow"
