"""The other end of ``process_executor``: ``python -m tidemill.adapters.process_child module:function directory``."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidemill.base.errors import TidemillError
from tidemill.base.hashing import canonical


def main(path: str, directory: str) -> int:
    """Run the function at ``path`` on the payload in ``directory``; return the exit status."""
    work = Path(directory)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # Progress alone goes to the parent; whatever the function or its libraries print goes to the log.
    progress = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def report(done: int, total: int, doing: str) -> None:
        os.write(progress, json.dumps([done, total, doing]).encode() + b"\n")

    try:
        result = find(path)(json.loads((work / "payload.json").read_bytes()), report)
        answer = canonical({"result": dict(result)})
        status = 0
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the parent must hear of it
        traceback.print_exc()
        answer = canonical({"error": describe(error)})
        status = 1
    sys.stdout.flush()
    part = work / "result.json.part"
    part.write_bytes(answer)
    part.replace(work / "result.json")
    return status


def find(path: str) -> Callable[..., Any]:
    """Return the function named ``"module:function"``."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def describe(error: BaseException) -> str:
    """Return an error in words: our own messages as they are, others after the name of their type."""
    return str(error) if isinstance(error, TidemillError) else "".join(traceback.format_exception_only(error)).strip()


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
