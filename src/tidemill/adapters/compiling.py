"""What every compiler builds with: columns of a frame as formulas of the input, and the program that computes them.

A fitted pipeline is followed symbolically. Each column that it would compute is either a ``Number`` (a column of the
input and the arithmetic done to it) or a ``Lookup`` (a value for each code of a category). Whatever happens to a single
categorical column is a ``Lookup``, so encoders cost nothing at prediction: a split on one becomes a set of codes, a
coefficient of one a row of a table. Only what the model in the end reads becomes part of the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tidemill.base.errors import NotCompiledError
from tidemill.kernels import program as p
from tidemill.kernels.program import Array, Program

REFUSE_NAN, REFUSE_INF = 1, 2


@dataclass(frozen=True, slots=True)
class Number:
    """A number: column ``column`` of the input after ``steps`` (operation, a, b) in order."""

    column: int
    steps: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Code:
    """Which of finitely many: the category of a text column, or the place of a number in a sorted table.

    ``size`` counts the codes. A text column's last code is null and every unknown text; a table of n numbers has code n
    for NaN and n + 1 for any other number where ``op`` is MATCH, n + 1 for NaN where it is BINS.
    """

    of: int | Number
    size: int
    op: int = 0
    table: tuple[float, ...] = ()

    @property
    def column(self) -> int:
        """The input column that it comes from."""
        return self.of.column if isinstance(self.of, Number) else self.of


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A value for each code: float64, or texts and None before they are encoded."""

    code: Code
    values: Array


Column = Number | Lookup


@dataclass(frozen=True, slots=True)
class Frame:
    """The columns between two steps of a pipeline.

    ``names`` while they are known. ``sparse``: the library holds them in a sparse matrix, where a zero is no value.
    ``table``: it is the input itself, which libraries read otherwise than an array.
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...] | None = None
    sparse: bool = False
    table: bool = False

    def take(self, places: Sequence[int]) -> Frame:
        """Return the columns at ``places``."""
        names = None if self.names is None else tuple(self.names[i] for i in places)
        return Frame(tuple(self.columns[i] for i in places), names, self.sparse)

    def map(self, function: Callable[[Column, int], Column]) -> Frame:
        """Return the frame with each column replaced by ``function(column, place)``."""
        return Frame(tuple(function(column, i) for i, column in enumerate(self.columns)), self.names, self.sparse)


def apply(column: Column, op: int, a: float = 0.0, b: float = 0.0) -> Column:
    """Return ``column`` after an operation on numbers; a lookup is computed at once, by the same arithmetic."""
    if isinstance(column, Number):
        return Number(column.column, (*column.steps, (op, float(a), float(b))))
    x = numbers(column)
    with np.errstate(all="ignore"):
        arithmetic: Mapping[int, Callable[[], Array]] = {
            p.IMPUTE: lambda: np.where(np.isnan(x), a, x),
            p.ADD: lambda: x + a,
            p.SUB: lambda: x - a,
            p.MUL: lambda: x * a,
            p.DIV: lambda: x / a,
            p.CLIP: lambda: np.where(x < a, a, np.where(x > b, b, x)),
            p.ISNAN: lambda: np.isnan(x).astype(np.float64),
            p.FLOAT32: lambda: x.astype(np.float32).astype(np.float64),
            p.ZERO_NAN: lambda: np.where(np.abs(x) <= a, np.nan, x),
            p.TRUNC: lambda: np.trunc(x),
        }
        return Lookup(column.code, arithmetic[op]())


def numbers(column: Lookup) -> Array:
    """Return a lookup's values as float64. Raises NotCompiledError while they are texts."""
    if column.values.dtype == object:
        raise NotCompiledError("a text column reaches a step that takes numbers")
    return column.values.astype(np.float64)


def match(number: Number, values: Sequence[float]) -> Code:
    """Return the code that tells which of ``values`` a number is (its place among them, sorted)."""
    table = tuple(sorted({float(value) for value in values if not math.isnan(value)}))
    return Code(number, len(table) + 2, p.MATCH, table)


#: Tells for each value of a lookup whether a split sends it right.
GoesRight = Callable[[Array], Array]


@dataclass(slots=True)
class Tree:
    """A tree as a library has it: arrays over its nodes, the root first.

    ``column``: which column a node splits on, -1 a leaf. A row goes left when the column is at most ``threshold``, and
    a NaN right where ``nan_right``. ``values``: (nodes, width), of leaves. ``sets``: nodes that split on categories.
    """

    column: Array
    threshold: Array
    nan_right: Array
    left: Array
    right: Array
    values: Array
    output: int = 0
    sets: Mapping[int, GoesRight] = field(default_factory=dict)


