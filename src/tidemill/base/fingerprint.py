"""Fingerprints of code and of the values it reads.

A function is what its syntax tree says (comments, docstrings, layout and line numbers left out), what it reads from
around itself (closure, defaults, global constants), the project's own functions, classes and modules that it reaches,
and the versions of the installed distributions that it reaches. The project's own is whatever is neither in the
standard library nor installed.

Names are followed where the compiled code reads them: ``helpers.clean`` follows ``clean`` alone, a project module used
in any other way is taken whole. What is looked up by a computed name (``getattr(module, name)``) is not seen.
"""

from __future__ import annotations
import __future__

import ast
import copy
import dataclasses
import dis
import enum
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import linecache
import math
import random
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from tidemill.base.errors import FingerprintError
from tidemill.base.hashing import canonical, digest, fingerprint

_INSTALLED = (
    *(Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    Path(__file__).resolve().parents[1],  # Tidemill itself counts by its version, also when installed for editing
)
_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_MODULE_FACTS = frozenset({"__name__", "__file__", "__doc__", "__spec__", "__loader__", "__package__", "__path__"})
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_fingerprint(function: Callable[..., Any]) -> str:
    """Return the fingerprint of a function, lambda, method, partial or callable object; see ``describe_code``."""
    return fingerprint(describe_code(function))


def estimator_fingerprint(estimator: Any) -> str:
    """Return the fingerprint of an unfitted estimator: its class and ``get_params``, nested ones and callables too.

    Adds the versions of the distributions that define the classes, and the source of the project's own. What ``fit``
    leaves on the object does not count. Raises FingerprintError, naming the parameter, as ``describe_code``.
    """
    return fingerprint(describe_code(estimator))


def describe_code(value: Any) -> dict[str, Any]:
    """Return plain JSON data that is equal for two functions, estimators or values exactly when they mean the same.

    ``value``: what it is; ``source``: a hash of the syntax tree of each reached definition of the project;
    ``reads``: the constants and aliases that those read; ``versions``: of the distributions they reach. Empty parts
    are left out. Does no harm to the value, but imports the project's modules that a function imports when it runs.

    Raises FingerprintError, naming the place, on a value without lasting content or a definition without source.
    """
    walk = _Walk()
    parts = {"value": walk.describe(value, "")}
    parts.update(source=walk.source, reads=walk.reads, versions=walk.versions)
    return {name: part for name, part in parts.items() if part not in ({}, None) or name == "value"}


class _Walk:
    """Collects what one value reaches. ``source``, ``reads`` and ``versions`` are described in ``describe_code``."""

    def __init__(self) -> None:
        self.source: dict[str, str] = {}
        self.reads: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self._names: dict[int, tuple[str, object]] = {}  # by id; the object is kept, so that no id comes twice
        self._open: set[int] = set()

    def describe(self, value: Any, where: str) -> Any:
        """Return JSON for ``value``; ``where`` is its name in messages."""
        if value is None or isinstance(value, bool) or type(value) in (int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, bytes | bytearray):
            return {"bytes": digest(bytes(value))}
        if isinstance(value, type):
            return {"class": self._class(value, where)}
        if isinstance(value, ModuleType):
            return {"module": self._module(value, where)}
        if isinstance(value, FunctionType):
            return {"function": self._function(value, where)}
        if id(value) in self._open:
            raise FingerprintError(f"{where or 'the value'} contains itself and cannot be fingerprinted.")
        self._open.add(id(value))
        try:
            return self._compound(value, where)
        finally:
            self._open.discard(id(value))

    def _compound(self, value: Any, where: str) -> Any:
        if isinstance(value, MethodType):
            owner = value.__self__
            return {"method": self.describe(value.__func__, where), "of": self.describe(owner, f"{where}.__self__")}
        if isinstance(value, functools.partial):
            parts = {"partial": value.func, "arguments": list(value.args), "keywords": value.keywords}
            return {name: self.describe(part, where) for name, part in parts.items()}
        if type(value) in (list, tuple):
            return [self.describe(each, f"{where}[{place}]") for place, each in enumerate(value)]
        if type(value) in (set, frozenset):
            return {"set": sorted((self.describe(each, where) for each in value), key=canonical)}
        if type(value) is dict:  # in its own order, which a function may see
            pairs = [
                [self.describe(key, where), self.describe(each, f"{where}[{key!r}]")] for key, each in value.items()
            ]
            return {"dict": pairs}
        if isinstance(value, enum.Enum):
            return {"type": self._class(type(value), where), "member": value.name}
        if isinstance(value, re.Pattern):
            return {
                "pattern": value.pattern if isinstance(value.pattern, str) else repr(value.pattern),
                "flags": value.flags,
            }
        if (
            type(value).__module__.partition(".")[0] == "numpy"
            and hasattr(value, "dtype")
            and hasattr(value, "tobytes")
        ):
            return self._array(value, where)
        if callable(getattr(type(value), "get_params", None)):
            parameters = sorted(value.get_params(deep=False).items())
            described = {name: self.describe(each, f"{where}.{name}".strip(".")) for name, each in parameters}
            return {"type": self._class(type(value), where), "parameters": described}
        if dataclasses.is_dataclass(value):  # what its comparison looks at: equal values have one fingerprint
            fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.compare}
            described = {name: self.describe(each, f"{where}.{name}".strip(".")) for name, each in fields.items()}
            return {"type": self._class(type(value), where), "fields": described}
        if callable(value) and "__wrapped__" in getattr(value, "__dict__", ()):  # functools.cache and its like
            return {"type": self._class(type(value), where), "wraps": self.describe(value.__wrapped__, where)}
        if hasattr(type(value), "__next__") or isinstance(value, random.Random) or _is_numpy_generator(value):
            raise FingerprintError(
                f"{where or 'the value'} is a {type(value).__name__}, whose state changes as it is used. Make it "
                "inside the function, from a fixed seed."
            )
        return self._reduced(value, where)

    def _array(self, value: Any, where: str) -> Any:
        if value.dtype.hasobject:
            return {"array": self.describe(value.tolist(), where), "shape": list(value.shape)}
        return {"array": digest(value.tobytes()), "dtype": str(value.dtype.descr), "shape": list(value.shape)}

    def _reduced(self, value: Any, where: str) -> Any:
        """Describe an object by what copying it would take: its class, arguments, state and items."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            name = getattr(value, "__qualname__", getattr(value, "__name__", None))
            if callable(value) and name is not None:  # compiled functions without a module of their own, as ufuncs
                return {"builtin": self._outside(type(value).__module__, name)}
            raise FingerprintError(
                f"{where or 'the value'} is a {type(value).__name__}, which cannot be fingerprinted ({error}). Make it "
                "inside the function, or pass plain data instead."
            ) from error
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None) or type(value).__module__
            return {"builtin": self._outside(module, reduced)}
        maker, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        parts: dict[str, Any] = {"maker": maker, "arguments": list(arguments), "state": state}
        if items is not None:
            parts["items"] = list(items)
        if pairs is not None:
            parts["pairs"] = [list(pair) for pair in pairs]
        named = where or type(value).__name__
        described = {name: self.describe(part, named) for name, part in parts.items() if part is not None}
        return {"type": self._class(type(value), where), **described}

    def _outside(self, module: str | None, name: str) -> str:
        """Note the version of the distribution that holds ``module`` and return the full name."""
        top = (module or "builtins").partition(".")[0]
        for distribution in _distributions(top):
            self.versions[distribution] = importlib.metadata.version(distribution)
        return f"{module}.{name}" if module else name

    def _class(self, cls: type, where: str) -> str:
        if id(cls) in self._names:
            return self._names[id(cls)][0]
        if cls.__module__ not in sys.modules:
            raise FingerprintError(f"class {cls.__qualname__}: its module {cls.__module__!r} is not loaded.")
        functions = [each for each in map(_plain_function, vars(cls).values()) if each and _is_own(each, cls)]
        # Classes of a module that has been loaded again since are found through their own methods.
        namespace = functions[0].__globals__ if functions else vars(sys.modules[cls.__module__])
        file = functions[0].__code__.co_filename if functions else namespace.get("__file__")
        if not _is_project(namespace, file):
            return self._outside(cls.__module__, cls.__qualname__)
        found = [node for name, node in _definitions(_tree(file, where)) if name == cls.__qualname__]
        first_lines = {each.__code__.co_firstlineno for each in functions}
        exact = [node for node in found if any(node.lineno <= line <= (node.end_lineno or 0) for line in first_lines)]
        chosen = (exact or found)[-1:]
        if not chosen or not isinstance(chosen[0], ast.ClassDef):
            raise FingerprintError(f"the source of class {cls.__qualname__} cannot be found in {file}.")
        node = chosen[0]
        name = self._enter(cls, f"{cls.__module__}.{cls.__qualname__}", node)
        closure: dict[str, Any] = {}
        for each in functions:
            closure.update(_closure(each))
        code = compile(
            ast.Module([node], []), str(file), "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True
        )
        self._follow(name, code, node, namespace, closure)
        for base in cls.__mro__[1:]:
            self._class(base, where)
        return name

    def _function(self, function: FunctionType, where: str) -> str:
        if id(function) in self._names:
            return self._names[id(function)][0]
        code, namespace = function.__code__, function.__globals__
        if not _is_project(namespace, code.co_filename):
            home = namespace.get("__name__")
            name = self._outside(home, function.__qualname__)
            self._names[id(function)] = (name, function)
            if function.__module__ != home or "<locals>" in function.__qualname__:
                # An installed wrapper around something of the project's: what it closes over counts.
                for variable, value in _closure(function).items():
                    self._note(f"{name}.{variable}", value)
            return name
        node = _function_node(_tree(code.co_filename, where or function.__qualname__), code)
        if node is None:
            raise FingerprintError(
                f"the source of {function.__qualname__} is not at line {code.co_firstlineno} of {code.co_filename} any "
                "more. Load the file again."
            )
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node = copy.copy(node)
            node.decorator_list = []  # what they made of the function is the value at hand
        name = self._enter(function, f"{function.__module__}.{function.__qualname__}", node)
        for label, defaults in (("defaults", function.__defaults__), ("keyword defaults", function.__kwdefaults__)):
            if defaults:
                self._note(f"{name} ({label})", defaults)
        closure = _closure(function)
        for variable, value in closure.items():
            self._note(f"{name}.{variable}", value)
        self._follow(name, code, node, namespace, closure)
        return name

    def _module(self, module: ModuleType, where: str) -> str:
        if id(module) in self._names:
            return self._names[id(module)][0]
        file = getattr(module, "__file__", None)
        if not _is_project(vars(module), file):
            return self._outside(module.__name__, "").rstrip(".")
        tree = _tree(str(file), where)
        name = self._enter(module, module.__name__, tree)
        flags = __future__.annotations.compiler_flag
        self._follow(name, compile(tree, str(file), "exec", flags=flags, dont_inherit=True), tree, vars(module), {})
        return name

    def _enter(self, thing: object, name: str, node: ast.AST) -> str:
        """Record the source of ``thing`` under its name, or name#2 … for another of the same name."""
        content = digest(canonical(_normal(node)))
        unique, count = name, 1
        while unique in self.source:
            count += 1
            unique = f"{name}#{count}"
        self.source[unique] = content
        self._names[id(thing)] = (unique, thing)
        return unique

    def _note(self, name: str, value: Any) -> None:
        """Record what the name stands for, unless it is just the definition of that name."""
        if name not in self.reads:
            described = self.describe(value, name)
            if described not in ({"function": name}, {"class": name}, {"module": name}):
                self.reads[name] = described

    def _follow(
        self, name: str, code: CodeType, node: ast.AST, namespace: Mapping[str, Any], closure: Mapping[str, Any]
    ) -> None:
        for path in _names_read(code):
            first, *rest = path
            if first in _MODULE_FACTS or (first not in closure and first not in namespace):
                continue  # a built-in, a local name of a class body, or an error of the function's own
            value = closure[first] if first in closure else namespace[first]
            label = f"{name}.{first}" if first in closure else f"{namespace.get('__name__', '')}.{first}"
            while rest and isinstance(value, ModuleType) and _is_project(vars(value), vars(value).get("__file__")):
                label = f"{value.__name__}.{rest[0]}"
                value = getattr(value, rest.pop(0), None)
            self._note(label, value)
        for imported in _imports(node, namespace.get("__package__") or ""):
            top = imported.partition(".")[0]
            if top in sys.stdlib_module_names or _distributions(top):
                self._outside(imported, "")
                continue
            try:
                module = importlib.import_module(imported)
            except Exception as error:
                raise FingerprintError(f"{name} imports {imported!r}, which fails: {error}") from error
            self._note(f"{name} imports {imported}", module)


