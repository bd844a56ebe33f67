"""Batch prediction: a fitted model, rows in files or in a table of the lake, and where the predictions go.

A run is told from others by its model version, its input as it is now, and what was asked of it. One that was
interrupted goes on where it was when it is asked for again: with the rows of the lake and the time of its first start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from tidemill import __version__
from tidemill.adapters import adapter, bulk_files
from tidemill.adapters.bulk_output import Output, check_output
from tidemill.adapters.work_folder import resumable
from tidemill.base.clock import format_time, parse_time, to_datetime
from tidemill.base.errors import RequestError
from tidemill.base.hashing import canonical, fingerprint
from tidemill.base.schema import HISTORY, KNOWN_AT, NAME, SEQ, SYSTEM_COLUMNS, TICK, TOMBSTONE
from tidemill.engine.example.batch import Asking, FileQuestions, Predictions, TableQuestions, carry_through, predicted
from tidemill.engine.example.build import PART_CELLS, Partitions, Plan, Report
from tidemill.engine.feature.partition import Need, needs, table_columns, table_views
from tidemill.engine.predict import records
from tidemill.engine.table.table import TIME
from tidemill.ports.bulk import Chunk
from tidemill.ports.lake import Commit, Lake
from tidemill.ports.scratch import Scratch
from tidemill.project import Project, cores, say
from tidemill.workspace import dtype_from_text, dtype_to_text

_CHUNK_ROWS = 262_144  # at most: more in one chunk is no faster
_CHUNK_CELLS = 2 * PART_CELLS
_COLUMNS = ("model", "version", *SYSTEM_COLUMNS)  # that a table of predictions gets, beside those of a file
_COMMIT_ROWS = 4_000_000  # of predictions in one commit to the lake


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a run predicted: how many ``rows``, by which ``model`` (``name v2``), and where they are (``output``)."""

    model: str
    rows: int
    output: str


def predict(
    project: Project,
    model: str,
    inputs: Sequence[str | Path] = (),
    *,
    table: str | None = None,
    output: str | Path | None = None,
    into: str | None = None,
    as_of: str | int | None = None,
    keep: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    executor: str = "threads",
    report: Report = say,
) -> Predicted:
    """Predict with ``model`` (``"late@champion"``) for many rows, and put down what comes of it.

    The rows are those of ``inputs`` (paths, folders or globs of Parquet, CSV or NDJSON; ``output`` is none of them), or
    of ``table`` of the lake as a question at ``as_of`` (None: now; not later) sees it. Features are looked up as of
    ``as_of`` as by ``FittedModel.predict``.

    ``output`` is a ``.parquet`` or ``.csv`` file, ``into`` a table of the lake, in which each run makes a new version.
    Columns: ``keep`` (None: the key), ``asked_at``, and ``prediction``, or for more than two classes one
    ``prediction_<class>`` each; in a table ``model`` and ``version``, too. Rows come in the order of the input; those
    of a large table in that of its partitions.

    ``executor``: "threads" or "processes", ``workers`` of them. Raises RequestError naming file, row and column when
    the rows are not questions to the model; WorkspaceError while another process does this very work; LeaseHeldError
    when a worker runs, which alone writes to the lake: what was predicted is kept until the next try.
    """
    if bool(inputs) == (table is not None) or (output is None) == (into is None):
        raise RequestError("Name input files or a table, and an output file or a table for the predictions.")
    if output is not None:
        check_output(Path(output), overwrite=overwrite)
    run = _Run.of(project, model, _Input(_files(inputs, output), table), as_of, keep)
    if into is not None:
        _check_table(project, into, run.keep)
    with resumable(run.folder) as folder:
        if output is not None:
            with Output(Path(output)) as out:
                rows, scratch, chunks = run.carry_out(folder, executor, workers or cores(), report, out.add)
                out.finish(lambda: predicted(scratch, chunks))
            return Predicted(run.name, rows, str(output))
        assert into is not None
        rows, scratch, chunks = run.carry_out(folder, executor, workers or cores(), report)
        version = _commit(project, into, run, scratch, chunks)
    return Predicted(run.name, rows, f"table {into}, version {version}")


def _files(inputs: Sequence[str | Path], output: str | Path | None) -> list[str]:
    """Return the files that ``inputs`` name, but for ``output``: an earlier one may lie in the same folder."""
    paths = bulk_files.BulkFiles([str(each) for each in inputs]).paths
    others = [str(path) for path in paths if output is None or path.resolve() != Path(output).resolve()]
    if paths and not others:
        raise RequestError(f"{output} would be written over the rows to predict for. Name another output.")
    return others


