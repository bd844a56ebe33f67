"""Tidemill: a whole machine-learning system, declared in one file.

``import tidemill as tm`` is light; a name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tidemill.engine.evaluate.split import segregate as segregate
    from tidemill.engine.feature.join import join_asof as join_asof
    from tidemill.engine.table.clean import apply as apply
    from tidemill.project import open as open
    from tidemill.spec.check import between as between
    from tidemill.spec.check import holds as holds
    from tidemill.spec.check import not_null as not_null
    from tidemill.spec.check import one_of as one_of
    from tidemill.spec.clean import balance as balance
    from tidemill.spec.clean import cast as cast
    from tidemill.spec.clean import clip as clip
    from tidemill.spec.clean import convert as convert
    from tidemill.spec.clean import duplicates as duplicates
    from tidemill.spec.clean import fill as fill
    from tidemill.spec.clean import invalid as invalid
    from tidemill.spec.clean import outliers as outliers
    from tidemill.spec.clean import recode as recode
    from tidemill.spec.clean import sample as sample
    from tidemill.spec.clean import trim as trim
    from tidemill.spec.feature import Aggregation as Aggregation
    from tidemill.spec.feature import Latest as Latest
    from tidemill.spec.feature import OnDemand as OnDemand
    from tidemill.spec.feature import count as count
    from tidemill.spec.feature import first as first
    from tidemill.spec.feature import last as last
    from tidemill.spec.feature import max as max
    from tidemill.spec.feature import mean as mean
    from tidemill.spec.feature import min as min
    from tidemill.spec.feature import n_unique as n_unique
    from tidemill.spec.feature import quantile as quantile
    from tidemill.spec.feature import share as share
    from tidemill.spec.feature import since_last as since_last
    from tidemill.spec.feature import std as std
    from tidemill.spec.feature import sum as sum
    from tidemill.spec.function import bucket as bucket
    from tidemill.spec.function import cyclic as cyclic
    from tidemill.spec.function import distance as distance
    from tidemill.spec.function import local as local
    from tidemill.spec.function import text_length as text_length
    from tidemill.spec.model import Gate as Gate
    from tidemill.spec.model import Label as Label
    from tidemill.spec.model import Model as Model
    from tidemill.spec.source import Source as Source
    from tidemill.spec.source import clean as clean
    from tidemill.spec.source import files as files
    from tidemill.spec.source import push as push
    from tidemill.spec.source import rows as rows
    from tidemill.spec.source import table as table
    from tidemill.spec.split import by_key as by_key
    from tidemill.spec.split import by_time as by_time
    from tidemill.spec.system import Canary as Canary
    from tidemill.spec.system import Endpoint as Endpoint
    from tidemill.spec.system import Monitor as Monitor
    from tidemill.spec.system import Policy as Policy
    from tidemill.spec.system import System as System
    from tidemill.spec.system import every as every
    from tidemill.spec.system import on_drift as on_drift
    from tidemill.spec.system import on_drop as on_drop
    from tidemill.spec.system import psi as psi
    from tidemill.spec.system import worse_than as worse_than
    from tidemill.spec.time import after as after
    from tidemill.spec.time import before as before

_HOME = {
    "tidemill.spec.check": ("between", "holds", "not_null", "one_of"),
    "tidemill.spec.clean": (
        "balance", "cast", "clip", "convert", "duplicates", "fill", "invalid", "outliers", "recode", "sample", "trim",
    ),
    "tidemill.spec.feature": (
        "Aggregation", "Latest", "OnDemand", "count", "first", "last", "max", "mean", "min", "n_unique", "quantile",
        "share", "since_last", "std", "sum",
    ),
    "tidemill.spec.function": ("bucket", "cyclic", "distance", "local", "text_length"),
    "tidemill.spec.model": ("Gate", "Label", "Model"),
    "tidemill.spec.source": ("Source", "clean", "files", "push", "rows", "table"),
    "tidemill.spec.split": ("by_key", "by_time"),
    "tidemill.spec.system": (
        "Canary", "Endpoint", "Monitor", "Policy", "System", "every", "on_drift", "on_drop", "psi", "worse_than",
    ),
    "tidemill.spec.time": ("after", "before"),
    "tidemill.engine.table.clean": ("apply",),
    "tidemill.engine.feature.join": ("join_asof",),
    "tidemill.engine.evaluate.split": ("segregate",),
    "tidemill.project": ("open",),
}  # fmt: skip
_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