def _closure(function: FunctionType) -> dict[str, Any]:
    """Return the closure's values by name; a variable not yet set is left out."""
    values = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:
            continue
    return values


def _plain_function(member: Any) -> FunctionType | None:
    """Return the function behind a class member, if there is one."""
    found = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
    return found if isinstance(found, FunctionType) else None


def _is_own(function: FunctionType, cls: type) -> bool:
    """Tell whether the class's own source defines the function; those that ``dataclass`` generates have no source."""
    return function.__qualname__.startswith(f"{cls.__qualname__}.") and function.__code__.co_filename != "<string>"


def _is_numpy_generator(value: Any) -> bool:
    return type(value).__module__.startswith("numpy.random")


def _is_project(namespace: Mapping[str, Any], file: str | None) -> bool:
    """Tell whether code of ``file`` belongs to the project. A file that is run, not imported, does wherever it lies."""
    run = namespace.get("__spec__") is None and file is not None and namespace.get("__file__") == file
    return run or _is_project_file(file)


@functools.cache
def _is_project_file(file: str | None) -> bool:
    """Tell whether ``file`` belongs to the project: neither in the standard library nor installed. Notebooks are."""
    if file is None or file.startswith("<frozen"):
        return False
    if file.startswith("<"):
        return True
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _INSTALLED)


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@functools.cache
def _distributions(top: str) -> tuple[str, ...]:
    """Return the distributions that carry the top-level module ``top``; none for the standard library."""
    if top in sys.stdlib_module_names:
        return ()
    try:  # most carry their module's name; reading every installed distribution takes a tenth of a second
        return (importlib.metadata.distribution(top).metadata["Name"],)
    except importlib.metadata.PackageNotFoundError:
        return tuple(sorted(set(_packages().get(top, ()))))


