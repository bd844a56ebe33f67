"""Rows on which a compiled predictor is held against its estimator: known, hostile, and next to its splits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tidemill.engine.predict.encode import Encoding
from tidemill.kernels import program as p
from tidemill.kernels.program import Program

SAMPLE = 20_000  # training rows
NEAR = 20_000  # rows with many columns next to thresholds at once
PATHS = 30_000  # rows led to one split

_HOSTILE = (
    None, math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 1e-40, 1e-310, -1e-35, 1.17e-38,
    1e300, -1e300, 3.5e38, -3.5e38, 3.4028235677973366e38, 16777217.0, -1.0, 2.5, 1e15, float(2**63),
)  # fmt: skip
_PLAIN = (None, 0.0, -1.0)  # for a form in float32, which cannot be held to the ends of float64
_UNSEEN = ("\x00 a category that nobody declared", "", "🚂" * 1000)

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Probes:
    """Frames of the encoding's columns, ``rows`` in all.

    Of ``thresholds`` distinct ones ``probed`` are among them, each with its neighbours.
    """

    frames: tuple[pl.DataFrame, ...]
    rows: int
    thresholds: int
    probed: int


def probes(program: Program | None, encoding: Encoding, rows: pl.DataFrame) -> Probes:
    """Return what to ask of ``program`` (None: a form whose thresholds are not known) and of its estimator.

    ``rows``: training rows. The same arguments give the same probes.
    """
    known = rows.select(
        pl.col(name).cast(pl.String if name in encoding.categories else pl.Float64) for name in encoding.columns
    )
    random = np.random.default_rng(known.height)
    frames = [_sample(known, random), *_hostile(known, encoding, random, _PLAIN if program is None else _HOSTILE)]
    thresholds = probed = 0
    if program is not None:
        near = {column: _compared(program, column) for column in range(len(encoding.columns))}
        near = {column: values for column, values in near.items() if len(values)}
        thresholds = sum(len(values) for values in near.values())
        frame, probed = _near(known, encoding, near, random)
        frames += [frame] if frame is not None else []
        if program.kind == "trees":
            frames += led(program, encoding, known, random)
    return Probes(tuple(frames), sum(frame.height for frame in frames), thresholds, probed)


def _sample(known: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    """Return up to ``SAMPLE`` of the rows, those among them that hold the least and the most of a number."""
    if known.height <= SAMPLE:
        return known
    extremes = [
        place
        for name, dtype in known.schema.items()
        if dtype == pl.Float64
        for place in (known[name].arg_min(), known[name].arg_max())
        if place is not None
    ]
    chosen = random.choice(known.height, SAMPLE - len(extremes), replace=False).tolist()
    return known[sorted({*extremes, *chosen})]


def _hostile(
    known: pl.DataFrame, encoding: Encoding, random: np.random.Generator, values: Sequence[float | None]
) -> list[pl.DataFrame]:
    """Return frames by hostile value: in each, every row has it in one column, and a last row in all of its kind."""
    base = known[random.integers(0, known.height, len(encoding.columns) + 1).tolist()]
    texts = [name for name in encoding.columns if name in encoding.categories]
    numbers = [name for name in encoding.columns if name not in encoding.categories]
    planted = [_planted(base, numbers, value) for value in values]
    planted += [_planted(base, texts, text) for text in (None, *_UNSEEN)]
    nothing = base[:1].select(pl.lit(None, dtype=dtype).alias(name) for name, dtype in base.schema.items())
    return [frame for frame in planted if frame is not None] + [nothing]


def _planted(base: pl.DataFrame, names: Sequence[str], value: Any) -> pl.DataFrame | None:
    if not names:
        return None
    rows = [base.row(i, named=True) | {name: value} for i, name in enumerate(names)]
    rows.append(base.row(len(names), named=True) | dict.fromkeys(names, value))
    return pl.DataFrame(rows, schema=base.schema)


def _near(
    known: pl.DataFrame, encoding: Encoding, near: Mapping[int, Floats], random: np.random.Generator
) -> tuple[pl.DataFrame | None, int]:
    """Return rows with values at and beside those of ``near``, half of the columns at a time; and how many of them."""
    if not near:
        return None, 0
    room = NEAR // max(1, _BESIDE)
    chosen = {
        column: values if len(values) <= room else values[np.linspace(0, len(values) - 1, room).astype(np.int64)]
        for column, values in near.items()
    }
    beside = {column: _beside(values) for column, values in chosen.items()}
    height = max(len(values) for values in beside.values())
    made = known[random.integers(0, known.height, height).tolist()]
    for column, values in beside.items():
        name = encoding.columns[column]
        own = made[name].to_numpy()
        put = np.resize(random.permutation(values), height)
        # While others keep their rows' values, so that splits deep in a tree are reached; all values are put at once.
        keep = (random.random(height) < 0.5) & (np.arange(height) >= len(values))
        made = made.with_columns(pl.Series(name, np.where(keep, own, put), dtype=pl.Float64))
    return made, sum(len(values) for values in chosen.values())


def led(program: Program, encoding: Encoding, known: pl.DataFrame, random: np.random.Generator) -> list[pl.DataFrame]:
    """Return rows that reach a split on a number and lie at its threshold, above and below; for each, if there is room.

    A row is a training row in which the columns on the way from the root have values that go that way. Where two splits
    on the way ask for what no one value of the input gives, the row may go elsewhere.
    """
    get = program.arrays.__getitem__
    feature, threshold = get("feature"), get("threshold")
    slots, codes = _slots(program), _codes(program)
    ways = _Ways(program, len(slots))
    aims = np.flatnonzero((feature >= 0) & (feature < len(slots)) & np.isfinite(threshold))
    if len(aims) * 3 > PATHS:
        aims = np.sort(random.choice(aims, PATHS // 3, replace=False))
    put: dict[int, list[tuple[int, Any]]] = {}  # by column: rows and values
    for number, aim in enumerate(aims.tolist()):
        for slot, value in ways.to(aim).items():
            if slot >= len(slots):
                column, values = codes[slot - len(slots)]
                given = values[int(value)]
            else:
                column, steps = slots[slot]
                given = _undone(np.array([value]), steps)
                given = float(given[0]) if len(given) else None
            put.setdefault(column, []).extend((3 * number + i, given) for i in range(3))
        column, steps = slots[feature[aim]]
        found = _undone(threshold[aim : aim + 1], steps)
        for i, value in enumerate(_three(float(found[0]), steps) if len(found) else ()):
            put.setdefault(column, []).append((3 * number + i, value))
    if not len(aims):
        return []
    made = known[random.integers(0, known.height, 3 * len(aims)).tolist()]
    for column, changes in put.items():
        name = encoding.columns[column]
        held = made[name].to_list()
        for row, value in changes:
            held[row] = value
        made = made.with_columns(pl.Series(name, held, dtype=made[name].dtype))
    return [made]


class _Ways:
    """The ways from the roots of a program's trees to its nodes."""

    def __init__(self, program: Program, slots: int) -> None:
        get = program.arrays.__getitem__
        self._feature, self._left, self._threshold, self._payload = (
            get(name).tolist() for name in ("feature", "left", "threshold", "payload")
        )
        self._bits, self._sizes, self._slots = get("bits").astype("<u4"), program.sizes, slots
        inner = np.flatnonzero(get("feature") >= 0)
        parent = np.full(len(self._feature), -1)
        parent[get("left")[inner]] = parent[get("left")[inner] + 1] = inner
        self._parent: list[int] = parent.tolist()
        self._sets: dict[tuple[int, int], np.ndarray[Any, Any]] = {}

    def to(self, aim: int) -> dict[int, float]:
        """Return a value for each slot, or code after all slots, that leads from the root to node ``aim``."""
        low: dict[int, float] = {}
        high: dict[int, float] = {}
        allowed: dict[int, np.ndarray[Any, Any]] = {}
        at = aim
        while (above := self._parent[at]) >= 0:
            right, split, threshold = at != self._left[above], self._feature[above], self._threshold[above]
            if split >= self._slots:
                goes = self._goes_right(split, self._payload[above]) == right
                allowed[split] = allowed[split] & goes if split in allowed else goes
            elif right:
                low[split] = max(low.get(split, -math.inf), threshold)
            else:
                high[split] = min(high.get(split, math.inf), threshold)
            at = above
        values = {split: float(goes.argmax()) for split, goes in allowed.items()}
        for split in {*low, *high}:
            least, most = low.get(split, -math.inf), high.get(split, math.inf)
            values[split] = _between(least, most)
        return values

    def _goes_right(self, split: int, start: int) -> np.ndarray[Any, Any]:
        if (split, start) not in self._sets:
            size = self._sizes[split - self._slots]
            words = self._bits[start : start - (-size // 32)].view(np.uint8)
            self._sets[split, start] = np.unpackbits(words, bitorder="little")[:size].astype(bool)
        return self._sets[split, start]


def _between(least: float, most: float) -> float:
    """Return a number above ``least`` and at most ``most``; NaN above infinity, where only that is sent."""
    if least == math.inf:
        return math.nan
    if math.isinf(least):
        return 0.0 if math.isinf(most) else most
    if math.isinf(most):
        return least + max(1.0, abs(least))
    middle = least / 2 + most / 2
    return middle if middle > least else most


def _three(value: float, steps: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Return ``value`` and its neighbours, in float32 where the steps round to that."""
    if any(op == p.FLOAT32 for op, _ in steps):
        with np.errstate(over="ignore"):
            single = np.float32(value)
            around = (np.nextafter(single, np.float32(-math.inf)), single, np.nextafter(single, np.float32(math.inf)))
            return float(around[0]), float(around[1]), float(around[2])
    return math.nextafter(value, -math.inf), value, math.nextafter(value, math.inf)


def _codes(program: Program) -> list[tuple[int, list[Any]]]:
    """Return for each code its input column, and a value of that column for each code."""
    slots = _slots(program)
    codes: list[tuple[int, list[Any]]] = [
        (i, [*values, None]) for i, (_, values) in enumerate(program.columns) if values is not None
    ]
    for op, source, offset, length in program.arrays["ops"].tolist():
        if op in (p.MATCH, p.BINS):
            column, steps = slots[source]
            table = program.arrays["tables"][offset : offset + length]
            back = _undone(table, steps)
            own = [float(value) for value in (back if len(back) else table)]
            other = max(own, default=0.0) + 1.0
            codes.append((column, [*own, None, other] if op == p.MATCH else [*(x - 1e-9 for x in own), other, None]))
    return codes


_BESIDE = 15


def _beside(values: Floats) -> Floats:
    """Return each value, its neighbours in float64, and the float32 near it with what rounds to that or just not."""
    up, down = np.nextafter(values, math.inf), np.nextafter(values, -math.inf)
    made = [values, up, down, np.nextafter(up, math.inf), np.nextafter(down, -math.inf)]
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
        above, below = np.nextafter(single, np.float32(math.inf)), np.nextafter(single, np.float32(-math.inf))
    middle = single.astype(np.float64)
    for other in (above, below):
        half = (middle + other.astype(np.float64)) / 2
        made += [other.astype(np.float64), half, np.nextafter(half, math.inf), np.nextafter(half, -math.inf)]
    found: Floats = np.unique(np.concatenate([middle, *made]))
    return found[np.isfinite(found)]


def _compared(program: Program, column: int) -> Floats:
    """Return the values of an input column at which a comparison in ``program`` tips, as near as they can be told."""
    slots = _slots(program)
    found = []
    if program.kind == "trees":
        feature, threshold = program.arrays["feature"], program.arrays["threshold"]
        for slot, (origin, steps) in enumerate(slots):
            if origin == column:
                found.append(_undone(np.unique(threshold[feature == slot]), steps))
    for op, source, offset, length in program.arrays["ops"].tolist():
        if op in (p.MATCH, p.BINS) and slots[source][0] == column:
            found.append(_undone(program.arrays["tables"][offset : offset + length], slots[source][1]))
    made: Floats = np.unique(np.concatenate([np.zeros(0), *found]))
    return made[np.isfinite(made)]


def _slots(program: Program) -> list[tuple[int, list[tuple[int, float]]]]:
    """Return for each slot the input column that it comes from, and the operations on the way (with their first a)."""
    slots: list[tuple[int, list[tuple[int, float]]]] = [
        (i, []) for i, (_, values) in enumerate(program.columns) if values is None
    ]
    for (op, source, _, _), (a, _) in zip(program.arrays["ops"].tolist(), program.arrays["args"].tolist(), strict=True):
        if op < p.MATCH:
            origin, steps = slots[source]
            slots.append((origin, [*steps, (op, a)]))
    return slots


def _undone(values: Floats, steps: Sequence[tuple[int, float]]) -> Floats:
    """Return what becomes of about ``values`` when ``steps`` are done to it."""
    with np.errstate(all="ignore"):
        for op, a in reversed(steps):
            match op:
                case p.ADD:
                    values = values - a
                case p.SUB:
                    values = values + a
                case p.MUL:
                    values = values / a
                case p.DIV:
                    values = values * a
                case p.ISNAN:
                    return np.zeros(0)
    return values
