"""The form of a compiled predictor: flat arrays that say how a row of values becomes a prediction.

A program reads its ``columns`` (numbers, or texts of known categories), computes further values from them, and scores
them by a linear model or by trees:

- A number goes to a *slot* (float64, null as NaN), a text to a *code*: the place of its category, or after the last one
  for null and for any text that is not a category. Slots and codes are numbered apart, in the order of the columns.
- ``ops`` run in order. Each makes the next slot or the next code, or refuses the row; none changes another's result.
- A linear model sums ``term x weights`` in the order of its terms, then a row of a table for each of its codes, then
  ``base``. Trees add their leaves to ``base`` in their order; in float32 after every step where ``single``.
- ``link`` turns scores into what is predicted.

As bytes it is a magic line, the SHA-256 of the rest, and the rest: the length of a header, the header in canonical
JSON, and the arrays (little-endian, each from a multiple of 8). The same program is always the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

MAGIC = b"tidemill predictor 1\n"

# What an operation does with the value x of its source, and with its arguments a and b.
IMPUTE = 1  # a where x is NaN
ADD, SUB, MUL, DIV = 2, 3, 4, 5  # x + a, x - a, x * a, x / a
CLIP = 6  # at least a, at most b
ISNAN = 7  # 1 where x is NaN, else 0
FLOAT32 = 8  # the nearest float32
ZERO_NAN = 9  # NaN where |x| <= a
TRUNC = 10  # towards zero
MATCH = 20  # a code: the place of x in a sorted table; after its end for NaN; one further for any other
BINS = 21  # a code: how many of a sorted table's edges are at most x; one past the last for NaN
CHECK = 30  # refuses NaN (flag 1) and infinities (flag 2)
CHECK_CODE = 31  # refuses the codes whose entry in a table is not 0

#: How scores become predictions. Those from NUMPY on are finished by NumPy, whose exp differs from the C library's.
IDENTITY, EXPIT, SIGMOID32, SOFTMAX, SOFTMAX32, EXP, EXP32, OVR = range(8)
NUMPY = 100
NUMPY_EXP, NUMPY_SOFTMAX, NUMPY_SOFTMAX_COLUMNS = 100, 101, 102

_SLOT_OPS = range(IMPUTE, TRUNC + 1)
_DTYPES: Mapping[str, str] = {
    "ops": "<i4", "args": "<f8", "tables": "<f8", "base": "<f8",
    "terms": "<i4", "weights": "<f8", "groups": "<i4",
    "roots": "<i4", "outputs": "<i4", "feature": "<i4", "left": "<i4", "threshold": "<f8", "missing": "|u1",
    "payload": "<u4", "bits": "<u4", "values": "<f8",
}  # fmt: skip
_COMMON = ("ops", "args", "tables", "base")
_LINEAR = (*_COMMON, "terms", "weights", "groups")
_TREES = (*_COMMON, "roots", "outputs", "feature", "left", "threshold", "missing", "payload", "bits", "values")

Array = np.ndarray[Any, Any]


class MalformedError(ValueError):
    """Bytes are not a compiled predictor, or not a sound one."""


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled predictor, checked.

    ``columns``: name, and the categories of a text or None for a number. ``arrays`` by name:

    - all: ``ops`` (n, 4) of operation, source, offset, length; ``args`` (n, 2); ``tables``; ``base``, one a score;
    - linear: ``terms`` (slots), ``weights`` (terms, scores), ``groups`` (codes and where their tables begin);
    - trees: ``roots`` and ``outputs`` (the first score that a tree adds to); of each node ``feature`` (a slot; a code
      after all slots; -1 a leaf), ``left`` (the right child follows it), ``threshold`` (left when at most that; none
      for a code), ``missing`` (1: NaN goes right), ``payload`` (where the ``bits`` of a code begin, of which a set one
      goes right; the row of a leaf's ``values``).

    ``exact``: every score is the estimator's own, bit for bit. ``width``: how many scores a leaf adds to. ``divisor``
    divides the scores (0: none), ``scale`` multiplies within EXPIT.
    """

    kind: Literal["linear", "trees"]
    columns: tuple[tuple[str, tuple[str, ...] | None], ...]
    arrays: Mapping[str, Array]
    link: int = IDENTITY
    width: int = 1
    single: bool = False
    divisor: float = 0.0
    scale: float = 1.0
    exact: bool = True

    def __post_init__(self) -> None:
        _check(self)

    @property
    def outputs(self) -> int:
        """Scores a row."""
        return len(self.arrays["base"])

    @property
    def sizes(self) -> list[int]:
        """How many values each code takes."""
        made = [len(values) + 1 for _, values in self.columns if values is not None]
        return made + [int(op[3]) + 2 for op in self.arrays["ops"] if op[0] in (MATCH, BINS)]

    @property
    def slots(self) -> int:
        """Numbers read or computed."""
        return sum(values is None for _, values in self.columns) + sum(op[0] in _SLOT_OPS for op in self.arrays["ops"])

    def encode(self) -> bytes:
        """Return the program as bytes, always the same for the same program."""
        names = _TREES if self.kind == "trees" else _LINEAR
        header: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "arrays"
        }
        header["arrays"] = [[name, len(self.arrays[name].reshape(-1))] for name in names]
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 8)
        parts = [struct.pack("<Q", len(text)), text]
        for name in names:
            content = np.ascontiguousarray(self.arrays[name], dtype=_DTYPES[name]).tobytes()
            parts.append(content + b"\0" * (-len(content) % 8))
        body = b"".join(parts)
        return MAGIC + hashlib.sha256(body).digest() + body

    @staticmethod
    def decode(content: bytes) -> Program:
        """Return the program in bytes that ``encode`` made. Raises MalformedError."""
        start = len(MAGIC) + 32
        body = memoryview(content)[start:]
        if content[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != content[len(MAGIC) : start]:
            raise MalformedError("it is not a compiled predictor, of another version, or damaged")
        try:
            (length,) = struct.unpack_from("<Q", body)
            header = json.loads(bytes(body[8 : 8 + length]))
            at, arrays = 8 + length, {}
            for name, count in header.pop("arrays"):
                dtype = np.dtype(_DTYPES[name])
                arrays[name] = np.frombuffer(body, dtype, count, at).astype(dtype.newbyteorder("="))
                at += -(-count * dtype.itemsize // 8) * 8
            arrays["ops"], arrays["args"] = arrays["ops"].reshape(-1, 4), arrays["args"].reshape(-1, 2)
            columns = tuple((name, None if given is None else tuple(given)) for name, given in header.pop("columns"))
            return Program(columns=columns, arrays=arrays, **header)
        except MalformedError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error, RecursionError) as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from error


def _need(held: Any, what: str) -> None:
    if not held:
        raise MalformedError(f"a compiled predictor is malformed: {what}")


def _check(program: Program) -> None:
    """Raise MalformedError unless no row can lead outside the arrays or round in circles."""
    arrays = program.arrays
    names = {"linear": _LINEAR, "trees": _TREES}.get(program.kind, ())
    _need(names and set(arrays) == set(names), "its kind and its arrays")
    _need(all(arrays[name].dtype == np.dtype(_DTYPES[name]) for name in names), "the type of an array")
    for name, values in program.columns:
        _need(isinstance(name, str), "a column's name")
        _need(values is None or all(isinstance(each, str) for each in values), "a category that is not text")
        _need(values is None or len(set(values)) == len(values), "a category that is there twice")
    known = range(IDENTITY, OVR + 1), range(NUMPY, NUMPY_SOFTMAX_COLUMNS + 1)
    _need(type(program.link) is int and any(program.link in each for each in known), "its link")
    for number in (program.divisor, program.scale):
        _need(isinstance(number, float) and np.isfinite(number), "a factor")
    _need(type(program.width) is int and isinstance(program.single, bool), "its outputs")
    _need(program.outputs > 0 and 0 < program.width <= program.outputs, "its outputs")
    slots, sizes = _check_ops(program)
    (_check_trees if program.kind == "trees" else _check_linear)(program, slots, sizes)


def _check_ops(program: Program) -> tuple[int, list[int]]:
    ops, tables = program.arrays["ops"], len(program.arrays["tables"])
    _need(ops.ndim == 2 and ops.shape[1:] == (4,) and program.arrays["args"].shape == (len(ops), 2), "operations")
    sizes = [len(values) + 1 for _, values in program.columns if values is not None]
    slots = len(program.columns) - len(sizes)
    for code, source, offset, length in ops.tolist():
        _need(0 <= source < (len(sizes) if code == CHECK_CODE else slots), "an operation reads what is not there")
        if code in (MATCH, BINS):
            _need(offset >= 0 and length >= 0 and offset + length <= tables, "an operation's table")
            sizes.append(length + 2)
        elif code in (CHECK, CHECK_CODE):
            _need(0 <= offset < len(program.columns), "a check's column")
            _need(code == CHECK or 0 <= length <= tables - sizes[source], "a check's table")
        else:
            _need(code in _SLOT_OPS, "an unknown operation")
            slots += 1
    return slots, sizes


def _check_linear(program: Program, slots: int, sizes: list[int]) -> None:
    terms, groups = program.arrays["terms"], program.arrays["groups"].reshape(-1)
    _need(program.arrays["weights"].size == len(terms) * program.outputs and len(groups) % 2 == 0, "linear terms")
    _need(((terms >= 0) & (terms < slots)).all(), "a linear term")
    for code, offset in groups.reshape(-1, 2).tolist():
        _need(0 <= code < len(sizes) and offset >= 0, "a linear table")
        _need(offset + sizes[code] * program.outputs <= len(program.arrays["tables"]), "a linear table")


def _check_trees(program: Program, slots: int, sizes: list[int]) -> None:
    get: Callable[[str], Array] = program.arrays.__getitem__
    feature, left, payload = get("feature"), get("left").astype(np.int64), get("payload").astype(np.int64)
    nodes, values = len(feature), get("values").reshape(-1)
    _need(nodes > 0 and all(len(get(name)) == nodes for name in ("left", "threshold", "missing", "payload")), "nodes")
    _need(len(values) % program.width == 0, "values")
    leaf = feature < 0
    _need((payload[leaf] < len(values) // program.width).all(), "a leaf's value")
    split = np.flatnonzero(~leaf)
    _need((feature[split] < slots + len(sizes)).all(), "a split's feature")
    # Children lie behind their parent, so a walk ends.
    _need(((left[split] > split) & (left[split] < nodes - 1)).all() and (get("missing") <= 1).all(), "a split")
    _need(not np.isnan(get("threshold")).any(), "a split at NaN")
    coded = split[feature[split] >= slots]
    words = np.array([*(-(-size // 32) for size in sizes), 0], dtype=np.int64)[feature[coded] - slots]
    _need((payload[coded] <= len(get("bits")) - words).all(), "a split's categories")
    roots, outputs = get("roots"), get("outputs")
    _need(len(roots) == len(outputs) and ((roots >= 0) & (roots < nodes)).all(), "trees")
    _need(((outputs >= 0) & (outputs <= program.outputs - program.width)).all(), "a tree's output")
