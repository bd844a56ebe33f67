"""The other end of ``process_executor``: ``python -m tidemill.adapters.process_child module:function directory``.

With ``--many`` it does one payload after another, lines of JSON on its standard input, and answers on its output.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tidemill.base.errors import TidemillError
from tidemill.base.hashing import canonical


def main(path: str, directory: str, how: str = "--one") -> int:
    """Run the function at ``path`` on the payload in ``directory``, or on those that come; return the exit status."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_die_with_parent, args=(lines,), daemon=True).start()
    # Answers and progress alone go to the parent; whatever the function or its libraries print goes to the log.
    parent = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if how == "--many":
        _many(path, lines, parent)
    return _one(path, Path(directory), parent)


def _one(path: str, work: Path, parent: int) -> int:
    def report(done: int, total: int, doing: str) -> None:
        os.write(parent, json.dumps([done, total, doing]).encode() + b"\n")

    answer, status = _answer(path, (work / "payload.json").read_bytes(), report)
    sys.stdout.flush()
    part = work / "result.json.part"
    part.write_bytes(answer)
    part.replace(work / "result.json")
    return status


def _many(path: str, lines: queue.SimpleQueue[bytes], parent: int) -> NoReturn:
    with open(parent, "wb") as answers:
        while True:
            answers.write(_answer(path, lines.get(), lambda *_: None)[0] + b"\n")
            answers.flush()


def _answer(path: str, payload: bytes, report: Callable[[int, int, str], None]) -> tuple[bytes, int]:
    """Return what to tell the parent of one payload, and the exit status that this is worth."""
    try:
        return canonical({"result": dict(find(path)(json.loads(payload), report))}), 0
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the parent must hear of it
        traceback.print_exc()
        ours = type(error).__name__ if isinstance(error, TidemillError) else None
        return canonical({"error": describe(error), "ours": ours}), 1


def find(path: str) -> Callable[..., Any]:
    """Return the function named ``"module:function"``."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def describe(error: BaseException) -> str:
    """Return an error in words: our own messages as they are, others after the name of their type."""
    return str(error) if isinstance(error, TidemillError) else "".join(traceback.format_exception_only(error)).strip()


def _die_with_parent(lines: queue.SimpleQueue[bytes]) -> None:
    """Hand on the lines from the parent; when the pipe ends, so does all of this."""
    with open(sys.stdin.fileno(), "rb", closefd=False) as pipe:
        for line in pipe:
            lines.put(line)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
