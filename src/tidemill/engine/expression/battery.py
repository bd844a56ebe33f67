"""Rows to try expressions on: the edges of every type, the constants they mention and their neighbours, and chance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from tidemill.base.clock import DAY, HOUR, SECOND, parse_time
from tidemill.base.hashing import fingerprint, seed
from tidemill.engine.expression.zone import table
from tidemill.spec.expression import Expression

ROWS = 160

_FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.1, 2.675, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1e-300,
    1.7976931348623157e308, -1.7976931348623157e308, 4503599627370495.5, 9007199254740993.0, 2.0**63, -(2.0**63), 1e19,
    0.49999999999999994, math.pi, 360.0, -180.0,
)  # fmt: skip
_WHOLES = (0, 1, -1, 2, -2, 7, 10, 24, 60, 100, 127, 128, -128, 255, 2**15, 2**31 - 1, -(2**31), 2**53 + 1)
_TEXTS = (
    "", "a", "A", "b", "ab", "abc", "aBc XyZ", " a ", "0", "-1", "é", "ß", "İstanbul", "ÅNGSTRÖM", "日本", "🙂", "\x00",
    "x" * 31, "x" * 32, "The quick brown fox jumps over the lazy dog, and then it rests.", "UTC", "Europe/Berlin",
    "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Nowhere/None", "+01:00",
)  # fmt: skip
_TIMES = tuple(
    parse_time(text) + delta
    for text in (
        "1970-01-01", "2024-02-29", "2024-03-01", "2023-03-01", "1900-02-28T12:00", "2000-02-29T23:59:59", "2100-03-01",
        "2024-12-30", "2021-01-03", "2020-12-31T23:59:59", "1969-12-31T23:59:59", "1883-11-18T17:00", "0001-01-02",
        "9999-12-30", "2024-03-10T07:00", "2024-11-03T06:00", "2013-03-31T01:00", "2013-10-27T01:00", "2150-07-01",
    )
    for delta in (0, -1)
)  # fmt: skip
_EXTREME = (2**63 - 1, -(2**63) + 1, 8 * 10**18, -8 * 10**18)


def battery(expression: Expression, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return rows of ``schema`` to try ``expression`` on: always the same ones, nulls and hostile values among them."""
    random = np.random.default_rng(seed(fingerprint(expression.tree, {name: str(schema[name]) for name in schema})))
    constants, zones = list(_constants(json.loads(expression.tree))), list(_zones(expression.tree, schema))
    columns = []
    for name, dtype in schema.items():
        edges, chance = _pool(dtype, constants, zones)
        drawn = [*edges, *(chance(random) for _ in range(max(ROWS - len(edges), ROWS // 2)))]
        chosen = [drawn[place] for place in random.integers(0, len(drawn), ROWS)]
        values = [None if random.random() < 0.08 else value for value in chosen]
        columns.append(_series(name, values, dtype))
    return pl.DataFrame(columns)


def _series(name: str, values: list[Any], dtype: pl.DataType) -> pl.Series:
    if dtype.is_temporal():
        physical = pl.Int32 if dtype == pl.Date else pl.Int64
        return pl.Series(name, values, dtype=physical).cast(dtype)
    if dtype == pl.Float32:
        return pl.Series(name, values, dtype=pl.Float64).cast(pl.Float32)
    if isinstance(dtype, pl.Enum):
        return pl.Series(name, values, dtype=pl.String).cast(dtype, strict=False)
    return pl.Series(name, values, dtype=dtype)


def _pool(dtype: pl.DataType, constants: list[Any], zones: list[int]) -> tuple[list[Any], Any]:
    """Return the edges of a type, and what draws a value of it."""
    numbers = [each for each in constants if isinstance(each, int | float) and not isinstance(each, bool)]
    if dtype.is_float():
        near = [float(each) for number in numbers for each in (number, math.nextafter(number, math.inf), -number)]
        return [*_FLOATS, *near], lambda random: float(random.normal() * 10.0 ** random.integers(-3, 9))
    if dtype.is_integer():
        bits = 8 * pl.Series([], dtype=dtype).to_numpy().itemsize
        low, high = (0, 2**bits - 1) if dtype.is_unsigned_integer() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        near = [int(number) + step for number in numbers if abs(number) < 2**63 for step in (-1, 0, 1)]
        edges = [each for each in (low, low + 1, high - 1, high, *_WHOLES, *near) if low <= each <= high]
        return edges, lambda random: int(random.integers(max(low, -(10**6)), min(high, 10**6), endpoint=True))
    if dtype == pl.Boolean:
        return [True, False], lambda random: bool(random.random() < 0.5)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        texts = [each for each in constants if isinstance(each, str)]
        beside = [each for text in texts for each in (text, text.upper(), text + "x", "x" + text, text[:-1])]
        own = list(dtype.categories) if isinstance(dtype, pl.Enum) else []
        words = [*_TEXTS, *beside, *own]
        return words, lambda random: "".join(words[each][:9] for each in random.integers(0, len(words), 2))
    if dtype == pl.Date:
        days = [time // DAY for time in _TIMES]
        return days, lambda random: int(random.integers(-(10**5), 10**5))
    near = [number + step for number in _moments(constants) for step in (-1, 0, 1)]
    spread = parse_time("2100-01-01")
    if dtype == pl.Duration:
        edges = [0, 1, -1, HOUR, -HOUR, HOUR - 1, -DAY - SECOND, 10**17 + 7, *_EXTREME, *near]
        return edges, lambda random: int(random.integers(-spread, spread))
    return [*_TIMES, *zones, *near], lambda random: int(random.integers(-spread, spread))


def _constants(tree: Any) -> Iterator[Any]:
    """Yield the values of all constants in a tree."""
    if not isinstance(tree, list):
        return
    match tree:
        case ["literal", "List", _, values]:
            yield from values
        case ["literal", _, value]:
            yield value
        case _:
            for each in tree:
                yield from _constants(each)


def _moments(constants: Iterable[Any]) -> Iterator[int]:
    """Yield the times and durations among constants, in microseconds."""
    for each in constants:
        if isinstance(each, list) and each and each[1] == "Microseconds":
            yield each[0]


def _zones(tree: str, schema: Mapping[str, pl.DataType]) -> Iterator[int]:
    """Yield moments around changes of the clocks of the zones that a tree or its columns name."""
    named = {getattr(dtype, "time_zone", None) for dtype in schema.values()} - {None, "UTC"}
    pending = [json.loads(tree)]
    while pending:
        match pending.pop():
            case {"ConvertTimeZone": {"inner": str(zone)}}:
                named.add(zone)
            case dict(inner):
                pending.extend(inner.values())
            case list(inner):
                pending.extend(inner)
    for zone in sorted(str(each) for each in named):
        changes = (table(zone) or ((), ()))[0]
        for change in changes[:: max(len(changes) // 8, 1)]:
            yield from (change - 1, change, change + HOUR)
