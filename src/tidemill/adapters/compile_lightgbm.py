"""Compiles LightGBM's boosted trees: float64 throughout, with its own rules for what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidemill.adapters.compiling import Builder, Frame, GoesRight, Lookup, Number, Tree, apply, match, numbers
from tidemill.base.errors import NotCompiledError
from tidemill.kernels import program as p
from tidemill.kernels.program import Array, Program

_LINKS: Mapping[str, int] = {
    "binary": p.EXPIT,
    "cross_entropy": p.EXPIT,
    "multiclass": p.SOFTMAX,
    "regression": p.IDENTITY,
    "regression_l1": p.IDENTITY,
    "huber": p.IDENTITY,
    "fair": p.IDENTITY,
    "quantile": p.IDENTITY,
    "mape": p.IDENTITY,
    "poisson": p.EXP,
    "gamma": p.EXP,
    "tweedie": p.EXP,
}

_TINY = float(np.float32(1e-35))

# decision_type, bit by bit: 1 a split on categories; 2 missing goes left; 4 and 8: zero or NaN is what is missing.
_CATEGORICAL, _LEFT, _ZERO, _NAN = 1, 2, 4, 8


def compile_model(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    """Return the program of a fitted LGBMClassifier or LGBMRegressor over ``frame``."""
    head, *trees = _parts(estimator.booster_.model_to_string())
    name, *settings = head["objective"].split()
    if name not in _LINKS or "sqrt" in settings:
        raise NotCompiledError(f"LightGBM's objective {head['objective']} is not one that compiles")
    outputs = int(head["num_tree_per_iteration"])
    if outputs != (classes if classes > 2 else 1):
        raise NotCompiledError(f"LightGBM has {outputs} scores a row for {classes} classes")
    scale = next((float(each.partition(":")[2]) for each in settings if each.startswith("sigmoid:")), 1.0)
    columns = _Columns(frame, [_read(tree) for tree in trees])
    made = [columns.tree(tree, i % outputs) for i, tree in enumerate(columns.trees)]
    return builder.trees(
        Frame(tuple(columns.columns)),
        made,
        np.zeros(outputs),
        link=_LINKS[name],
        scale=scale,
        divisor=float(len(made) // outputs) if "average_output" in head else 0.0,
    )


def _parts(text: str) -> list[dict[str, str]]:
    """Return the model's head and its trees, each as its lines ``name=value``."""
    body, end, _ = text.partition("end of trees")
    if not end:
        raise NotCompiledError("LightGBM writes its model in another form than is known")
    return [
        {name: value for name, _, value in (line.partition("=") for line in part.splitlines() if line)}
        for part in body.split("Tree=")
    ]


def _read(tree: Mapping[str, str]) -> dict[str, Array]:
    if int(tree.get("is_linear", "0")):
        raise NotCompiledError("LightGBM's trees have linear models in their leaves")
    made = {
        name: np.array(tree.get(name, "").split(), dtype=dtype)
        for name, dtype in {
            "split_feature": np.int64, "threshold": np.float64, "decision_type": np.int64, "left_child": np.int64,
            "right_child": np.int64, "leaf_value": np.float64, "cat_boundaries": np.int64, "cat_threshold": np.uint32,
        }.items()
    }  # fmt: skip
    if len(made["leaf_value"]) == 1:  # a single leaf has no splits, whatever the lists say
        made = {name: made[name] if name == "leaf_value" else made[name][:0] for name in made}
    return made


class _Columns:
    """The columns that the trees split on: a number as it is, with zeros missing, or as one of some categories."""

    def __init__(self, frame: Frame, trees: list[dict[str, Array]]) -> None:
        self.trees = trees
        self.columns: list[Any] = []
        self._frame = frame
        self._known: dict[tuple[int, str], int] = {}
        self._categories: dict[int, set[int]] = {}
        for tree in trees:
            for node in np.flatnonzero(tree["decision_type"] & _CATEGORICAL).tolist():
                self._categories.setdefault(int(tree["split_feature"][node]), set()).update(_chosen(tree, node))

    def place(self, feature: int, kind: str) -> int:
        """Return where the column of ``feature`` stands as a ``kind``: "number", "zero missing" or "category"."""
        if (feature, kind) not in self._known:
            column = self._frame.columns[feature]
            if isinstance(column, Lookup):
                column = Lookup(column.code, numbers(column))
            if kind == "zero missing":
                column = apply(column, p.ZERO_NAN, _TINY)
            elif kind == "category" and isinstance(column, Number):
                whole = apply(column, p.TRUNC)
                assert isinstance(whole, Number)
                code = match(whole, sorted(self._categories[feature]))
                column = Lookup(code, np.array([*code.table, math.nan, -1.0]))
            self._known[feature, kind] = len(self.columns)
            self.columns.append(column)
        return self._known[feature, kind]

    def tree(self, tree: Mapping[str, Array], output: int) -> Tree:
        """Return a tree with its leaves after its splits."""
        splits, leaves = len(tree["split_feature"]), len(tree["leaf_value"])
        column, threshold = np.full(splits + leaves, -1, np.int64), np.zeros(splits + leaves)
        nan_right = np.zeros(splits + leaves, bool)
        sets: dict[int, GoesRight] = {}
        for i in range(splits):
            kind, feature = int(tree["decision_type"][i]), int(tree["split_feature"][i])
            threshold[i] = tree["threshold"][i]
            if kind & _CATEGORICAL:
                column[i], threshold[i] = self.place(feature, "category"), 0.0
                sets[i] = _right_unless(_chosen(tree, i))
            elif kind & _ZERO:
                column[i], nan_right[i] = self.place(feature, "zero missing"), not kind & _LEFT
            else:
                column[i] = self.place(feature, "number")
                # Where no NaN was seen in training it counts as zero.
                nan_right[i] = not kind & _LEFT if kind & _NAN else threshold[i] < 0.0
                # Of an array, not of a table, it takes what is this near to zero for zero.
                if abs(threshold[i]) <= _TINY and not self._frame.table:
                    threshold[i] = math.nextafter(-_TINY, -math.inf) if threshold[i] < 0.0 else _TINY
        children = [
            np.concatenate([np.where(tree[side] < 0, splits - 1 - tree[side], tree[side]), np.zeros(leaves, np.int64)])
            for side in ("left_child", "right_child")
        ]
        values = np.concatenate([np.zeros(splits), tree["leaf_value"]])[:, None]
        if not splits:
            return Tree(column, threshold, nan_right, column, column, values, output)
        return Tree(column, threshold, nan_right, children[0], children[1], values, output, sets)


def _chosen(tree: Mapping[str, Array], node: int) -> set[int]:
    """Return the categories that a split sends left."""
    which = int(tree["threshold"][node])
    words = tree["cat_threshold"][tree["cat_boundaries"][which] : tree["cat_boundaries"][which + 1]]
    return set(np.flatnonzero(np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")).tolist())


def _right_unless(chosen: set[int]) -> GoesRight:
    def goes_right(values: Array) -> Array:
        return np.array([math.isnan(v) or v <= -1 or int(v) not in chosen for v in values.tolist()])

    return goes_right
