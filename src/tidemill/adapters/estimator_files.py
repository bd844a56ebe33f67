"""Fitted estimators as bytes: skops where it can, pickle where it must, signed in either case.

Reading a pickle runs code, and the types that skops is told to trust do too. So nothing is parsed before its signature
by this workspace's key has been verified: what is loaded is what this workspace fitted and wrote, byte for byte.

An artefact is four parts, each but the last ended by a newline: a magic line; the HMAC-SHA256 of the magic and of all
that follows; a header in canonical JSON (format, the types beyond skops' own list that this estimator consists of, the
exact versions of Python and of every distribution whose code it needs); and the estimator.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import io
import json
import pickle  # noqa: TID251  # this is the module that writes and signs them
import pickletools
import platform
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Literal

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import skops.io

from tidemill.adapters.signing import Key
from tidemill.base.errors import ArtefactError, TrainingError
from tidemill.base.hashing import canonical
from tidemill.ports.artefacts import Artefacts

Format = Literal["skops", "pickle"]

_MAGIC = b"tidemill estimator 1\n"
_ALWAYS = ("numpy", "scikit-learn", "scipy")  # compiled code that fitted attributes are read by, named or not


class EstimatorFiles:
    """Saves estimators among ``artefacts``, signed with ``key``. A reference is the artefact's digest."""

    def __init__(self, artefacts: Artefacts, key: Key) -> None:
        self._artefacts, self._key = artefacts, key

    def save(self, estimator: Any) -> str:
        """Store a fitted estimator durably and return a reference to it."""
        return self._artefacts.put(dump_estimator(estimator, self._key)[1])

    def load(self, reference: str) -> Any:
        """Return the estimator. Raises ArtefactError when it is missing, damaged, unsigned or of other libraries."""
        return load_estimator(self._artefacts.get(reference), self._key)

    def save_form(self, content: bytes) -> str:
        """Store a compiled form beside its estimator. It holds no code, so its digest is all that guards it."""
        return self._artefacts.put(content)

    def load_form(self, reference: str) -> bytes:
        """Return a compiled form. Raises ArtefactError when it is missing or damaged."""
        return self._artefacts.get(reference)


def dump_estimator(estimator: Any, key: Key, *, sample: Any = None) -> tuple[Format, bytes]:
    """Return the format chosen and the signed artefact.

    skops is chosen when it reads back what it wrote and, given a ``sample`` of rows as the estimator takes them,
    predicts the same on it bit for bit. An estimator with code from a place that other processes cannot import (the
    declared file, a notebook) is pickled with that code. Raises TrainingError when neither format can hold it.
    """
    private: list[ModuleType] = []
    found = _skops(estimator, sample)
    if found is not None:
        payload, trusted, modules = found
        private = [module for module in modules if not _importable(module)]
        if not private:
            return "skops", _seal("skops", payload, trusted, modules, key)
    payload, modules = _pickle(estimator, private)
    return "pickle", _seal("pickle", payload, [], modules, key)


def load_estimator(content: bytes, key: Key) -> Any:
    """Return the estimator in an artefact of ``dump_estimator``.

    Raises ArtefactError when it is not signed by ``key``, or when it was written with another minor version of
    scikit-learn or, for a pickle, of Python or of any library it needs. Other differences of version are a warning.
    """
    header, payload = _unseal(content, key)
    _compare_versions(header["versions"], strict=header["format"] == "pickle")
    try:
        if header["format"] == "skops":
            return skops.io.loads(payload, trusted=header["trusted"])
        return pickle.loads(payload)  # noqa: S301  # its signature has been verified
    except Exception as error:
        raise ArtefactError(
            f"A model cannot be read although its signature is good: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]} Something that it needs is not installed or has changed; retrain it."
        ) from error


def describe_estimator(content: bytes, key: Key) -> dict[str, Any]:
    """Return the header of an artefact (``format``, ``trusted``, ``versions``) without loading it."""
    return _unseal(content, key)[0]


def _seal(format: Format, payload: bytes, trusted: list[str], modules: Iterable[ModuleType], key: Key) -> bytes:
    header = canonical({"format": format, "trusted": trusted, "versions": _versions(modules)})
    body = header + b"\n" + payload
    return _MAGIC + key.sign(_MAGIC + body).encode() + b"\n" + body


