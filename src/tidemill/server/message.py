"""Requests and replies as the application sees them: whole, with their bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

JSON = b"application/json"
BINARY = b"application/octet-stream"

encode = msgspec.json.Encoder().encode


class Request:
    """One whole request. ``path`` is decoded and without its query; header names are in lower case.

    ``headers``: the first of each name. ``reading``: the seconds from its first byte to its last.
    """

    __slots__ = ("body", "headers", "method", "path", "reading")

    def __init__(
        self, method: str, path: str, headers: Mapping[bytes, bytes] | None = None, body: bytes | bytearray = b""
    ) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers or {}, body
        self.reading = 0.0


class Reply(NamedTuple):
    """One whole answer. ``headers`` beside content-type and content-length, which are added.

    ``held``: it may go out once the application has settled.
    """

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = JSON
    held: bool = False


class RefusedError(Exception):
    """The request is refused with ``status``, for ``reason``; ``field`` names the part that is wrong, if one is."""

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes], field: str | None = None) -> None:
        self.status, self.reason, self.headers, self.field = status, reason, headers, field
        super().__init__(reason)


def fault(
    path: str, status: int, reason: str, *headers: tuple[bytes, bytes], field: str | None = None, id: str | None = None
) -> Reply:
    """Return an error about ``path``: its reason, the field that is wrong, and its id in the server's log.

    The Open Inference Protocol has errors of its own form: text.
    """
    if path.startswith("/v2"):
        said = f"{field}: {reason}" if field else reason
        return Reply(status, encode({"error": f"{said} {id}" if id else said}), headers)
    return Reply(status, encode({"error": {"field": field, "reason": reason} | ({"id": id} if id else {})}), headers)


#: When to come back, for replies that say "not now".
LATER = (b"retry-after", b"1")
