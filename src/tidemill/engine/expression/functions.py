"""The functions that compiled expressions know, each in instructions of the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import polars as pl

from tidemill.engine.expression.assemble import (
    Assembler,
    Dtype,
    RefusedError,
    Value,
    dtype_of,
    kind,
    letter_of,
    operation,
)

_FIELDS = {
    "Hour": "HOUR", "Minute": "MINUTE", "Second": "SECOND", "Microsecond": "MICROSECOND", "WeekDay": "WEEKDAY",
    "Day": "DAY", "Month": "MONTH", "Year": "YEAR", "OrdinalDay": "ORDINAL", "Week": "WEEK", "IsoYear": "ISOYEAR",
    "Quarter": "QUARTER", "IsLeapYear": "LEAP", "Date": "TODAYS",
}  # fmt: skip
_TOTALS = {
    "TotalMicroseconds": 1, "TotalMilliseconds": 10**3, "TotalSeconds": 10**6, "TotalMinutes": 60 * 10**6,
    "TotalHours": 3600 * 10**6, "TotalDays": 86400 * 10**6,
}  # fmt: skip
_REAL = {
    "Exp": "FEXP", "Log1p": "FLOG1P", "Pow.Sqrt": "FSQRT", "Trigonometry.Sin": "FSIN", "Trigonometry.Cos": "FCOS",
    "Trigonometry.Tan": "FTAN", "Trigonometry.ArcSin": "FASIN", "Trigonometry.ArcCos": "FACOS",
    "Trigonometry.ArcTan": "FATAN",
}  # fmt: skip
_PATTERN = set(r"\.+*?()|[]{}^$#&-~")  # characters that mean more than themselves in a pattern

#: Takes the program, the arguments, the function's options as Polars writes them, and the type of the result.
Function = Callable[[Assembler, list[Value], Any, Dtype], Value]


def compare(program: Assembler, operator: str, left: Value, right: Value) -> Value:
    """Return the comparison of two values, as Polars orders them: NaN equals itself and is above every number."""
    if operator in (">", ">="):
        left, right, operator = right, left, {">": "<", ">=": "<="}[operator]
    name = {"==": "EQ", "!=": "EQ", "<": "LT", "<=": "LE"}[operator]
    kinds = {kind(side.dtype) for side in (left, right)}
    refused = RefusedError(f"'{operator}' of {left.dtype} and {right.dtype}")
    if "s" in kinds and (kinds != {"s"} or (name != "EQ" and not left.dtype == right.dtype == pl.String)):
        raise refused
    if (left.dtype.is_temporal() or right.dtype.is_temporal()) and left.dtype.base_type() != right.dtype.base_type():
        raise refused
    if "f" in kinds:
        common = dtype_of(operation("+", left, right), left, right)
        found = program.emit(f"F{name}", program.widened(left, common), program.widened(right, common))
    else:
        found = program.emit(f"{kinds.pop().upper()}{name}", program.register(left), program.register(right))
    return Value(pl.Boolean(), program.emit("NOT", found) if operator == "!=" else found)


def _by_kind(name: str, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    """A function that floats and whole numbers have by the same name."""
    value = arguments[0]
    if not dtype.is_numeric() or dtype != value.dtype:
        raise RefusedError(f"a function of {value.dtype}")
    register = program.emit(f"{kind(dtype).upper()}{name}", program.register(value))
    return Value(dtype, register if dtype.is_float() else program.wrapped(register, dtype))


def _rounded(program: Assembler, value: Value, name: str, decimals: int = 0) -> Value:
    if value.dtype.is_integer():
        return value
    if not value.dtype.is_float() or (decimals and value.dtype != pl.Float64):
        raise RefusedError(f"rounding {value.dtype}")
    register = program.register(value)
    if decimals == 0:
        return Value(value.dtype, program.emit(name, register))
    scale = program.constant("f", 10.0**decimals)
    scaled = program.emit("FMUL", register, scale)
    back = program.emit("FDIV", program.emit(name, scaled), scale)
    return Value(value.dtype, program.emit("FIF", program.emit("FISFINITE", scaled), back, register))


def _round(program: Assembler, arguments: list[Value], options: Mapping[str, Any], _: Dtype) -> Value:
    modes = {"HalfToEven": "FEVEN", "HalfAwayFromZero": "FAWAY"}
    if options["mode"] not in modes:
        raise RefusedError(f"rounding {options['mode']}")
    return _rounded(program, arguments[0], modes[options["mode"]], options["decimals"])


def _clip(program: Assembler, arguments: list[Value], options: Mapping[str, bool], _: Dtype) -> Value:
    value, *bounds = arguments
    numbers = [each.constant[1] for each in bounds if each.constant is not None]
    if not value.dtype.is_numeric() or len(numbers) < len(bounds) or value.constant is not None:
        raise RefusedError("clip to bounds that are not constants")
    if not all(isinstance(each, int | float) for each in numbers) or sorted(numbers) != numbers:
        raise RefusedError("clip to bounds that are not numbers, or in the wrong order")
    if value.dtype.is_integer():
        numbers = [int(each) for each in numbers]
    register = value.at
    names = [name for name, there in (("LEAST", options["has_min"]), ("MOST", options["has_max"])) if there]
    for name, number in zip(names, numbers, strict=True):
        bound = program.widened(Value(value.dtype, constant=("", number)), value.dtype)
        register = program.emit(f"{kind(value.dtype).upper()}{name}", register, bound)
    return Value(value.dtype, register)


def _folding(name: str, program: Assembler, arguments: list[Value], dtype: Dtype) -> Value:
    """``name`` over all arguments, from the left."""
    register, *rest = (program.widened(each, dtype) for each in arguments)
    for each in rest:
        register = program.emit(name, register, each)
    return Value(dtype, register)


def _extreme(name: str, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    if not dtype.is_numeric():
        raise RefusedError(f"the {name.lower()} of {dtype}")
    return _folding(f"{kind(dtype).upper()}{name}", program, arguments, dtype)


def _filled(program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    return _folding(f"{kind(dtype).upper()}FILL", program, arguments, dtype)


def _real(name: str, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    x = program.widened(arguments[0], dtype)
    if dtype == pl.Float32 and name == "FSQRT":
        return Value(dtype, program.single(name, x))
    if dtype != pl.Float64:
        raise RefusedError(f"a function of {dtype}")
    return Value(dtype, program.emit(name, x))


def _scaled(factor: float, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    if dtype != pl.Float64:
        raise RefusedError(f"a function of {dtype}")
    return Value(dtype, program.emit("FMUL", program.widened(arguments[0], dtype), program.constant("f", factor)))


def _logarithm(program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    found = _real("FLOG", program, arguments[:1], None, dtype)
    base = arguments[1].constant
    if base is None or not isinstance(base[1], int | float) or base[1] <= 0:
        raise RefusedError("a logarithm to a base that is not a positive constant")
    divisor = math.log(base[1])
    return found if divisor == 1 else Value(dtype, program.emit("FDIV", found.at, program.constant("f", divisor)))


def _power(program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    if not dtype.is_numeric():
        raise RefusedError(f"a power of {dtype}")
    x = program.widened(arguments[0], dtype)
    exponent = arguments[1].constant and arguments[1].constant[1]
    if dtype.is_integer():
        if not isinstance(exponent, int) or not 0 <= exponent < 2**31:
            raise RefusedError("a power of whole numbers that is not a constant")
        return Value(dtype, program.wrapped(program.emit("IPOW", x, number=exponent), dtype))
    emit = program.single if dtype == pl.Float32 else program.emit
    if exponent in (2, 3):
        square = emit("FMUL", x, x)
        return Value(dtype, square if exponent == 2 else emit("FMUL", square, x))
    if exponent == 0.5:
        return Value(dtype, emit("FSQRT", x))
    if dtype != pl.Float64:
        raise RefusedError(f"a power of {dtype}")
    return Value(dtype, program.emit("FPOW", x, program.widened(arguments[1], dtype)))


def _is(name: str, negated: bool, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    value = arguments[0]
    if name == "FISNAN" and value.dtype.is_integer():
        same = program.emit("IEQ", program.register(value), program.register(value))
        return Value(dtype, same if negated else program.emit("NOT", same))
    if (name[0] == "F" and not value.dtype.is_float()) or (name == "NOT" and value.dtype != pl.Boolean):
        raise RefusedError(f"a condition on {value.dtype}")
    register = program.emit(name, program.register(value))
    return Value(dtype, program.emit("NOT", register) if negated else register)


def _together(name: str, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    if any(each.dtype != pl.Boolean for each in arguments):
        raise RefusedError(f"{name.lower()} of what is not a condition")
    return _folding(name, program, arguments, dtype)


def _between(program: Assembler, arguments: list[Value], options: Mapping[str, str], dtype: Dtype) -> Value:
    value, low, high = arguments
    above = compare(program, ">=" if options["closed"] in ("Both", "Left") else ">", value, low)
    below = compare(program, "<=" if options["closed"] in ("Both", "Right") else "<", value, high)
    return Value(dtype, program.emit("AND", above.at, below.at))


def _among(program: Assembler, arguments: list[Value], options: Mapping[str, bool], _: Dtype) -> Value:
    value, items = arguments
    if items.constant is None or items.constant[0] != "List" or value.constant is not None or options["nulls_equal"]:
        raise RefusedError("is_in of anything but a list of constants")
    dtype, found = items.constant[1]
    of_kind = kind(value.dtype)
    whole = value.dtype.is_integer() and dtype.removeprefix("U").startswith("Int")
    if str(value.dtype) != dtype and not whole and not (dtype == "String" and of_kind == "s"):
        raise RefusedError(f"is_in of {value.dtype} among {dtype}")
    if of_kind == "s":
        chosen: tuple[Any, ...] = tuple(sorted(set(found)))
    else:
        chosen = tuple(sorted({float(each) if of_kind == "f" else int(each) for each in found}))
    number = program.table(of_kind, chosen)
    return Value(pl.Boolean(), program.emit(f"{of_kind.upper()}IN", value.at, number=number))


def _field(name: str, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    return Value(dtype, program.emit(name, program.on_clock(arguments[0])))


def _total(unit: int, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    if letter_of(arguments[0].dtype) != "T":
        raise RefusedError(f"the length of {arguments[0].dtype}")
    register = program.register(arguments[0])
    if dtype == pl.Float64:
        whole = program.emit("ITOFLOAT", register)
        return Value(dtype, program.emit("FMUL", whole, program.constant("f", 1 / unit)))
    return Value(dtype, register if unit == 1 else program.emit("ITRUNCDIV", register, program.constant("i", unit)))


def _epoch(program: Assembler, arguments: list[Value], unit: str, dtype: Dtype) -> Value:
    if unit not in ("Microseconds", "Milliseconds") or arguments[0].dtype != pl.Datetime:
        raise RefusedError(f"a timestamp in {unit}")
    letter_of(arguments[0].dtype)
    register = program.register(arguments[0])
    if unit == "Milliseconds":
        register = program.emit("IFLOORDIV", register, program.constant("i", 1000))
    return Value(dtype, register)


def _moved(program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    """A time in another zone is the same moment."""
    letter_of(dtype)
    return Value(dtype, program.register(arguments[0]))


def _text(name: str, program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    if any(each.dtype != pl.String for each in arguments):
        raise RefusedError("a function of texts on what is none")
    return Value(dtype, program.emit(name, *map(program.register, arguments)))


def _contains(program: Assembler, arguments: list[Value], options: Mapping[str, bool], dtype: Dtype) -> Value:
    pattern = arguments[1].constant
    if not options["literal"] and (pattern is None or set(str(pattern[1])) & _PATTERN):
        raise RefusedError("str.contains of a pattern")
    return _text("SCONTAINS", program, arguments, None, dtype)


def _bucket(program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    value, count = arguments
    if not value.dtype.is_integer() and kind(value.dtype) != "s":
        raise RefusedError(f"a bucket of {value.dtype}")
    assert count.constant is not None
    name = "SBUCKET" if kind(value.dtype) == "s" else "IBUCKET"
    return Value(dtype, program.emit(name, program.register(value), number=count.constant[1]))


def _local(program: Assembler, arguments: list[Value], _: Any, dtype: Dtype) -> Value:
    time, zone = arguments
    if time.dtype != pl.Datetime or kind(zone.dtype) != "s":
        raise RefusedError(f"the local time of {time.dtype} by {zone.dtype}")
    letter_of(time.dtype)
    return Value(dtype, program.emit("LOCALBY", program.register(time), program.register(zone)))


#: By Polars' names, the family first; those of the family Tidemill are our own.
FUNCTIONS: Mapping[str, Function] = {
    "Negate": partial(_by_kind, "NEG"), "Abs": partial(_by_kind, "ABS"), "Sign": partial(_by_kind, "SIGN"),
    "Floor": lambda program, arguments, _, dtype: _rounded(program, arguments[0], "FFLOOR"),
    "Ceil": lambda program, arguments, _, dtype: _rounded(program, arguments[0], "FCEIL"),
    "Round": _round, "Clip": _clip,
    "MinHorizontal": partial(_extreme, "MIN"), "MaxHorizontal": partial(_extreme, "MAX"),
    **{name: partial(_real, code) for name, code in _REAL.items()},
    "Trigonometry.Radians": partial(_scaled, math.pi / 180), "Trigonometry.Degrees": partial(_scaled, 180 / math.pi),
    "Log": _logarithm, "Pow.Generic": _power, "FillNull": _filled, "Coalesce": _filled,
    "Boolean.IsNull": partial(_is, "ISNULL", False), "Boolean.IsNotNull": partial(_is, "NOTNULL", False),
    "Boolean.IsNan": partial(_is, "FISNAN", False), "Boolean.IsNotNan": partial(_is, "FISNAN", True),
    "Boolean.IsFinite": partial(_is, "FISFINITE", False), "Boolean.IsInfinite": partial(_is, "FISINF", False),
    "Boolean.Not": partial(_is, "NOT", False), "Boolean.AllHorizontal": partial(_together, "AND"),
    "Boolean.AnyHorizontal": partial(_together, "OR"), "Boolean.IsBetween": _between, "Boolean.IsIn": _among,
    **{f"TemporalExpr.{name}": partial(_field, code) for name, code in _FIELDS.items()},
    **{f"TemporalExpr.{name}": partial(_total, unit) for name, unit in _TOTALS.items()},
    "TemporalExpr.TimeStamp": _epoch, "TemporalExpr.ConvertTimeZone": _moved,
    "StringExpr.LenChars": partial(_text, "SCHARS"), "StringExpr.LenBytes": partial(_text, "SBYTES"),
    "StringExpr.Lowercase": partial(_text, "SLOWER"), "StringExpr.Uppercase": partial(_text, "SUPPER"),
    "StringExpr.StartsWith": partial(_text, "SSTARTS"), "StringExpr.EndsWith": partial(_text, "SENDS"),
    "StringExpr.Contains": _contains, "Tidemill.bucket": _bucket, "Tidemill.local": _local,
}  # fmt: skip
