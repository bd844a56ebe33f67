"""Declared expressions as programs of a compiled kernel, wherever that gives Polars' own bits.

``expression.evaluate`` defines the values. Each expression is compiled and run against the definition on a
battery of rows; where they agree bit for bit the program answers, in about a microsecond for a row where Polars takes a
hundred. What cannot be compiled, or differs, stays in Polars, and ``Program.stays`` says so. That is proved once: a
training records the ``proofs`` of its expressions, and a process that is told of them (``trust``) need not try again. A
program may decline rows (a strict cast that fails, letters beyond ASCII in upper case); those are then computed by the
definition too.
"""

from __future__ import annotations

import hashlib
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from statistics import median
from timeit import repeat
from typing import Any

import polars as pl

from tidemill.base.hashing import fingerprint
from tidemill.engine.expression import assemble as assembling
from tidemill.engine.expression import battery as batteries
from tidemill.engine.expression import compile as compiling
from tidemill.engine.expression import expression as defining
from tidemill.engine.expression import functions
from tidemill.engine.expression import zone as zones
from tidemill.engine.expression.assemble import RefusedError, letter_of
from tidemill.engine.expression.battery import battery
from tidemill.engine.expression.compile import assemble
from tidemill.engine.expression.expression import evaluate
from tidemill.engine.expression.zone import table
from tidemill.kernels import expressions
from tidemill.kernels.compiled import load
from tidemill.kernels.expressions import Machine, machine
from tidemill.spec.expression import Expression

Schema = Mapping[str, pl.DataType]

