"""Files that match a glob: new ones whole, grown ones from where reading stopped.

The cursor is canonical JSON: for each file, by its path below the root, ``[read, check]``. ``read`` is the offset in
bytes (the size, for Parquet), ``check`` a short hash of the head and tail of what was read, so that a file that was
rewritten is noticed. Files that disappear stay in the cursor: they may come back.

Text (CSV, NDJSON) is read up to the last complete line. A last line without its line end is taken once the file has
not been touched for ``REST``; should the file later go on in that very line, the source stops and says so. In a Parquet
file that was read in part a third number counts the rows taken.

In CSV a field without a value is null, and so is ``NA`` without quotes, as R writes it; ``""`` and ``"NA"`` are text.
"""

from __future__ import annotations

import csv
import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tidemill.adapters.row_reader import columns_of
from tidemill.base.clock import HOUR, SystemClock
from tidemill.base.errors import SourceError
from tidemill.base.hashing import canonical, digest
from tidemill.ports.reader import Batch

#: Text is read in pieces of this many bytes; a single record must fit into one.
BLOCK = 16 * 2**20
#: After this time untouched (microseconds, by the machine's clock, as change times are) a file is complete.
REST = HOUR
#: Rows of Parquet in one batch.
BATCH_ROWS = 131_072

_EDGE = 4096  # bytes at the head and at the tail that enter the check
_QUOTED = re.compile(rb'(?:(?<=[,\n\r])|\A)"(?:[^"]++|"")*+("?)')
_TEXT = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
_BOM = b"\xef\xbb\xbf"