@dataclass(frozen=True, slots=True)
class _Input:
    files: list[str]
    table: str | None


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: everything that decides what comes out of it."""

    project: Project
    id: str
    model: str
    version: int
    input: _Input
    as_of: int | None
    keep: tuple[str, ...]

    @staticmethod
    def of(
        project: Project, reference: str, given: _Input, as_of: str | int | None, keep: Sequence[str] | None
    ) -> _Run:
        """Return the run asked for. Raises NotFoundError when there is no such model, file or table."""
        name, _, which = reference.partition("@")
        model = project.declared_model(name)
        version = project.state().model(name).resolve(which or "champion")
        moment = parse_time(as_of) if isinstance(as_of, str) else as_of
        if moment is not None and moment > (now := project.now()):
            raise RequestError(f"{format_time(moment)} lies ahead: nobody knows yet. It is {format_time(now)}.")
        if given.table is not None:
            project.declared_table(given.table)
            what: Any = given.table
        else:
            what = bulk_files.BulkFiles(given.files).identity()
        kept = tuple(dict.fromkeys(model.examples.key if keep is None else keep))
        versions = [__version__, pl.__version__]
        id = fingerprint("predict", name, version.training, what, moment, kept, _CHUNK_ROWS, versions)[:16]
        return _Run(project, id, name, version.number, given, moment, kept)

    @property
    def name(self) -> str:
        """The model version in words."""
        return f"{self.model} v{self.version}"

    @property
    def folder(self) -> Path:
        """Where its pieces lie until it is done."""
        return self.project.workspace.root / "work" / f"predict-{self.id}"

    def carry_out(
        self,
        folder: Path,
        executor: str,
        workers: int,
        report: Report,
        take: Callable[[pa.Table], None] = lambda _: None,
    ) -> tuple[int, Scratch, int]:
        """Predict what has not been predicted yet; return the number of rows, where they lie, and their chunks.

        ``take`` is given all predictions, chunk by chunk in order, as they are there.
        """
        scratch: Scratch = adapter("scratch", "files")(folder)
        if not scratch.has("run"):
            scratch.put("run", [pa.table({})], self._begin())
        work = predictions(self.project, scratch)
        chunks = scratch.note("run")["chunks"]
        count = len(chunks) if isinstance(chunks, list) else int(chunks)
        with closing(self.project.executor(executor, folder, work.run, workers, numerical=work.numerical)) as runs:
            return carry_through(work.partitions, runs, count, report, take), scratch, count

    def _begin(self) -> dict[str, Any]:
        """Return what a run holds on to from its first start, as JSON data. Raises RequestError for a wrong input."""
        project = self.project
        model = project.declared_model(self.model)
        types = project.request_types(self.model, self._training())
        names = {view.table.name for view in table_views(model)} | ({self.input.table} if self.input.table else set())
        lake = _lake(project, names)
        heads = {name: lake.head(name) for name in sorted(names)}
        rows = {name: head.next_seq for name, head in heads.items() if head is not None}
        schemas = {name: lake.schema(name) for name in rows}
        found = needs(model, schemas, rows, learning=False)
        chunks: Any
        if self.input.table is None:
            bulk = bulk_files.BulkFiles(self.input.files)
            asking = Asking(model, types, self.as_of, project.now(), self.keep, bulk.columns())
            asking.check(str(bulk.paths[0]))
            size = max(1, min(_CHUNK_ROWS, _CHUNK_CELLS // len(asking.columns)))
            chunks = [chunk.as_data() for chunk in bulk.chunks(size)]
            if not chunks:
                raise RequestError(f"{bulk.paths[0]} has no rows to predict for.")
            plan = Plan.of(found)
        else:
            name = self.input.table
            if name not in rows:
                raise RequestError(f"Table {name!r} has no rows yet to predict for.")
            asking = Asking(model, types, self.as_of, project.now(), self.keep, tuple(schemas[name].names))
            asking.check(f"Table {name!r}")
            read = {*table_columns(project.declared_table(name)), *asking.columns}
            read |= set(found[name].columns) if name in found else set()
            found[name] = Need(name, rows[name], tuple(each for each in schemas[name].names if each in read))
            plan = Plan.of(found)
            chunks = plan.parts if name in plan.large else 1
        return {
            "nonce": os.urandom(8).hex(),  # tells this run from a later one of the same kind
            "model": self.model,
            "version": self.version,
            "files": self.input.files,
            "table": self.input.table,
            "as_of": self.as_of,
            "now": asking.now,
            "keep": list(self.keep),
            "there": list(asking.there),
            "types": {name: dtype_to_text(dtype) for name, dtype in types.items()},
            "plan": plan.as_data(),
            "chunks": chunks,
        }

    def _training(self) -> str:
        return self.project.state().model(self.model).resolve(f"v{self.version}").training


def predictions(project: Project, scratch: Scratch) -> Predictions:
    """Return what carries out the steps of the run whose pieces are in ``scratch``."""
    note = scratch.note("run")
    model = project.declared_model(note["model"])
    fitted = project.model(f"{model.name}@v{note['version']}")
    types = {name: dtype_from_text(text) for name, text in note["types"].items()}
    asking = Asking(model, types, note["as_of"], note["now"], tuple(note["keep"]), tuple(note["there"]))
    plan = Plan.from_data(note["plan"])
    lake = _lake(project, plan.needs)
    ask: FileQuestions | TableQuestions
    if note["table"] is None:
        chunks = [Chunk(*data) for data in note["chunks"]]
        ask = FileQuestions(bulk_files.BulkFiles(note["files"]), chunks, asking)
        partitions = Partitions(model, lake, scratch, plan, ask)
    else:
        table = project.declared_table(note["table"])
        ask = TableQuestions(table, note["now"] if note["as_of"] is None else note["as_of"], asking)
        partitions = ask.partitions = Partitions(model, lake, scratch, plan, ask, table)
    return Predictions(partitions, fitted.predictor, asking.keep, ask)


def _lake(project: Project, tables: Collection[str]) -> Lake:
    """Return the project's lake; where no table is read, an empty one, for opening it loads a large library."""
    lake: Lake = project.workspace.lake if tables else adapter("lake", "memory")()
    return lake


