from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from tidemill.adapters import sql_journal
from tidemill.adapters.sql_journal import SqlJournal
from tidemill.base.errors import LeaseHeldError, MissingExtraError, WorkspaceError
from tidemill.ports.journal import Draft, Journal, Lease
from tidemill.testing.journal_suite import JournalSuite

POSTGRES = os.environ.get("TIDEMILL_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


class _Journals:
    """Journals opened by one test, closed after it."""

    @pytest.fixture(autouse=True)
    def _opened(self) -> Iterator[None]:
        self._journals: list[SqlJournal] = []
        yield
        for journal in self._journals:
            journal.close()

    def _keep(self, journal: SqlJournal) -> SqlJournal:
        self._journals.append(journal)
        return journal


class TestSqliteJournal(_Journals, JournalSuite):
    def open(self, directory: Path) -> Journal:
        return self._keep(SqlJournal(directory / "state" / "journal.db"))

    def usurp(self, directory: Path) -> Lease:
        path = directory / "state" / "journal.db"
        return self._keep(SqlJournal(path, lock=str(directory / "another.lock"))).acquire()


class TestPostgresJournal(_Journals, JournalSuite):
    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
        self._admin = sql.create_engine(
            sql.make_url(POSTGRES).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        try:
            self._admin.connect().close()
        except sql.exc.OperationalError:
            pytest.skip("no PostgreSQL answers at 127.0.0.1:5432")
        self._databases: dict[Path, str] = {}
        yield
        with self._admin.connect() as connection:
            for name in self._databases.values():
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        self._admin.dispose()

    def _url(self, directory: Path) -> str:
        if directory not in self._databases:
            self._databases[directory] = f"tidemill_test_{uuid.uuid4().hex[:12]}"
            with self._admin.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {self._databases[directory]}")
        return sql.make_url(POSTGRES).set(database=self._databases[directory]).render_as_string(hide_password=False)

    def open(self, directory: Path) -> Journal:
        return self._keep(SqlJournal(self._url(directory)))

    def usurp(self, directory: Path) -> Lease:
        return self._keep(SqlJournal(self._url(directory), lock="another")).acquire()


def _child(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


def test_the_lease_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    holder = _child(
        "import sys, time, pathlib\n"
        "from tidemill.adapters.sql_journal import SqlJournal\n"
        "lease = SqlJournal(pathlib.Path(sys.argv[1])).acquire()\n"
        "print(lease.epoch, flush=True)\n"
        "time.sleep(600)\n",
        str(path),
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "1\n"
        journal = SqlJournal(path)
        with pytest.raises(LeaseHeldError, match=f"process {holder.pid} "):
            journal.acquire()
        holder.send_signal(signal.SIGSTOP)  # a paused process still holds it: there is no timeout
        with pytest.raises(LeaseHeldError):
            journal.acquire()
        holder.kill()
        holder.wait()
    lease = journal.acquire()
    assert lease.epoch == 2
    lease.release()
    journal.close()


def test_a_killed_writer_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    writer = _child(
        "import sys, pathlib, itertools\n"
        "from tidemill.adapters.sql_journal import SqlJournal\n"
        "from tidemill.ports.journal import Draft\n"
        "journal = SqlJournal(pathlib.Path(sys.argv[1]))\n"
        "lease = journal.acquire()\n"
        "for tick in itertools.count():\n"
        "    journal.append([Draft(tick, 'commit', {'n': n}) for n in range(5)], lease)\n"
        "    print(tick, flush=True)\n",
        str(path),
    )
    assert writer.stdout is not None
    with writer:
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
        told = [int(line) for line in writer.stdout.readlines() if line.endswith("\n")]
    journal = SqlJournal(path)
    entries = list(journal.read())
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    assert len(entries) % 5 == 0
    assert entries[-1].tick >= max(told, default=19)
    journal.close()


def test_processes_that_begin_a_journal_at_once_agree(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from tidemill.adapters.sql_journal import SqlJournal\n"
        "sys.stdin.readline()\n"
        "journal = SqlJournal(pathlib.Path(sys.argv[1]))\n"
        "for n in range(10): journal.request('retrain', {'n': n})\n"
    )
    path = tmp_path / "journal.db"
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    for child in children:
        assert child.communicate()[1] == b""
    journal = SqlJournal(path)
    assert sorted(request.body["n"] for request in journal.requests()) == sorted(list(range(10)) * 3)
    journal.close()


def test_sqlite_is_set_to_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a ?b%20.db"
    journal = SqlJournal(path)
    assert path.exists()
    with journal._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    journal.close()


def test_a_slow_reader_holds_no_transaction(tmp_path: Path) -> None:
    journal = SqlJournal(tmp_path / "journal.db")
    lease = journal.acquire()
    journal.append([Draft(n, "commit", {}) for n in range(1_500)], lease)
    entries = journal.read()
    next(entries)
    direct = sqlite3.connect(tmp_path / "journal.db")
    busy, frames, _ = direct.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    direct.close()
    assert (busy, frames) == (0, 0)
    assert len(list(entries)) == 1_499
    lease.release()
    journal.close()


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    SqlJournal(path).close()
    database = sqlite3.connect(path)
    database.execute("UPDATE state SET schema_version = 99")
    database.commit()
    database.close()
    with pytest.raises(WorkspaceError, match=r"schema version 99.*Install the version"):
        SqlJournal(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_text("not a database at all, " * 100)
    with pytest.raises(WorkspaceError, match="cannot be opened"):
        SqlJournal(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the workspace should be")
    with pytest.raises(WorkspaceError, match="taken cannot be made: File exists"):
        SqlJournal(tmp_path / "taken" / "journal.db")


class TestReadOnly:
    """Nothing can be written. Root may write everywhere, so that the journal is told so."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "a ?b%20.db"
        journal = SqlJournal(path)
        lease = journal.acquire()
        journal.append([Draft(n, "commit", {"n": n}) for n in range(3)], lease)
        lease.release()
        journal.close()
        monkeypatch.setattr(sql_journal, "_writable", lambda _: False)
        return path

    def test_it_is_read_and_nothing_is_made_beside_it(self, path: Path) -> None:
        before = sorted(path.parent.iterdir())
        journal = SqlJournal(path)
        assert [entry.body["n"] for entry in journal.read()] == [0, 1, 2]
        assert (journal.last(), list(journal.ticks()), journal.requests()) == (3, [], ())
        assert sorted(path.parent.iterdir()) == before
        journal.close()

    def test_what_a_worker_writes_meanwhile_is_read(self, path: Path) -> None:
        journal = SqlJournal(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sql_journal, "_writable", lambda _: True)
            worker = SqlJournal(path)
        worker.append([Draft(3, "commit", {"n": 3})], worker.acquire())
        assert [entry.body["n"] for entry in journal.read()] == [0, 1, 2, 3]
        assert path.with_name(f"{path.name}-wal").stat().st_size > 0
        worker.close()
        journal.close()

    def test_a_write_says_what_is_wrong(self, path: Path) -> None:
        journal = SqlJournal(path)
        with pytest.raises(WorkspaceError, match="can be read, but not written"):
            journal.request("retrain", {})
        with pytest.raises(WorkspaceError, match="can be read, but not written"):
            journal.acquire()
        journal.close()

    def test_entries_that_cannot_be_read_are_not_left_out(self, path: Path) -> None:
        path.with_name(f"{path.name}-wal").write_bytes(b"left behind")
        with pytest.raises(WorkspaceError, match=r"still in .*-wal, which SQLite cannot read"):
            SqlJournal(path)


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    journal = SqlJournal(tmp_path / "journal.db", lock=str(tmp_path))
    with pytest.raises(WorkspaceError, match="cannot be written: Is a directory"):
        journal.acquire()
    journal.close()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tidemill\[postgres\]'"):
        SqlJournal("postgresql://nobody@127.0.0.1:1/none")
