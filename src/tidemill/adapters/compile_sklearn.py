"""Compiles scikit-learn's linear models, trees, forests and boosted trees.

Each is summed, compared and rounded as the library does it: trees of ``sklearn.tree`` look at float32, those of
``HistGradientBoosting*`` at float64; a forest adds its trees' shares in order and divides once; boosting adds to its
first guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tidemill.adapters.compile_steps import encode
from tidemill.adapters.compiling import REFUSE_INF, REFUSE_NAN, Builder, Frame, Tree, apply
from tidemill.base.errors import NotCompiledError
from tidemill.kernels import program as p
from tidemill.kernels.program import Array, Program


def compile_model(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    """Return the program of a fitted model over ``frame``; ``classes`` of a classification, 0 for a regression."""
    name = type(estimator).__name__
    if name not in _MODELS:
        raise NotCompiledError(f"{name} is not a model that compiles")
    if classes and list(getattr(estimator, "classes_", ())) != list(range(classes)):
        raise NotCompiledError(f"{name} does not tell the {classes} classes apart that it should")
    return _MODELS[name](estimator, frame, builder, classes)


# Linear models ----------------------------------------------------------------------------------------------------


def _linear(link: int) -> Callable[[Any, Frame, Builder, int], Program]:
    def compile(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
        if classes and link == p.IDENTITY:
            raise NotCompiledError(f"{type(estimator).__name__} gives no probabilities")
        for column in frame.columns:
            builder.check(column, REFUSE_NAN | REFUSE_INF)
        weights = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
        base = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), (len(weights),)).ravel()
        if classes > 2 and len(weights) != classes:
            raise NotCompiledError(f"{type(estimator).__name__} has {len(weights)} scores for {classes} classes")
        if not classes and len(weights) != 1:
            raise NotCompiledError(f"{type(estimator).__name__} predicts {len(weights)} values at once")
        return builder.linear(frame, weights.T, base, link=p.EXPIT if classes == 2 else link)

    return compile


def _stochastic(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    if estimator.loss != "log_loss":
        raise NotCompiledError(f"SGDClassifier with loss={estimator.loss!r} is not one that compiles")
    return _linear(p.OVR)(estimator, frame, builder, classes)


def _tweedie(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    link = {"IdentityLink": p.IDENTITY, "LogLink": p.NUMPY_EXP}[type(estimator._base_loss.link).__name__]
    return _linear(link)(estimator, frame, builder, classes)


# Trees of sklearn.tree --------------------------------------------------------------------------------------------


def _tree(fitted: Any, values: Array, output: int = 0) -> Tree:
    inner = fitted.tree_
    return Tree(
        column=np.where(inner.children_left == -1, -1, inner.feature),
        threshold=inner.threshold,
        nan_right=inner.missing_go_to_left == 0,
        left=inner.children_left,
        right=inner.children_right,
        values=values,
        output=output,
    )


def _single_precision(estimator: Any, frame: Frame, builder: Builder, *, nan: bool) -> Frame:
    """Return ``frame`` as trees see it: float32, in which what is too large is infinite, and refused."""
    made = frame.map(lambda column, _: apply(column, p.FLOAT32))
    for column in made.columns:
        builder.check(column, REFUSE_INF if nan else REFUSE_NAN | REFUSE_INF)
    return made


def _forest(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    trees = getattr(estimator, "estimators_", [estimator])
    if any(tree.n_outputs_ != 1 for tree in trees):
        raise NotCompiledError(f"{type(estimator).__name__} predicts several values at once")
    frame = _single_precision(
        estimator, frame, builder, nan=not frame.sparse and trees[0]._support_missing_values(np.zeros((1, 1)))
    )
    width = classes if classes > 2 else 1
    made = []
    for tree in trees:
        values = tree.tree_.value[:, 0, :]
        made.append(_tree(tree, values[:, 1:2] if classes == 2 else values))
    many = len(trees) if trees[0] is not estimator else 0
    return builder.trees(frame, made, np.zeros(width), link=p.IDENTITY, width=width, divisor=float(many))


def _boosted(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    if estimator.init_ != "zero" and type(estimator.init_).__name__ not in ("DummyClassifier", "DummyRegressor"):
        raise NotCompiledError(f"it starts from a {type(estimator.init_).__name__}")
    base = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), np.float32))[0]
    frame = _single_precision(estimator, frame, builder, nan=False)
    trees = [
        _tree(tree, estimator.learning_rate * tree.tree_.value[:, 0, :1], k)
        for stage in estimator.estimators_
        for k, tree in enumerate(stage)
    ]
    link = (p.NUMPY_SOFTMAX if classes > 2 else p.EXPIT) if classes else p.IDENTITY
    scale = 2.0 if classes and estimator.loss == "exponential" else 1.0
    return builder.trees(frame, trees, base, link=link, scale=scale)


# Histogram boosting -----------------------------------------------------------------------------------------------


def _histogram(estimator: Any, frame: Frame, builder: Builder, classes: int) -> Program:
    if estimator._preprocessor is not None:
        # It puts the categorical columns first, as ordinals.
        categorical = np.asarray(estimator.is_categorical_, dtype=bool)
        encoder = estimator._preprocessor.named_transformers_["encoder"]
        coded = encode(encoder, frame.take(np.flatnonzero(categorical).tolist()), builder)
        frame = Frame((*coded.columns, *frame.take(np.flatnonzero(~categorical).tolist()).columns))
    known, places = estimator._bin_mapper.make_known_categories_bitsets()
    trees = [_histogram_tree(tree, k, known, places) for stage in estimator._predictors for k, tree in enumerate(stage)]
    if classes:
        link = p.NUMPY_SOFTMAX_COLUMNS if classes > 2 else p.EXPIT
    else:
        link = {"IdentityLink": p.IDENTITY, "LogLink": p.NUMPY_EXP}[type(estimator._loss.link).__name__]
    return builder.trees(frame, trees, np.ravel(estimator._baseline_prediction).astype(np.float64), link=link)


def _histogram_tree(tree: Any, output: int, known: Array, places: Array) -> Tree:
    nodes = tree.nodes
    leaf = nodes["is_leaf"].astype(bool)
    return Tree(
        column=np.where(leaf, -1, nodes["feature_idx"]),
        threshold=np.where(leaf, 0.0, nodes["num_threshold"]),
        nan_right=nodes["missing_go_to_left"] == 0,
        left=nodes["left"].astype(np.int64),
        right=nodes["right"].astype(np.int64),
        values=nodes["value"][:, None],
        output=output,
        sets={
            int(i): _right_of(
                tree.raw_left_cat_bitsets[nodes["bitset_idx"][i]],
                known[places[nodes["feature_idx"][i]]],
                nan_right=not nodes["missing_go_to_left"][i],
            )
            for i in np.flatnonzero(~leaf & nodes["is_categorical"].astype(bool))
        },
    )


def _right_of(left: Array, known: Array, *, nan_right: bool) -> Callable[[Array], Array]:
    def goes_right(values: Array) -> Array:
        missing = np.isnan(values) | (values < 0)
        place = np.where(missing, 0, values).astype(np.uint8)
        inside = (left[place >> 5] >> (place & 31)) & 1 == 1
        learned = (known[place >> 5] >> (place & 31)) & 1 == 1
        return np.where(missing | ~(inside | learned), nan_right, ~inside)

    return goes_right


_REGRESSIONS = (
    "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "LassoLars", "LassoLarsCV", "LassoLarsIC", "ElasticNet",
    "ElasticNetCV", "Lars", "LarsCV", "OrthogonalMatchingPursuit", "OrthogonalMatchingPursuitCV", "BayesianRidge",
    "ARDRegression", "HuberRegressor", "TheilSenRegressor", "QuantileRegressor", "SGDRegressor", "LinearSVR",
)  # fmt: skip

_MODELS: Mapping[str, Callable[[Any, Frame, Builder, int], Program]] = {
    **dict.fromkeys(_REGRESSIONS, _linear(p.IDENTITY)),
    "PoissonRegressor": _linear(p.NUMPY_EXP),
    "GammaRegressor": _linear(p.NUMPY_EXP),
    "TweedieRegressor": _tweedie,
    "LogisticRegression": _linear(p.SOFTMAX),
    "LogisticRegressionCV": _linear(p.SOFTMAX),
    "LinearDiscriminantAnalysis": _linear(p.SOFTMAX),
    "SGDClassifier": _stochastic,
    "DecisionTreeClassifier": _forest,
    "DecisionTreeRegressor": _forest,
    "ExtraTreeClassifier": _forest,
    "ExtraTreeRegressor": _forest,
    "RandomForestClassifier": _forest,
    "RandomForestRegressor": _forest,
    "ExtraTreesClassifier": _forest,
    "ExtraTreesRegressor": _forest,
    "GradientBoostingClassifier": _boosted,
    "GradientBoostingRegressor": _boosted,
    "HistGradientBoostingClassifier": _histogram,
    "HistGradientBoostingRegressor": _histogram,
}
