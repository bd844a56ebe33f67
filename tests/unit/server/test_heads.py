"""Requests behind heads that are known must be what the parser makes of them, however the bytes come."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidemill.server.heads import BODY, HEADS, LONGEST, Heads
from tidemill.server.message import Reply, Request
from tidemill.server.protocol import Connection, Shared

BODIES = (b"", b"{}", b"abc", b"\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"x" * 300)
NAMES = (
    "host: x", "Host: y", "x-request-id: 1", "connection: close", "connection: keep-alive", "a:  b ",
    "expect: 100-continue", "transfer-encoding: chunked", "upgrade: h2c", "connection: upgrade", "content-length: 2",
)  # fmt: skip


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.out = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.out += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def tell(request: Request) -> Reply:
    """Answer with all that the request is."""
    headers = sorted(request.headers.items())
    return Reply(200, repr((request.method, request.path, headers, bytes(request.body))).encode())


class Forgetful(Heads):
    """Sends everything to the parser."""

    def find(self, data: bytes) -> Request | None:
        return None


async def said(heads: Heads, connections: list[list[bytes]]) -> list[tuple[bytes, bool]]:
    """Return what is answered on each connection to its pieces, and whether it was closed."""
    shared = Shared(tell, heads=heads)
    shared.date = b"now"
    found = []
    for pieces in connections:
        wire: Any = Wire()
        connection = Connection(shared)
        connection.connection_made(wire)
        for piece in pieces:
            if not wire.closed:
                connection.data_received(piece)
                await asyncio.sleep(0)  # for what rests after so many answers in a row
        connection.connection_lost(None)
        found.append((wire.out, wire.closed))
    return found


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """Return requests, some of them odd or broken, cut at any places: often between two requests."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, 6))):
        body = draw(st.sampled_from(BODIES))
        method = draw(st.sampled_from(["POST", "POST", "GET", "HEAD"]))
        target = draw(st.sampled_from(["/a", "/a?b", "/%41", "/b"]))
        lines = [f"{method} {target} HTTP/1.{draw(st.sampled_from('1110'))}"]
        lines += draw(st.lists(st.sampled_from(NAMES), max_size=2))
        if draw(st.integers(0, 5)):
            lines.append(f"content-length: {max(0, len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1])))}")
        start = draw(st.sampled_from([b"", b"", b"", b"\r\n", b"\n"]))
        parts.append(start + "\r\n".join([*lines, "", ""]).encode() + body)
    whole = b"".join(parts)
    ends = [sum(map(len, parts[: place + 1])) for place in range(len(parts))]
    cuts = {end for end in ends if draw(st.integers(0, 3))} | set(
        draw(st.lists(st.integers(0, len(whole)), max_size=3))
    )
    at = sorted({0, len(whole), *cuts})
    return [whole[first:last] for first, last in itertools.pairwise(at)]


@given(st.lists(pieces(), min_size=1, max_size=4))
def test_known_heads_change_no_answer(connections: list[list[bytes]]) -> None:
    """The second time round every head that can be known is."""
    connections = connections * 2
    assert asyncio.run(said(Heads(), connections)) == asyncio.run(said(Forgetful(), connections))


def post(body: bytes, *more: str) -> bytes:
    return "\r\n".join(["POST /a HTTP/1.1", f"content-length: {len(body)}", *more, "", ""]).encode() + body


def learned(*requests: bytes) -> Heads:
    heads = Heads()
    asyncio.run(said(heads, [[request] for request in requests]))
    return heads


def test_a_head_is_known_for_every_body_of_its_length() -> None:
    heads = learned(post(b"one"))
    found = heads.find(post(b"two"))
    assert found is not None
    assert (found.method, found.path, found.body) == ("POST", "/a", b"two")
    assert found.headers == {b"content-length": b"3"}
    assert heads.find(post(b"four")) is None
    assert heads.find(post(b"two")[:-1]) is None
    assert heads.find(post(b"two") + b"P") is None
    assert heads.find(b"") is None
    assert heads.find(b"\r\n\r\n") is None


def test_what_the_parser_does_more_about_is_not_kept() -> None:
    for more in ("expect: 100-continue", "connection: close", "transfer-encoding: identity", "upgrade: h2c"):
        request = post(b"one", more)
        assert learned(request).find(request) is None, more


def test_what_is_kept_is_bounded() -> None:
    longest = post(b"one", "x: " + "y" * (LONGEST - 48))
    assert len(longest) - 3 <= LONGEST
    assert learned(longest).find(longest) is not None
    longer = post(b"one", "x: " + "y" * LONGEST)
    assert learned(longer).find(longer) is None
    large = post(b"y" * (BODY + 1))
    assert learned(large).find(large) is None
    many = [post(b"one", f"x: {number}") for number in range(HEADS + 10)]
    heads = learned(*many)
    kept = [heads.find(each) is not None for each in many]
    assert 0 < sum(kept) <= HEADS
    assert kept[-1]