class FileReader:
    """Reads the files below ``root`` that match ``pattern``, in order of their paths. The suffix tells the format."""

    def __init__(self, pattern: str, root: Path) -> None:
        self._pattern = pattern
        self._root = root
        self._sound: dict[str, tuple[int, int]] = {}  # files found whole and unchanged, at this size and change time
        self._block = BLOCK

    def poll(self, cursor: str | None) -> Iterator[Batch]:
        """Yield what is new since ``cursor``.

        Raises SourceError, naming the file and what to do, when one was rewritten or cannot be read; nothing of its new
        part has been yielded then.
        """
        state: dict[str, list[Any]] = json.loads(cursor) if cursor else {}
        paths = self._paths()
        for name in sorted(paths):
            path = paths[name]
            if not path.is_file():
                continue
            try:
                if path.suffix == ".parquet":
                    yield from self._parquet(name, path, state)
                elif path.suffix in _TEXT:
                    yield from self._text(name, path, state)
                else:
                    raise SourceError(
                        f"{name}: unknown format {path.suffix or '(no suffix)'!r}. Files are read by suffix: .csv, "
                        ".parquet, .ndjson or .jsonl. Narrow the pattern."
                    )
            except OSError as error:
                raise SourceError(
                    f"{name} cannot be read: {error}. Mend its access rights, or take it away."
                ) from error

    def pending(self, cursor: str | None) -> int:
        """Return how many files are new or have grown since ``cursor``, without reading them."""
        state: dict[str, list[Any]] = json.loads(cursor) if cursor else {}
        sizes = {name: path.stat().st_size for name, path in self._paths().items() if path.is_file()}
        return sum(size > state.get(name, [0])[0] for name, size in sizes.items())

    def _paths(self) -> dict[str, Path]:
        """Return what matches the pattern, by path below the root. Raises SourceError when it is no pattern."""
        try:
            return {path.relative_to(self._root).as_posix(): path for path in self._root.glob(self._pattern)}
        except (ValueError, NotImplementedError) as error:
            raise SourceError(
                f"the pattern {self._pattern!r} cannot be used: {error}. Write one relative to the folder of the "
                "declared file, such as 'arrivals/*.csv' or '**/*.csv'."
            ) from error

    # Text ---------------------------------------------------------------------------------------------------------

    def _text(self, name: str, path: Path, state: dict[str, list[Any]]) -> Iterator[Batch]:
        stat = path.stat()
        read, check = state.get(name, [0, ""])
        self._unchanged(name, path, read, check)
        if stat.st_size == read:
            return
        is_csv = _TEXT[path.suffix] == "csv"
        with path.open("rb") as file:
            self._decodes(name, file, read, stat.st_size)
            header, body = read_header(name, file) if is_csv else (None, after_bom(file))
            if is_csv and header is None:
                return  # not even the header line is complete
            offset = max(read, body)
            file.seek(max(read - 1, 0))
            if read > body and file.read(1) != b"\n" and not file.read(2).startswith((b"\n", b"\r\n")):
                raise SourceError(
                    f"{name}: its last line had no line end for long, was taken as complete, and has now been "
                    "continued. Write whole lines. To go on, put the new lines into a new file and restore this one."
                )
            complete = SystemClock().now() - stat.st_mtime_ns // 1_000 >= REST
            while offset < stat.st_size:
                file.seek(offset)
                block = file.read(min(self._block, stat.st_size - offset))
                at_end = offset + len(block) == stat.st_size
                length = len(block) if at_end and complete else whole_lines(block, quotes=is_csv)
                if not length:
                    if not at_end:
                        raise SourceError(
                            f"{name}: the line at byte {offset} is longer than {self._block} bytes. Look there for a "
                            "quote that is never closed, or a file that is not text."
                        )
                    break
                offset += length
                state[name] = [offset, _check(path, offset)]
                yield self._parse(name, block[:length], header, state)

    def _parse(self, name: str, block: bytes, header: list[str] | None, state: dict[str, list[Any]]) -> Batch:
        cursor = canonical(state).decode()
        if header is None:
            rows, broken = json_lines(block)
            return Batch(columns_of(rows) if rows else pa.table({}), cursor, tuple(broken))
        table, broken = csv_rows(name, block, header)
        return Batch(table, cursor, tuple(broken), file=name, typed=False)

    def _decodes(self, name: str, file: Any, start: int, end: int) -> None:
        """Raise SourceError when the new part of a file is not UTF-8, before any of it is handed over."""
        decoder = getincrementaldecoder("utf-8")()
        file.seek(start)
        while start < end:
            piece = file.read(min(BLOCK, end - start))
            if not piece:
                return
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{name}: the byte {error.object[error.start]:#04x} near offset {start + error.start} is not "
                    "UTF-8. Nothing new of it was loaded. Convert the file to UTF-8."
                ) from error
            start += len(piece)

    # Parquet ------------------------------------------------------------------------------------------------------

    def _parquet(self, name: str, path: Path, state: dict[str, list[Any]]) -> Iterator[Batch]:
        stat = path.stat()
        size, check, *taken = state.get(name, [0, ""])
        if size:
            if size != stat.st_size:
                raise SourceError(_rewritten(name, f"its size went from {size} to {stat.st_size} bytes"))
            self._unchanged(name, path, size, check)
            if not taken:
                return
        skip = taken[0] if taken else 0
        check = _check(path, stat.st_size)
        try:
            with pa.parquet.ParquetFile(path) as file:
                total = file.metadata.num_rows
                if self._sound.get(name) != (stat.st_size, stat.st_mtime_ns):
                    for _ in file.iter_batches(BATCH_ROWS):  # damage shows before anything is handed over
                        pass
                    self._sound[name] = (stat.st_size, stat.st_mtime_ns)
                done = 0
                for batch in file.iter_batches(BATCH_ROWS):
                    done += batch.num_rows
                    if done <= skip:
                        continue
                    state[name] = [stat.st_size, check] if done == total else [stat.st_size, check, done]
                    rows = pa.Table.from_batches([batch.slice(max(0, skip - done + batch.num_rows))])
                    yield Batch(rows, canonical(state).decode(), file=name)
                if total == 0:
                    state[name] = [stat.st_size, check]
                    yield Batch(file.schema_arrow.empty_table(), canonical(state).decode(), file=name)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{name} is not a whole Parquet file: {error}. Nothing of it was loaded. Write it again, to another "
                "name, and rename it when it is complete."
            ) from error

    def _unchanged(self, name: str, path: Path, read: int, check: str) -> None:
        """Raise SourceError when what was read of a file is no longer there as it was."""
        stat = path.stat()
        if stat.st_size < read:
            raise SourceError(_rewritten(name, f"it shrank from {read} to {stat.st_size} bytes"))
        if read and self._sound.get(name) != (stat.st_size, stat.st_mtime_ns):
            if _check(path, read) != check:
                raise SourceError(_rewritten(name, "what was read of it has changed"))
            self._sound[name] = (stat.st_size, stat.st_mtime_ns)


