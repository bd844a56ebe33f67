"""Sources and derived tables: where rows come from, what identifies them, when they happened and became known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from tidemill.spec import argument
from tidemill.spec.check import Check
from tidemill.spec.clean import Step, looks_back, steps_of
from tidemill.spec.time import Offset


@dataclass(frozen=True, slots=True)
class Files:
    """Files that match ``pattern``, relative to the system's folder. Format by suffix: csv, parquet, ndjson, jsonl.

    New files are read whole, and files that have grown (CSV, NDJSON) from where reading stopped, in order of name.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class Push:
    """Rows pushed over HTTP (``POST /v1/tables/<source>``)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows from any Python callable that returns an iterable of dicts, Polars frames or Arrow batches.

    The callable is asked once a tick with the number of rows taken so far and returns the rows after them. With
    ``history``, what it returns at first keeps its declared known-at, as the first load of files does.
    """

    function: Callable[[int], Iterable[Any]]
    history: bool = False


def files(pattern: str) -> Files:
    """Read files that match a glob ``pattern``, relative to the folder of the declared file.

    Raises TypeError unless it is one text, and ValueError when it is absolute or names no file.
    """
    do = "Write one pattern, relative to the folder of the declared file: tm.files('arrivals/*.csv')."
    argument.require(pattern, str, "the pattern of files()", do)
    if PurePath(pattern).is_absolute() or PurePath(pattern).name in ("", ".."):
        wrong = "is absolute" if PurePath(pattern).is_absolute() else "names no file"
        raise ValueError(f"the pattern {pattern!r} of files() {wrong}. {do}")
    return Files(pattern)


def push() -> Push:
    """Take rows that are pushed over HTTP."""
    return Push()


def rows(function: Callable[[int], Iterable[Any]], *, history: bool = False) -> Rows:
    """Take rows from ``function(taken)``: dicts, Polars frames or Arrow batches, all after the first ``taken`` rows.

    ``history``: the first load is history, whose rows keep their declared known-at; questions of the past see them.
    """
    if not callable(function):
        raise TypeError(f"rows() cannot read {argument.shown(function)}. Pass a function of the rows taken so far.")
    return Rows(function, history)


def _key(name: str, key: str | Iterable[str], event_time: str | None, known_at: str | Offset | None) -> tuple[str, ...]:
    """Return the key of the table ``name``. Raises TypeError when its name, its key or a time of it is none."""
    argument.name(name, "a source or table")
    argument.column(event_time, f"event_time= of {name!r}")
    do = "Name a column, or write tm.before('column', '1h') or tm.after('column', '1h')."
    argument.require(known_at, str | Offset | None, f"known_at= of {name!r}", do)
    return argument.names(key, f"key= of {name!r}")


@dataclass(frozen=True, slots=True, init=False)
class Source:
    """A table whose rows come from outside.

    ``key``: the column or columns that identify a thing; a second row of the same key is a new version of it.
    ``event_time``: the column of when it happened; None makes the table static.
    ``known_at``: a column or an offset (``tm.before``, ``tm.after``) of when the system could have known the row.
    Undeclared, it is the event time for files and the time of ingest for pushed rows and iterables.
    ``corrected_at``: the column with the known-at of a key's later versions, where the declared known-at is derived.
    ``tombstone``: a boolean column that withdraws the key when true.
    ``checks``: conditions that each row must meet; a row that does not goes to quarantine with its reason.
    """

    name: str
    reader: Files | Push | Rows
    key: tuple[str, ...]
    event_time: str | None
    known_at: str | Offset | None
    corrected_at: str | None
    tombstone: str | None
    checks: tuple[Check, ...]

    def __init__(
        self,
        name: str,
        reader: Files | Push | Rows,
        *,
        key: str | Iterable[str],
        event_time: str | None = None,
        known_at: str | Offset | None = None,
        corrected_at: str | None = None,
        tombstone: str | None = None,
        checks: Check | Iterable[Check] = (),
    ) -> None:
        names = _key(name, key, event_time, known_at)
        do = "Write tm.files('arrivals/*.csv'), tm.push() or tm.rows(function)."
        argument.require(reader, Files | Push | Rows, f"the reader of {name!r}", do)
        argument.column(corrected_at, f"corrected_at= of {name!r}")
        argument.column(tombstone, f"tombstone= of {name!r}")
        do = "Checks are tm.not_null, tm.between, tm.one_of and tm.holds."
        conditions = argument.listed(checks, Check, f"checks= of {name!r}", do)
        for attribute, value in (
            ("name", name),
            ("reader", reader),
            ("key", names),
            ("event_time", event_time),
            ("known_at", known_at),
            ("corrected_at", corrected_at),
            ("tombstone", tombstone),
            ("checks", conditions),
        ):
            object.__setattr__(self, attribute, value)

    @property
    def static(self) -> bool:
        """True when the table has no event time."""
        return self.event_time is None

    @property
    def has_history(self) -> bool:
        """True when its first load keeps the declared known-at (time rule 5)."""
        return isinstance(self.reader, Files) or (isinstance(self.reader, Rows) and self.reader.history)


