"""Runs compiled predictors: by the compiled kernel where there is one, else by NumPy with the same bits.

``open_program`` gives a ``Predictor``: one row from Python values, many from columns, and the two agree bit for bit.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import numpy as np

from tidemill.kernels import compiled
from tidemill.kernels import program as p
from tidemill.kernels.program import IDENTITY, Array, MalformedError, Program

__all__ = ["IDENTITY", "MalformedError", "Predictor", "Program", "magnitude", "open_program"]


class Predictor(Protocol):
    """A compiled predictor, ready to run. Safe to share between threads."""

    program: Program

    def row(self, values: Sequence[Any]) -> float | list[float]:
        """Return the prediction for one row: a list or tuple of float, int, bool, str or None, one a column.

        A float where the program has one output, else a list of them. Raises ValueError when a value is not of its
        column's kind, or is one that the estimator refuses.
        """
        ...

    def batch(self, columns: Sequence[Array], rows: int) -> Array:
        """Return predictions, float64 (rows, outputs), of contiguous columns: float64, or int32 codes for texts.

        Raises ValueError when a row holds what the estimator refuses.
        """
        ...


def open_program(content: bytes) -> Predictor:
    """Return the predictor in ``content``. Raises MalformedError unless it is one, whole and sound."""
    program = Program.decode(content)
    kernel = compiled.load("predictors")
    return _Plain(program) if kernel is None else _Compiled(program, kernel)


class _Compiled:
    def __init__(self, program: Program, kernel: Any) -> None:
        self.program = program
        link = program.link if program.link < p.NUMPY else p.IDENTITY
        # The kernel checks everything again: it trusts no caller.
        self._kernel = kernel.Program(
            program.columns, program.kind, dict(program.arrays),
            link, program.width, program.single, program.divisor, program.scale,
        )  # fmt: skip
        self.row: Callable[[Sequence[Any]], float | list[float]]
        self.row = self._kernel.row if link == program.link else self._finished_row

    def _finished_row(self, values: Sequence[Any]) -> float | list[float]:
        scores = np.array(self._kernel.row(values), dtype=np.float64).reshape(1, -1)
        return _plain_row(_finish(self.program.link, scores))

    def batch(self, columns: Sequence[Array], rows: int) -> Array:
        scores = np.empty((rows, self.program.outputs))
        self._kernel.batch(tuple(columns), rows, scores)
        return _finish(self.program.link, scores)


class _Plain:
    def __init__(self, program: Program) -> None:
        self.program = program
        self._codes = [
            None if values is None else {value: code for code, value in enumerate(values)}
            for _, values in program.columns
        ]

    def row(self, values: Sequence[Any]) -> float | list[float]:
        if type(values) not in (list, tuple):
            raise TypeError("a row is a list or a tuple")
        if len(values) != len(self._codes):
            raise ValueError(f"A row has {len(self._codes)} values; this one has {len(values)}.")
        columns = []
        for value, codes, (name, _) in zip(values, self._codes, self.program.columns, strict=True):
            if codes is not None:
                if value is not None and not isinstance(value, str):
                    raise ValueError(f"Column {name!r} takes text, not {type(value).__name__}.")
                columns.append(np.array([codes.get(value, len(codes)) if value is not None else len(codes)], np.int32))
            elif value is None or isinstance(value, float | int):
                try:
                    columns.append(np.array([math.nan if value is None else float(value)]))
                except OverflowError:
                    raise ValueError(f"Column {name!r} holds a whole number beyond float64.") from None
            else:
                raise ValueError(f"Column {name!r} takes a number, not {type(value).__name__}.")
        return _plain_row(self.batch(columns, 1))

    def batch(self, columns: Sequence[Array], rows: int) -> Array:
        program = self.program
        if len(columns) != len(self._codes):
            raise ValueError(f"A batch is a tuple of {len(self._codes)} columns and a number of rows.")
        for column, codes, (name, _) in zip(columns, self._codes, program.columns, strict=True):
            wanted = np.float64 if codes is None else np.int32
            if column.dtype != wanted or column.shape != (rows,):
                raise ValueError("a column must be a contiguous array of its type and the expected length")
            if codes is not None and ((column < 0) | (column > len(codes))).any():
                raise ValueError(f"Column {name!r} holds a code outside its categories.")
        with np.errstate(all="ignore"):
            slots, codes_of = _prepare(program, columns)
            score = _trees if program.kind == "trees" else _linear
            scores = score(program, slots, codes_of, rows)
            if program.divisor:
                scores /= program.divisor
            return _finish(program.link, _link(program, scores))


def _plain_row(scores: Array) -> float | list[float]:
    made: list[float] = scores[0].tolist()
    return made[0] if len(made) == 1 else made


def _finish(link: int, scores: Array) -> Array:
    """Apply the links that NumPy's own exp decides, as scikit-learn does: on rows, or summed column by column."""
    if link < p.NUMPY:
        return scores
    with np.errstate(all="ignore"):
        if link == p.NUMPY_EXP:
            return np.asarray(np.exp(scores))
        made: Array = np.exp(scores - scores.max(axis=1, keepdims=True))
        if link == p.NUMPY_SOFTMAX:
            return np.asarray(made / made.sum(axis=1, keepdims=True))
        return np.asarray(made / _sum(made))


