"""Files of rows to predict for, read in chunks.

Parquet is read by row numbers, CSV and NDJSON by offsets of whole lines that one pass over the file finds. The formats
are those of sources (``file_reader``), so a file means the same here and there.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from tidemill.adapters import file_reader
from tidemill.adapters.row_reader import columns_of
from tidemill.base.errors import NotFoundError, SourceError
from tidemill.base.schema import nearest
from tidemill.ports.bulk import Chunk

_SUFFIXES = (".parquet", ".csv", ".ndjson", ".jsonl")
#: Text is cut into pieces of at most this many bytes.
BLOCK = 8 * 2**20


class BulkFiles:
    """The rows of some files: paths, folders, or globs; in the order given, those of one pattern by name."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.paths = [path for pattern in patterns for path in _found(pattern)]
        self._headers: dict[str, list[str]] = {}

    def identity(self) -> list[Any]:
        """Return paths, sizes and change times."""
        stats = [(path, path.stat()) for path in self.paths]
        return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns. Raises SourceError when the files do not have the same."""
        first, *others = self.paths
        columns = self._columns(first)
        for path in others:
            if differing := sorted(set(columns) ^ set(self._columns(path))):
                raise SourceError(
                    f"The columns of {path} are not those of {first} (they differ in {', '.join(differing)}). "
                    "Give all files the same columns."
                )
        return tuple(columns)

    def chunks(self, rows: int) -> list[Chunk]:
        """Return all rows in chunks: at most ``rows`` of Parquet, at most ``BLOCK`` bytes of text."""
        return [chunk for path in self.paths for chunk in self._chunks(path, rows)]

    def read(self, chunk: Chunk, columns: Sequence[str]) -> pl.DataFrame:
        """Return ``columns`` of the rows of ``chunk``. Raises SourceError when they cannot be read."""
        path = Path(chunk.where)
        try:
            if path.suffix == ".parquet":
                frame = pl.scan_parquet(path, glob=False).select(columns)
                return frame.slice(chunk.start, chunk.end - chunk.start).collect()
            with path.open("rb") as file:
                file.seek(chunk.start)
                block = file.read(chunk.end - chunk.start)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise SourceError(f"{path} cannot be read: {error}") from error
        if path.suffix == ".csv":
            table, broken = file_reader.csv_rows(str(path), block, self._columns(path))
        else:
            rows, broken = file_reader.json_lines(block)
            table = columns_of(rows) if rows else pa.table({})
        if broken:
            text, reason = broken[0]
            raise SourceError(f"{path}, at or after row {chunk.first}: {reason}: {text[:200]!r}. Mend the file.")
        nulls = pa.nulls(table.num_rows)
        return pl.DataFrame({name: table[name] if name in table.column_names else nulls for name in columns})

    def _columns(self, path: Path) -> list[str]:
        name = str(path)
        if name not in self._headers:
            self._headers[name] = _header(path)
        return self._headers[name]

    def _chunks(self, path: Path, rows: int) -> Iterable[Chunk]:
        if path.suffix != ".parquet":
            yield from _cut(path)
            return
        metadata, start = pa.parquet.ParquetFile(path).metadata, 0
        for number in range(metadata.num_row_groups):  # a chunk within one row group decodes nothing twice
            end = start + metadata.row_group(number).num_rows
            for first in range(start, end, rows):
                yield Chunk(str(path), first + 1, first, min(first + rows, end))
            start = end


def _found(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES)
    elif path.exists():
        found = [path]
    else:
        found = [Path(each) for each in sorted(glob.glob(pattern, recursive=True)) if Path(each).is_file()]
    if not found:
        here = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise NotFoundError(f"There is no file {pattern}.{nearest(pattern, here)}")
    for each in found:
        if each.suffix not in _SUFFIXES:
            known = ", ".join(_SUFFIXES)
            raise SourceError(f"{each}: unknown format {each.suffix or '(no suffix)'!r}. Known: {known}.")
    return found


def _header(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            return list(pa.parquet.read_schema(path).names)
        with path.open("rb") as file:
            if path.suffix == ".csv":
                names, _ = file_reader.read_header(str(path), file)
                if names is None:
                    raise SourceError(f"{path} is empty: it has not even a header line.")
                return names
            rows, _ = file_reader.json_lines(file.read(BLOCK).rpartition(b"\n")[0] or path.read_bytes())
            return columns_of(rows).column_names if rows else []
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def _cut(path: Path) -> Iterable[Chunk]:
    """Yield a text file in chunks of whole lines."""
    csv = path.suffix == ".csv"
    size, row = path.stat().st_size, 1
    with path.open("rb") as file:
        offset = file_reader.read_header(str(path), file)[1] if csv else file_reader.after_bom(file)
        while offset < size:
            file.seek(offset)
            block = file.read(BLOCK)
            at_end = offset + len(block) == size
            length = len(block) if at_end else file_reader.whole_lines(block, quotes=csv)
            if not length:
                raise SourceError(f"{path}: the line at byte {offset} is longer than {BLOCK} bytes. Is a quote open?")
            yield Chunk(str(path), row, offset, offset + length)
            row += block.count(b"\n", 0, length)
            offset += length
