"""The access log: a line of JSON a request, written a few times a second, in two files of bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tidemill.base.clock import SystemClock, format_time
from tidemill.server.message import Request

#: Bytes at which a file is put aside as ``….1``, in place of the one before.
ROTATE = 64 << 20
#: Lines kept at most until they are written; more are counted and left out.
WAITING = 100_000

_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Collects lines; ``flush`` writes them. ``which``: "all" requests, or those answered with an error."""

    def __init__(self, file: Path | None, which: Literal["all", "errors", "none"]) -> None:
        self._file = file if which != "none" else None
        self._from = 400 if which == "errors" else 0
        self._clock = SystemClock()
        self._lines: list[bytes] = []
        self._lost = 0
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)

    def note(self, request: Request, route: str, status: int, sent: int, seconds: float) -> None:
        """Take down one request: when it was answered, what was asked, and what it cost."""
        if self._file is None or status < self._from:
            return
        if len(self._lines) >= WAITING:
            self._lost += 1
            return
        line = {
            "time": format_time(self._clock.now()),
            "method": request.method[:16],
            "path": request.path[:256],
            "route": route,
            "status": status,
            "received": len(request.body),
            "sent": sent,
            "us": round(seconds * 1e6),
        }
        if (id := request.headers.get(b"x-request-id")) is not None:
            line["id"] = id[:128].decode("latin-1")
        self._lines.append(_encode(line))

    def flush(self) -> None:
        """Write what was taken down. Raises OSError when the disk does not take it; the lines are gone then."""
        if self._file is None or not self._lines:
            return
        lines, self._lines = self._lines, []
        if self._lost:
            lines.append(_encode({"time": format_time(self._clock.now()), "lost": self._lost}))
            self._lost = 0
        with self._file.open("ab") as file:
            file.write(b"\n".join(lines) + b"\n")
            size = file.tell()
        if size >= ROTATE:
            self._file.replace(self._file.with_name(self._file.name + ".1"))
