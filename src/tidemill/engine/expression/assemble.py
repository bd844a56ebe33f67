"""The assembler of programs for on-demand expressions: types, registers, constants, instructions.

Types follow Polars, which is asked for the type of every operation (``dtype_of``).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from tidemill.engine.expression.zone import table as zone_table
from tidemill.kernels.expressions import Instruction

Json = Any
Dtype = pl.DataType

_LETTERS: Mapping[Any, str] = {
    pl.Float64: "d", pl.Float32: "f", pl.Boolean: "?", pl.Int64: "q", pl.Int32: "i", pl.Int16: "h", pl.Int8: "b",
    pl.UInt32: "I", pl.UInt16: "H", pl.UInt8: "B", pl.String: "s", pl.Categorical: "s", pl.Enum: "s", pl.Date: "D",
    pl.Datetime: "T", pl.Duration: "T",
}  # fmt: skip
_WIDTHS: Mapping[Any, int] = {
    pl.Int64: 64, pl.Int32: 32, pl.Int16: 16, pl.Int8: 8, pl.UInt32: -32, pl.UInt16: -16, pl.UInt8: -8,
}  # fmt: skip
_OPERATORS = {
    "+": "Plus", "-": "Minus", "*": "Multiply", "/": "TrueDivide", "//": "FloorDivide", "%": "Modulus", "==": "Eq",
    "!=": "NotEq", "<": "Lt", "<=": "LtEq", ">": "Gt", ">=": "GtEq", "&": "And", "|": "Or", "^": "Xor",
}  # fmt: skip
_UNTYPED = ("Int", "Float")
_CONSTANT = -1_000_000  # where the registers of constants begin, downwards


class RefusedError(Exception):
    """Programs do not know a part of the expression; the message names it."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a part of an expression yields: a register, or a ``constant`` (kind and value of a canonical literal)."""

    dtype: Dtype
    at: int = 0
    constant: tuple[str, Any] | None = None


def letter_of(dtype: Dtype) -> str:
    """Return how programs spell the type of a column. Raises RefusedError when they know none such."""
    letter = _LETTERS.get(dtype.base_type())
    if letter is None or (letter == "T" and getattr(dtype, "time_unit", "us") != "us"):
        raise RefusedError(f"values of type {dtype}")
    return letter


def kind(dtype: Dtype) -> str:
    """Return the kind of register that holds ``dtype``: f, i or s. Raises RefusedError."""
    letter = letter_of(dtype)
    return "f" if letter in "df" else "s" if letter == "s" else "i"


def width_of(dtype: Dtype) -> int | None:
    """Return the bits of a whole number, negative when it is unsigned; None for other types."""
    return _WIDTHS.get(dtype.base_type())


def holds(wider: int, width: int) -> bool:
    """Tell whether every whole number of ``width`` is one of ``wider``."""
    if wider < 0:
        return wider <= width < 0
    return abs(width) + (width < 0) <= wider


class Assembler:
    """A program in the making, over columns of the types ``schema``."""

    def __init__(self, schema: Mapping[str, Dtype]) -> None:
        self._schema = schema
        self._inputs: dict[str, str] = {}
        self._constants: dict[tuple[str, str], tuple[str, Any]] = {}
        self._tables: list[tuple[Any, ...]] = []
        self._code: dict[Instruction, int] = {}
        self._outputs: list[tuple[int, str]] = []

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that the program reads, in order."""
        return tuple(self._inputs)

    def parts(self) -> tuple[Any, ...]:
        """Return the program: the arguments of ``kernels.expressions.machine``."""
        inputs, constants = len(self._inputs), len(self._constants)

        def place(register: int) -> int:
            if register >= 0:
                return inputs + constants + register
            return inputs + _CONSTANT - register if register <= _CONSTANT else ~register

        code = [(name, tuple(map(place, arguments)), number) for name, arguments, number in self._code]
        outputs = [(place(register), letter) for register, letter in self._outputs]
        return list(self._inputs.items()), list(self._constants.values()), self._tables, code, outputs

    # Registers in the making: instructions count upwards from 0, inputs downwards from -1, constants from _CONSTANT.

    def column(self, name: str) -> Value:
        """Return an input. Raises RefusedError when there is no such column, or none of a type that programs know."""
        if name not in self._schema:
            raise RefusedError(f"the column '{name}', which is not there")
        self._inputs.setdefault(name, letter_of(self._schema[name]))
        return Value(self._schema[name], ~list(self._inputs).index(name))

    def output(self, value: Value) -> None:
        """Add an output."""
        self._outputs.append((self.register(value), letter_of(value.dtype)))

    def emit(self, name: str, *arguments: int, number: int = 0) -> int:
        """Return the register of an instruction; the same one is not repeated."""
        return self._code.setdefault((name, arguments, number), len(self._code))

    def single(self, name: str, *arguments: int) -> int:
        """Return the register of a float instruction rounded to float32."""
        return self.emit("FSINGLE", self.emit(name, *arguments))

    def wrapped(self, register: int, dtype: Dtype) -> int:
        """Return whole numbers wrapped round as ``dtype`` overflows."""
        width = width_of(dtype)
        assert width is not None
        return register if width == 64 else self.emit("IWRAP", register, number=width)

    def constant(self, of_kind: str, value: Any) -> int:
        """Return the register of a constant; None is null."""
        self._constants.setdefault((of_kind, repr(value)), (of_kind, value))  # by text: zeros have signs, NaN is NaN
        return _CONSTANT - list(self._constants).index((of_kind, repr(value)))

    def table(self, *table: Any) -> int:
        """Return the number of a table."""
        if table not in self._tables:
            self._tables.append(table)
        return self._tables.index(table)

    def register(self, value: Value) -> int:
        """Return the register that holds ``value``."""
        return value.at if value.constant is None else self.widened(value, value.dtype)

    def widened(self, value: Value, dtype: Dtype) -> int:
        """Return a register that holds ``value`` as ``dtype``, where Polars widens it so. Raises RefusedError."""
        if value.constant is not None:
            return self.constant(kind(dtype), _fitted(value.constant[1], dtype))
        old, new = kind(value.dtype), kind(dtype)
        whole, wider = width_of(value.dtype), width_of(dtype)
        if value.dtype == dtype or (old == new == "s"):
            return value.at
        if old == new == "f":
            return value.at if dtype == pl.Float64 else self.emit("FSINGLE", value.at)
        if new == "f" and (whole or value.dtype == pl.Boolean):
            return self.emit("ITOFLOAT" if dtype == pl.Float64 else "ITOSINGLE", value.at)
        if wider and (value.dtype == pl.Boolean or (whole and holds(wider, whole))):
            return value.at
        if value.dtype == pl.Date and dtype == pl.Datetime:
            return self.emit("FROMDAYS", value.at)
        raise RefusedError(f"{value.dtype} as {dtype}")

    def on_clock(self, value: Value) -> int:
        """Return a register with microseconds on the clock of the time's own zone. Raises RefusedError."""
        if value.dtype == pl.Date:
            return self.emit("FROMDAYS", self.register(value))
        if value.dtype != pl.Datetime:
            raise RefusedError(f"the calendar of {value.dtype}")
        letter_of(value.dtype)
        zone = getattr(value.dtype, "time_zone", None)
        if zone in (None, "UTC"):
            return self.register(value)
        if (changes := zone_table(zone)) is None:
            raise RefusedError(f"the time zone {zone}")
        return self.emit("LOCAL", self.register(value), number=self.table("z", *changes))


