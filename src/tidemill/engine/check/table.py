"""Checks of sources and derived tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from tidemill.base.errors import Fault, FingerprintError
from tidemill.base.schema import NAME, SYSTEM_COLUMNS
from tidemill.engine.check import fingerprint
from tidemill.engine.check.clean import cleaned_schema, step_faults
from tidemill.engine.check.column import Schema, Schemas, expression, first_line, kept, kind, missing, title
from tidemill.engine.predict.records import RESERVED_TABLES
from tidemill.engine.table.clean import trial
from tidemill.engine.table.ingest import pushes_table, quarantine_table
from tidemill.spec.check import Between, Holds, NotNull, OneOf
from tidemill.spec.source import Files, Rows, Source, Table
from tidemill.spec.time import Offset

_SUFFIXES = (".csv", ".parquet", ".ndjson", ".jsonl")


def bad_name(where: str, name: str, what: str = "name") -> Iterator[Fault]:
    """Yield a fault when ``name`` is not a name."""
    if not NAME.match(name):
        yield Fault(
            where, f"the {what} '{name}' is not allowed.", "Use letters, digits and _, not starting with a digit."
        )


def table_faults(table: Source | Table, schemas: Schemas, repeated: Collection[str]) -> Iterator[Fault]:
    """Yield what is wrong with a table by itself; ``repeated`` names the tables in whose data keys come twice."""
    where = title(table)
    yield from bad_name(where, table.name)
    yield from _taken(where, table.name)
    yield from _columns(where, table, schemas)
    if isinstance(table, Source):
        yield from _source(where, table, repeated)
    elif not table.sources:
        yield Fault(where, "its function has no inputs.", "Name each parameter after the declaration it reads.")
    for check in table.checks:
        yield from _check(where, check, table, schemas)
    if isinstance(table, Table):
        yield from step_faults(where, table.steps)
    try:
        fingerprint.of(table)
    except FingerprintError as error:
        yield Fault(where, f"cannot be fingerprinted: {error}")


def _taken(where: str, name: str) -> Iterator[Fault]:
    """Yield a fault when Tidemill has a table of that name itself, or may come to have one."""
    if name in RESERVED_TABLES:
        yield Fault(where, f"'{name}' is the name of a table that Tidemill keeps itself.", "Give it another name.")
    for companion in (quarantine_table(""), pushes_table("")):
        if name.endswith(companion):
            do = "Give it another name."
            yield Fault(where, f"names that end in '{companion}' are those of tables beside sources.", do)


def derived_schema(table: Table, schemas: Schemas) -> tuple[Schema | None, list[Fault]]:
    """Run a table's function on empty frames of its inputs: return its columns, or what is wrong, or neither.

    Neither when the columns of an input are not known yet.
    """
    if not table.sources or any(name not in schemas for name in table.inputs):
        return None, []
    where = title(table)
    frames = [pl.LazyFrame(schema=dict(schemas[name])) for name in table.inputs]
    if table.steps:
        return cleaned_schema(where, table, schemas[table.inputs[0]])
    try:
        with trial():
            result: Any = table.function(*frames)
            if isinstance(result, pl.LazyFrame):
                result = result.collect()
    except Exception as error:
        return None, [Fault(where, f"its function fails on empty input ({type(error).__name__}): {first_line(error)}.")]
    if not isinstance(result, pl.DataFrame):
        what = f"its function returns a {type(result).__name__}, not a Polars frame."
        return None, [Fault(where, what, "Return a LazyFrame or a DataFrame.")]
    return kept(dict(result.schema)), []


def _columns(where: str, table: Source | Table, schemas: Schemas) -> Iterator[Fault]:
    schema = schemas.get(table.name, {})
    for column in schema:
        if column in SYSTEM_COLUMNS:
            yield Fault(
                where, f"its column '{column}' has a name that Tidemill keeps for itself.", "Rename the column."
            )
        elif "." in column or not column:
            yield Fault(
                where, f"its column '{column}' has a name that tables cannot store.", "Rename it without a dot."
            )
    if not table.key:
        yield Fault(where, "has no key.", "Name the column or columns that identify a row: key='id'.")
    if len(set(table.key)) < len(table.key):
        yield Fault(where, "names a column of its key twice.")
    known = table.known_at.column if isinstance(table.known_at, Offset) else table.known_at
    tombstone = table.tombstone if isinstance(table, Source) else None
    yield from missing(where, (*table.key, table.event_time, known, table.corrected_at, tombstone), table, schemas)
    for column in table.key:
        if column in schema and kind(schema[column]) in ("decimal number", "other"):
            what = f"its key '{column}' is {schema[column]}, which does not identify anything exactly."
            yield Fault(where, what, "Use integers, strings, booleans or times.")
    named = {"event time": table.event_time, "known-at": known, "corrected-at": table.corrected_at}
    for role, time in named.items():
        if time is not None and time in schema and kind(schema[time]) != "time":
            what = f"its {role} '{time}' is {schema[time]}, not a time."
            yield Fault(where, what, "Write times as ISO 8601 (2013-10-01T06:00Z), or derive the column in a table.")
    if tombstone is not None and tombstone in schema and schema[tombstone] != pl.Boolean:
        yield Fault(where, f"its tombstone '{tombstone}' is {schema[tombstone]}, not a boolean.")


def _source(where: str, source: Source, repeated: Collection[str]) -> Iterator[Fault]:
    if isinstance(source.reader, Files):
        suffix = PurePosixPath(source.reader.pattern).suffix
        if suffix not in _SUFFIXES and "*" not in suffix:
            what = f"its files '{source.reader.pattern}' are of no known format."
            yield Fault(where, what, f"Known are {', '.join(_SUFFIXES)}.")
    if isinstance(source.reader, Rows) and source.has_history and source.known_at is None:
        what = "its first load is history, and nothing says when the rows of it became known."
        yield Fault(where, what, "Declare known_at=: a column, or tm.before or tm.after one.")
    derived = isinstance(fingerprint.known_at(source), Offset) or (
        source.known_at is None and isinstance(source.reader, Files) and not source.static
    )
    if derived and source.corrected_at is None and source.name in repeated:
        yield Fault(
            where,
            "its data holds later versions of some keys, and nothing says when those became known.",
            "Name the column that does with corrected_at='…', or declare known_at as a column.",
        )


def _check(where: str, check: Any, table: Source | Table, schemas: Schemas) -> Iterator[Fault]:
    schema = schemas.get(table.name, {})
    match check:
        case NotNull(columns):
            if not columns:
                yield Fault(where, "not_null() names no column.")
            yield from missing(where, columns, table, schemas)
        case Between(column, low, high):
            yield from missing(where, (column,), table, schemas)
            if column in schema and not schema[column].is_numeric():
                yield Fault(where, f"between() compares '{column}', which is {schema[column]}, with numbers.")
            if any(bound is not None and math.isnan(bound) for bound in (low, high)):
                yield Fault(where, f"between('{column}') has a bound that is not a number.")
            elif low is not None and high is not None and low > high:
                yield Fault(where, f"between('{column}', {low}, {high}) can never hold.", "Swap the bounds.")
        case OneOf(column, values):
            yield from missing(where, (column,), table, schemas)
            if not values:
                yield Fault(where, f"one_of('{column}') lists no value.")
        case Holds(name, value):
            dtype, faults = expression(where, f"the check '{name}'", value, table, schemas)
            yield from faults
            if dtype is not None and dtype != pl.Boolean:
                yield Fault(where, f"the check '{name}' yields {dtype}, not a boolean.")
