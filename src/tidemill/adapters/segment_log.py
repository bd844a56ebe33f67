"""The log on local disk: a directory of append-only segments, ``<creation order>-<random id>.log``, one a writer.

A record is its length and checksum (CRC-32 of length and payload), four bytes each, little-endian, then the payload. A
writer holds a file lock on its segment for life; that is how ``trim`` knows that it lives. A segment ends where the
next record is not whole: that may be the tear of a crash, or a record that is being written just now.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tidemill.base.errors import TidemillError
from tidemill.ports.log import Record

#: The longest payload, in bytes; a length beyond it read back from disk is a tear.
MAX_PAYLOAD = 16 << 20
#: Seconds between the starts of two syncs: what is written meanwhile shares the next one.
SYNC_EVERY = 0.010

_HEADER = struct.Struct("<II")


class SegmentWriter:
    """Implements ports.log.LogWriter. Threads may share it; a forked child must not use it.

    When a write fails (a full disk) its remains are cut off and the writer goes on. When that fails too, or a sync
    fails, the segment has ended: further appends are refused. A failed sync is reported by every record not yet synced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        self._size = 0
        self._ended: str | None = None
        self._waiting: Future[None] | None = None  # of the records that the next sync is for
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._syncer = threading.Thread(target=self._sync, name=f"sync of {path.name}", daemon=True)
        self._syncer.start()

    def append(self, *payloads: bytes) -> Future[None]:
        """Write records to the operating system before returning; the future is done once they are on disk.

        Raises TidemillError, with nothing written, when a payload is longer than ``MAX_PAYLOAD``, the write fails
        (a full disk), or the segment has ended.
        """
        parts: list[bytes] = []
        for payload in payloads:
            if len(payload) > MAX_PAYLOAD:
                raise TidemillError(
                    f"a record of {len(payload):,} bytes is too long for the log, which takes {MAX_PAYLOAD:,}. "
                    "Send less."
                )
            length = len(payload).to_bytes(4, "little")
            parts += (length, zlib.crc32(payload, zlib.crc32(length)).to_bytes(4, "little"), payload)
        record = b"".join(parts)
        with self._lock:
            if self._ended:
                raise TidemillError(f"{self._path} takes no more records: {self._ended}. Start a new writer.")
            self._write(record)
            if self._waiting is None:  # records that are synced together share a future
                self._waiting = Future()
                self._waiting.set_running_or_notify_cancel()  # what is written cannot be cancelled
                self._changed.notify()
            return self._waiting

    def close(self) -> None:
        """Sync and close. Idempotent."""
        with self._changed:
            if self._ended is None:
                self._ended = "it is closed"
            self._changed.notify()
        self._syncer.join()

    def _write(self, record: bytes) -> None:
        written = 0
        try:
            while written < len(record):
                written += os.write(self._handle, record[written:] if written else record)
        except OSError as error:
            try:
                os.ftruncate(self._handle, self._size)
            except OSError:
                self._ended = f"a write failed ({error.strerror}) and left a torn record"
            raise TidemillError(f"cannot write to {self._path}: {error.strerror}. Nothing of it was kept.") from error
        self._size += len(record)

    def _take(self) -> list[Future[None]]:
        """Return the future that records wait for, if any do; later ones get another."""
        waiting, self._waiting = self._waiting, None
        return [waiting] if waiting else []

    def _sync(self) -> None:
        """Sync whatever is waiting, at most every ``SYNC_EVERY`` seconds, until the segment has ended."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                waiting = self._take()
            started = time.monotonic()
            failure: OSError | None = None
            try:
                if waiting:
                    os.fdatasync(self._handle)
            except OSError as error:  # the kernel may have dropped the pages: no later sync can vouch for them
                failure = error
            with self._changed:
                if failure is not None:
                    self._ended = f"a sync failed ({failure.strerror})"
                    waiting += self._take()
                last = self._ended is not None and not self._waiting
                if last:
                    os.close(self._handle)
            for done in waiting:
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(TidemillError(f"cannot sync {self._path}: {failure.strerror}."))
            if last:
                return
            if self._ended is None:
                time.sleep(max(0.0, started + SYNC_EVERY - time.monotonic()))


class SegmentLog:
    """Implements ports.log.Log. Processes and threads may share the directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _sync_directory(directory.parent)
        self._directory = directory

    def writer(self) -> SegmentWriter:
        """Start a new segment with a random id, after all others in order of creation."""
        with self._alone():
            order = 1 + max((int(path.stem.partition("-")[0]) for path in self._segments()), default=0)
            writer = SegmentWriter(self._directory / f"{order:012d}-{secrets.token_hex(8)}.log")
            _sync_directory(self._directory)
        return writer

    def read(self, cursor: Mapping[str, int], *, limit: int = 10_000) -> Iterator[Record]:
        """Yield up to ``limit`` records past ``cursor`` (segment to offset), by segment in order of creation.

        Segments are named by their file's stem. A cursor's segments that are gone are passed over.
        """
        left = limit
        for path in self._segments():
            try:
                file = path.open("rb")
            except FileNotFoundError:  # trimmed since it was listed
                continue
            with file:
                for end, payload in _records(file, cursor.get(path.stem, 0)):
                    if left <= 0:
                        return
                    yield Record(path.stem, end, payload)
                    left -= 1

    def trim(self, cursor: Mapping[str, int]) -> None:
        """Delete segments that are read to their end and have no living writer."""
        with self._alone():  # a new segment is not seen before its writer has locked it
            for path in self._segments():
                with path.open("rb") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    if next(_records(file, cursor.get(path.stem, 0)), None) is None:
                        path.unlink()
            _sync_directory(self._directory)

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob("*-*.log"))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the directory's lock: segments come and go under it."""
        handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _records(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield the whole records from ``offset`` on, each with the offset after it."""
    file.seek(offset)
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        length, checksum = _HEADER.unpack(header)
        if length > MAX_PAYLOAD:
            return
        payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload, zlib.crc32(header[:4])) != checksum:
            return
        offset += _HEADER.size + length
        yield offset, payload


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