# Plain ------------------------------------------------------------------------------------------------------------


def _prepare(program: Program, columns: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    slots = [column for column, (_, values) in zip(columns, program.columns, strict=True) if values is None]
    codes = [column for column, (_, values) in zip(columns, program.columns, strict=True) if values is not None]
    tables = program.arrays["tables"]
    for (op, source, offset, length), (a, b) in zip(
        program.arrays["ops"].tolist(), program.arrays["args"].tolist(), strict=True
    ):
        if op == p.CHECK_CODE:
            if tables[length + codes[source]].any():
                raise ValueError(f"Column {program.columns[offset][0]!r} holds a value that the model has not learned.")
            continue
        x = slots[source]
        match op:
            case p.IMPUTE:
                slots.append(np.where(np.isnan(x), a, x))
            case p.ADD:
                slots.append(x + a)
            case p.SUB:
                slots.append(x - a)
            case p.MUL:
                slots.append(x * a)
            case p.DIV:
                slots.append(np.divide(x, a))
            case p.CLIP:
                slots.append(np.where(x < a, a, np.where(x > b, b, x)))
            case p.ISNAN:
                slots.append(np.isnan(x).astype(np.float64))
            case p.FLOAT32:
                slots.append(x.astype(np.float32).astype(np.float64))
            case p.ZERO_NAN:
                slots.append(np.where(np.abs(x) <= a, math.nan, x))
            case p.TRUNC:
                slots.append(np.trunc(x))
            case p.MATCH:
                table = tables[offset : offset + length]
                place = np.searchsorted(table, x)
                found = (place < length) & (np.append(table, math.nan)[np.minimum(place, length)] == x)
                codes.append(np.where(np.isnan(x), length, np.where(found, place, length + 1)).astype(np.int32))
            case p.BINS:
                place = np.searchsorted(tables[offset : offset + length], x, side="right")
                codes.append(np.where(np.isnan(x), length + 1, place).astype(np.int32))
            case _:
                wrong = np.zeros(len(x), bool)
                if length & 1:
                    wrong |= np.isnan(x)
                if length & 2:
                    wrong |= np.isinf(x)
                if wrong.any():
                    how = "too large or infinite" if length == 2 else "null, too large or infinite"
                    name = program.columns[offset][0]
                    raise ValueError(f"Column {name!r} holds a value that the model does not take: {how}.")
    return slots, codes


def _linear(program: Program, slots: list[Array], codes: list[Array], rows: int) -> Array:
    arrays = program.arrays
    scores = np.zeros((rows, program.outputs))
    for slot, weights in zip(arrays["terms"], arrays["weights"].reshape(-1, program.outputs), strict=True):
        scores += slots[slot][:, None] * weights
    for code, offset in arrays["groups"].reshape(-1, 2):
        table = arrays["tables"][offset : offset + program.sizes[code] * program.outputs]
        scores += table.reshape(-1, program.outputs)[codes[code]]
    return scores + arrays["base"]


def _trees(program: Program, slots: list[Array], codes: list[Array], rows: int) -> Array:
    get = program.arrays.__getitem__
    feature, left, threshold, missing = get("feature"), get("left"), get("threshold"), get("missing").astype(bool)
    payload, bits = get("payload").astype(np.int64), np.append(get("bits"), np.uint32(0))
    values = get("values").reshape(-1, program.width)
    x = np.array(slots).reshape(len(slots), rows)
    c = np.array(codes, dtype=np.int64).reshape(len(codes), rows)
    scores = np.tile(get("base"), (rows, 1))
    everyone = np.arange(rows)
    for root, output in zip(get("roots").tolist(), get("outputs").tolist(), strict=True):
        at = np.full(rows, root)
        going = everyone[feature[at] >= 0]
        while len(going):
            node = at[going]
            split = feature[node]
            right = np.zeros(len(going), bool)
            number = split < len(slots)
            if number.any():
                v, here = x[split[number], going[number]], node[number]
                right[number] = (v > threshold[here]) | (np.isnan(v) & missing[here])
            if not number.all():
                v, here = c[split[~number] - len(slots), going[~number]], node[~number]
                right[~number] = (bits[payload[here] + (v >> 5)] >> (v & 31).astype(np.uint32)) & 1
            at[going] = left[node] + right
            going = going[feature[at[going]] >= 0]
        part = slice(output, output + program.width)
        scores[:, part] += values[payload[at]]
        if program.single:
            scores[:, part] = scores[:, part].astype(np.float32)
    return scores


def _link(program: Program, scores: Array) -> Array:
    """Apply the links that the C library's exp decides, value by value as the kernel does."""
    match program.link:
        case p.EXPIT:
            return 1.0 / (1.0 + _each(_exp, -(program.scale * scores)))
        case p.EXP:
            return _each(_exp, scores)
        case p.EXP32:
            return _each(_expf(), scores)
        case p.SIGMOID32:
            one, e = np.float32(1), _each(_expf(), np.minimum(-scores.astype(np.float32), np.float32(88.7)))
            return (one / (e.astype(np.float32) + one + np.float32(1e-16))).astype(np.float64)
        case p.SOFTMAX:
            made = _each(_exp, scores - scores.max(axis=1, keepdims=True))
            return made / _sum(made)
        case p.SOFTMAX32:
            single = scores.astype(np.float32)
            made = _each(_expf(), single - single.max(axis=1, keepdims=True))
            return (made.astype(np.float32) / _sum(made).astype(np.float32)).astype(np.float64)
        case p.OVR:
            made = 1.0 / (1.0 + _each(_exp, -scores))
            total = _sum(made)
            return np.where(total == 0.0, 1.0 / made.shape[1], made / total)
    return scores


def _sum(scores: Array) -> Array:
    total = np.zeros((len(scores), 1))
    for column in range(scores.shape[1]):
        total += scores[:, column : column + 1]
    return total


def _each(function: Callable[[float], float], values: Array) -> Array:
    return np.array([function(value) for value in values.ravel().tolist()], dtype=np.float64).reshape(values.shape)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


@cache
def _expf() -> Callable[[float], float]:
    """Return the C library's float32 exp; NumPy's own rounds some values otherwise."""
    function = ctypes.CDLL(None).expf
    function.restype, function.argtypes = ctypes.c_float, (ctypes.c_float,)
    return function


def magnitude(program: Program, columns: Sequence[Array], rows: int) -> Array:
    """Return for each score (rows, outputs) of a linear program the sum of the magnitudes that it adds up."""
    with np.errstate(all="ignore"):
        slots, codes = _prepare(program, columns)
        arrays = {name: np.abs(program.arrays[name]) for name in ("weights", "tables", "base")}
        positive = replace(program, arrays={**program.arrays, **arrays})
        return _linear(positive, [np.abs(slot) for slot in slots], codes, rows)