def _tree(file: str | None, where: str) -> ast.Module:
    lines = linecache.getlines(file) if file else []
    if not lines:
        raise FingerprintError(f"{where or 'the function'}: its source ({file}) cannot be read. Define it in a file.")
    return _parse("".join(lines))


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def _definitions(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Yield (qualified name, node) of every function and class, in order."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _SCOPES):
            yield f"{scope}{node.name}", node
            inner = f"{scope}{node.name}." if isinstance(node, ast.ClassDef) else f"{scope}{node.name}.<locals>."
            yield from _definitions(node, inner)
        else:
            yield from _definitions(node, scope)


def _function_node(tree: ast.Module, code: CodeType) -> ast.AST | None:
    """Return the definition or lambda that ``code`` was compiled from."""
    if code.co_name != "<lambda>":
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if first == code.co_firstlineno:
                    return node
        return None
    spots = {(line, column, end, end_column) for line, end, column, end_column in code.co_positions()}
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno]
    if len(lambdas) == 1:
        return lambdas[0]
    # Of several on a line, the one whose body is computed by this code: an inner lambda is a code object of its own.
    for node in lambdas:
        body = node.body
        if (body.lineno, body.col_offset, body.end_lineno, body.end_col_offset) in spots:
            return node
    return None


def _names_read(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Yield the names that ``code`` and the code inside it read from around them, with the attributes taken of each."""
    path: list[str] = []
    for step in dis.get_instructions(code):
        if path and step.opname in _ATTRIBUTES:
            path.append(step.argval)
            continue
        if path:
            yield tuple(path)
        path = [step.argval] if step.opname in _READS else []
    if path:
        yield tuple(path)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_read(constant)


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that the code imports when it runs."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            name = "." * each.level + (each.module or "")
            yield importlib.util.resolve_name(name, package) if each.level else name


def _normal(node: Any) -> Any:
    """Return a syntax tree as nested lists, without positions, docstrings, bare strings and empty fields."""
    if isinstance(node, list):
        return [_normal(each) for each in node if not _is_remark(each)]
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    if not isinstance(node, ast.AST):
        return node
    fields = [
        [name, _normal(value)]
        for name, value in ast.iter_fields(node)
        if value is not None and value != [] and name not in ("ctx", "type_comment", "type_ignores")
    ]
    return [type(node).__name__, *fields]


def _is_remark(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
