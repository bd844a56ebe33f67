"""The contract of a source: its columns and their types, inferred once from the first load and kept from then on.

Five types are enough: whole numbers (int64), numbers (float64), truth values, text, and times (microseconds, UTC).
Other Arrow types (lists, structs, …) are kept as found. A value is cast only when nothing is lost by it:

- whole number: ``12``, ``"12"``, ``12.0``; not ``12.5``, not ``true``;
- number: any whole number that float64 holds exactly, and text that reads as a number; a NaN is a missing value;
- truth value: ``true`` and ``false`` in any case, not 0 and 1;
- text: numbers by their shortest digits (``1`` and ``1.0`` are both "1"), truth values as true and false;
- time: ISO 8601 text, dates (midnight), Arrow times. Without an offset they are UTC. Digits finer than a microsecond
  are cut. A bare number is refused: seconds, milliseconds and microseconds cannot be told apart.

In files of text (CSV) blanks around values other than text are ignored, and types are found by looking at every value
of the first load: digits with a leading zero, or too many for 64 bits, stay text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import polars as pl
import pyarrow as pa

from tidemill.base.errors import SourceError
from tidemill.base.schema import SYSTEM_COLUMNS, nearest
from tidemill.engine.table.table import TIME
from tidemill.ports.reader import Batch
from tidemill.spec.check import Check, Holds, NotNull
from tidemill.spec.source import Source
from tidemill.spec.time import Offset

#: Columns and their types, in the order of the table.
Contract: TypeAlias = Mapping[str, pl.DataType]

_KINDS: dict[pl.DataType, str] = {
    pl.Int64(): "a whole number",
    pl.Float64(): "a number",
    pl.Boolean(): "true or false",
    pl.String(): "text",
    TIME: "an ISO 8601 time",
}
_EXACT = 2**53  # float64 holds every whole number up to here
_WHOLE = r"^[+-]?\d+$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ISO = (
    r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,6})\d*)?)?"
    r"\s?(?:([Zz])|([+-]\d{2}):?(\d{2})?)?$"
)
#: What a column of untyped text may be, most special first, and the pattern every value must then match.
_CANDIDATES: tuple[tuple[pl.DataType, str], ...] = (
    (pl.Boolean(), r"^(?i:true|false)$"),
    (pl.Int64(), r"^[+-]?(0|[1-9]\d{0,18})$"),  # of 19 digits, those that fit
    (pl.Float64(), r"^(?i:nan)$|^[+-]?((0|[1-9]\d{0,17})(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"),
    (TIME, _ISO),
)


def normal(dtype: pl.DataType) -> pl.DataType:
    """Return the type in which a column of ``dtype`` is kept."""
    if dtype.is_integer():
        return pl.Int64()
    if dtype.is_float() or dtype.is_decimal():
        return pl.Float64()
    if dtype in (pl.Datetime, pl.Date):
        return TIME
    if dtype in (pl.Categorical, pl.Enum, pl.Null):
        return pl.String()
    return dtype


def contract_of(schema: pa.Schema) -> dict[str, pl.DataType]:
    """Return the contract that a lake table's schema stands for: its columns less the system's."""
    frame = pl.DataFrame(schema.empty_table())
    return {name: dtype for name, dtype in frame.schema.items() if name not in SYSTEM_COLUMNS}


def time_columns(source: Source) -> tuple[str, ...]:
    """Return the columns that the declaration uses as times, without repetition."""
    known = source.known_at.column if isinstance(source.known_at, Offset) else source.known_at
    return tuple(dict.fromkeys(name for name in (source.event_time, known, source.corrected_at) if name))


class Inference:
    """Finds a contract by looking at every value of the first load, batch by batch.

    A column without any value is text: nothing is known of it. Columns that the declaration uses as times are times,
    its tombstone is a truth value: of its values at least one must be.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen: dict[str, set[pl.DataType]] = {}  # types met in typed batches
        self._left: dict[str, set[pl.DataType]] = {}  # of untyped text: candidates that every value so far allows
        self._header: tuple[str, frozenset[str]] | None = None
        self._told: set[bool] = set()  # of the tombstone's values: whether they are true or false

    def observe(self, batch: Batch) -> None:
        """Take a batch into account. Raises SourceError when its file has other columns than the files before it."""
        frame = frame_of(batch)
        if batch.file is not None:
            if self._header is None:
                self._header = (batch.file, frozenset(frame.columns))
            elif self._header[1] != frozenset(frame.columns):
                differing = sorted(self._header[1] ^ frozenset(frame.columns))
                raise SourceError(
                    f"source {self._source.name!r}: the columns of {batch.file} are not those of {self._header[0]} "
                    f"(they differ in {', '.join(differing)}). Give all files of a source the same columns."
                )
        for name in frame.columns:
            self._observe(name, frame[name], typed=batch.typed)
        if self._source.tombstone in frame.columns:
            raw = frame[self._source.tombstone]
            values = raw.filter(raw.is_not_null() & ~_missing(raw, pl.Boolean()))
            self._told.update(cast(values, pl.Boolean()).is_not_null().unique())

    def _observe(self, name: str, values: pl.Series, *, typed: bool) -> None:
        seen = self._seen.setdefault(name, set())
        values = values.drop_nulls()
        if typed:
            seen.update([normal(values.dtype)] if len(values) else [])
            return
        values = values.str.strip_chars()
        values = values.filter(values != "")
        if len(values):
            allowed = {dtype for dtype, pattern in _CANDIDATES if values.str.contains(pattern).all()}
            if values.str.strip_prefix("+").cast(pl.Int64, strict=False).null_count():
                allowed.discard(pl.Int64())
            self._left[name] = self._left.get(name, allowed) & allowed

    def contract(self) -> dict[str, pl.DataType] | None:
        """Return the contract, or None when no column was seen.

        Raises SourceError when a declared column is missing or holds what it cannot mean, or a column's name cannot be
        stored.
        """
        if not self._seen:
            return None
        contract = {name: self._type(name) for name in self._seen}
        where = f"source {self._source.name!r}"
        for name in contract:
            if not name or "." in name or name in SYSTEM_COLUMNS:
                raise SourceError(
                    f"{where}: {name!r} cannot be a column's name. Rename it: not empty, no dot, and none of "
                    f"{', '.join(SYSTEM_COLUMNS)}."
                )
        for name in declared_columns(self._source):
            if name not in contract:
                raise SourceError(
                    f"{where}: the declared column {name!r} is not in the data.{nearest(name, contract)} "
                    f"Its columns are {', '.join(contract)}."
                )
        for name in time_columns(self._source):
            if contract[name] not in (TIME, pl.String()):
                raise SourceError(
                    f"{where}: {name!r} is declared as a time but holds {_KINDS.get(contract[name], contract[name])}. "
                    "Write times as ISO 8601 (2013-10-01T06:00Z) or as Arrow timestamps."
                )
            contract[name] = TIME
        if (tombstone := self._source.tombstone) is not None:
            if self._told == {False}:  # every row with a value would be refused
                held = _KINDS.get(contract[tombstone], contract[tombstone])
                raise SourceError(
                    f"{where}: {tombstone!r} is declared as the tombstone but holds {held}. "
                    "Write true where a key is withdrawn, else false."
                )
            contract[tombstone] = pl.Boolean()
        return contract

    def _type(self, name: str) -> pl.DataType:
        types = set(self._seen[name])
        if name in self._left:
            types.add(next((dtype for dtype, _ in _CANDIDATES if dtype in self._left[name]), pl.String()))
        if types == {pl.Int64(), pl.Float64()}:
            return pl.Float64()
        return types.pop() if len(types) == 1 else pl.String()