_ARROW = {
    "d": "float64", "f": "float32", "?": "bool_", "q": "int64", "i": "int32", "h": "int16", "b": "int8",
    "I": "uint32", "H": "uint16", "B": "uint8", "s": "large_string", "D": "date32", "T": "int64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stay:
    """An expression that stays in Polars, and why."""

    name: str
    why: str


class Program:
    """Expressions over rows of one schema; see ``compiled``."""

    def __init__(self, expressions: Mapping[str, Expression], schema: Schema) -> None:
        read = {column for expression in expressions.values() for column in expression.columns}
        schema = {name: dtype for name, dtype in schema.items() if name in read}
        self._expressions = dict(expressions)
        self._schema = dict(schema)
        why = {name: _proof(expression, _of(expression, schema))[1] for name, expression in expressions.items()}
        self.stays = tuple(Stay(name, reason) for name, reason in why.items() if reason is not None)
        self._left = {name: expressions[name] for name, reason in why.items() if reason is not None}
        self._run = _Run({name: expressions[name] for name, reason in why.items() if reason is None}, schema)
        names = [*self._run.dtypes, *self._left]
        self._order = None if not self._left else [names.index(name) for name in expressions]

    def row(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """Return the values for one row, in order of declaration, as Python's own values or None.

        ``row`` has the columns that the expressions read: times as whole microseconds since 1970 UTC, dates as
        ``datetime.date``. Times come back so, too. Raises KeyError when a column is missing, TypeError or OverflowError
        when a value is not of the column's type.
        """
        values = self._run.row(row)
        if values is None:
            return self._defined(row, self._expressions)
        if self._order is None:
            return values
        values += self._defined(row, self._left)
        return tuple(values[place] for place in self._order)

    def frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return one column for each expression, with one value for each row: what ``evaluate`` returns."""
        found = self._run.frame(frame) if self._run.dtypes and frame.height else None
        if found is None:
            return evaluate(frame, self._expressions)
        if self._left:
            found |= {column.name: column for column in evaluate(frame, self._left)}
        return pl.DataFrame([found[name] for name in self._expressions])

    def cost(self, name: str) -> float:
        """Measure how many microseconds one row of an expression takes as it runs here, in Polars or compiled."""
        one = {name: self._expressions[name]}
        schema = _of(self._expressions[name], self._schema)
        program, values = Program(one, schema), _values(battery(self._expressions[name], schema).head(1))[0]
        return 1e6 * median(repeat(lambda: program.row(values), number=20, repeat=5)) / 20

    def _defined(self, row: Mapping[str, Any], expressions: Mapping[str, Expression]) -> tuple[Any, ...]:
        columns = [_series(name, [row[name]], dtype) for name, dtype in self._schema.items()]
        return tuple(_physical(column).item() for column in evaluate(pl.DataFrame(columns), expressions))


def compiled(expressions: Mapping[str, Expression], schema: Schema) -> Program:
    """Return the program of ``expressions`` over rows with columns of the types ``schema``; it is kept.

    The first time it is compiled and verified, in some milliseconds.
    """
    read = sorted({column for expression in expressions.values() for column in expression.columns} & schema.keys())
    return _compiled(tuple(expressions.items()), tuple((name, schema[name]) for name in read))


@lru_cache(maxsize=256)
def _compiled(items: tuple[tuple[str, Expression], ...], schema: tuple[tuple[str, pl.DataType], ...]) -> Program:
    return Program(dict(items), dict(schema))


def proofs(expressions: Mapping[str, Expression], schema: Schema) -> dict[str, str | None]:
    """Return, for the fingerprint of each expression over ``schema``, why it stays in Polars; None: it is compiled.

    The fingerprint is of the expression, the types it reads, and the code that compiles, verifies and runs it.
    """
    return dict(_proof(expression, _of(expression, schema)) for expression in expressions.values())


def trust(proved: Mapping[str, str | None]) -> None:
    """Take over ``proofs`` of another process of this workspace. Those by other code have other fingerprints."""
    _proved.update(proved)


_proved: dict[str, str | None] = {}


def _proof(expression: Expression, schema: Schema) -> tuple[str, str | None]:
    key = fingerprint("expression", _code(), expression.tree, {name: str(dtype) for name, dtype in schema.items()})
    if key not in _proved:
        _proved[key] = _difference(expression, schema)
    return key, _proved[key]


@cache
def _code() -> str:
    """Return a fingerprint of all that decides what a program gives: this code, the kernel, Polars and Python."""
    kernel = load("expressions")
    modules = [assembling, batteries, compiling, defining, functions, zones, expressions, *([kernel] if kernel else [])]
    read = [Path(str(each)).read_bytes() for each in (__file__, *(module.__file__ for module in modules))]
    hashes = [hashlib.sha256(each).hexdigest() for each in read]
    return fingerprint(pl.__version__, platform.python_version(), kernel is not None, hashes)


def _of(expression: Expression, schema: Schema) -> Schema:
    return {name: schema[name] for name in expression.columns if name in schema}


class _Run:
    """Expressions that compile, as one program."""

    def __init__(self, expressions: Mapping[str, Expression], schema: Schema) -> None:
        program, self.dtypes = assemble(expressions, schema)
        self._inputs = program.inputs
        self._letters = [letter_of(dtype) for dtype in self.dtypes.values()]
        try:
            self._machine: Machine = machine(*program.parts())
        except ValueError as error:  # a kind of value that a table of functions forgot; the kernel would not have it
            raise RefusedError(f"an operation that the kernel refuses ({error})") from error
        self._columns = getattr(self._machine, "columns", None)  # plain programs know rows only

    def row(self, row: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return the values, or None when the program declines."""
        values = self._machine.row(row)
        while isinstance(values, str):
            if not self._learn(values):
                return None
            values = self._machine.row(row)
        return values

    def frame(self, frame: pl.DataFrame) -> dict[str, pl.Series] | None:
        """Return the columns, or None when the program declines."""
        if self._columns is None:
            return None
        inputs = [_column(frame[name]) for name in self._inputs]
        found = self._columns(inputs, frame.height)
        while isinstance(found, str):
            if not self._learn(found):
                return None
            found = self._columns(inputs, frame.height)
        if found is None:
            return None
        outputs = zip(self.dtypes.items(), self._letters, found, strict=True)
        return {name: _output(name, dtype, letter, frame.height, *parts) for (name, dtype), letter, parts in outputs}

    def _learn(self, zone: str) -> bool:
        return self._machine.add_zone(zone, *(table(zone) or (None, None)))


def _column(series: pl.Series) -> tuple[Any, int, Any, Any]:
    """Return a column as the kernel reads it: data, offset, validity and, for texts, where they end."""
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    array = series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    validity, *rest = array.buffers()
    data = rest[-1] if rest[-1] is not None else b""
    return data, array.offset, validity, rest[0] if len(rest) > 1 else None


def _output(
    name: str, dtype: pl.DataType, letter: str, rows: int, validity: bytes | None, data: bytes, ends: bytes | None
) -> pl.Series:
    import pyarrow as pa  # a server that answers row by row does without

    buffers = [each if each is None else pa.py_buffer(each) for each in (validity, ends, data)]
    if ends is None:
        del buffers[1]
    series = pl.Series(name, pa.Array.from_buffers(getattr(pa, _ARROW[letter])(), rows, buffers))
    return series if series.dtype == dtype else series.cast(dtype)


# Verification.


def _difference(expression: Expression, schema: Schema) -> str | None:
    """Return why an expression cannot be compiled, or None when its program has the definition's bits."""
    one = {"value": expression}
    try:
        run = _Run(one, schema)
    except RefusedError as refused:
        return f"{refused} cannot be compiled"
    rows = battery(expression, schema) if schema else pl.DataFrame({"": [None]})
    values = _values(rows)
    try:
        defined = evaluate(rows, one).to_series()
    except Exception:  # some row has no value by the definition; the program must decline it
        return next((why for place in range(len(values)) if (why := _alone(run, one, rows, values, place))), None)
    if defined.dtype != run.dtypes["value"]:
        return f"compiled it would be {run.dtypes['value']}, not {defined.dtype}"
    expected = _physical(defined).to_list()
    for row, value in zip(values, expected, strict=True):
        got = run.row(row)
        if got is not None and not _same(got[0], value):
            return f"compiled it would be {got[0]!r}, not {value!r}, for {row}"
    whole = run.frame(rows)
    if whole is not None and not all(map(_same, _physical(whole["value"]).to_list(), expected)):
        return "compiled it would differ between one row and many"
    return next((why for place in (0, 1, 2) if (why := _alone(run, one, rows, values, place))), None)


def _alone(
    run: _Run, one: Mapping[str, Expression], rows: pl.DataFrame, values: Sequence[dict[str, Any]], place: int
) -> str | None:
    """Return how the program differs from the definition on a frame of one row."""
    if place >= len(values):
        return None
    got = run.row(values[place])
    if got is None:
        return None
    try:
        defined = evaluate(rows[place : place + 1], one).to_series()
    except Exception as error:
        return f"compiled it would be {got[0]!r} where Polars raises {type(error).__name__}, for {values[place]}"
    if defined.dtype != run.dtypes["value"]:
        return f"compiled it would be {run.dtypes['value']}, not {defined.dtype}"
    value = _physical(defined).item()
    return None if _same(got[0], value) else f"compiled it would be {got[0]!r}, not {value!r}, for {values[place]}"


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values have the same bits; all NaN count as one."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one != one and other != other) or struct.pack("<d", one) == struct.pack("<d", other)
    return bool(one == other)


def _physical(series: pl.Series) -> pl.Series:
    """Return times and durations as microseconds, all else as it is."""
    return series.to_physical() if series.dtype in (pl.Datetime, pl.Duration) else series


def _values(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as programs take them."""
    return pl.DataFrame([_physical(column) for column in frame]).to_dicts()


def _series(name: str, values: list[Any], dtype: pl.DataType) -> pl.Series:
    """Return a column of values as programs take them."""
    if dtype in (pl.Datetime, pl.Duration):
        return pl.Series(name, values, dtype=pl.Int64).cast(dtype)
    return pl.Series(name, values, dtype=dtype)
