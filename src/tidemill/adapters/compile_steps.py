"""Follows scikit-learn's pipelines and transformers symbolically, with its own arithmetic in its own order.

A transformer of numbers is the operations that it does to each. One that encodes categories column by column is not
rewritten but asked: it transforms every category once, now, and what it says becomes the lookup.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import SelectorMixin
from sklearn.pipeline import FeatureUnion, Pipeline

from tidemill.adapters.compiling import (
    REFUSE_INF,
    REFUSE_NAN,
    Builder,
    Code,
    Column,
    Frame,
    Lookup,
    Number,
    apply,
    match,
    numbers,
)
from tidemill.base.errors import NotCompiledError
from tidemill.kernels import program as p
from tidemill.kernels.program import Array

Step = Callable[[Any, Frame, Builder], Frame]


def follow(estimator: Any, frame: Frame, builder: Builder) -> tuple[Any, Frame]:
    """Return the last step of ``estimator`` (itself, unless it is a pipeline) and the frame it is given."""
    while isinstance(estimator, Pipeline):
        for _, step in estimator.steps[:-1]:
            frame = transform(step, frame, builder)
        estimator = estimator.steps[-1][1]
    return estimator, frame


def transform(step: Any, frame: Frame, builder: Builder) -> Frame:
    """Return the frame that a fitted transformer makes of ``frame``. Raises NotCompiledError for one not known."""
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return frame
    if isinstance(step, Pipeline):
        for _, each in step.steps:
            frame = transform(each, frame, builder)
        return frame
    if isinstance(step, ColumnTransformer):
        return _columns(step, frame, builder)
    if isinstance(step, FeatureUnion):
        return _beside([transform(each, frame, builder) for _, each in step.transformer_list if each != "drop"])
    if type(step).__module__.startswith("sklearn."):
        if type(step).__name__ in _STEPS:
            return _STEPS[type(step).__name__](step, frame, builder)
        if isinstance(step, SelectorMixin):
            return frame.take(np.flatnonzero(step.get_support()).tolist())
    raise NotCompiledError(f"the step {type(step).__name__} is not one that compiles")


def _columns(step: ColumnTransformer, frame: Frame, builder: Builder) -> Frame:
    made = []
    for _, each, chosen in step.transformers_:
        if isinstance(each, str) and each == "drop":
            continue
        places = _places(chosen, frame)
        if places:
            made.append(transform(each, frame.take(places), builder))
    joined = _beside(made)
    return Frame(joined.columns, None, bool(step.sparse_output_))


def _beside(frames: Iterable[Frame]) -> Frame:
    frames = list(frames)
    return Frame(tuple(column for frame in frames for column in frame.columns), None, any(f.sparse for f in frames))


def _places(chosen: Any, frame: Frame) -> list[int]:
    if isinstance(chosen, str) or np.isscalar(chosen):
        raise NotCompiledError(f"the column {chosen!r} is handed to a step as one series")
    if isinstance(chosen, slice):
        if isinstance(chosen.start, str) or isinstance(chosen.stop, str):
            raise NotCompiledError("columns are chosen by a range of names")
        return list(range(len(frame.columns)))[chosen]
    listed = list(chosen)
    if listed and all(isinstance(each, bool | np.bool_) for each in listed):
        return np.flatnonzero(listed).tolist()
    if any(isinstance(each, str) for each in listed):
        if frame.names is None:
            raise NotCompiledError("columns are chosen by name after a step that renames them")
        return [frame.names.index(each) for each in listed]
    return [int(each) % len(frame.columns) for each in listed]


def _checked(frame: Frame, builder: Builder, flags: int = REFUSE_INF) -> None:
    for column in frame.columns:
        builder.check(column, flags)


# Numbers ----------------------------------------------------------------------------------------------------------


def _standard(step: Any, frame: Frame, builder: Builder) -> Frame:
    _checked(frame, builder)
    mean = step.mean_ if step.with_mean and not frame.sparse else None
    return _shift_and_scale(frame, mean, step.scale_ if step.with_std else None)


def _robust(step: Any, frame: Frame, builder: Builder) -> Frame:
    _checked(frame, builder)
    return _shift_and_scale(
        frame, step.center_ if step.with_centering else None, step.scale_ if step.with_scaling else None
    )


def _max_abs(step: Any, frame: Frame, builder: Builder) -> Frame:
    _checked(frame, builder)
    made = _shift_and_scale(frame, None, step.scale_)
    return made.map(lambda column, _: apply(column, p.CLIP, -1.0, 1.0)) if getattr(step, "clip", False) else made


def _shift_and_scale(frame: Frame, shift: Array | None, scale: Array | None) -> Frame:
    def each(column: Column, i: int) -> Column:
        if shift is not None:
            column = apply(column, p.SUB, shift[i])
        if scale is not None:  # scikit-learn scales a sparse matrix by the reciprocal
            column = apply(column, p.MUL, 1.0 / scale[i]) if frame.sparse else apply(column, p.DIV, scale[i])
        return column

    return frame.map(each)


def _min_max(step: Any, frame: Frame, builder: Builder) -> Frame:
    _checked(frame, builder)

    def each(column: Column, i: int) -> Column:
        column = apply(apply(column, p.MUL, step.scale_[i]), p.ADD, step.min_[i])
        return apply(column, p.CLIP, *step.feature_range) if step.clip else column

    return frame.map(each)


def _identity(step: Any, frame: Frame, _: Builder) -> Frame:
    if step.func is not None or step.validate:
        raise NotCompiledError("a FunctionTransformer runs a function of its own")
    return frame


def _impute(step: Any, frame: Frame, builder: Builder) -> Frame:
    if any(isinstance(column, Lookup) and column.values.dtype == object for column in frame.columns):
        if step.add_indicator:
            raise NotCompiledError("a SimpleImputer marks what was missing among texts")
        return encode(step, frame, builder)
    if not (isinstance(step.missing_values, float) and math.isnan(step.missing_values)):
        raise NotCompiledError(f"a SimpleImputer takes {step.missing_values!r} for missing")
    _checked(frame, builder)
    filled: list[Column] = []
    for column, fill in zip(frame.columns, step.statistics_, strict=True):
        if isinstance(fill, float) and math.isnan(fill) and not step.keep_empty_features:
            continue  # empty in training: scikit-learn leaves the column out
        filled.append(apply(column, p.IMPUTE, float(fill)))
    if step.add_indicator:
        filled += _indicate(step.indicator_, frame, builder).columns
    return Frame(tuple(filled))


def _indicate(step: Any, frame: Frame, builder: Builder) -> Frame:
    if not (isinstance(step.missing_values, float) and math.isnan(step.missing_values)):
        raise NotCompiledError(f"a MissingIndicator takes {step.missing_values!r} for missing")
    _checked(frame, builder)
    if step.features == "missing-only" and step.error_on_new:
        for i in sorted(set(range(len(frame.columns))) - set(np.asarray(step.features_).tolist())):
            builder.check(frame.columns[i], REFUSE_NAN)
    return Frame(tuple(apply(frame.columns[i], p.ISNAN) for i in np.asarray(step.features_).tolist()))


def _bins(step: Any, frame: Frame, builder: Builder) -> Frame:
    _checked(frame, builder, REFUSE_NAN | REFUSE_INF)
    coded: list[Column] = []
    for column, edges in zip(frame.columns, step.bin_edges_, strict=True):
        inner = tuple(float(edge) for edge in edges[1:-1])
        if isinstance(column, Number):
            code = Code(column, len(inner) + 2, p.BINS, inner)
            values = np.arange(len(inner) + 2, dtype=np.float64)
            values[-1] = 0.0  # of NaN, which is refused
            coded.append(Lookup(code, values))
        else:
            coded.append(Lookup(column.code, np.searchsorted(inner, numbers(column), side="right").astype(np.float64)))
    made = Frame(tuple(coded))
    if step.encode == "ordinal":
        return made
    hot = [
        Lookup(column.code, (column.values == k).astype(np.float64))
        for column, count in zip(coded, step.n_bins_, strict=True)
        for k in range(int(count))
        if isinstance(column, Lookup)
    ]
    return Frame(tuple(hot), None, step.encode == "onehot")


# Categories -------------------------------------------------------------------------------------------------------


def _one_hot(step: Any, frame: Frame, builder: Builder) -> Frame:
    made = encode(step, frame, builder)
    return Frame(made.columns, None, bool(step.sparse_output))


def encode(step: Any, frame: Frame, builder: Builder) -> Frame:
    """Return what an encoder that treats each column by itself makes of every value that a column can have."""
    lookups = [_finite(column, step, i) for i, column in enumerate(frame.columns)]
    texts = any(lookup.values.dtype == object for lookup in lookups)
    usual = [_learned(step, lookup, i) for i, lookup in enumerate(lookups)]
    made: list[Column] = []
    for i, lookup in enumerate(lookups):
        if isinstance(frame.columns[i], Number):
            infinite = np.array([usual], dtype=object if texts else np.float64)
            infinite[0, i] = math.inf
            if _ask(step, infinite)[1].any():
                builder.check(frame.columns[i], REFUSE_INF)
        rows = np.empty((len(lookup.values), len(lookups)), dtype=object if texts else np.float64)
        rows[:] = usual
        rows[:, i] = lookup.values
        said, wrong = _ask(step, rows)
        builder.refuse(lookup.code, wrong)
        width = _widths(step, said.shape[1], len(lookups))
        made += [Lookup(lookup.code, said[:, k]) for k in range(sum(width[:i]), sum(width[: i + 1]))]
    return Frame(tuple(made), frame.names if len(made) == len(frame.columns) else None)


def _finite(column: Column, step: Any, i: int) -> Lookup:
    """Return ``column`` as a lookup: a number by the categories that the encoder knows, NaN, and any other."""
    if isinstance(column, Lookup):
        return column
    known = getattr(step, "categories_", None)
    if known is None:
        raise NotCompiledError(f"{type(step).__name__} takes numbers and texts together")
    code = match(column, [float(value) for value in known[i] if isinstance(value, float | int | np.number)])
    other = (max(code.table) + 1.0) if code.table else 0.0
    return Lookup(code, np.array([*code.table, math.nan, other]))


def _learned(step: Any, lookup: Lookup, i: int) -> Any:
    categories = getattr(step, "categories_", None)
    return lookup.values[0] if categories is None else categories[i][0]


def _widths(step: Any, made: int, columns: int) -> list[int]:
    if hasattr(step, "_n_features_outs"):
        return [int(width) for width in step._n_features_outs]
    if made % columns:
        raise NotCompiledError(f"{type(step).__name__} does not treat each column by itself")
    return [made // columns] * columns


def _ask(step: Any, rows: Array) -> tuple[Array, Array]:
    """Return ``step.transform(rows)`` as an array, and which rows it refused (NaN there)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names it misses, of categories it does not know
        try:
            return _dense(step.transform(rows)), np.zeros(len(rows), bool)
        except ValueError:
            if len(rows) == 1:
                return np.full((1, 0), math.nan), np.ones(1, bool)
        half = len(rows) // 2
        parts = [_ask(step, rows[:half]), _ask(step, rows[half:])]
    width = max(said.shape[1] for said, _ in parts)
    filled = [said if said.shape[1] else np.full((len(said), width), math.nan) for said, _ in parts]
    return np.concatenate(filled), np.concatenate([wrong for _, wrong in parts])


def _dense(made: Any) -> Array:
    if hasattr(made, "toarray"):
        made = made.toarray()
    array = np.asarray(made)
    return array if array.dtype == object else array.astype(np.float64)


_STEPS: Mapping[str, Step] = {
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MaxAbsScaler": _max_abs,
    "MinMaxScaler": _min_max,
    "FunctionTransformer": _identity,
    "SimpleImputer": _impute,
    "MissingIndicator": _indicate,
    "KBinsDiscretizer": _bins,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": encode,
    "TargetEncoder": encode,
}
