"""The lake on local disk: each table is a Lance dataset, ``<name>.lance``.

A commit is one Lance transaction whose properties hold the ``Commit``, so rows and cursor appear together. Three things
Lance leaves to us: it does not sync files, it rebases a stale writer's append instead of refusing it, and it publishes
with a plain rename when given a commit lock. Hence the order of every write: sync the data files; take the table's
directory lock; check the fence and that nobody has committed meanwhile; publish exactly the next version; sync the
manifest; let the lock go. See docs/decisions/0010-lake-commits.md.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lance
import pyarrow as pa
from lance import LanceDataset, LanceOperation
from lance.dataset import Transaction
from lance.fragment import FragmentMetadata, write_fragments
from lance.optimize import Compaction
from lance.schema import LanceSchema

from tidemill.adapters.memory_lake import check_append, check_columns
from tidemill.base.errors import FencedError, NotFoundError, TidemillError
from tidemill.base.hashing import canonical
from tidemill.base.schema import nearest
from tidemill.ports.lake import Commit, Fence

#: Transaction property of an append: its commit.
_APPEND = "tidemill.append"
#: Transaction property of any other write of ours, and key of the table's config: the commit that is then the newest.
_HEAD = "tidemill.head"

#: Lance names the manifest of version v by 2**64 - 1 - v, so that the newest comes first in a listing.
_LAST = 2**64 - 1
#: The last four bytes of a whole manifest.
_MAGIC = b"LANC"


@dataclasses.dataclass(frozen=True, slots=True)
class _Base:
    """What this lake last saw of a table; a write builds on it or is refused. ``None``: there was no table."""

    dataset: LanceDataset | None
    head: Commit | None

    @property
    def version(self) -> int:
        return 0 if self.dataset is None else int(self.dataset.version)


class _NextVersion:
    """The commit lock handed to Lance: admits the versions after ``newest`` in turn and refuses a rebase onto others.

    It excludes nobody: the table's directory lock does that.
    """

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.refused = False

    @contextmanager
    def __call__(self, version: int) -> Iterator[None]:
        if version != self.newest + 1:
            self.refused = True
            raise FencedError(f"version {version} where {self.newest + 1} was due")
        yield
        self.newest = version


class LanceLake:
    """Tables under one directory. Threads may share it; processes open one each, of which one at a time writes.

    A write is refused when another process has committed to the table since this one last called ``head`` or wrote.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        _sync(root.parent)
        self._root = root
        self._writing = threading.RLock()
        self._handles: dict[str, LanceDataset] = {}
        self._bases: dict[str, _Base] = {}

    def claim(self, fence: Fence) -> None:
        """Wait for commits that an earlier holder of the lease has already begun; after this none of its can begin.

        It may have been paused between its last look at the fence and its commit; there it holds the table's lock.
        """
        for directory in sorted(self._root.glob("*.lance")):
            with _locked(directory):
                fence.check()

    def tables(self) -> tuple[str, ...]:
        """Return the names of the tables, in alphabetical order."""
        return tuple(sorted(path.stem for path in self._root.glob("*.lance") if self._versions(path.stem)))

    def head(self, table: str) -> Commit | None:
        """Return the newest commit of ``table``, or None when there is no such table."""
        return self._look(table).head

    def append(self, table: str, rows: pa.Table, commit: Commit, fence: Fence) -> Commit:
        """Append ``rows`` and record ``commit`` in one transaction; create the table on first use."""
        with self._writing:
            fence.check()
            base = self._bases.get(table) or self._look(table)
            check_append(table, None if base.dataset is None else base.dataset.schema, base.head, rows, commit)
            if base.dataset is None:
                self._make_directory(table, rows.schema)
            fragments = self._write_files(table, rows, base) if rows.num_rows else []
            commit = dataclasses.replace(commit, version=base.version + 1)
            operation = (
                LanceOperation.Overwrite(rows.schema, fragments)
                if base.dataset is None
                else LanceOperation.Append(fragments)
            )
            with self._turn(table, base, fence) as lock:
                dataset = self._publish(table, base, operation, {_APPEND: _to_json(commit)}, lock)
                self._sync_versions(table, base.version, dataset.version)
            self._remember(table, dataset, commit)
            return commit

    def scan(
        self,
        table: str,
        *,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        since: int = 0,
        limit: int | None = None,
    ) -> pa.Table:
        """Return the rows with ``_seq >= since`` in order of ``_seq``, at ``version`` or the newest."""
        dataset = self._found(table) if version is None else self._at(table, version)
        names = check_columns(table, dataset.schema, columns)
        # Rows are numbered from 0 without gaps and neither append nor compaction reorders them: `since` is an offset.
        return dataset.scanner(columns=names, offset=max(since, 0), limit=limit, scan_in_order=True).to_table()

    def schema(self, table: str) -> pa.Schema:
        """Return the schema of ``table``. Raises NotFoundError when there is none."""
        return self._found(table).schema

    def commits(self, table: str, *, after: int = 0) -> tuple[Commit, ...]:
        """Return the appends with a version above ``after`` that are still recorded and not undone, oldest first.

        The head is always among them.
        """
        dataset = self._newest(table)
        if dataset is None:
            return ()
        dataset = _own(dataset)
        recorded = set(self._versions(table))
        found = []
        version = dataset.version
        while version > after:
            if version in recorded:
                operation, properties = _transaction(dataset, version)
                if isinstance(operation, LanceOperation.Restore):
                    version = operation.version  # what lies between was undone
                    continue
                if _APPEND in properties:
                    found.append(_from_json(properties[_APPEND]))
            version -= 1
        head = _head(dataset)
        if head.version > after and head not in found:
            found.insert(0, head)
        return tuple(reversed(found))

    def restore(self, table: str, version: int, fence: Fence) -> None:
        """Make the content and the recorded commit of ``version`` the newest again."""
        with self._writing:
            fence.check()
            head = _head(self._at(table, version))
            base = self._existing(table)
            with self._turn(table, base, fence) as lock:
                operation = LanceOperation.Restore(version)
                dataset = self._publish(table, base, operation, {_HEAD: _to_json(head)}, lock)
                self._sync_versions(table, base.version, dataset.version)
            self._remember(table, dataset, head)

    def compact(self, table: str, fence: Fence) -> None:
        """Rewrite small fragments into large ones; no-op when there is nothing to join."""
        with self._writing:
            fence.check()
            base = self._existing(table)
            assert base.dataset is not None
            assert base.head is not None
            tasks = Compaction.plan(base.dataset, {}).tasks
            if not tasks:
                return
            results = [task.execute(base.dataset) for task in tasks]
            self._sync_files(table, [fragment for result in results for fragment in result.new_fragments])
            with self._turn(table, base, fence) as lock:
                # The rewrite carries no properties of ours and cleanup may drop what is older: the head goes first.
                head = _to_json(base.head)
                remember = LanceOperation.UpdateConfig(config_updates=LanceOperation.UpdateMap({_HEAD: head}))
                self._publish(table, base, remember, {_HEAD: head}, lock)
                try:
                    dataset = lance.dataset(self._path(table), commit_lock=lock)  # a handle keeps its first lock
                    Compaction.commit(dataset, results)
                finally:
                    self._sync_versions(table, base.version, lock.newest)
            self._remember(table, dataset, base.head)

    def cleanup(self, table: str, *, keep: int, fence: Fence) -> int:
        """Drop all but the newest ``keep`` versions and the tagged ones, with what crashed writes left behind."""
        if keep < 1:
            raise TidemillError(f"cleanup must keep at least one version, not {keep}.")
        with self._writing:
            fence.check()
            base = self._existing(table)
            assert base.dataset is not None
            with self._turn(table, base, fence):
                stats = base.dataset.cleanup_old_versions(
                    retain_versions=keep,
                    delete_unverified=True,  # nobody else is writing: we hold the table's lock
                    error_if_tagged_old_versions=False,
                )
                return int(stats.bytes_removed) + self._drop_leftovers(table)

    # Seeing

    def _path(self, table: str) -> Path:
        return self._root / f"{table}.lance"

    def _manifest(self, table: str, version: int) -> Path:
        return self._path(table) / "_versions" / f"{_LAST - version:020d}.manifest"

    def _versions(self, table: str) -> list[int]:
        """Return the versions recorded, newest first; none when there is no table."""
        manifests = self._path(table).joinpath("_versions").glob("*.manifest")
        return sorted((_LAST - int(manifest.stem) for manifest in manifests), reverse=True)

    def _newest(self, table: str) -> LanceDataset | None:
        """Return the table at its newest version."""
        dataset = self._handles.get(table)
        if dataset is None:
            dataset = self._open(table)
        elif dataset.latest_version != dataset.version:
            dataset = dataset.checkout_version(dataset.latest_version)
        if dataset is not None:
            self._handles[table] = dataset
        return dataset

    def _open(self, table: str) -> LanceDataset | None:
        """Open the newest whole version. A manifest torn by a loss of power was never reported as committed: drop it.

        Lance renames manifests into place when they are complete, so a torn one is never another process's work.
        """
        for version in self._versions(table):
            manifest = self._manifest(table, version)
            if manifest.read_bytes()[-len(_MAGIC) :] == _MAGIC:
                return lance.dataset(self._path(table))
            manifest.unlink()
        return None

    def _found(self, table: str) -> LanceDataset:
        dataset = self._newest(table)
        if dataset is None:
            raise NotFoundError(f"there is no table {table!r}.{nearest(table, self.tables())}")
        return dataset

    def _at(self, table: str, version: int) -> LanceDataset:
        dataset = self._found(table)
        if not self._manifest(table, version).exists():
            raise NotFoundError(f"table {table!r} has no version {version}: never made, or cleaned up.")
        return dataset.checkout_version(version)

    # Writing

    def _look(self, table: str) -> _Base:
        """Take the newest version as what the next write builds on."""
        dataset = self._newest(table)
        base = self._bases.get(table)
        if base is None or base.dataset is None or dataset is None or base.version != dataset.version:
            base = _Base(dataset, None if dataset is None else _head(dataset))
            self._bases[table] = base
        return base

    def _existing(self, table: str) -> _Base:
        base = self._bases.get(table) or self._look(table)
        if base.dataset is None:
            self._found(table)
        return base

    def _remember(self, table: str, dataset: LanceDataset, head: Commit) -> None:
        self._handles[table] = dataset
        self._bases[table] = _Base(dataset, head)

    def _make_directory(self, table: str, schema: pa.Schema) -> None:
        stored = LanceSchema.from_pyarrow(schema).to_pyarrow()
        for field in schema:
            if not stored.field(field.name).equals(field):
                raise TidemillError(
                    f"table {table!r} cannot store column {field.name!r} as {field.type}. "
                    f"Cast it to {stored.field(field.name).type} first."
                )
        (self._path(table) / "data").mkdir(parents=True, exist_ok=True)
        _sync(self._path(table))
        _sync(self._root)

    def _write_files(self, table: str, rows: pa.Table, base: _Base) -> list[FragmentMetadata]:
        """Write ``rows`` into new data files, which belong to no version yet, and sync them."""
        if base.dataset is None:
            if self._versions(table):
                raise FencedError(_overtaken(table, 0))
            fragments = write_fragments(rows, str(self._path(table)), mode="create")
        else:
            fragments = write_fragments(rows, base.dataset, mode="append")
        self._sync_files(table, fragments)
        return fragments

    @contextmanager
    def _turn(self, table: str, base: _Base, fence: Fence) -> Iterator[_NextVersion]:
        """Hold the table's directory lock, with the fence standing and ``base`` still the newest version."""
        with _locked(self._path(table)):
            fence.check()
            newest = max(self._versions(table), default=0) if base.dataset is None else base.dataset.latest_version
            if newest != base.version:
                raise FencedError(_overtaken(table, base.version))
            yield _NextVersion(base.version)

    def _publish(
        self,
        table: str,
        base: _Base,
        operation: LanceOperation.BaseOperation,
        properties: dict[str, str],
        lock: _NextVersion,
    ) -> LanceDataset:
        transaction = Transaction(lock.newest, operation, transaction_properties=properties)
        target = self._path(table) if base.dataset is None else base.dataset  # an empty dataset is false
        try:
            return LanceDataset.commit(target, transaction, commit_lock=lock, max_retries=0)
        except OSError as error:
            if lock.refused:
                raise FencedError(_overtaken(table, base.version)) from error
            raise

    def _sync_files(self, table: str, fragments: Sequence[FragmentMetadata]) -> None:
        data = self._path(table) / "data"
        for fragment in fragments:
            for file in fragment.files:
                _sync(data / file.path)
        if fragments:
            _sync(data)

    def _sync_versions(self, table: str, before: int, newest: int) -> None:
        """Sync the manifests of the versions after ``before``; each contains its transaction."""
        for version in range(before + 1, newest + 1):
            _sync(self._manifest(table, version))
        _sync(self._path(table) / "_versions")
        if before == 0:
            _sync(self._path(table))

    def _drop_leftovers(self, table: str) -> int:
        """Delete what writes killed before their rename left beside manifests and transactions. Returns bytes."""
        freed = 0
        for pattern in ("_versions/.tmp*", "_versions/*.manifest#*", "_transactions/.tmp*"):
            for path in self._path(table).glob(pattern):
                freed += path.stat().st_size
                path.unlink()
        return freed


