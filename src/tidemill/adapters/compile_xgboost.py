"""Compiles XGBoost's boosted trees: float32 comparisons (below goes left), float32 sums, float32 links."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidemill.adapters.compiling import Builder, Frame, GoesRight, Lookup, Tree, apply
from tidemill.base.errors import NotCompiledError
from tidemill.kernels import program as p
from tidemill.kernels.program import Array, Program

#: By objective: the link, and whether the first guess is stated as a probability, as a mean of which the log counts,
#: or as a score.
_OBJECTIVES: Mapping[str, tuple[int, str]] = {
    "binary:logistic": (p.SIGMOID32, "probability"),
    "reg:logistic": (p.SIGMOID32, "probability"),
    "multi:softprob": (p.SOFTMAX32, "score"),
    "reg:squarederror": (p.IDENTITY, "score"),
    "reg:squaredlogerror": (p.IDENTITY, "score"),
    "reg:absoluteerror": (p.IDENTITY, "score"),
    "reg:pseudohubererror": (p.IDENTITY, "score"),
    "reg:quantileerror": (p.IDENTITY, "score"),
    "count:poisson": (p.EXP32, "mean"),
    "reg:gamma": (p.EXP32, "mean"),
    "reg:tweedie": (p.EXP32, "mean"),
}


def compile_model(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    """Return the program of a fitted XGBClassifier, XGBRegressor or random forest of XGBoost over ``frame``."""
    booster = estimator.get_booster()
    model = json.loads(booster.save_raw(raw_format="json"))["learner"]
    objective = model["objective"]["name"]
    boosted = model["gradient_booster"]
    if objective not in _OBJECTIVES:
        raise NotCompiledError(f"XGBoost's objective {objective} is not one that compiles")
    if boosted["name"] != "gbtree":
        raise NotCompiledError(f"XGBoost's booster {boosted['name']} is not one that compiles")
    if not (isinstance(estimator.missing, float) and math.isnan(estimator.missing)):
        raise NotCompiledError(f"XGBoost takes {estimator.missing} for missing")
    link, stated = _OBJECTIVES[objective]
    outputs = max(1, int(model["learner_model_param"]["num_class"]))
    if outputs != (classes if classes > 2 else 1):
        raise NotCompiledError(f"XGBoost has {outputs} scores a row for {classes} classes")
    # In a sparse matrix a zero that is not stored is missing.
    frame = frame.map(lambda column, _: apply(column, p.ZERO_NAN) if frame.sparse else column)
    frame = frame.map(lambda column, _: _as_single(column))
    first, last = estimator._get_iteration_range(None)
    parts = boosted["model"]["iteration_indptr"]
    chosen = slice(parts[first], parts[last] if last else None)
    trees = [
        _tree(tree, output)
        for tree, output in zip(boosted["model"]["trees"][chosen], boosted["model"]["tree_info"][chosen], strict=True)
    ]
    base = np.array([_score(each, stated) for each in _numbers(model["learner_model_param"]["base_score"])])
    return builder.trees(frame, trees, np.broadcast_to(base, outputs), link=link, single=True)


def _as_single(column: Any) -> Any:
    if isinstance(column, Lookup) and column.values.dtype == object:
        # XGBoost numbers an Enum's categories itself, in the order that they are declared in.
        codes = np.arange(len(column.values), dtype=np.float64)
        codes[-1] = math.nan
        return Lookup(column.code, codes)
    return apply(column, p.FLOAT32)


def _tree(tree: Mapping[str, Any], output: int) -> Tree:
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        raise NotCompiledError("XGBoost's trees have a vector in each leaf")
    left = np.array(tree["left_children"], np.int64)
    leaf = left == -1
    condition = np.array(tree["split_conditions"], np.float32)
    # x < c is x <= the float32 below c, for x is a float32 too.
    threshold = np.nextafter(condition, np.float32(-math.inf)).astype(np.float64)
    nan_right = np.array(tree["default_left"]) == 0
    sets: dict[int, GoesRight] = {}
    for node, start, size in zip(
        tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
    ):
        sets[int(node)] = _right_of(set(tree["categories"][start : start + size]), nan_right=bool(nan_right[node]))
    return Tree(
        column=np.where(leaf, -1, np.array(tree["split_indices"], np.int64)),
        threshold=np.where(leaf, 0.0, threshold),
        nan_right=nan_right,
        left=left,
        right=np.array(tree["right_children"], np.int64),
        values=condition.astype(np.float64)[:, None],
        output=output,
        sets=sets,
    )


def _right_of(chosen: set[int], *, nan_right: bool) -> GoesRight:
    def goes_right(values: Array) -> Array:
        return np.array([nan_right if math.isnan(value) else int(value) in chosen for value in values.tolist()])

    return goes_right


def _numbers(text: str) -> list[float]:
    return [float(each) for each in text.strip("[]").split(",")]


def _score(stated: float, kind: str) -> float:
    """Return the first guess as a score, in float32 arithmetic and with the C library's own logarithm."""
    logf = ctypes.CDLL(None).logf
    logf.restype, logf.argtypes = ctypes.c_float, (ctypes.c_float,)
    value = np.float32(stated)
    if kind == "probability":
        return float(-np.float32(logf(float(np.float32(1) / value - np.float32(1)))))
    return float(logf(float(value))) if kind == "mean" else float(value)