def _rewritten(name: str, what: str) -> str:
    return (
        f"{name} was loaded before and has been rewritten: {what}. Loaded rows stay as they are. Restore the file, and "
        "bring corrections as new rows of the same keys in a new file."
    )


def _check(path: Path, length: int) -> str:
    """Return eight hexadecimal digits of the hash of the first ``length`` bytes' head and tail."""
    with path.open("rb") as file:
        head = file.read(min(_EDGE, length))
        file.seek(max(0, length - _EDGE))
        return digest(head + file.read(min(_EDGE, length)))[:8]


def after_bom(file: Any) -> int:
    """Return the offset at which the text of an open file begins."""
    file.seek(0)
    return len(_BOM) if file.read(len(_BOM)) == _BOM else 0


def read_header(name: str, file: Any) -> tuple[list[str] | None, int]:
    """Return the column names of a CSV file and the offset after them; None while the line is not complete."""
    file.seek(after_bom(file))
    line = file.readline()
    if not line.endswith(b"\n"):
        return None, 0
    names = [field.strip() for field in next(csv.reader([line.decode()]), [])]
    repeated = sorted({each for each in names if names.count(each) > 1})
    if repeated or "" in names:
        what = f"repeats {', '.join(map(repr, repeated))}" if repeated else "has a column without a name"
        raise SourceError(f"{name}: its header {what}. Give each column a name of its own.")
    return names, file.tell()


def whole_lines(block: bytes, *, quotes: bool) -> int:
    """Return the length of the complete records in ``block``; with ``quotes``, line ends within them do not count."""
    length = block.rfind(b"\n") + 1
    if not quotes or b'"' not in block:
        return length
    spans = [(match.start(), match.end() if match[1] else len(block)) for match in _QUOTED.finditer(block)]
    for start, end in reversed(spans):
        if start < length <= end:
            length = block.rfind(b"\n", 0, start) + 1
        elif end < length:
            break
    return length


def csv_rows(name: str, block: bytes, header: list[str]) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Return whole lines of CSV as rows of text, and those with the wrong number of fields as (line, reason)."""
    broken: list[tuple[str, str]] = []

    def refuse(row: Any) -> str:
        broken.append((row.text, f"{row.actual_columns} fields where the header has {row.expected_columns}"))
        return "skip"

    try:
        table = pa.csv.read_csv(
            BytesIO(block),
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=header),
            parse_options=pa.csv.ParseOptions(newlines_in_values=b'"' in block, invalid_row_handler=refuse),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                null_values=["", "NA"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise SourceError(f"{name} is not CSV: {error}. Nothing of this part was loaded. Mend the file.") from error
    return table, broken


def json_lines(block: bytes) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return whole lines of JSON as rows, and those that are no objects as (line, reason)."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    rows, broken = [], []
    for line in block.split(b"\n"):
        if not line.strip():
            continue
        try:
            rows.append(decode(line))
        except msgspec.DecodeError as error:
            broken.append((line.decode(), f"not a JSON object: {error}"))
    return rows, broken