def _unseal(content: bytes, key: Key) -> tuple[dict[str, Any], bytes]:
    signature, _, body = content.removeprefix(_MAGIC).partition(b"\n")
    if not content.startswith(_MAGIC) or not key.verify(_MAGIC + body, signature.decode("ascii", "replace")):
        raise ArtefactError(
            "A model is not signed by this workspace, so it is not loaded: a foreign model can run any code. "
            "Train it here, or restore the signing key of the workspace that trained it."
        )
    header, _, payload = body.partition(b"\n")
    return json.loads(header), payload


def _skops(estimator: Any, sample: Any) -> tuple[bytes, list[str], list[ModuleType]] | None:
    # Whatever goes wrong here, in skops or in an estimator's own state methods, pickle is still to be tried.
    try:
        payload = skops.io.dumps(estimator)
        trusted = list(skops.io.get_untrusted_types(data=payload))
        again = skops.io.loads(payload, trusted=trusted)
        if type(again) is not type(estimator) or (sample is not None and not _agree(estimator, again, sample)):
            return None
    except Exception:
        return None
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        schema = json.loads(archive.read("schema.json"))
    return payload, trusted, _loaded(_values(schema, "__module__"))


def _pickle(estimator: Any, private: Iterable[ModuleType]) -> tuple[bytes, list[ModuleType]]:
    try:
        # Once by reference, to learn which modules that needs; those that others cannot import go in by value.
        named = _loaded(_strings(cloudpickle.dumps(estimator)))
        carried = {module.__name__: module for module in (*named, *private) if not _importable(module)}
        carried.pop("__main__", None)  # cloudpickle does that one unasked
        for module in carried.values():
            cloudpickle.register_pickle_by_value(module)
        try:
            payload = cloudpickle.dumps(estimator)
        finally:
            for module in carried.values():
                cloudpickle.unregister_pickle_by_value(module)
        pickle.loads(payload)  # noqa: S301  # written one line above
    except Exception as error:
        raise TrainingError(
            f"The fitted {type(estimator).__name__} cannot be saved: {type(error).__name__}: {error}. "
            "Keep open files, locks and generators out of its attributes."
        ) from error
    return payload, [module for module in _loaded(_strings(payload)) if module.__name__ not in carried]


def _agree(one: Any, other: Any, sample: Any) -> bool:
    method = "predict_proba" if hasattr(one, "predict_proba") else "predict"
    left, right = np.asarray(getattr(one, method)(sample)), np.asarray(getattr(other, method)(sample))
    return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


def _values(node: Any, name: str) -> Iterator[str]:
    """Yield every text stored under ``name`` anywhere in parsed JSON."""
    if isinstance(node, dict):
        if isinstance(node.get(name), str):
            yield node[name]
        for child in node.values():
            yield from _values(child, name)
    elif isinstance(node, list):
        for child in node:
            yield from _values(child, name)


def _strings(pickled: bytes) -> Iterator[str]:
    """Yield every text in a pickle; the names of the modules it imports are among them."""
    return (argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str))


def _loaded(names: Iterable[str]) -> list[ModuleType]:
    return [sys.modules[name] for name in sorted(set(names)) if name in sys.modules]


def _importable(module: ModuleType) -> bool:
    """Tell whether another process would find ``module`` by its name."""
    top = module.__name__.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return True
    return top != "__main__" and importlib.machinery.PathFinder.find_spec(top) is not None


def _versions(modules: Iterable[ModuleType]) -> dict[str, str]:
    owners = importlib.metadata.packages_distributions()
    names = {owner for module in modules for owner in owners.get(module.__name__.partition(".")[0], ())}
    found = {name: importlib.metadata.version(name) for name in sorted({*names, *_ALWAYS})}
    return {"python": platform.python_version(), **found}


def _compare_versions(written: dict[str, str], *, strict: bool) -> None:
    for name, then in written.items():
        now = platform.python_version() if name == "python" else _installed(name)
        if now == then:
            continue
        difference = f"A model was written with {name} {then}, but here is {now or 'none'}."
        if now is None or ((strict or name == "scikit-learn") and _minor(now) != _minor(then)):
            raise ArtefactError(
                f"{difference} It could predict something else, so it is not loaded. "
                f"Install {name} {then}, or retrain the model with what is installed."
            )
        if _minor(now) != _minor(then):
            warnings.warn(f"{difference} Retrain it when you can.", stacklevel=3)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
