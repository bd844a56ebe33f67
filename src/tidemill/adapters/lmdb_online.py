"""Online state in LMDB: one memory-mapped file, read by any number of processes at memory speed.

A batch is one write transaction, synced to disk before ``apply`` returns. A snapshot is a read transaction: it blocks
nobody and nobody blocks it. LMDB needs the size of its map in advance and allows a change only while this process has
no transaction open, hence the gate below; other processes notice the change at their next snapshot.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb

from tidemill.adapters.memory_online import check_epoch
from tidemill.base.errors import TidemillError, WorkspaceError
from tidemill.ports.online import MAX_KEY, Change, Value

# Shorter than any stored key, so no key of a space equals them.
_MARK = b"mark"
_EPOCH = b"epoch"  # the highest that has claimed, in decimal
_READERS = 1024  # open snapshots in all processes together
_PATIENCE = 10.0  # seconds that growing waits for this process's snapshots to close


class LmdbOnline:
    """A key-value store in the directory ``path``, made on first use. Safe to share between threads.

    ``map_size`` is the first size of the map in bytes; it is address space, not disk, and doubles when it is full. A
    process opens one path once. A thread should not call ``apply`` or ``clear`` inside its own snapshot: a store that
    has to grow waits until this process's snapshots are closed, and raises TidemillError after 10 s.
    """

    def __init__(self, path: Path, *, map_size: int = 1 << 30) -> None:
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._env = lmdb.open(str(path), map_size=map_size, max_readers=_READERS, metasync=True, sync=True)
        except lmdb.Error as error:
            raise WorkspaceError(
                f"The online state in {path} cannot be opened: {error}. If it is damaged, delete the directory: "
                "it is rebuilt from the lake."
            ) from error
        self._path = path
        self._lock = threading.Lock()
        self._gate = threading.Condition(self._lock)
        self._open = 0  # transactions of this process that are open now
        self._growing = False  # while true, none begins
        self._closed = False
        self._env.reader_check()  # forget the snapshots of processes that died

    def snapshot(self) -> LmdbSnapshot:
        """Open a consistent view, in a ``with`` statement."""
        return LmdbSnapshot(self)

    def claim(self, epoch: int) -> None:
        """Take over the writing, on disk when it returns. Raises FencedError when a higher epoch has claimed."""
        self._write(lambda transaction: transaction.put(_EPOCH, b"%d" % epoch), epoch)

    def apply(self, changes: Sequence[Change], mark: bytes, *, epoch: int = 0) -> None:
        """Apply ``changes`` in order and set the mark, all or nothing, on disk when it returns.

        Raises, having changed nothing, FencedError when a higher epoch has claimed, and TidemillError when a key is
        longer than 500 bytes.
        """
        pairs = []
        for change in changes:
            if len(change.key) > MAX_KEY:
                raise TidemillError(
                    f"Online state takes keys of at most {MAX_KEY} bytes; one in {change.space!r} has "
                    f"{len(change.key)}: {change.key[:40]!r}… Use a shorter key column."
                )
            pairs.append((_prefix(change.space) + change.key, change.value))
        pairs.append((_MARK, mark))
        # A reader that was killed would keep its pages, and with them the file, growing for ever.
        self._env.reader_check()

        def fill(transaction: lmdb.Transaction[Any]) -> None:
            for key, value in pairs:
                if value is None:
                    transaction.delete(key)
                else:
                    transaction.put(key, value)

        self._write(fill, epoch)

    def clear(self, *, epoch: int = 0) -> None:
        """Forget everything, the mark included. Raises FencedError when a higher epoch has claimed."""

        def empty(transaction: lmdb.Transaction[Any]) -> None:
            claimed = transaction.get(_EPOCH)
            transaction.drop(self._env.open_db(txn=transaction), delete=False)
            if claimed is not None:
                transaction.put(_EPOCH, claimed)

        self._write(empty, epoch)

    def close(self) -> None:
        """Unmap the file. Idempotent; open snapshots must be gone."""
        if not self._closed:
            self._closed = True
            self._env.close()

    def _write(self, fill: Callable[[lmdb.Transaction[Any]], object], epoch: int) -> None:
        """Run ``fill`` in a write transaction and commit it; when the map is too small, grow it and begin again.

        Writers exclude each other from the beginning of the transaction on, so the epoch cannot change until the end.
        """
        while True:
            transaction = self.begin(write=True)
            try:
                check_epoch(int(transaction.get(_EPOCH, b"0")), epoch)
                fill(transaction)
                return transaction.commit()
            except lmdb.MapFullError:
                size = 2 * self._env.info()["map_size"]
            finally:
                transaction.abort()  # a no-op after the commit
                self.leave()
            self._resize(size)

    def begin(self, *, write: bool = False) -> lmdb.Transaction[Any]:
        """Begin a transaction, for reading one that copies nothing; ``leave`` must follow when it has ended.

        For this module.
        """
        while True:
            with self._lock:
                while self._growing:
                    self._gate.wait()
                self._open += 1
            try:
                return self._env.begin(write=True) if write else self._env.begin(buffers=True)
            except lmdb.MapResizedError:
                self.leave()
                self._resize(0)  # another process made the map larger: take its size
            except lmdb.ReadersFullError as error:
                self.leave()
                if not self._env.reader_check():
                    raise TidemillError(
                        f"{_READERS} snapshots of the online state {self._path} are open at once. "
                        "Close them sooner or run fewer servers."
                    ) from error
            except BaseException:
                self.leave()
                raise

    def leave(self) -> None:
        """Note that a transaction has ended. For this module."""
        with self._lock:
            self._open -= 1
            if self._growing and not self._open:
                self._gate.notify_all()

    def _resize(self, size: int) -> None:
        with self._gate:
            while self._growing:
                self._gate.wait()
            self._growing = True
            try:
                if not self._gate.wait_for(lambda: not self._open, timeout=_PATIENCE):
                    raise TidemillError(
                        f"The online state {self._path} has to grow, but a snapshot stayed open for {_PATIENCE:.0f} s. "
                        "Close it first."
                    )
                # Another thread may have grown it meanwhile; 0 takes the size that another process has set.
                if not size or size > self._env.info()["map_size"]:
                    self._env.set_mapsize(size)
            finally:
                self._growing = False
                self._gate.notify_all()


class LmdbSnapshot:
    """One read transaction: begun by ``with``, ended with it. What it reads comes as views of the map."""

    __slots__ = ("_get", "_online", "_transaction")

    def __init__(self, online: LmdbOnline) -> None:
        self._online = online

    def __enter__(self) -> LmdbSnapshot:
        self._transaction = self._online.begin()
        self._get = self._transaction.get
        return self

    def __exit__(self, *_: object) -> None:
        self._transaction.abort()
        self._online.leave()

    def get(self, space: str, key: bytes) -> bytes | None:
        """Return the value of ``key`` in ``space``, or None."""
        found = self._get((_prefixes.get(space) or _prefix(space)) + key)
        return None if found is None else bytes(found)

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        """Return the value of each of ``keys`` in ``space``, or None: views, not copied."""
        return list(map(self._get, map(_prefix(space).__add__, keys)))

    def items(self, space: str, *, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of ``space`` in order of key, those whose key comes after ``after``."""
        prefix = _prefix(space)
        # The next key after one is that key and a zero byte.
        begin = prefix if after is None else prefix + after + b"\0"
        with self._transaction.cursor() as cursor:
            if cursor.set_range(begin):
                for key, value in cursor:
                    if key[: len(prefix)] != prefix:
                        return
                    yield bytes(key[len(prefix) :]), bytes(value)

    def mark(self) -> bytes | None:
        """Return the mark that the last batch set, or None when nothing was."""
        found = self._get(_MARK)
        return None if found is None else bytes(found)


_prefixes: dict[str, bytes] = {}


def _prefix(space: str) -> bytes:
    # Eight bytes of a hash instead of the name: the length is fixed, so no key of one space can look like another's.
    found = _prefixes.get(space)
    if found is None:
        found = _prefixes[space] = hashlib.blake2b(space.encode(), digest_size=8).digest()
    return found
