"""Programs over one row, in plain Python: the same instructions and bits as ``native/expressions.h``.

A program has inputs (name, type), constants (kind, value), tables (sorted sets and time zones), code and outputs
(register, type). Registers are the inputs, the constants, then the result of each instruction; None is null. Types:
``d`` float64, ``f`` float32, ``?`` truth value, ``q i h b`` signed and ``I H B`` unsigned whole numbers of 64, 32, 16
and 8 bits, ``s`` text, ``D`` date, ``T`` microseconds since 1970. Kinds of registers: ``f``, ``i``, ``s``.
"""

from __future__ import annotations

import datetime as dt
import math
import operator
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tidemill.kernels.compiled import load
from tidemill.kernels.xxh64 import bucket

Instruction = tuple[str, tuple[int, ...], int]

_DAY = 86_400_000_000
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999, which the calendar is asked for
_EPOCH = dt.date(1970, 1, 1).toordinal()
_ERA = 146_097  # days in 400 years, after which the calendar repeats
_WIDTHS = {"q": 64, "i": 32, "h": 16, "b": 8, "I": -32, "H": -16, "B": -8, "T": 64}


class _DeclinedError(Exception):
    """The program has no value for the row; the caller computes it by the definition."""


class _ZoneWantedError(Exception):
    """A column names a zone that was not added."""


class Machine(Protocol):
    """What runs a program: ``Plain``, or ``Program`` of the compiled kernel."""

    def row(self, values: dict[str, Any], /) -> tuple[Any, ...] | str | None:
        """Return the outputs for one row; None when it declines; the name of a zone that must be added first.

        A date is a ``datetime.date``, a time whole microseconds. Raises KeyError when an input is missing, TypeError
        or OverflowError when one has another type.
        """

    def add_zone(self, name: str, changes: tuple[int, ...] | None, offsets: tuple[int, ...] | None, /) -> bool:
        """Make a zone known, None when there is none of that name. Return False when there is no room for more."""


def machine(
    inputs: Sequence[tuple[str, str]],
    constants: Sequence[tuple[str, Any]],
    tables: Sequence[tuple[Any, ...]],
    code: Sequence[Instruction],
    outputs: Sequence[tuple[int, str]],
) -> Machine:
    """Return the program: compiled where there is a kernel, else plain."""
    kernel = load("expressions")
    kind: Callable[..., Machine] = Plain if kernel is None else kernel.Program
    return kind(inputs, constants, tables, code, outputs)


class Plain:
    """A program interpreted in Python; see ``Machine``. It trusts what it is given."""

    def __init__(
        self,
        inputs: Sequence[tuple[str, str]],
        constants: Sequence[tuple[str, Any]],
        tables: Sequence[tuple[Any, ...]],
        code: Sequence[Instruction],
        outputs: Sequence[tuple[int, str]],
    ) -> None:
        self._inputs = [(name, _READ[kind]) for name, kind in inputs]
        self._constants = [float(value) if kind == "f" and value is not None else value for kind, value in constants]
        self._tables = tables
        self._code = code
        self._outputs = [(register, _WRITE.get(kind)) for register, kind in outputs]
        self._zones: dict[str, tuple[Sequence[int], Sequence[int]] | None] = {}

    def row(self, values: dict[str, Any], /) -> tuple[Any, ...] | str | None:
        """Run on one row."""
        cells = []
        for name, read in self._inputs:
            value = values[name]
            try:
                cells.append(None if value is None else read(value))
            except (TypeError, OverflowError) as error:
                raise type(error)(f"column {name!r}: {error}") from None
        cells += self._constants
        try:
            for name, arguments, number in self._code:
                cells.append(self._step(name, [cells[each] for each in arguments], number))
        except _DeclinedError:
            return None
        except _ZoneWantedError as wanted:
            return str(wanted)
        try:
            return tuple(
                cells[register] if write is None or cells[register] is None else write(cells[register])
                for register, write in self._outputs
            )
        except (OverflowError, ValueError):  # a date beyond the years that Python knows
            return None

    def add_zone(self, name: str, changes: tuple[int, ...] | None, offsets: tuple[int, ...] | None, /) -> bool:
        """Make a zone known."""
        self._zones[name] = None if changes is None or offsets is None else (changes, offsets)
        return True

    def _step(self, name: str, x: list[Any], number: int) -> Any:
        if name in _WITH_NULLS:
            return _WITH_NULLS[name](*x)
        if any(each is None for each in x):
            return None
        if name in _VALUES:
            return _VALUES[name](*x)
        if name in _NUMBERED:
            return _NUMBERED[name](*x, number)
        if name == "LOCAL":
            return _local(x[0], *self._tables[number][1:])
        if name == "LOCALBY":
            if not _FIRST <= x[0] <= _LAST:
                raise _DeclinedError
            if x[1] not in self._zones:
                raise _ZoneWantedError(x[1])
            zone = self._zones[x[1]]
            return None if zone is None else _local(x[0], *zone)
        assert name in ("FIN", "IIN", "SIN")
        return int(x[0] in self._tables[number][1] or (x[0] != x[0] and any(y != y for y in self._tables[number][1])))


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("expected a number")
    return float(value)


