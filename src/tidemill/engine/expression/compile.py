"""Canonical trees of expressions turned into programs of the kernel for on-demand expressions.

What is not in the tables here and in ``functions.py`` is refused, and stays in Polars. Whether a program has Polars'
own bits is for ``program.py`` to verify.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from tidemill.engine.expression.assemble import (
    Assembler,
    Dtype,
    Json,
    RefusedError,
    Value,
    dtype_of,
    folded,
    holds,
    kind,
    letter_of,
    literal_dtype,
    operand,
    operation,
    width_of,
)
from tidemill.engine.expression.functions import FUNCTIONS, compare
from tidemill.spec.expression import Expression

_ARITHMETIC = {"+": "ADD", "-": "SUB", "*": "MUL", "/": "DIV", "//": "FLOORDIV", "%": "MOD"}
_LOGIC = {"&": "AND", "|": "OR", "^": "XOR"}
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_FAMILIES = ("Boolean", "Trigonometry", "Pow", "TemporalExpr", "StringExpr", "Tidemill")
_OWN = {"Tidemill.bucket": pl.Int64(), "Tidemill.local": pl.Datetime("us")}


def assemble(expressions: Mapping[str, Expression], schema: Mapping[str, Dtype]) -> tuple[Assembler, dict[str, Dtype]]:
    """Return the program of ``expressions`` over columns of the types ``schema``, and the types of its outputs.

    Raises RefusedError when one of them has a part that programs do not know.
    """
    program, dtypes = Assembler(schema), {}
    for name, expression in expressions.items():
        value = _node(program, json.loads(expression.tree))
        program.output(value)
        dtypes[name] = value.dtype
    return program, dtypes


def _node(program: Assembler, tree: Any) -> Value:
    match tree:
        case ["column", name]:
            return program.column(name)
        case ["literal", "List", dtype, values]:
            return Value(pl.Null(), constant=("List", (dtype, values)))
        case ["literal", of_kind, value]:
            return Value(literal_dtype(of_kind, json.dumps(value)), constant=(of_kind, value))
        case ["if", *parts]:
            return _if(program, *(_node(program, each) for each in parts))
        case ["call", function, *arguments]:
            return _call(program, function, [_node(program, each) for each in arguments])
        case ["cast", dtype, options, inner]:
            return _cast(program, dtype, options, _node(program, inner))
        case ["polars", *_]:
            raise RefusedError("an operation outside the documented subset")
        case [operator, left, right]:
            return _binary(program, operator, _node(program, left), _node(program, right))
        case _:
            raise RefusedError("an unknown operation")


def _if(program: Assembler, condition: Value, yes: Value, no: Value) -> Value:
    parts = {"predicate": condition, "truthy": yes, "falsy": no}
    node = {"Ternary": {name: operand(each, place) for place, (name, each) in enumerate(parts.items())}}
    if all(each.constant is not None for each in parts.values()):
        return folded(node, program)
    dtype = dtype_of(node, condition, yes, no)
    if condition.dtype != pl.Boolean:
        raise RefusedError(f"a condition of type {condition.dtype}")
    branches = program.widened(yes, dtype), program.widened(no, dtype)
    return Value(dtype, program.emit(f"{kind(dtype).upper()}IF", program.register(condition), *branches))


def _binary(program: Assembler, operator: str, left: Value, right: Value) -> Value:
    node = operation(operator, left, right)
    if left.constant is not None and right.constant is not None:
        return folded(node, program)
    dtype = dtype_of(node, left, right)
    if operator in _COMPARISONS:
        return compare(program, operator, left, right)
    if operator in _ARITHMETIC:
        if dtype.is_temporal() or left.dtype.is_temporal() or right.dtype.is_temporal():
            return Value(dtype, _shifted(program, operator, left, right, dtype))
        return Value(dtype, _arithmetic(program, operator, left, right, dtype))
    if not left.dtype == right.dtype == pl.Boolean:
        raise RefusedError(f"'{operator}' of {left.dtype} and {right.dtype}")
    return Value(dtype, program.emit(_LOGIC[operator], program.register(left), program.register(right)))


def _arithmetic(program: Assembler, operator: str, left: Value, right: Value, dtype: Dtype) -> int:
    x, y = program.widened(left, dtype), program.widened(right, dtype)
    name = _ARITHMETIC[operator]
    if dtype == pl.Float64:
        return program.emit(f"F{name}", x, y)
    if dtype == pl.Float32 and operator in ("//", "%"):
        whole = program.emit("FFLOOR", program.single("FDIV", x, y))
        return whole if operator == "//" else program.single("FSUB", x, program.single("FMUL", y, whole))
    if dtype == pl.Float32:
        return program.single(f"F{name}", x, y)
    if dtype.is_integer() and operator != "/":
        return program.wrapped(program.emit(f"I{name}", x, y), dtype)
    if dtype == pl.String and operator == "+":
        return program.emit("SJOIN", x, y)
    raise RefusedError(f"'{operator}' of {left.dtype} and {right.dtype}")


def _shifted(program: Assembler, operator: str, left: Value, right: Value, dtype: Dtype) -> int:
    """Return the sum or difference of times and durations."""
    letter_of(dtype)
    sides = left.dtype.base_type(), right.dtype.base_type()
    if operator == "-" and sides == (pl.Date, pl.Date):
        return program.emit("ISUB", *(program.emit("FROMDAYS", program.register(side)) for side in (left, right)))
    allowed = {"-": (pl.Datetime, pl.Duration), "+": (pl.Duration,)}.get(operator, ())
    if sides[0] not in (pl.Datetime, pl.Duration) or sides[1] not in allowed:
        raise RefusedError(f"'{operator}' of {left.dtype} and {right.dtype}")
    return program.emit("IADD" if operator == "+" else "ISUB", program.register(left), program.register(right))


def _cast(program: Assembler, spelling: Json, options: str, value: Value) -> Value:
    node = {"Cast": {"expr": operand(value, 0), "dtype": spelling, "options": options}}
    if value.constant is not None:
        return folded(node, program)
    if options not in ("Strict", "NonStrict"):
        raise RefusedError(f"a cast that is {options}")
    new = dtype_of(node, value)
    return Value(new, _cast_to(program, value, new, strict=options == "Strict"))


def _cast_to(program: Assembler, value: Value, new: Dtype, *, strict: bool) -> int:
    old, register = value.dtype, value.at
    letter_of(new)
    width, whole = width_of(new), width_of(old)
    if width and old.is_float():
        register = program.emit("FTOWHOLE", register, number=int(strict))
        return register if width == 64 else program.emit("IMUST" if strict else "IFITS", register, number=width)
    if width and whole and not holds(width, whole):
        return program.emit("IMUST" if strict else "IFITS", register, number=width)
    if new == pl.Boolean and old.is_numeric():
        return program.emit(f"{kind(old).upper()}TRUTH", register)
    if new == pl.Int64 and old.base_type() in (pl.Datetime, pl.Duration):
        letter_of(old)
        return register
    if new.base_type() in (pl.Datetime, pl.Duration) and (old == pl.Int64 or old.base_type() == new.base_type()):
        letter_of(old)
        return register
    if new == pl.Date and old == pl.Datetime:
        letter_of(old)
        return program.emit("TODAYS", register)  # of the moment, not on the clock of its zone
    if new == pl.String and whole:
        return program.emit("ITOTEXT", register)
    if new == pl.String and old == pl.Boolean:
        spelled = program.emit("SIF", register, program.constant("s", "true"), program.constant("s", "false"))
        return program.emit("SIF", program.emit("ISNULL", register), program.constant("s", None), spelled)
    if isinstance(new, pl.Enum):
        raise RefusedError("a cast to Enum")
    return program.widened(value, new)


def _call(program: Assembler, function: Json, arguments: list[Value]) -> Value:
    name, options = _named(function)
    if name not in FUNCTIONS:
        raise RefusedError(f"the function {name.rpartition('.')[2]}")
    if name in _OWN:
        return FUNCTIONS[name](program, arguments, options, _OWN[name])
    if name == "Boolean.IsIn":  # of a list, which is no value of a register
        return FUNCTIONS[name](program, arguments, options, pl.Boolean())
    node = {"Function": {"input": [operand(each, place) for place, each in enumerate(arguments)], "function": function}}
    if all(each.constant is not None for each in arguments):
        return folded(node, program)
    return FUNCTIONS[name](program, arguments, options, dtype_of(node, *arguments))


def _named(function: Json) -> tuple[str, Json]:
    """Return the name of a function as Polars writes it, its family first, and its options."""
    prefix = ""
    if isinstance(function, dict):
        ((name, inner),) = function.items()
        if name not in _FAMILIES:
            return name, inner
        prefix, function = f"{name}.", inner
    if isinstance(function, dict):
        ((name, inner),) = function.items()
        return prefix + name, inner
    return prefix + str(function), None
