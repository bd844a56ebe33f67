"""The compiled kernels, where they could be built; the plain ones give the same bits without them, more slowly.

A kernel is a C file in ``native/``, built at install into the module ``_<name>`` beside this one. The environment
variable ``TIDEMILL_KERNELS`` chooses others: ``plain`` for none, or a directory that holds differently built ones
(with sanitizers, for example).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path
from types import ModuleType

NAMES = ("asof", "columns", "expressions", "keys", "online", "predictors", "windows")


def load(name: str) -> ModuleType | None:
    """Return the compiled kernel ``name``, or None where there is none or plain ones are asked for."""
    chosen = os.environ.get("TIDEMILL_KERNELS", "")
    if chosen == "plain":
        return None
    module = f"tidemill.kernels._{name}"
    if module not in sys.modules:
        folder = Path(chosen) if chosen else Path(__file__).parent
        files = (folder / f"_{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
        file = next((file for file in files if file.exists()), None)
        if file is None:
            return None
        loader = ExtensionFileLoader(module, str(file))
        spec = importlib.util.spec_from_file_location(module, file, loader=loader)
        assert spec is not None
        loaded = importlib.util.module_from_spec(spec)
        loader.exec_module(loaded)
        sys.modules[module] = loaded
    return sys.modules[module]


def missing() -> tuple[str, ...]:
    """Return the names of the kernels that run as plain Python."""
    return tuple(name for name in NAMES if load(name) is None)