def declared_columns(source: Source) -> tuple[str, ...]:
    """Return every column that the declaration of ``source`` names, without repetition."""
    names = [*source.key, *time_columns(source)]
    if source.tombstone:
        names.append(source.tombstone)
    for check in source.checks:
        names += columns_read(check)
    return tuple(dict.fromkeys(names))


def columns_read(check: Check) -> tuple[str, ...]:
    """Return the columns that ``check`` reads."""
    if isinstance(check, NotNull):
        return check.columns
    if isinstance(check, Holds):
        return check.expression.columns
    return (check.column,)


def frame_of(batch: Batch) -> pl.DataFrame:
    """Return the rows of ``batch`` as a Polars frame."""
    return pl.DataFrame(batch.rows)


def conform(frame: pl.DataFrame, contract: Contract) -> tuple[pl.DataFrame, pl.Series]:
    """Cast ``frame`` to ``contract``: a frame with the contract's columns, and for each row the first fault or null.

    A column that a row does not bring is null. A value that cannot be cast without loss is a fault, and so is a value
    in a column that the contract does not have.
    """
    columns, faults = [], []
    for name, dtype in contract.items():
        if name not in frame.columns:
            columns.append(_nulls(name, dtype, frame.height))
            continue
        raw = frame[name]
        value = cast(raw, dtype)
        columns.append(value)
        if value.null_count() == raw.null_count():  # a cast never fills a null, so nothing was lost
            continue
        lost = raw.is_not_null() & value.is_null() & ~_missing(raw, dtype)
        if lost.any():
            faults.append(_fault(raw, lost, f"{name!r}: %s is not {_KINDS.get(dtype, f'of type {dtype}')}"))
    for name in frame.columns:
        if name not in contract and frame[name].is_not_null().any():
            text = f"{name!r} is not a column of the contract.{nearest(name, contract)}"
            faults.append(_fault(frame[name], frame[name].is_not_null(), text))
    first = pl.select(pl.coalesce(faults)).to_series() if faults else _nulls("", pl.String(), frame.height)
    return pl.DataFrame(columns), first