def _read_single(value: Any) -> float:
    return _single(_read_float(value))


def _read_truth(value: Any) -> int:
    if not isinstance(value, bool):
        raise TypeError("expected a truth value")
    return int(value)


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a string")
    value.encode()  # raises on half of a surrogate pair
    return value


def _read_date(value: Any) -> int:
    if not isinstance(value, dt.date):
        raise TypeError("expected a date")
    return value.toordinal() - _EPOCH


def _read_whole(width: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError("expected a whole number")
        if _wrap(value, width) != value:
            raise OverflowError("too large a number")
        return value

    return read


_READ: dict[str, Callable[[Any], Any]] = {
    "d": _read_float, "f": _read_single, "?": _read_truth, "s": _read_text, "D": _read_date,
    **{kind: _read_whole(width) for kind, width in _WIDTHS.items()},
}  # fmt: skip
_WRITE: dict[str, Callable[[Any], Any]] = {"?": bool, "D": lambda days: dt.date.fromordinal(days + _EPOCH)}


def _wrap(value: int, width: int) -> int:
    if width < 0:
        return value & (1 << -width) - 1
    half = 1 << width - 1
    return (value + half & 2 * half - 1) - half


def _wrapped(function: Callable[..., int]) -> Callable[..., int]:
    return lambda *x: _wrap(function(*x), 64)


def _single(value: float) -> float:
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return float(rounded)


def _single_of_whole(value: int) -> float:
    """Round once: beyond 40 bits the rest only says on which side of a tie the number lies."""
    far = max(abs(value).bit_length() - 40, 0)
    near = abs(value) >> far
    if abs(value) & (1 << far) - 1:
        near |= 1
    return math.copysign(_single(math.ldexp(near, far)), value) if value else 0.0


def _divide(x: float, y: float) -> float:
    if y:
        return x / y
    return math.nan if x != x or not x else math.copysign(math.inf, x) * math.copysign(1.0, y)


def _rounding(function: Callable[[float], int]) -> Callable[[float], float]:
    """Return ``function`` as C has it: what is not finite stays, and a zero keeps its sign."""
    return lambda x: math.copysign(float(function(x)), x) if math.isfinite(x) else x


def _away(x: float) -> int:
    whole = math.trunc(abs(x))
    return whole + (abs(x) - whole >= 0.5)


_floor = _rounding(math.floor)


def _guarded(function: Callable[[float], float], at_zero: float | None = None) -> Callable[[float], float]:
    """Return ``function`` with IEEE's results where Python raises; ``at_zero``: the pole of a logarithm."""

    def guarded(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf
        except ValueError:
            return -math.inf if x == at_zero else math.nan

    return guarded


def _power(x: float, y: float) -> float:
    try:
        return math.pow(x, y)
    except (OverflowError, ValueError) as error:
        odd = y.is_integer() and abs(y) < 2**53 and int(y) % 2 == 1
        if isinstance(error, OverflowError):
            return -math.inf if x < 0 and odd else math.inf
        return math.nan if x else math.copysign(math.inf, x) if odd else math.inf


def _below(x: float, y: float) -> bool:
    return x < y or (x == x and y != y)


def _to_whole(x: float, strict: int) -> int | None:
    if -(2.0**63) <= x < 2.0**63:
        return int(x)
    if strict:
        raise _DeclinedError
    return None


def _must(x: int, width: int) -> int:
    if _wrap(x, width) != x:
        raise _DeclinedError
    return x


def _ascii(function: Callable[[str], str]) -> Callable[[str], str]:
    def mapped(text: str) -> str:
        if not text.isascii():
            raise _DeclinedError
        return function(text)

    return mapped


def _and(x: int | None, y: int | None) -> int | None:
    if x == 0 or y == 0:
        return 0
    return None if x is None or y is None else 1


def _or(x: int | None, y: int | None) -> int | None:
    if x or y:
        return 1
    return None if x is None or y is None else 0


def _chosen(left: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    return lambda x, y: y if x is None or (y is not None and not left(x, y)) else x


def _local(time: int, changes: Sequence[int], offsets: Sequence[int]) -> int:
    if not _FIRST <= time <= _LAST:
        raise _DeclinedError
    return time + offsets[bisect_right(changes, time)]


def _calendar(field: Callable[[dt.datetime, int], int]) -> Callable[[int], int]:
    """Return a field of the calendar for microseconds; ``field`` takes the time moved into years 2000 to 2399, and
    the number of years it was moved by."""

    def read(time: int) -> int:
        if not _FIRST - 2 * _DAY <= time <= _LAST + 2 * _DAY:
            raise _DeclinedError
        days, within = divmod(time, _DAY)
        eras, day = divmod(days - 10_957, _ERA)  # 2000-01-01
        moved = dt.datetime.combine(dt.date(2000, 1, 1) + dt.timedelta(day), dt.time(0))
        return field(moved + dt.timedelta(microseconds=within), 400 * eras)

    return read


def _from_days(days: int) -> int:
    if not _FIRST <= days * _DAY <= _LAST:
        raise _DeclinedError
    return days * _DAY


def _to_days(time: int) -> int:
    if not _FIRST - 2 * _DAY <= time <= _LAST + 2 * _DAY:
        raise _DeclinedError
    return time // _DAY


def _leap(year: int) -> bool:
    return (year % 4 == 0 and year % 100 != 0) or year % 400 == 0


_WITH_NULLS: dict[str, Callable[..., Any]] = {
    "AND": _and, "OR": _or,
    "ISNULL": lambda x: int(x is None), "NOTNULL": lambda x: int(x is not None),
    **dict.fromkeys(("FIF", "IIF", "SIF"), lambda condition, x, y: x if condition else y),
    **dict.fromkeys(("FFILL", "IFILL", "SFILL"), lambda x, y: y if x is None else x),
    "FMIN": _chosen(lambda x, y: y != y or x < y), "FMAX": _chosen(lambda x, y: y != y or x > y),
    "IMIN": _chosen(operator.lt), "IMAX": _chosen(operator.gt),
}  # fmt: skip

_VALUES: dict[str, Callable[..., Any]] = {
    "FADD": operator.add, "FSUB": operator.sub, "FMUL": operator.mul, "FDIV": _divide,
    "FFLOORDIV": lambda x, y: _floor(_divide(x, y)), "FMOD": lambda x, y: x - y * _floor(_divide(x, y)),
    "FPOW": _power, "FSINGLE": _single, "FNEG": operator.neg, "FABS": abs,
    "FSIGN": lambda x: math.copysign(1.0, x) if x == x and x else x,
    "FFLOOR": _floor, "FCEIL": _rounding(math.ceil), "FEVEN": _rounding(round), "FAWAY": _rounding(_away),
    "FSQRT": _guarded(math.sqrt), "FEXP": _guarded(math.exp), "FLOG": _guarded(math.log, 0.0),
    "FLOG1P": _guarded(math.log1p, -1.0), "FSIN": _guarded(math.sin), "FCOS": _guarded(math.cos),
    "FTAN": _guarded(math.tan), "FASIN": _guarded(math.asin), "FACOS": _guarded(math.acos), "FATAN": math.atan,
    "FISNAN": lambda x: int(x != x), "FISFINITE": lambda x: int(math.isfinite(x)),
    "FISINF": lambda x: int(math.isinf(x)),
    "FEQ": lambda x, y: int(x == y or (x != x and y != y)), "FLT": lambda x, y: int(_below(x, y)),
    "FLE": lambda x, y: int(not _below(y, x)),
    "FLEAST": lambda x, y: y if x < y else x, "FMOST": lambda x, y: y if x > y else x, "FTRUTH": lambda x: int(x != 0),
    "IADD": _wrapped(operator.add), "ISUB": _wrapped(operator.sub), "IMUL": _wrapped(operator.mul),
    "IFLOORDIV": lambda x, y: _wrap(x // y, 64) if y else None, "IMOD": lambda x, y: x % y if y else None,
    "ITRUNCDIV": lambda x, y: _wrap(abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1), 64) if y else None,
    "INEG": _wrapped(operator.neg), "IABS": _wrapped(abs), "ISIGN": lambda x: (x > 0) - (x < 0),
    "ITOFLOAT": float, "ITOSINGLE": _single_of_whole, "ITRUTH": lambda x: int(x != 0), "ITOTEXT": str,
    **dict.fromkeys(("IEQ", "SEQ"), lambda x, y: int(x == y)), **dict.fromkeys(("ILT", "SLT"), lambda x, y: int(x < y)),
    **dict.fromkeys(("ILE", "SLE"), lambda x, y: int(x <= y)),
    "ILEAST": max, "IMOST": min, "XOR": lambda x, y: int((x != 0) != (y != 0)), "NOT": lambda x: int(x == 0),
    "SCHARS": len, "SBYTES": lambda x: len(x.encode()), "SLOWER": _ascii(str.lower), "SUPPER": _ascii(str.upper),
    "SSTARTS": lambda x, y: int(x.startswith(y)), "SENDS": lambda x, y: int(x.endswith(y)),
    "SCONTAINS": lambda x, y: int(y in x), "SJOIN": operator.add,
    "FROMDAYS": _from_days, "TODAYS": _to_days,
    "HOUR": _calendar(lambda x, _: x.hour), "MINUTE": _calendar(lambda x, _: x.minute),
    "SECOND": _calendar(lambda x, _: x.second), "MICROSECOND": _calendar(lambda x, _: x.microsecond),
    "WEEKDAY": _calendar(lambda x, _: x.isoweekday()), "DAY": _calendar(lambda x, _: x.day),
    "MONTH": _calendar(lambda x, _: x.month), "YEAR": _calendar(lambda x, years: x.year + years),
    "ORDINAL": _calendar(lambda x, _: x.timetuple().tm_yday), "WEEK": _calendar(lambda x, _: x.isocalendar().week),
    "ISOYEAR": _calendar(lambda x, years: x.isocalendar().year + years),
    "QUARTER": _calendar(lambda x, _: (x.month + 2) // 3), "LEAP": _calendar(lambda x, _: int(_leap(x.year))),
}  # fmt: skip

_NUMBERED: dict[str, Callable[..., Any]] = {
    "FTOWHOLE": _to_whole, "IPOW": lambda x, exponent: _wrap(pow(x, exponent, 2**64), 64), "IWRAP": _wrap,
    "IFITS": lambda x, width: x if _wrap(x, width) == x else None, "IMUST": _must, "SBUCKET": bucket, "IBUCKET": bucket,
}  # fmt: skip
