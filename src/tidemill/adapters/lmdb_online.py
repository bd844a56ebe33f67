"""Online state in LMDB: one memory-mapped file, read by any number of processes at memory speed.

A batch is one write transaction, synced to disk before ``apply`` returns. A snapshot is a read transaction: it blocks
nobody and nobody blocks it. The pairs lie in one of two databases of the file; a note beside them says in which, and
holds the mark. The other one is empty, or holds a draft, written in as many transactions as it takes and shown by the
one that changes the note.

LMDB needs the size of its map in advance and allows a change only while this process has no transaction open, hence the
gate below; other processes notice the change at their next snapshot.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from tidemill.adapters.memory_online import check_epoch, check_keys
from tidemill.base.errors import StorageError, TidemillError, WorkspaceError
from tidemill.ports.online import Change, Value

_T = TypeVar("_T")

_NAMES = (b"0", b"1")  # of the two databases
_SHOWN = b"shown"  # the number of the one that is shown, a byte, and the mark; absent from a new file
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
            self._env = lmdb.open(
                str(path), map_size=map_size, max_readers=_READERS, max_dbs=len(_NAMES), metasync=True, sync=True
            )
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
        self._note: tuple[int, int, bytes | None] = (-1, 0, None)  # what ``noted`` last read, after which transaction
        self._env.reader_check()  # forget the snapshots of processes that died
        transaction = self.begin(write=True)  # handles of one that only reads would not outlive it
        try:
            self.databases = self._find(transaction)  # for this module
            transaction.commit()
        finally:
            transaction.abort()
            self.leave()

    def _find(self, transaction: lmdb.Transaction[Any]) -> list[Any]:
        """Return the two databases, made when they are not there."""
        try:
            return [self._env.open_db(name, txn=transaction, create=False) for name in _NAMES]
        except lmdb.NotFoundError:
            # A new file, or one of the time when all pairs lay where the note is now: they answer nobody any more.
            claimed = transaction.get(_EPOCH)
            transaction.drop(self._env.open_db(txn=transaction), delete=False)
            if claimed is not None:
                transaction.put(_EPOCH, claimed)
            return [self._env.open_db(name, txn=transaction) for name in _NAMES]

    def snapshot(self) -> LmdbSnapshot:
        """Open a consistent view, in a ``with`` statement."""
        return LmdbSnapshot(self)

    def claim(self, epoch: int) -> None:
        """Take over the writing, on disk when it returns. Raises FencedError when a higher epoch has claimed."""

        def take(transaction: lmdb.Transaction[Any]) -> None:
            transaction.put(_EPOCH, b"%d" % epoch)
            # The draft of a process that was killed.
            transaction.drop(self.databases[1 - self.shown(transaction)[0]], delete=False)

        self._write(take, epoch)

    def apply(self, changes: Sequence[Change], mark: bytes | None, *, epoch: int = 0) -> None:
        """Apply ``changes`` in order and set the mark, if there is one, all or nothing, on disk when it returns.

        Raises, having changed nothing, FencedError when a higher epoch has claimed, and TidemillError when a key is
        longer than 500 bytes.
        """
        self.write(changes, epoch, mark=mark)

    def draft(self, *, epoch: int = 0) -> LmdbDraft:
        """Begin with other content beside what is there. Raises FencedError when a higher epoch has claimed."""

        def begin(transaction: lmdb.Transaction[Any]) -> int:
            place = 1 - self.shown(transaction)[0]
            transaction.drop(self.databases[place], delete=False)
            return place

        return LmdbDraft(self, self._write(begin, epoch), epoch)

    def clear(self, *, epoch: int = 0) -> None:
        """Forget everything, mark and draft included. Raises FencedError when a higher epoch has claimed."""

        def empty(transaction: lmdb.Transaction[Any]) -> None:
            for database in self.databases:
                transaction.drop(database, delete=False)
            transaction.delete(_SHOWN)

        self._write(empty, epoch)

    def close(self) -> None:
        """Unmap the file. Idempotent; open snapshots must be gone."""
        if not self._closed:
            self._closed = True
            self._env.close()

    def write(
        self, changes: Sequence[Change], epoch: int, *, place: int | None = None, mark: bytes | None = None
    ) -> None:
        """Apply ``changes`` to the database ``place``, by default the one that is shown. For this module."""
        check_keys(changes)
        # A reader that was killed would keep its pages, and with them the file, growing for ever.
        self._env.reader_check()

        def fill(transaction: lmdb.Transaction[Any]) -> None:
            shown, _ = self.shown(transaction)
            database = self.databases[shown if place is None else place]
            for change in changes:
                key = _prefix(change.space) + change.key
                if change.value is None:
                    transaction.delete(key, db=database)
                else:
                    transaction.put(key, change.value, db=database)
            if mark is not None:
                transaction.put(_SHOWN, bytes([shown]) + mark)

        self._write(fill, epoch)

    def show(self, place: int, mark: bytes, epoch: int) -> None:
        """Have the database ``place`` shown, with ``mark``, and empty the other one. For this module."""

        def turn(transaction: lmdb.Transaction[Any]) -> None:
            transaction.put(_SHOWN, bytes([place]) + mark)
            transaction.drop(self.databases[1 - place], delete=False)

        self._write(turn, epoch)

    def shown(self, transaction: lmdb.Transaction[Any]) -> tuple[int, bytes | None]:
        """Return the number of the database that is shown, and the mark. For this module."""
        note = transaction.get(_SHOWN)
        return (0, None) if note is None else (note[0], bytes(note[1:]))

    def noted(self, transaction: lmdb.Transaction[Any]) -> tuple[int, bytes | None]:
        """Return what ``shown`` does for one that only reads: mostly without looking, for it changes with commits only.

        For this module.
        """
        last, note = transaction.id(), self._note
        if note[0] != last:
            note = self._note = (last, *self.shown(transaction))
        return note[1], note[2]

    def _write(self, fill: Callable[[lmdb.Transaction[Any]], _T], epoch: int) -> _T:
        """Run ``fill`` in a write transaction and commit it; when the map is too small, grow it and begin again.

        Writers exclude each other from the beginning of the transaction on, so the epoch cannot change until the end.
        """
        while True:
            transaction = self.begin(write=True)
            try:
                check_epoch(int(transaction.get(_EPOCH, b"0")), epoch)
                filled = fill(transaction)
                transaction.commit()
            except lmdb.MapFullError:
                size = 2 * self._env.info()["map_size"]
            except lmdb.Error as error:
                if (full := StorageError.of(error)) is not None:
                    raise full from error
                raise
            else:
                return filled
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
    """One read transaction: begun by ``with``, ended with it. What it reads comes as views of the map.

    ``place``: of the draft, None shows what is shown.
    """

    __slots__ = ("_database", "_get", "_mark", "_online", "_place", "_transaction")

    def __init__(self, online: LmdbOnline, place: int | None = None) -> None:
        self._online, self._place = online, place

    def __enter__(self) -> LmdbSnapshot:
        self._transaction = self._online.begin()
        self._get = self._transaction.get
        if self._place is None:
            shown, self._mark = self._online.noted(self._transaction)
        else:
            shown, self._mark = self._place, None
        self._database = self._online.databases[shown]
        return self

    def __exit__(self, *_: object) -> None:
        self._transaction.abort()
        self._online.leave()

    def get(self, space: str, key: bytes) -> bytes | None:
        """Return the value of ``key`` in ``space``, or None."""
        found = self._get((_prefixes.get(space) or _prefix(space)) + key, None, self._database)
        return None if found is None else bytes(found)

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[Value | None]:
        """Return the value of each of ``keys`` in ``space``, or None: views, not copied."""
        prefixed = map(_prefix(space).__add__, keys)
        return list(map(self._get, prefixed, repeat(None), repeat(self._database)))

    def items(self, space: str, *, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of ``space`` in order of key, those whose key comes after ``after``."""
        prefix = _prefix(space)
        # The next key after one is that key and a zero byte.
        begin = prefix if after is None else prefix + after + b"\0"
        with self._transaction.cursor(self._database) as cursor:
            if cursor.set_range(begin):
                for key, value in cursor:
                    if key[: len(prefix)] != prefix:
                        return
                    yield bytes(key[len(prefix) :]), bytes(value)

    def mark(self) -> bytes | None:
        """Return the mark that the last batch set, or None when nothing was."""
        return self._mark


class LmdbDraft:
    """Content in the making, in the database that is not shown."""

    def __init__(self, online: LmdbOnline, place: int, epoch: int) -> None:
        self._online, self._place, self._epoch = online, place, epoch

    def snapshot(self) -> LmdbSnapshot:
        """Open a view of what has been written so far."""
        return LmdbSnapshot(self._online, self._place)

    def write(self, changes: Sequence[Change]) -> None:
        """Apply ``changes`` in order, all or nothing. Raises as ``LmdbOnline.apply``."""
        self._online.write(changes, self._epoch, place=self._place)

    def publish(self, mark: bytes) -> None:
        """Put the draft in the place of all that is there. Raises FencedError when a higher epoch has claimed."""
        self._online.show(self._place, mark, self._epoch)


_prefixes: dict[str, bytes] = {}


def _prefix(space: str) -> bytes:
    # Eight bytes of a hash instead of the name: the length is fixed, so no key of one space can look like another's.
    found = _prefixes.get(space)
    if found is None:
        found = _prefixes[space] = hashlib.blake2b(space.encode(), digest_size=8).digest()
    return found