class Builder:
    """Collects what a model reads, and lays it out as a program."""

    def __init__(self, columns: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        self._columns = tuple(columns)
        self._places: list[int] = []  # of each input column, among the numbers or among the texts
        counts = [0, 0]
        for _, categories in columns:
            self._places.append(counts[categories is not None])
            counts[categories is not None] += 1
        self._slots, self._codes = counts
        self._known: dict[Number | Code, int] = {}
        self._ops: list[tuple[int, int, int, int]] = []
        self._args: list[tuple[float, float]] = []
        self._tables: list[float] = []
        self._checks: dict[tuple[Any, ...], None] = {}
        self._bits: list[Array] = []
        self._bit_count = 0
        self._sets: dict[tuple[Code, bytes], int] = {}

    def frame(self) -> Frame:
        """Return the input: what the estimator's first step is given."""
        made: list[Column] = []
        for i, (_, categories) in enumerate(self._columns):
            if categories is None:
                made.append(Number(i))
            else:
                values = np.array([*categories, None], dtype=object)
                made.append(Lookup(Code(i, len(values)), values))
        return Frame(tuple(made), tuple(name for name, _ in self._columns), table=True)

    def check(self, column: Column, flags: int) -> None:
        """Refuse rows where ``column`` is NaN (flag 1) or infinite (flag 2), as the estimator does."""
        if isinstance(column, Number):
            self._checks[column, flags] = None
            return
        x = numbers(column)
        wrong = (np.isnan(x) if flags & REFUSE_NAN else False) | (np.isinf(x) if flags & REFUSE_INF else False)
        self.refuse(column.code, np.broadcast_to(wrong, x.shape))

    def refuse(self, code: Code, wrong: Array) -> None:
        """Refuse rows whose ``code`` is among those marked, because the estimator raises on their values."""
        if wrong.any():
            self._checks[code, wrong.astype(np.float64).tobytes()] = None

    def slot(self, number: Number) -> int:
        """Return the slot that holds ``number``, computing it if nothing else has."""
        if not number.steps:
            return self._places[number.column]
        if number not in self._known:
            source = self.slot(Number(number.column, number.steps[:-1]))
            op, a, b = number.steps[-1]
            self._add(op, source, a=a, b=b)
            self._known[number] = self._slots
            self._slots += 1
        return self._known[number]

    def code(self, code: Code) -> int:
        """Return the number of ``code``, computing it if nothing else has."""
        if isinstance(code.of, int):
            return self._places[code.of]
        if code not in self._known:
            self._add(code.op, self.slot(code.of), self._table(code.table), len(code.table))
            self._known[code] = self._codes
            self._codes += 1
        return self._known[code]

    # Models -----------------------------------------------------------------------------------------------------------

    def linear(self, frame: Frame, weights: Array, base: Array, *, link: int) -> Program:
        """Return the program of a linear model: ``weights`` (columns, scores) and ``base`` (scores)."""
        terms, term_weights = [], []
        tables: dict[Code, Array] = {}
        for column, weight in zip(frame.columns, weights, strict=True):
            if isinstance(column, Number):
                terms.append(self.slot(column))
                term_weights.append(weight)
            else:
                part = numbers(column)[:, None] * weight
                tables[column.code] = tables[column.code] + part if column.code in tables else part
        groups = []
        for code, table in tables.items():
            # Where a value is refused the table is never read; what NaN there would say is left out.
            groups.append((self.code(code), self._table(np.nan_to_num(table, nan=0.0).ravel().tolist())))
        arrays: dict[str, Array] = {
            "terms": np.array(terms, np.int32),
            "weights": np.array(term_weights, np.float64).reshape(len(terms), len(base)),
            "groups": np.array(groups, np.int32).reshape(-1, 2),
        }
        return self._program("linear", arrays, base, link=link, exact=False)

    def trees(
        self, frame: Frame, trees: Sequence[Tree], base: Array, *, link: int, width: int = 1, single: bool = False,
        divisor: float = 0.0, scale: float = 1.0,
    ) -> Program:  # fmt: skip
        """Return the program of an ensemble over ``frame``, whose leaves add up in the order of ``trees``."""
        parts: list[dict[str, Array]] = []
        roots, nodes, leaves = [], 0, 0
        slots: dict[int, int] = {}
        for tree in trees:
            part = self._tree(frame, tree, slots)
            leaf = part["feature"] == -1
            part["payload"][leaf] += leaves
            part["left"] += nodes
            roots.append(nodes)
            nodes, leaves = nodes + len(leaf), leaves + int(leaf.sum())
            parts.append(part)
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        # Codes come after all slots, which are known only now; they were noted as -2, -3, ...
        feature = arrays["feature"]
        arrays["feature"] = np.where(feature < -1, self._slots_in_all() - 2 - feature, feature).astype(np.int32)
        arrays["roots"] = np.array(roots, np.int32)
        arrays["outputs"] = np.array([tree.output for tree in trees], np.int32)
        arrays["bits"] = np.concatenate([*self._bits, np.zeros(0, np.uint32)]).astype(np.uint32)
        return self._program(
            "trees", arrays, base, link=link, width=width, single=single, divisor=divisor, scale=scale, exact=True
        )

    def _slots_in_all(self) -> int:
        # Checks may compute further slots.
        for column, _ in self._checks:
            if isinstance(column, Number):
                self.slot(column)
            else:
                self.code(column)
        return self._slots

    def _tree(self, frame: Frame, tree: Tree, slots: dict[int, int]) -> dict[str, Array]:
        order = _siblings_together(tree)
        place = np.empty(len(tree.column), np.int64)
        place[order] = np.arange(len(order))
        column = tree.column[order].astype(np.int64)
        leaf = column < 0
        threshold, missing = tree.threshold[order].astype(np.float64), tree.nan_right[order].astype(np.uint8)
        left = np.where(leaf, 0, place[np.where(leaf, 0, tree.left[order])]).astype(np.int32)
        payload = np.zeros(len(order), np.uint32)
        payload[leaf] = np.arange(leaf.sum())
        feature = np.full(len(order), -1, np.int64)
        for each in np.unique(column[~leaf]).tolist():
            here = column == each
            held = frame.columns[each]
            if isinstance(held, Number):
                if each not in slots:
                    slots[each] = self.slot(held)
                feature[here] = slots[each]
                continue
            feature[here] = -2 - self.code(held.code)
            values = numbers(held)
            for node in np.flatnonzero(here).tolist():
                goes = tree.sets.get(int(order[node]))
                right = (
                    (values > threshold[node]) | (np.isnan(values) & bool(missing[node]))
                    if goes is None
                    else goes(values)
                )
                payload[node] = self._set(held.code, right)
        coded = feature < 0
        threshold[coded], missing[coded] = 0.0, 0
        left[leaf] = 0
        made: dict[str, Array] = {
            "feature": feature,
            "left": left,
            "threshold": threshold,
            "missing": missing,
            "payload": payload,
        }
        return {**made, "values": tree.values[order][leaf].astype(np.float64).ravel()}

    def _set(self, code: Code, right: Array) -> int:
        bits = np.packbits(right, bitorder="little")
        words = np.zeros(-(-code.size // 32) * 4, np.uint8)
        words[: len(bits)] = bits
        key = (code, words.tobytes())
        if key not in self._sets:
            self._sets[key] = self._bit_count
            self._bits.append(words.view("<u4").astype(np.uint32))
            self._bit_count += len(self._bits[-1])
        return self._sets[key]

    # Laying out -------------------------------------------------------------------------------------------------------

    def _add(self, op: int, source: int, offset: int = 0, length: int = 0, *, a: float = 0.0, b: float = 0.0) -> None:
        self._ops.append((op, source, offset, length))
        self._args.append((a, b))

    def _table(self, values: Sequence[float]) -> int:
        self._tables.extend(values)
        return len(self._tables) - len(values)

    def _program(
        self, kind: Literal["linear", "trees"], arrays: dict[str, Array], base: Array, **given: Any
    ) -> Program:
        for held, what in self._checks:
            if isinstance(held, Number):
                self._add(p.CHECK, self.slot(held), held.column, what)
            else:
                table = self._table(np.frombuffer(what).tolist())
                self._add(p.CHECK_CODE, self.code(held), held.column, table)
        common: dict[str, Array] = {
            "ops": np.array(self._ops, np.int32).reshape(-1, 4),
            "args": np.array(self._args, np.float64).reshape(-1, 2),
            "tables": np.array(self._tables, np.float64),
            "base": np.asarray(base, np.float64),
        }
        return Program(kind, self._columns, {**common, **arrays}, **given)


def _siblings_together(tree: Tree) -> Array:
    """Return the order of nodes in which children follow their parents, a right child right after its left one."""
    levels = [np.array([0])]
    while len(levels[-1]):
        inner = levels[-1][tree.column[levels[-1]] >= 0]
        levels.append(np.stack([tree.left[inner], tree.right[inner]], axis=1).ravel().astype(np.int64))
    return np.concatenate(levels)