# Into the lake ----------------------------------------------------------------------------------------------------


def _check_table(project: Project, name: str, keep: Sequence[str]) -> None:
    if not NAME.match(name):
        raise RequestError(f"{name!r} cannot name a table. Use letters, digits and underscores.")
    taken = {table.name for table in project.system.tables} | set(records.RESERVED_TABLES)
    if name in taken or name.endswith("__quarantine"):
        raise RequestError(f"Table {name!r} is the system's own. Give the predictions a table of another name.")
    for column in keep:
        if column in _COLUMNS:
            raise RequestError(f"A table of predictions has a column {column!r} of its own. Keep others.", field=column)


def _commit(project: Project, into: str, run: _Run, scratch: Scratch, chunks: int) -> int:
    """Append the predictions to table ``into``, each once however often it is tried; return the version."""
    workspace = project.workspace
    lease = workspace.journal.acquire()
    try:
        lake = workspace.lake
        lake.claim(lease)
        tick = max(workspace.journal.ticks(), default=0)
        nonce = scratch.note("run")["nonce"]
        done = _committed(lake.head(into), nonce)
        while done < chunks:
            first, pieces, rows = done, [], 0
            while done < chunks and rows < _COMMIT_ROWS:
                pieces.append(scratch.get(f"predicted-{done}"))
                rows += pieces[-1].num_rows
                done += 1
            head = lake.head(into)
            start = head.next_seq if head else 0
            stamped = _stamped(pl.DataFrame(pa.concat_tables(pieces, promote_options="permissive")), run, tick, start)
            cursor = canonical({"run": nonce, "chunks": done}).decode()
            batch = fingerprint(into, nonce, first)
            # Without an entry: predictions by hand are nothing that the mill decided or that a replay would repeat.
            commit = Commit(into, 0, tick, batch, rows, start + rows, cursor, "")
            lake.append(into, stamped.to_arrow(), commit, lease)
        head = lake.head(into)
        assert head is not None
        return head.version
    finally:
        lease.release()


def _committed(head: Commit | None, run: str) -> int:
    """Return how many chunks of ``run`` the newest commit says are in the table."""
    cursor: Mapping[str, Any] = json.loads(head.cursor) if head is not None and head.cursor else {}
    return int(cursor["chunks"]) if cursor.get("run") == run else 0


def _stamped(rows: pl.DataFrame, run: _Run, tick: int, start: int) -> pl.DataFrame:
    moment = pl.lit(to_datetime(tick), dtype=TIME)
    return rows.with_columns(
        pl.lit(run.model).alias("model"),
        pl.lit(run.version, dtype=pl.Int64).alias("version"),
        moment.alias(KNOWN_AT),
        pl.int_range(start, start + rows.height, dtype=pl.Int64).alias(SEQ),
        pl.lit(value=False).alias(TOMBSTONE),
        moment.alias(TICK),
        pl.lit(value=False).alias(HISTORY),
    )
