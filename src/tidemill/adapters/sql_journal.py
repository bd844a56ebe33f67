"""The journal in a SQL database: a SQLite file beside the lake, or PostgreSQL shared by hosts. One schema serves both.

What differs is only how a transaction begins and how a lease excludes another worker:

* SQLite runs in WAL with ``synchronous=FULL``; a write begins with BEGIN IMMEDIATE, so it never fails halfway for want
  of the lock. The lease is an operating-system lock on a file beside the database: it lasts exactly as long as the
  process, and has no timeout that a paused process could outlive. (A forked child would inherit it; the executors here
  start fresh processes, which do not.)
* PostgreSQL's lease is an advisory lock of one connection held open.

Either way the epoch is checked inside the transaction that writes, so a worker that lost its lease without noticing
writes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sql

from tidemill.base.errors import FencedError, LeaseHeldError, MissingExtraError, StorageError, WorkspaceError
from tidemill.base.hashing import canonical
from tidemill.ports.journal import Draft, Entry, Request
from tidemill.ports.lake import Fence

SCHEMA_VERSION = 1
_PAGE = 1_000  # entries a read transaction takes at once, so that a slow consumer never pins the write-ahead log
_LET_WRITE = "Let this user write there, or copy the folder to where it can."
_BUSY_SECONDS = 60.0  # how long a SQLite write waits for another process's write

# SQLite makes only an INTEGER primary key the row's own number.
_Number = sql.BigInteger().with_variant(sql.Integer(), "sqlite")

_tables = sql.MetaData()
_state = sql.Table(
    "state",
    _tables,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("schema_version", sql.Integer, nullable=False),
    sql.Column("epoch", sql.BigInteger, nullable=False),
    sql.Column("holder", sql.Text, nullable=False),
)
_entries = sql.Table(
    "entries",
    _tables,
    sql.Column("number", _Number, primary_key=True, autoincrement=False),
    sql.Column("tick", sql.BigInteger, nullable=False),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("body", sql.Text, nullable=False),
    sql.Column("meta", sql.Text, nullable=False),
    sql.Index("entries_by_kind", "kind", "number"),
)
_ticks = sql.Table("ticks", _tables, sql.Column("tick", _Number, primary_key=True, autoincrement=False))
_requests = sql.Table(
    "requests",
    _tables,
    sql.Column("number", _Number, primary_key=True),
    sql.Column("id", sql.Text, nullable=False, unique=True),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("body", sql.Text, nullable=False),
    sql.Column("answered", sql.BigInteger, index=True),  # the newest entry when it was answered; null until then
)
_steps = sql.Table(
    "steps",
    _tables,
    sql.Column("fingerprint", sql.Text, primary_key=True),
    sql.Column("result", sql.Text, nullable=False),
)

_NEWEST = sql.select(sql.func.max(_entries.c.number))
_EPOCH = sql.select(_state.c.epoch)


class SqlJournal:
    """A journal in the database at ``where``: the path of a SQLite file, made on first use, or an SQLAlchemy URL.

    ``lock`` names what the lease locks: a file for SQLite (default: the database's path with ``.lock``), any text for
    PostgreSQL. Only a test of fencing gives two workers different locks. Safe to share between threads.

    Raises WorkspaceError when the database has another schema version, MissingExtraError when its driver is missing.
    """

    def __init__(self, where: Path | str, *, lock: str | None = None) -> None:
        url = sql.URL.create("sqlite", database=str(where)) if isinstance(where, Path) else sql.make_url(where)
        if url.get_backend_name() == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        try:
            self._engine = _open_sqlite(url) if url.get_backend_name() == "sqlite" else sql.create_engine(url)
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "the database's driver", "postgres") from error
        self._lock: _Lock
        if url.get_backend_name() == "sqlite":
            self._lock = _FileLock(Path(lock or f"{url.database}.lock"))
        else:
            self._lock = _AdvisoryLock(self._engine, lock or "tidemill")
        try:
            if not sql.inspect(self._engine).has_table(_state.name):
                _make(self._engine)
            with self._engine.connect() as connection:
                found = connection.scalar(sql.select(_state.c.schema_version))
        except sql.exc.DBAPIError as error:
            self.close()
            raise WorkspaceError(
                f"The journal {url.render_as_string()} cannot be opened: {error.orig}. "
                "Check that the address is right and that the database is not damaged."
            ) from error
        if found != SCHEMA_VERSION:
            self.close()
            raise WorkspaceError(
                f"The journal {url.render_as_string()} has schema version {found}, this Tidemill writes "
                f"{SCHEMA_VERSION}. Install the version of Tidemill that made it, or begin a new workspace."
            )

    def acquire(self) -> SqlLease:
        """Take the lease and raise its epoch by one. Raises LeaseHeldError while another process holds it."""
        # The process id and host go in the message of whoever is refused.
        me = f"process {os.getpid()} on {socket.gethostname()}"
        if not self._lock.take():
            with self._engine.connect() as connection:
                holder = connection.scalar(sql.select(_state.c.holder)) or "another process"
            raise LeaseHeldError(
                f"Another worker ({holder}) holds the lease of this workspace. Stop it before starting a second one."
            )
        raise_epoch = sql.update(_state).values(epoch=_state.c.epoch + 1, holder=me).returning(_state.c.epoch)
        try:
            with _writing(self._engine) as connection:
                epoch = connection.scalars(raise_epoch).one()
        except BaseException:
            self._lock.free()
            raise
        return SqlLease(self._engine, self._lock, epoch)

    def append(self, drafts: Sequence[Draft], fence: Fence, *, answered: Sequence[str] = ()) -> tuple[Entry, ...]:
        """Write ``drafts`` and mark the requests ``answered``, in one durable transaction that checks the epoch."""
        rows = [
            {"tick": d.tick, "kind": d.kind, "body": canonical(d.body).decode(), "meta": canonical(d.meta).decode()}
            for d in drafts
        ]
        with _writing(self._engine, fence) as connection:
            newest = connection.scalar(_NEWEST) or 0
            numbered: list[dict[str, Any]] = [{"number": n, **row} for n, row in enumerate(rows, newest + 1)]
            if numbered:
                connection.execute(sql.insert(_entries), numbered)
            if answered:
                mark = sql.update(_requests).where(_requests.c.id.in_(answered), _requests.c.answered.is_(None))
                connection.execute(mark.values(answered=newest + len(numbered)))
        return tuple(_entry(**row) for row in numbered)

    def read(self, *, after: int = 0, kinds: Sequence[str] | None = None) -> Iterator[Entry]:
        """Yield the entries numbered above ``after``, in order, of the given ``kinds`` or all."""
        page = sql.select(_entries).order_by(_entries.c.number).limit(_PAGE)
        if kinds is not None:
            page = page.where(_entries.c.kind.in_(kinds))
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(page.where(_entries.c.number > after)).all()
            for number, tick, kind, body, meta in rows:
                yield _entry(number=number, tick=tick, kind=kind, body=body, meta=meta)
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def last(self) -> int:
        """Return the number of the newest entry, 0 when there is none."""
        with self._engine.connect() as connection:
            return connection.scalar(_NEWEST) or 0

    def end_tick(self, tick: int, fence: Fence) -> None:
        """Record that every decision of ``tick`` (microseconds) is in the journal. A recorded tick stays as it is."""
        with _writing(self._engine, fence) as connection:
            if connection.scalar(sql.select(_ticks.c.tick).where(_ticks.c.tick == tick)) is None:
                connection.execute(sql.insert(_ticks).values(tick=tick))

    def ticks(self, *, after: int = -1) -> Sequence[int]:
        """Return the recorded ticks later than ``after``, in order."""
        with self._engine.connect() as connection:
            later = sql.select(_ticks.c.tick).where(_ticks.c.tick > after).order_by(_ticks.c.tick)
            return connection.scalars(later).all()

    def request(self, kind: str, body: dict[str, Any]) -> str:
        """Ask the worker for something, durably; returns the request's id. Needs no lease."""
        id = uuid.uuid4().hex
        with _writing(self._engine) as connection:
            connection.execute(sql.insert(_requests).values(id=id, kind=kind, body=canonical(body).decode()))
        return id

    def requests(self) -> tuple[Request, ...]:
        """Return the requests not yet answered, oldest first."""
        columns = sql.select(_requests.c.id, _requests.c.kind, _requests.c.body)
        open_ones = columns.where(_requests.c.answered.is_(None)).order_by(_requests.c.number)
        with self._engine.connect() as connection:
            return tuple(Request(id, kind, json.loads(body)) for id, kind, body in connection.execute(open_ones))

    def step(self, fingerprint: str) -> dict[str, Any] | None:
        """Return the result recorded for the step with this fingerprint, or None."""
        with self._engine.connect() as connection:
            text = connection.scalar(sql.select(_steps.c.result).where(_steps.c.fingerprint == fingerprint))
        return None if text is None else dict(json.loads(text))

    def record_step(self, fingerprint: str, result: dict[str, Any], fence: Fence) -> None:
        """Remember the result of a step, durably. A known fingerprint keeps its first result."""
        text = canonical(result).decode()
        with _writing(self._engine, fence) as connection:
            known = sql.select(_steps.c.fingerprint).where(_steps.c.fingerprint == fingerprint)
            if connection.scalar(known) is None:
                connection.execute(sql.insert(_steps).values(fingerprint=fingerprint, result=text))

    def close(self) -> None:
        """Close the database. A lease taken from this journal stays until it is released."""
        self._engine.dispose()


class SqlLease:
    """The right to write, proved by the epoch in the database."""

    def __init__(self, engine: sql.Engine, lock: _Lock, epoch: int) -> None:
        self._engine, self._lock, self._epoch = engine, lock, epoch
        self._held = True

    @property
    def epoch(self) -> int:
        """The lease's number; a successor's is higher."""
        return self._epoch

    def check(self) -> None:
        """Raise FencedError when the lease was released or has passed to another worker."""
        if not self._held:
            raise FencedError(f"The lease with epoch {self._epoch} was released; nothing was written.")
        with self._engine.connect() as connection:
            _compare(connection.scalar(_EPOCH), self._epoch)

    def release(self) -> None:
        """Give the lease up. No-op when it is already gone."""
        if self._held:
            self._held = False
            self._lock.free()


class _Lock(Protocol):
    def take(self) -> bool: ...

    def free(self) -> None: ...


class _FileLock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise WorkspaceError(f"{self._path} cannot be written: {error.strerror}. {_LET_WRITE}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    def free(self) -> None:
        if self._file is not None:
            os.close(self._file)  # and with it goes the lock
            self._file = None


class _AdvisoryLock:
    def __init__(self, engine: sql.Engine, name: str) -> None:
        self._engine = engine
        raw = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self._key = int.from_bytes(raw, "big", signed=True)
        self._connection: sql.Connection | None = None

    def take(self) -> bool:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not connection.scalar(sql.select(sql.func.pg_try_advisory_lock(self._key))):
            connection.close()
            return False
        self._connection = connection
        return True

    def free(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # closes the session; a pooled one would keep the lock
            self._connection.close()
            self._connection = None


def _open_sqlite(url: sql.URL) -> sql.Engine:
    file = Path(str(url.database))
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"The folder {folder} cannot be made: {error.strerror}. The workspace lies beside system.py; let this user "
            "write there."
        ) from error
    # Python's driver would begin transactions on its own; with isolation_level None it leaves that to _begin.
    how: dict[str, Any] = {"timeout": _BUSY_SECONDS, "isolation_level": None}
    shut = file.exists() and not (_writable(folder) and _writable(file))
    if shut:  # looked at anew for each transaction, because another user's worker may start meanwhile
        engine = sql.create_engine(url, creator=lambda: _look(file, how), poolclass=sql.pool.NullPool)
    else:
        engine = sql.create_engine(url, connect_args=how)

    @sql.event.listens_for(engine, "handle_error")
    def _tell_full(context: sql.engine.ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            full = "The disk cannot be written"
            context.chained_exception = StorageError(f"{full}: {context.original_exception} ({file}). Free some space.")

    @sql.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: sql.Connection) -> None:
        write = connection.get_execution_options().get("write")
        if write and shut:
            raise WorkspaceError(f"{folder} can be read, but not written. {_LET_WRITE}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK)


def _look(file: Path, how: dict[str, Any]) -> sqlite3.Connection:
    """Open a SQLite file where nothing can be written, not even SQLite's own files beside it.

    While a worker has it open, these files are there, and SQLite reads by them. Else there are none, and SQLite must be
    told that it needs none. Raises WorkspaceError when entries are in the log alone, which only a writer can take over.
    """
    log, index = (Path(f"{file}-{each}") for each in ("wal", "shm"))
    shared = log.exists() and index.exists()
    if not shared and log.exists() and log.stat().st_size:
        raise WorkspaceError(
            f"The newest entries of the journal are still in {log}, which SQLite cannot read where it cannot write. "
            f"{_LET_WRITE}"
        )
    mode = "mode=ro" if shared else "immutable=1"
    opened: sqlite3.Connection = sqlite3.connect(f"{file.absolute().as_uri()}?{mode}", uri=True, **how)
    return opened


def _make(engine: sql.Engine) -> None:
    if engine.dialect.name == "sqlite":
        _begin_wal(engine)
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(SCHEMA_VERSION)))
        _tables.create_all(connection)  # one process at a time gets here, and makes what is missing
        if connection.scalar(sql.select(_state.c.id)) is None:
            first = {"id": 1, "schema_version": SCHEMA_VERSION, "epoch": 0, "holder": ""}
            connection.execute(sql.insert(_state).values(first))


def _begin_wal(engine: sql.Engine) -> None:
    # Under a lock of our own: SQLite's change to WAL does not wait for another process that does the same.
    file = os.open(f"{engine.url.database}.making", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    connection = engine.raw_connection()  # outside a transaction, where alone the journal mode may change
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
        os.close(file)


@contextlib.contextmanager
def _writing(engine: sql.Engine, fence: Fence | None = None) -> Iterator[sql.Connection]:
    """Open one durable write transaction, refused when ``fence`` is not of the current epoch."""
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if fence is not None:
            # FOR UPDATE makes PostgreSQL's writers queue here; SQLite's already did at BEGIN IMMEDIATE.
            _compare(connection.scalar(_EPOCH.with_for_update()), fence.epoch)
        yield connection


def _compare(current: int | None, mine: int) -> None:
    if current != mine:
        raise FencedError(
            f"This worker's lease has epoch {mine}, but the journal is at {current}: another worker has taken over. "
            "Nothing was written; stop this one."
        )


def _entry(*, number: int, tick: int, kind: str, body: str, meta: str) -> Entry:
    return Entry(number, tick, kind, json.loads(body), json.loads(meta))
