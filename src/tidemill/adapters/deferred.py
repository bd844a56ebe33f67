"""Imports of estimator libraries that wait until they are needed: so that a server reads a declared file without them.

A declaration only makes an estimator (``HistGradientBoostingClassifier(max_iter=200)``); a server that answers by
compiled predictors never uses it. While ``deferred`` holds, such libraries are stood in for by modules whose names are
notes of what was asked for. Meanwhile a note can be called, which makes another note. Whatever else is done to it,
subclassing included, and any call later on, imports the real library and goes on with the real thing.
"""

from __future__ import annotations

import copy
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

LIBRARIES = frozenset({"sklearn", "xgboost", "lightgbm"})

#: Estimators known to predict probabilities, or not to, without being made. Any other is asked itself.
_CLASSIFIERS = frozenset({
    "HistGradientBoostingClassifier", "GradientBoostingClassifier", "RandomForestClassifier", "ExtraTreesClassifier",
    "DecisionTreeClassifier", "LogisticRegression", "LogisticRegressionCV", "XGBClassifier", "LGBMClassifier",
})  # fmt: skip
_REGRESSORS = frozenset({
    "HistGradientBoostingRegressor", "GradientBoostingRegressor", "RandomForestRegressor", "ExtraTreesRegressor",
    "DecisionTreeRegressor", "LinearRegression", "Ridge", "Lasso", "ElasticNet", "PoissonRegressor", "XGBRegressor",
    "LGBMRegressor",
})  # fmt: skip


@contextmanager
def deferred() -> Iterator[None]:
    """Stand in for every library of ``LIBRARIES`` that is not loaded yet, for imports within."""
    finder = _Finder({name for name in LIBRARIES if name not in sys.modules})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.active = False
        sys.meta_path.remove(finder)
        _forget()


def _forget() -> None:
    for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
        del sys.modules[name]


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        loader = self.__loader__
        assert isinstance(loader, _Finder)
        note = Note(loader, self.__name__, name)
        # What is caught must be an exception, not a note of one.
        return real(note) if name.endswith(("Error", "Warning")) else note


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, libraries: set[str]) -> None:
        self._libraries = libraries
        self.active = True

    def forget(self, module: str) -> None:
        """Let the library of ``module`` be imported as it is."""
        self._libraries.discard(module.partition(".")[0])

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the stand-in's spec for a module of a library that is installed; None leaves it to others."""
        top = fullname.partition(".")[0]
        if top not in self._libraries or importlib.machinery.PathFinder.find_spec(top) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return an empty stand-in."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing: a stand-in makes its names when they are asked for."""


class Note:
    """What was asked for: ``name`` of ``module``, and where it was called, with what."""

    def __init__(
        self, finder: _Finder, module: str, name: str, call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    ) -> None:
        self.__dict__.update(_finder=finder, _module=module, _name=name, _call=call, _real=None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note the call while the declared file runs; carry it out later on."""
        held = self.__dict__
        if held["_call"] is not None or held["_real"] is not None or not held["_finder"].active:
            return real(self)(*args, **kwargs)
        return Note(held["_finder"], held["_module"], held["_name"], (args, kwargs))

    def __getattr__(self, name: str) -> Any:
        if name in ("predict_proba", "_estimator_type") and (known := _kind(self)) is not None:
            if name == "predict_proba" and known == "classifier":
                return None  # it has one, which is all that is asked here
            if name == "_estimator_type":
                return known
            raise AttributeError(name)
        return getattr(real(self), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (real(self),)

    def __repr__(self) -> str:
        return repr(real(self))

    def __eq__(self, other: object) -> bool:
        return bool(real(self) == real(other))

    def __hash__(self) -> int:
        return hash(real(self))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(real(self), name, value)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(real(instance), real(self))

    def __or__(self, other: Any) -> Any:
        return real(self) | real(other)

    def __getitem__(self, item: Any) -> Any:
        return real(self)[item]

    def __iter__(self) -> Iterator[Any]:
        return iter(real(self))

    def __len__(self) -> int:
        return len(real(self))

    def __reduce__(self) -> Any:
        return real, (real(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(real(self), memo)


def real(value: Any) -> Any:
    """Return what a note stands for, importing its library; anything else as it is, notes within lists replaced."""
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(real(each) for each in value)
    if type(value) is dict:
        return {real(name): real(each) for name, each in value.items()}
    if type(value) is not Note:
        return value
    held = value.__dict__
    if held["_real"] is None:
        # From here on the library is there, so nothing of it needs standing in for.
        finders = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
        for finder in finders:
            sys.meta_path.remove(finder)
        _forget()
        try:
            module = importlib.import_module(held["_module"])
            made: Any = getattr(module, held["_name"], None)
            if made is None:  # a package's module, asked for as its attribute
                made = importlib.import_module(f"{held['_module']}.{held['_name']}")
        finally:
            for finder in finders:
                finder.forget(held["_module"])
                sys.meta_path.insert(0, finder)
        if held["_call"] is not None:
            args, kwargs = held["_call"]
            made = made(*real(args), **real(kwargs))
        held["_real"] = made
    return held["_real"]


def _kind(note: Note) -> str | None:
    """Return "classifier" or "regressor" where that is known of the estimator that ``note`` makes."""
    held = note.__dict__
    if held["_call"] is None:
        return None
    args, kwargs = held["_call"]
    name = held["_name"]
    if name in _CLASSIFIERS:
        return "classifier"
    if name in _REGRESSORS:
        return "regressor"
    if name == "make_pipeline" and args:
        last = args[-1]
    elif name == "Pipeline" and (steps := args[0] if args else kwargs.get("steps")):
        last = steps[-1][1]
    else:
        return None
    return _kind(last) if type(last) is Note else None
