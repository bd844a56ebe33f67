"""The declared file: runs it and takes the one System out of it."""

from __future__ import annotations

import ast
import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tidemill.adapters.deferred import deferred
from tidemill.base.errors import DeclarationError, Fault
from tidemill.spec.system import System

# What people import and what pip calls it, where the two differ.
_PIP_NAMES = {
    "sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "PyYAML",
    "bs4": "beautifulsoup4", "dateutil": "python-dateutil", "xgboost": "xgboost-cpu", "lance": "pylance",
    "skimage": "scikit-image",
}  # fmt: skip


def load_for_serving(path: Path) -> System:
    """Return the System as ``load_system`` does, without the libraries of its estimators where they can wait."""
    try:
        with deferred():
            return load_system(path)
    except DeclarationError:
        return load_system(path)  # the file does more with them than declare


def load_system(path: Path) -> System:
    """Run the file at ``path`` and return its System: the variable ``system``, or else the only System in it.

    While it runs, its folder is the first place of imports, and modules of that folder are loaded afresh; ``sys.path``
    is put back afterwards. The module stays in ``sys.modules`` under the file's own name, which makes fingerprints and
    the names of its classes the same in every process.

    Raises DeclarationError with one fault, whose ``where`` is ``file:line`` of the user's code, when the file cannot
    be read, parsed or run, or when it holds no System or several. Faults that declarations raise pass through.
    Warnings that the file gives rise to go their usual way.
    """
    path = path.resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise _fault(str(path), f"cannot be read: {reason}.", "Name the file that declares the system.") from None
    except UnicodeDecodeError as error:
        raise _fault(
            str(path), f"is not UTF-8 text: {error.reason} at byte {error.start}.", "Save it as UTF-8."
        ) from None
    taken = getattr(sys.modules.get(path.stem), "__spec__", None)  # None for one that was loaded here
    if path.stem in sys.stdlib_module_names or (taken and "site-packages" in (taken.origin or "")):
        raise _fault(path.name, f"has the name of the module '{path.stem}', which others import.", "Call it system.py.")
    # Fingerprints read the source that runs, whatever becomes of the file afterwards: without a time, it is not reread.
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        code = compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise _fault(f"{path.name}:{error.lineno}", f"cannot be parsed: {error.msg}.", _line(error.text)) from None
    before = sys.modules.get(path.stem)
    with _importable(path.parent):
        sys.modules[path.stem] = module
        try:
            exec(code, module.__dict__)  # noqa: S102 - running the user's own file is the point
        except (Exception, SystemExit) as error:
            del sys.modules[path.stem]
            if before is not None:
                sys.modules[path.stem] = before
            if isinstance(error, DeclarationError):
                raise
            raise _explained(error, path) from error
    return _system(module, path, text)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put ``folder`` first among the places of imports, and forget modules loaded before that its files name."""
    for file in folder.glob("*.py"):
        loaded = getattr(sys.modules.get(file.stem), "__file__", None)
        if loaded and file.stem not in (*sys.stdlib_module_names, "__main__") and "site-packages" not in loaded:
            del sys.modules[file.stem]
            linecache.cache.pop(str(file), None)
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _system(module: ModuleType, path: Path, text: str) -> System:
    found = {name: value for name, value in vars(module).items() if isinstance(value, System)}
    if "system" in found:
        return found["system"]
    distinct = {id(value): name for name, value in found.items()}
    if len(distinct) == 1:
        return found[next(iter(distinct.values()))]
    if not found:
        raise _fault(path.name, "declares no System.", "Write system = tm.System('name', model) at its end.")
    names = ", ".join(sorted(found))
    line = max(_assigned(text, name) for name in found)
    raise _fault(f"{path.name}:{line}", f"declares {len(distinct)} Systems: {names}.", "Call the one to run 'system'.")


def _assigned(text: str, name: str) -> int:
    """Return the last line that assigns ``name`` at the top of the file, 1 when none does."""
    lines = [
        node.lineno
        for node in ast.parse(text).body
        for target in ast.walk(node)
        if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store) and target.id == name
    ]
    return max(lines, default=1)


def _explained(error: BaseException, path: Path) -> DeclarationError:
    """Turn what the file raised into a fault at the user's own line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent.is_relative_to(path.parent) and frame.lineno]
    last = own[-1] if own else None
    where = f"{Path(last.filename).name}:{last.lineno}" if last else path.name
    text = str(error).strip() or "no message"
    if isinstance(error, SyntaxError):  # in a module that the file imports
        place = f"{Path(error.filename or path.name).name}:{error.lineno}"
        return _fault(place, f"cannot be parsed: {error.msg}.", _line(error.text))
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        do = f"Run: pip install {_PIP_NAMES.get(top, top)}" if top not in sys.modules else ""
        return _fault(where, f"no module named '{error.name}'.", do)
    return _fault(where, f"{type(error).__name__}: {text}", _line(last.line if last else None))


def _line(source: str | None) -> str:
    return f"The line is: {source.strip()}" if source and source.strip() else ""


def _fault(where: str, what: str, do: str) -> DeclarationError:
    return DeclarationError([Fault(where, what, do)])
