"""Requests: JSON rows checked against the columns a model asks for, and turned into a frame of their types.

Checking is by column and mostly at C speed (the set of a column's Python types), so one row costs microseconds and a
thousand rows little more than their decoding. What a column takes:

- whole number: ``12`` and ``12.0``, within the column's width; never ``true``, ``12.5`` or ``"12"``;
- number: any JSON number, read as float64; a whole number beyond 2^53 is refused, for it would be changed silently;
- truth value, text: as they are;
- time: ISO 8601 text (without an offset it is UTC) or whole microseconds since the epoch; a date: ISO 8601 text.

Null stands for "not known" in every column but the key's. A column that is left out is an error: a misspelt name would
otherwise be a silent null. Only one that nothing which answers reads may be left out; it is null.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any

import msgspec
import polars as pl
from msgspec.structs import astuple

from tidemill.base.clock import format_time, from_datetime, parse_time
from tidemill.base.errors import RequestError, TidemillError
from tidemill.base.schema import SYSTEM_COLUMNS, nearest

#: Rows in one request, at most.
MAX_ROWS = 10_000
#: Rows up to which they are answered value by value: there a frame of them costs more.
FEW = 32
#: Lists and objects inside each other in one pushed value, at most.
MAX_DEPTH = 16

_TIME = pl.Datetime("us", "UTC")
_EXACT = 2**53  # float64 holds every whole number up to here
_FIRST = from_datetime(dt.datetime.min.replace(tzinfo=dt.UTC))
_LAST = from_datetime(dt.datetime.max.replace(tzinfo=dt.UTC))
_WIDTHS: Mapping[Any, tuple[int, int]] = {
    pl.Int8: (-(2**7), 2**7 - 1),
    pl.Int16: (-(2**15), 2**15 - 1),
    pl.Int32: (-(2**31), 2**31 - 1),
    pl.Int64: (-(2**63), 2**63 - 1),
    pl.UInt8: (0, 2**8 - 1),
    pl.UInt16: (0, 2**16 - 1),
    pl.UInt32: (0, 2**32 - 1),
    pl.UInt64: (0, 2**64 - 1),
}
_JSON_NAMES = {
    NoneType: "null",
    bool: "a truth value",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
}

#: Turns one JSON value that is not null into what the column holds. Raises ValueError with the reason.
_Read = Callable[[Any], Any]


def bounds(dtype: pl.DataType) -> tuple[int, int]:
    """Return the least and the greatest value of a type of whole numbers."""
    return _WIDTHS[dtype.base_type()]


def read_json(body: bytes | bytearray) -> Any:
    """Return the JSON value in ``body``. Raises RequestError when it is none, or holds a number beyond float64."""
    if not body:
        raise RequestError("The body is empty; send JSON.")
    try:
        return msgspec.json.decode(body)
    except RecursionError as error:
        raise RequestError("The body is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"The body is not JSON: {error}.") from error


def fields(value: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return ``value`` when it is an object with no fields but ``names``. Raises RequestError."""
    if not isinstance(value, dict):
        raise RequestError(f"The body is {_name(value)}; send an object with {', '.join(names)}.")
    for field in value:
        if field not in names:
            raise RequestError(f"Unknown field.{nearest(field, names)} Known: {', '.join(names)}.", field=field)
    return value


def objects(rows: Any) -> list[dict[str, Any]]:
    """Return ``rows`` when it is a list of 1 to ``MAX_ROWS`` objects. Raises RequestError."""
    if not isinstance(rows, list):
        raise RequestError(f"Must be a list of objects, one a row, not {_name(rows)}.", field="rows")
    if not rows:
        raise RequestError("There are no rows; send at least one.", field="rows")
    if len(rows) > MAX_ROWS:
        raise RequestError(f"There are {len(rows)} rows; send at most {MAX_ROWS} at a time.", field="rows")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError(f"Must be an object, not {_name(row)}.", field=f"rows[{i}]")
    return rows


