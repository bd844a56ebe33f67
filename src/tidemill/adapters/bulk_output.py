"""Files that predictions are written to: Parquet and CSV."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from tidemill.base.errors import NotFoundError, SourceError


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise SourceError when ``path`` cannot be written to: an unknown format, no folder, or it is there already."""
    if path.suffix not in (".parquet", ".csv"):
        raise SourceError(f"{path}: predictions are written to a file that ends in .parquet or .csv.")
    if not path.parent.is_dir():
        raise NotFoundError(f"There is no folder {path.parent}. Make it first.")
    if path.exists() and not overwrite:
        raise SourceError(f"{path} is there already. Name another file, or say --overwrite.")


class Output:
    """One file, written while its tables come: it is there whole after ``finish``, or not at all.

    For ``with``. Tables have the same columns; their types may differ, as far as they have something in common.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schemas: list[pa.Schema] = []  # of the tables, each once
        handle, self._part = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._format: _Format | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._format is not None:
            with contextlib.suppress(OSError, pa.ArrowException):  # nobody wants the file any more, or it is in place
                self._format.close()
        self._file.close()
        Path(self._part).unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        """Write what comes next. Raises SourceError when the format cannot hold a column."""
        if table.schema not in self._schemas:
            self._schemas.append(table.schema)
        if len(self._schemas) > 1:
            return  # what types they have in common is known at the end
        if self._format is None:
            self._format = self._begin(table.schema)
        self._format.write(table)

    def finish(self, tables: Callable[[], Iterable[pa.Table]]) -> None:
        """Put the file in its place. ``tables`` gives all that were added again, where they are not of the same types.

        Raises SourceError when a column has types in them that have nothing in common.
        """
        if len(self._schemas) > 1:
            try:
                schema = pa.unify_schemas(self._schemas, promote_options="permissive")
            except pa.ArrowException as error:
                raise SourceError(f"{self._path}: the input's parts do not fit together: {error}") from error
            if self._format is not None:
                self._format.close()
            self._file.seek(0)
            self._file.truncate()
            self._format = self._begin(schema)
            for table in tables():
                self._format.write(table.cast(schema))
        if self._format is not None:
            self._format.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        os.chmod(self._part, 0o666 & ~_umask())
        os.replace(self._part, self._path)

    def _begin(self, schema: pa.Schema) -> _Format:
        return _Parquet(self._file, schema) if self._path.suffix == ".parquet" else _Csv(self._file, schema, self._path)


class _Format(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class _Parquet:
    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        # A dictionary of keys or predictions, hardly two of which are the same, costs time and saves nothing. Keys and
        # times mostly follow each other: their differences are a third smaller, and sooner written.
        stepping = [field.name for field in schema if _steps(field.type)]
        repeated = [field.name for field in schema if not (_steps(field.type) or pa.types.is_floating(field.type))]
        encoding = dict.fromkeys(stepping, "DELTA_BINARY_PACKED")
        self._writer = pa.parquet.ParquetWriter(file, schema, use_dictionary=repeated, column_encoding=encoding)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    def __init__(self, file: IO[bytes], schema: pa.Schema, path: Path) -> None:
        if nested := [field.name for field in schema if pa.types.is_nested(field.type)]:
            raise SourceError(f"{path}: {nested[0]!r} holds lists or structures, which CSV cannot. Write Parquet.")
        self._file, self._header = file, True

    def write(self, table: pa.Table) -> None:
        frame = pl.DataFrame(table)
        frame = frame.with_columns(_utc(each) for each in frame if isinstance(each.dtype, pl.Datetime))
        frame.write_csv(self._file, include_header=self._header, datetime_format="%Y-%m-%dT%H:%M:%S%.fZ")
        self._header = False

    def close(self) -> None:
        pass


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