def _fault(raw: pl.Series, lost: pl.Series, text: str) -> pl.Series:
    """Return ``text`` where ``lost``, with ``%s`` replaced by the raw value cut to 60 characters; else null."""
    reasons: list[str | None] = [None] * len(raw)
    texts = cast(raw, pl.String())
    for row in lost.arg_true():
        shown = repr(texts[row] if texts[row] is not None else str(raw[row]))
        reasons[row] = text.replace("%s", shown if len(shown) <= 60 else shown[:57] + "...")
    return pl.Series(reasons, dtype=pl.String)


def _missing(raw: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Tell which values stand for "no value": NaN, and blank text where the column is not text."""
    if raw.dtype.is_float():
        return raw.is_nan().fill_null(value=False)
    if raw.dtype == pl.String and dtype != pl.String():
        text = raw.str.strip_chars()
        missing = text == ""
        if dtype == pl.Float64():
            missing |= text.str.to_lowercase() == "nan"
        return missing.fill_null(value=False)
    return raw.is_null()  # a null is missing, and nothing else is


def cast(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return ``values`` as ``dtype``; null where a value does not fit exactly (see the head of this file)."""
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    found = values.dtype
    if found.is_decimal():
        values, found = values.cast(pl.Float64), pl.Float64()
    none = _nulls(values.name, dtype, len(values))
    if found == pl.Null():
        return none
    if dtype == pl.Float64():
        return _to_float(values, none)
    if dtype == pl.Int64():
        return _to_whole(values, none)
    if dtype == pl.String():
        return _to_text(values, none)
    if dtype == TIME:
        return _to_time(values, none)
    if found == dtype:
        return values
    if dtype == pl.Boolean() and found == pl.String():
        text = values.str.strip_chars().str.to_lowercase()
        return (text == "true").set(~text.is_in(["true", "false"]), None)
    return none


def _nulls(name: str, dtype: pl.DataType, height: int) -> pl.Series:
    return pl.Series(name, [None], dtype).new_from_index(0, height) if height else pl.Series(name, [], dtype)


def _to_float(values: pl.Series, none: pl.Series) -> pl.Series:
    if values.dtype.is_float():
        number = values.cast(pl.Float64)
        # A sum with a NaN is NaN, and takes half as long as asking each. (So it is where infinities cancel out.)
        return number.fill_nan(None) if math.isnan(number.sum()) else number
    if values.dtype.is_integer():
        number = values.cast(pl.Float64)
        return number.set((number.abs() > _EXACT).fill_null(value=False), None)
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        return text.set(~text.str.contains(_NUMBER), None).cast(pl.Float64, strict=False)
    return none


def _to_whole(values: pl.Series, none: pl.Series) -> pl.Series:
    if values.dtype.is_integer():
        return values.cast(pl.Int64, strict=False)
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        whole = text.set(~text.str.contains(_WHOLE), None).cast(pl.Int64, strict=False)
        return (
            whole
            if whole.null_count() == text.null_count()
            else whole.fill_null(_to_whole(_to_float(text, none), none))
        )
    if values.dtype.is_float():
        number = values.cast(pl.Float64)
        exact = (number.floor() == number) & (number.abs() <= _EXACT)
        return number.set(~exact, None).cast(pl.Int64, strict=False)
    return none


def _to_text(values: pl.Series, none: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        return values
    if values.dtype.is_integer() or values.dtype == pl.Boolean:
        return values.cast(pl.String)
    if values.dtype.is_float():
        return _to_whole(values, none).cast(pl.String).fill_null(values.cast(pl.Float64).fill_nan(None).cast(pl.String))
    return none


def _to_time(values: pl.Series, none: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        parts = values.str.strip_chars().str.extract_groups(_ISO).struct.unnest()
        day, minute, second, fraction, zulu, hours, minutes = parts.get_columns()
        offset = (
            pl.when(zulu.is_null() & hours.is_not_null())
            .then(pl.concat_str(hours, pl.lit(":"), minutes.fill_null("00")))
            .otherwise(pl.lit("+00:00"))
        )
        text = pl.concat_str(
            day, pl.lit("T"), minute.fill_null("00:00"), second.fill_null(":00"), pl.lit("."), fraction.fill_null("0"),
            offset,
        )  # fmt: skip
        return (
            pl.select(text.alias(values.name))
            .to_series()
            .str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False)
        )
    if values.dtype == pl.Date:
        return values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if isinstance(values.dtype, pl.Datetime):
        micros = values.cast(pl.Datetime("us", values.dtype.time_zone))
        return micros.dt.convert_time_zone("UTC") if values.dtype.time_zone else micros.dt.replace_time_zone("UTC")
    return none
