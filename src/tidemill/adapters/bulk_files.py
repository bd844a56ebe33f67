"""Files of rows to predict for, read in chunks; and files that predictions are written to.

Parquet is read by row numbers, CSV and NDJSON by offsets of whole lines that one pass over the file finds. The formats
are those of sources (``file_reader``), so a file means the same here and there.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

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


# Output -----------------------------------------------------------------------------------------------------------


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise SourceError when ``path`` cannot be written to: an unknown format, no folder, or it is there already."""
    if path.suffix not in (".parquet", ".csv"):
        raise SourceError(f"{path}: predictions are written to a file that ends in .parquet or .csv.")
    if not path.parent.is_dir():
        raise NotFoundError(f"There is no folder {path.parent}. Make it first.")
    if path.exists() and not overwrite:
        raise SourceError(f"{path} is there already. Name another file, or say --overwrite.")


def write(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write ``tables`` (one at least) into one file: it is there whole or not at all.

    Raises SourceError when a column has types in them that have nothing in common, or that the format cannot hold.
    """
    if path.suffix == ".csv" and (
        nested := [field.name for field in tables[0].schema if pa.types.is_nested(field.type)]
    ):
        raise SourceError(f"{path}: {nested[0]!r} holds lists or structures, which CSV cannot. Write Parquet.")
    try:
        schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise SourceError(f"{path}: the input's parts do not fit together: {error}") from error
    handle, part = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, (table.cast(schema) for table in tables), schema, path.suffix)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _write(file: IO[bytes], tables: Iterable[pa.Table], schema: pa.Schema, suffix: str) -> None:
    if suffix == ".csv":
        for place, table in enumerate(tables):
            frame = pl.DataFrame(table)
            frame = frame.with_columns(_utc(each) for each in frame if isinstance(each.dtype, pl.Datetime))
            frame.write_csv(file, include_header=place == 0, datetime_format="%Y-%m-%dT%H:%M:%S%.fZ")
        return
    # A dictionary of keys or predictions, hardly two of which are the same, costs time and saves nothing. Keys and
    # times mostly follow each other: their differences are a third smaller, and sooner written.
    stepping = [field.name for field in schema if _steps(field.type)]
    repeated = [field.name for field in schema if not (_steps(field.type) or pa.types.is_floating(field.type))]
    encoding = dict.fromkeys(stepping, "DELTA_BINARY_PACKED")
    with pa.parquet.ParquetWriter(file, schema, use_dictionary=repeated, column_encoding=encoding) as writer:
        for table in tables:
            writer.write_table(table)


def _utc(column: pl.Series) -> pl.Series:
    """Return times in UTC, which those without an offset are in."""
    zone = column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None
    return column.dt.convert_time_zone("UTC") if zone else column.dt.replace_time_zone("UTC")


def _steps(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype) or pa.types.is_timestamp(dtype))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