class RequestRows:
    """Reads the rows of requests to one model.

    ``schema``: the columns of a request, with the types they have in the table of examples. ``key``: those of them that
    may not be null. ``needed``: those that it must bring, the key among them; by default all. Raises TidemillError when
    a column has a type that JSON rows cannot carry.
    """

    def __init__(
        self, schema: Mapping[str, pl.DataType], key: Sequence[str], needed: Collection[str] | None = None
    ) -> None:
        self.schema = dict(schema)
        self.key = tuple(key)
        #: The columns that a request must bring, in the order of ``schema``.
        self.needed = tuple(name for name in schema if needed is None or name in needed)
        self._names = frozenset(schema)
        self._readers = {name: _reader(name, dtype) for name, dtype in schema.items()}
        #: Whether a plain value is all that a column's type makes of it, so that a row needs no frame.
        self.plain = all(made == self.schema[name] for name, (_, _, made) in self._readers.items())
        self._typed = None if "rows" in schema else _typed(self.schema, self.key, self.needed)
        self._times = [(name, read) for name, (_, read, _) in self._readers.items() if _is_time(self.schema[name])]

    def read(self, body: bytes | bytearray) -> pl.DataFrame:
        """Return the rows in ``body``: ``{"rows": [{…}, …]}``, or the object of a single row.

        Raises RequestError naming the row and the column.
        """
        return self.frame(*self.objects(body))

    def objects(self, body: bytes | bytearray) -> tuple[list[dict[str, Any]], str]:
        """Return the rows in ``body`` as they are, and what ``frame`` takes as ``where``. Raises RequestError."""
        value = read_json(body)
        # A column may be called rows, but none holds a list.
        single = isinstance(value, dict) and type(value.get("rows")) is not list
        if single and ("rows" not in value or "rows" in self._names):
            return [value], ""
        return objects(fields(value, ("rows",))["rows"]), "rows[{}]."

    def few(self, body: bytes | bytearray) -> list[dict[str, Any]] | None:
        """Return the rows in ``body``, ``FEW`` at most, each as ``row`` would, or None: then ask ``objects``.

        That is for bodies with more rows and whatever is unusual or wrong: it knows what to say, and takes twice as
        long. Only where ``plain`` is true.
        """
        if self._typed is None:
            return None
        try:
            made = self._typed(body)
            for name, read in self._times:
                for row in made:
                    if row[name] is not None:
                        row[name] = read(row[name])
        except (ValueError, RecursionError):  # what msgspec raises is a ValueError, too
            return None
        return made

    def row(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        """Return one row as plain values in the order of ``schema``: times as microseconds, dates as dates.

        Only where ``plain`` is true. ``where`` is what precedes a column's name in messages. Raises RequestError as
        ``frame`` of that row.
        """
        if row.keys() != self._names:
            self._check_names(row, where)
        made: dict[str, Any] = {}
        for name, (taken, read, _) in self._readers.items():
            value = row.get(name)
            if type(value) not in taken:
                try:
                    value = read(value)
                except ValueError as error:
                    raise RequestError(str(error), field=where + name) from error
            elif value is None and name in self.key:
                raise RequestError("A key cannot be null.", field=where + name)
            made[name] = value
        return made

    def frame(self, rows: Sequence[dict[str, Any]], where: str) -> pl.DataFrame:
        """Return ``rows`` as a frame of ``schema``. ``where`` is what precedes a column's name in messages."""
        for i, row in enumerate(rows):
            if row.keys() != self._names:
                self._check_names(row, where.format(i))
        return pl.DataFrame([self._column(name, [row.get(name) for row in rows], where) for name in self.schema])

    def height(self, values: Mapping[str, list[Any]]) -> int:
        """Return how many rows are given column by column (lists of JSON values, one a row). Raises RequestError."""
        if values.keys() != self._names:
            self._check_names(values, "")
        rows = {len(column) for column in values.values()}
        if len(rows) != 1 or not 1 <= (height := rows.pop()) <= MAX_ROWS:
            raise RequestError(f"All columns must have the same number of values, 1 to {MAX_ROWS}.")
        return height

    def columns(self, values: Mapping[str, list[Any]]) -> pl.DataFrame:
        """Return the rows given column by column as a frame of ``schema``.

        Raises RequestError naming the column.
        """
        height = self.height(values)
        where, absent = "" if height == 1 else "rows[{}].", [None] * height
        return pl.DataFrame([self._column(name, list(values.get(name, absent)), where) for name in self.schema])

    def turned(self, values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
        """Return the rows given column by column, each as ``row`` would. Raises RequestError naming the column."""
        where = "" if self.height(values) == 1 else "rows[{}]."
        rows = zip(*values.values(), strict=True)
        return [self.row(dict(zip(values, row, strict=True)), where.format(place)) for place, row in enumerate(rows)]

    def _check_names(self, row: Mapping[str, Any], where: str) -> None:
        """Raise RequestError when ``row`` has a column that is unknown, or lacks one that is needed."""
        for name in row:
            if name not in self._names:
                missing = self._names - row.keys()
                hint = nearest(name, missing or self._names)
                raise RequestError(f"Unknown column.{hint} Columns: {', '.join(self.schema)}.", field=where + name)
        for name in self.needed:
            if name not in row:
                hint = "" if name in self.key else " Send null when it is not known."
                raise RequestError(f"Missing column.{hint}", field=where + name)

    def _column(self, name: str, values: list[Any], where: str) -> pl.Series:
        plain, read, dtype = self._readers[name]
        types = set(map(type, values))
        if NoneType in types and name in self.key:
            raise RequestError("A key cannot be null.", field=where.format(values.index(None)) + name)
        if not types <= plain:
            for i, value in enumerate(values):
                if value is not None:
                    try:
                        values[i] = read(value)
                    except ValueError as error:
                        raise RequestError(str(error), field=where.format(i) + name) from error
        column = pl.Series(name, values, dtype)
        return column if dtype == self.schema[name] else column.cast(self.schema[name])


def _typed(
    schema: Mapping[str, pl.DataType], key: Sequence[str], needed: Collection[str]
) -> Callable[[bytes | bytearray], list[dict[str, Any]]]:
    """Return a decoder of few rows that takes no value which ``_reader`` would refuse, but for times and dates."""
    types: list[tuple[Any, ...]] = []
    for place, (name, dtype) in enumerate(schema.items()):
        one: Any = str
        if width := _WIDTHS.get(dtype.base_type()):
            # msgspec takes bounds of 64 bits, with a sign; what lies beyond goes the longer way.
            one = Annotated[int, msgspec.Meta(ge=width[0], le=min(width[1], 2**63 - 1))]
        elif dtype.is_float():
            one = Annotated[float, msgspec.Meta(ge=-float(_EXACT), le=float(_EXACT))]
        elif dtype == pl.Boolean:
            one = bool
        elif dtype == pl.Datetime:
            one = int | str
        absent = () if name in needed else (None,)
        types.append((f"_{place}", one if name in key else one | None, *absent))
    names = {f"_{place}": name for place, name in enumerate(schema)}
    row = msgspec.defstruct("Row", types, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False)
    few = Annotated[list[row], msgspec.Meta(min_length=1, max_length=FEW)]  # type: ignore[valid-type]
    rows = msgspec.defstruct("Rows", [("rows", few)], forbid_unknown_fields=True, gc=False)
    one, several = msgspec.json.Decoder(row).decode, msgspec.json.Decoder(rows).decode

    def decode(body: bytes | bytearray) -> list[dict[str, Any]]:
        try:
            return [dict(zip(schema, astuple(one(body)), strict=True))]
        except msgspec.ValidationError:
            return [dict(zip(schema, astuple(each), strict=True)) for each in several(body).rows]  # type: ignore[attr-defined]

    return decode


def _is_time(dtype: pl.DataType) -> bool:
    return dtype in (pl.Date, pl.Datetime)


def _reader(name: str, dtype: pl.DataType) -> tuple[set[type], _Read, pl.DataType]:
    """Return the types that need no reading, how to read one value, and the type of the series they make."""
    if width := _WIDTHS.get(dtype.base_type()):
        return {NoneType}, _whole(*width), dtype
    if dtype.is_float():
        return {NoneType, float}, _number, pl.Float64()
    if dtype == pl.Boolean:
        return {NoneType, bool}, _only(bool, "true or false"), dtype
    if dtype in (pl.String, pl.Categorical):
        return {NoneType, str}, _only(str, "text"), pl.String()
    if dtype == pl.Date:
        return {NoneType}, _date, dtype
    if dtype == pl.Datetime:
        return {NoneType}, _time, _TIME
    raise TidemillError(
        f"Request column {name!r} is a {dtype}, which a JSON row cannot carry. "
        "Use whole numbers, numbers, truth values, text or times in the columns that a model asks for."
    )


def _whole(low: int, high: int) -> _Read:
    def read(value: Any) -> int:
        if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
            value = int(value)
        if type(value) is not int:
            raise ValueError(f"Expected a whole number, got {_name(value)}.")
        if not low <= value <= high:
            raise ValueError(f"The whole number lies outside {low} to {high}.")
        return value

    return read


def _number(value: Any) -> float:
    if type(value) is int:
        if abs(value) > _EXACT:
            raise ValueError("The whole number is beyond 2^53, more than a float64 holds exactly.")
        return float(value)
    if type(value) is not float:
        raise ValueError(f"Expected a number, got {_name(value)}.")
    return value


def _time(value: Any) -> int:
    if type(value) is str:
        try:
            value = parse_time(value)
        except TidemillError as error:
            raise ValueError(str(error)) from error
    if type(value) is not int:
        raise ValueError(f"Expected a time (ISO 8601, or whole microseconds since 1970 UTC), got {_name(value)}.")
    if not _FIRST <= value <= _LAST:
        raise ValueError(f"The time lies outside {format_time(_FIRST)} to {format_time(_LAST)}.")
    return value


def _date(value: Any) -> dt.date:
    if type(value) is not str:
        raise ValueError(f"Expected a date such as 2013-10-01, got {_name(value)}.")
    try:
        return dt.date.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a date. Write it as 2013-10-01.") from error


def _only(kind: type, expected: str) -> _Read:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"Expected {expected}, got {_name(value)}.")
        return value

    return read


def pushed_rows(rows: Any) -> list[dict[str, Any]]:
    """Return ``rows`` when they can be stored as rows of a source. Raises RequestError naming row and column.

    Their types are the source's contract and are checked at ingest; here is refused what no contract could take.
    """
    for i, row in enumerate(objects(rows)):
        if not row:
            raise RequestError("The row is empty.", field=f"rows[{i}]")
        for name, value in row.items():
            if not name or "." in name or name in SYSTEM_COLUMNS:
                raise RequestError(
                    f"Cannot be a column's name: not empty, no dot, and none of {', '.join(SYSTEM_COLUMNS)}.",
                    field=f"rows[{i}].{name}",
                )
            if reason := _unstorable(value, MAX_DEPTH):
                raise RequestError(reason, field=f"rows[{i}].{name}")
    checked: list[dict[str, Any]] = rows
    return checked


def scalar(value: Any, field: str) -> Any:
    """Return ``value`` when it is a truth value, text or a finite number within 64 bits. Raises RequestError."""
    if value is None or isinstance(value, list | dict):
        raise RequestError(f"Must be a truth value, a number or text, not {_name(value)}.", field=field)
    if reason := _unstorable(value, 0):
        raise RequestError(reason, field=field)
    return value


def _unstorable(value: Any, depth: int) -> str:
    if isinstance(value, list | dict):
        if not depth:
            return f"Nested more than {MAX_DEPTH} deep."
        inside = value if isinstance(value, list) else value.values()
        return next((reason for each in inside if (reason := _unstorable(each, depth - 1))), "")
    if type(value) is int and not -(2**63) <= value < 2**63:
        return "The whole number does not fit in 64 bits."
    if type(value) is float and not math.isfinite(value):
        return "The number is not finite."
    return ""


def _name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), "an object")