def _head(dataset: LanceDataset) -> Commit:
    """Return the newest commit as of ``dataset``'s version: that of the last transaction of ours, else the config's.

    The newest transaction is ours except after a compaction (two of Lance's own follow the config), so this is O(1).
    """
    dataset = _own(dataset)
    try:
        for version in range(dataset.version, 0, -1):
            properties = _transaction(dataset, version)[1]
            for key in (_APPEND, _HEAD):
                if key in properties:
                    return _from_json(properties[key])
    except OSError:  # an older version is gone: then the config holds the head
        pass
    config = dataset.config()
    if _HEAD not in config:
        raise TidemillError(f"{dataset.uri} holds no commit of Tidemill: it was written by something else.")
    return _from_json(config[_HEAD])


def _own(dataset: LanceDataset) -> LanceDataset:
    """Return a handle for this caller alone: ``read_transaction`` fails other threads' use of its own meanwhile."""
    return dataset.checkout_version(dataset.version)


def _transaction(dataset: LanceDataset, version: int) -> tuple[LanceOperation.BaseOperation | None, dict[str, str]]:
    """Return the operation that made ``version`` and its properties. Raises OSError when the version is gone."""
    transaction = dataset.read_transaction(version)
    return (None, {}) if transaction is None else (transaction.operation, transaction.transaction_properties or {})


def _to_json(commit: Commit) -> str:
    return canonical(dataclasses.asdict(commit)).decode()


def _from_json(text: str) -> Commit:
    return Commit(**json.loads(text))


def _overtaken(table: str, version: int) -> str:
    return (
        f"another writer has committed to table {table!r} after version {version}, the last that this process saw. "
        "Nothing was committed. Read the table's head again and go on from there."
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of ``directory``, which ends with the process."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