def _fitted(value: Any, dtype: Dtype) -> Any:
    """Return a literal's value as the constant of a register that holds ``dtype``. Raises RefusedError."""
    letter, width = letter_of(dtype), width_of(dtype)
    if value is None:
        return None
    if letter == "d" and isinstance(value, int | float):
        return float(value)
    if letter == "f" and isinstance(value, int | float):
        with np.errstate(over="ignore"):
            return float(np.float32(value))
    if letter == "s" and isinstance(value, str):
        return value
    if letter == "?" and isinstance(value, bool):
        return int(value)
    if width and isinstance(value, int):
        low, high = (0, 1 << -width) if width < 0 else (-(1 << width - 1), 1 << width - 1)
        if low <= value < high:
            return int(value)
    if letter == "D" and isinstance(value, int):
        return value
    if letter == "T" and isinstance(value, list) and value[1] == "Microseconds":
        return int(value[0])
    raise RefusedError(f"the constant {value} as {dtype}")


# Polars' own form of an operation over a few values, to ask for its type.


def operand(value: Value, place: int) -> Json:
    """Return Polars' form of a value as the operand at ``place``."""
    if value.constant is None:
        return {"Column": f"_{place}"}
    of_kind, held = value.constant
    if of_kind == "List":
        raise RefusedError("a list of constants")
    return {"Literal": {"Dyn" if of_kind in _UNTYPED else "Scalar": {of_kind: "Null" if of_kind == "Null" else held}}}


def operation(operator: str, left: Value, right: Value) -> Json:
    """Return Polars' form of a binary operation."""
    return {"BinaryExpr": {"left": operand(left, 0), "op": _OPERATORS[operator], "right": operand(right, 1)}}


def dtype_of(node: Json, *operands: Value) -> Dtype:
    """Return the type of ``node`` over ``operands``. Raises RefusedError where Polars has none."""
    schema = tuple((f"_{place}", each.dtype) for place, each in enumerate(operands) if each.constant is None)
    return _dtype(json.dumps(node, sort_keys=True), schema)


@lru_cache(maxsize=4096)
def _dtype(node: str, schema: tuple[tuple[str, Dtype], ...]) -> Dtype:
    expression = pl.Expr.deserialize(io.StringIO(node), format="json")
    try:
        (dtype,) = pl.DataFrame(schema=dict(schema)).lazy().select(expression).collect_schema().dtypes()
    except pl.exceptions.PolarsError as error:
        raise RefusedError(f"what Polars refuses ({error})") from error
    return dtype


def folded(node: Json, program: Assembler) -> Value:
    """Return what Polars makes of a node of constants alone. Raises RefusedError."""
    try:
        found = pl.select(pl.Expr.deserialize(io.StringIO(json.dumps(node)), format="json")).to_series()
    except pl.exceptions.PolarsError as error:
        raise RefusedError(f"what Polars refuses ({error})") from error
    if found.dtype.is_temporal():
        raise RefusedError(f"a computed constant of type {found.dtype}")
    return Value(found.dtype, program.constant(kind(found.dtype), _fitted(found.item(), found.dtype)))


@lru_cache(maxsize=1024)
def literal_dtype(of_kind: str, value: str) -> Dtype:
    """Return the type that Polars gives a literal by itself; ``value`` is its JSON."""
    node = operand(Value(pl.Null(), constant=(of_kind, json.loads(value))), 0)
    return dtype_of(node)
