"""Heads of requests as they were parsed before: a client sends the same bytes again and again ahead of its bodies.

What the parser made of a head it would make of the same bytes again. So a request that comes in one piece behind a head
that is known needs no parsing; everything else goes to the parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tidemill.server.message import Request

#: Heads kept at most, the bytes that one may have, and those of a body behind it.
HEADS = 256
LONGEST = 2_048
BODY = 16_384

_END = b"\r\n\r\n"


class _Head(NamedTuple):
    method: str
    path: str
    headers: Mapping[bytes, bytes]
    length: int  # of the body


class Heads:
    """The heads of requests after which connections were kept. For one event loop."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Head] = {}

    def find(self, data: bytes) -> Request | None:
        """Return the request that ``data`` is, the first of a message, where its head is known and nothing follows."""
        end = data.find(_END) + 4
        head = self._known.get(data[:end])
        if head is None or len(data) != end + head.length:
            return None
        return Request(head.method, head.path, head.headers, data[end:])

    def learn(self, data: bytes, request: Request) -> None:
        """Keep the head of ``request`` if ``data``, of which it is the first that the parser saw, is nothing else."""
        body = len(request.body)
        end = len(data) - body
        if not 4 < end <= LONGEST or body > BODY or data.find(_END) + 4 != end or data[end:] != request.body:
            return
        # Of these the parser does more than collect, or the length is no property of the head.
        if b"transfer-encoding" in request.headers or b"expect" in request.headers or b"upgrade" in request.headers:
            return
        if len(self._known) >= HEADS:
            self._known.clear()
        self._known[data[:end]] = _Head(request.method, request.path, request.headers, body)