@dataclass(frozen=True, slots=True)
class Table:
    """A table derived from others by a function of Polars lazy frames; made by ``@tm.table``.

    ``inputs`` names the sources and tables it reads, in the order of the function's parameters. ``by_row`` is true for
    functions that treat each input row by itself; they run on new rows only. ``steps`` are those of a cleaned table;
    its function gives its one input as it is.
    """

    name: str
    function: Callable[..., Any]
    key: tuple[str, ...]
    event_time: str | None
    known_at: str | Offset | None
    by_row: bool
    sources: tuple[Source | Table, ...] = field(repr=False)
    corrected_at: None = None
    checks: tuple[Check, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def static(self) -> bool:
        """True when the table has no event time."""
        return self.event_time is None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tables it reads, in the order of the function's parameters."""
        return tuple(source.name for source in self.sources)


def table(
    name: str,
    *,
    key: str | Iterable[str],
    event_time: str | None = None,
    known_at: str | Offset | None = None,
    rows: bool = False,
) -> Callable[[Callable[..., Any]], Table]:
    """Declare a derived table over the decorated function of Polars lazy frames.

    The function's parameters name its inputs: each is the name of a declared source or table of the same file. Known-at
    of an output row is at least that of its inputs. ``rows=True`` promises that each output row depends on one input
    row alone; the function then runs on new rows only. Raises TypeError when a parameter names no declaration.
    """
    names = _key(name, key, event_time, known_at)

    def decorate(function: Callable[..., Any]) -> Table:
        named = {
            value.name: value
            for value in (*inspect.getclosurevars(function).globals.values(), *function.__globals__.values())
            if isinstance(value, Source | Table)
        }
        inputs = []
        for parameter in inspect.signature(function).parameters:
            found = function.__globals__.get(parameter, named.get(parameter))
            if not isinstance(found, Source | Table):
                found = named.get(parameter)
            if found is None:
                raise TypeError(
                    f"table {name!r}: parameter {parameter!r} of {function.__name__}() names no source or table "
                    "declared above it. Name each parameter after the declaration it reads."
                )
            inputs.append(found)
        return Table(name, function, names, event_time, known_at, rows, tuple(inputs))

    return decorate


def clean(
    name: str,
    table: Source | Table,
    steps: Step | Iterable[Step],
    *,
    key: str | Iterable[str] | None = None,
    event_time: str | None = None,
    known_at: str | Offset | None = None,
) -> Table:
    """Declare the table ``name``: the rows of ``table``, cleaned by ``steps``, one after the other.

    ``table`` keeps its rows as they came; what each step did is counted with each commit. Key and times are those of
    ``table`` unless given (a time that a step reads out of text, say). Steps that look at one row alone run on new rows
    only. Raises TypeError when one of ``steps`` is none.
    """
    argument.require(table, Source | Table, f"the table of {name!r}", "Pass the declaration of what is to be cleaned.")
    names = _key(name, table.key if key is None else key, event_time, known_at)
    made = steps_of(steps)
    # The time at which rows of a static table came in says nothing of a past that the steps bring to light.
    dated = table.event_time is None and table.known_at is None and (event_time, known_at) != (None, None)
    by_row = names == table.key and not dated and not any(looks_back(step) for step in made)
    known = known_at if known_at is not None or by_row else table.known_at
    return Table(name, as_it_is, names, event_time or table.event_time, known, by_row, (table,), steps=made)


def as_it_is(frame: Any) -> Any:
    """Return ``frame``: the function of a cleaned table, whose steps do the rest."""
    return frame
