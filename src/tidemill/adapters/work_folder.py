"""Working directories below ``.tidemill/work``: held while somebody uses them, swept when nobody will again.

A directory is held by a lock of the operating system on it, which ends with the process however it ends. So what is not
held belongs to nobody alive: ``sweep`` deletes at once what cannot be taken up again, and the rest when it has lain
still for ``REST``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tidemill.base.clock import DAY, SystemClock
from tidemill.base.errors import RequestError, SourceError, WorkspaceError

#: What may still be of use (an interrupted build, the log of a failure) is kept this long untouched (microseconds).
REST = 7 * DAY
#: A directory with a file of this name is worth keeping: it can be taken up again, or says why something failed.
KEEP = "keep"


def hold(directory: Path) -> int | None:
    """Hold ``directory`` for this process; return the handle to close in the end, None while another holds it."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def resumable(directory: Path) -> Iterator[Path]:
    """Hold ``directory``, made when there is none, and delete it in the end unless the work in it was interrupted.

    Work that ends with a RequestError or SourceError was not: what it was given is wrong, and will be something else.
    Raises WorkspaceError while another process does the same work.
    """
    handle = None
    while handle is None:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its last holder has just deleted it
            handle = hold(directory)
            if handle is None:
                raise WorkspaceError(
                    f"Another process is doing this very work, in {directory}. Wait for it, or stop it."
                )
            if not os.path.samestat(os.fstat(handle), os.stat(directory)):
                os.close(handle)
                handle = None
    try:
        (directory / KEEP).touch()
        try:
            yield directory
        except (RequestError, SourceError):
            shutil.rmtree(directory)
            raise
        shutil.rmtree(directory)
    finally:
        os.close(handle)


def fresh(root: Path, prefix: str) -> tuple[Path, int]:
    """Return a new directory in ``root`` that this process holds, and the handle to close in the end."""
    root.mkdir(parents=True, exist_ok=True)
    # It gets its name when it is held, so that nobody can sweep it before.
    made = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=root))
    handle = hold(made)
    assert handle is not None
    return made.rename(root / made.name.removeprefix(".")), handle


@contextlib.contextmanager
def passing(root: Path, prefix: str) -> Iterator[Path]:
    """Hold a new directory in ``root``, and delete it in the end."""
    directory, handle = fresh(root, prefix)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
        os.close(handle)


def sweep(root: Path) -> int:
    """Delete the leftovers in ``root``; return how many. What a living process holds stays, and what may be of use."""
    swept = 0
    for directory in sorted(root.glob("*/")) if root.exists() else ():
        handle = None if directory.is_symlink() else hold(directory)
        if handle is None:
            continue
        try:
            lasting = directory.name.startswith(".") or (directory / KEEP).exists()
            if not lasting or _untouched(directory) >= REST:
                shutil.rmtree(directory, ignore_errors=True)
                swept += 1
        finally:
            os.close(handle)
    return swept


def _untouched(directory: Path) -> int:
    """Return for how long (microseconds) nothing in ``directory`` was changed."""
    newest = max(path.stat().st_mtime_ns for path in (directory, *directory.iterdir()))
    return SystemClock().now() - newest // 1_000
