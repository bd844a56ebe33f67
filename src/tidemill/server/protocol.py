"""HTTP/1.1 on one connection: llhttp parses, this collects whole requests and writes whole replies.

A head that was parsed before is not parsed again (``heads.py``).

Nothing a client does holds up another. A request has a time within which it must be in, an idle connection and a reader
that does not read are closed, a body that is too long is refused before it is sent, and all bodies being read together
may take so much memory and no more. Requests of one connection are answered in order, one at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools

from tidemill.base.clock import SECOND, SystemClock
from tidemill.server.heads import Heads
from tidemill.server.message import LATER, Reply, Request, fault

#: Bytes of a request's line and headers, at most.
MAX_HEAD = 32_768
#: Bodies up to this many bytes are always taken; longer ones share the server's memory for bodies.
SMALL = 16_384
#: Requests of one connection that are answered in a row before others have their turn.
IN_A_ROW = 16
#: How long an idle connection is kept, and how long a refused body is read and thrown away, in seconds.
KEEP_ALIVE = 75.0
LINGER = 2.0
#: Seconds between looks at what is overdue.
SWEEP = 0.25

_STATUS = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}

_CLOSE = b"connection: close\r\n"

#: Answers a request, at once or later. Never raises.
Answer = Callable[[Request], "Reply | Coroutine[Any, Any, Reply]"]


@dataclass(slots=True)
class Shared:
    """What the connections of one server share.

    ``patience``: seconds within which a request must be in, and a reply must be taken. ``memory``: bytes that longer
    bodies may take together; ``held``: those they take now. ``settle`` is called before the replies of one turn of the
    loop are sent; where it returns a reply, that goes out in place of those that were held. ``sent`` is called after
    them, for work that nobody waits for. ``refused`` is told of requests that are refused without being whole.
    """

    answer: Answer
    max_body: int = 8 << 20
    max_connections: int = 1024
    patience: float = 10.0
    memory: int = 64 << 20
    held: int = 0
    draining: bool = False
    connections: set[Connection] = field(default_factory=set)
    date: bytes = b""
    settle: Callable[[], Reply | None] = lambda: None
    sent: Callable[[], None] = lambda: None
    refused: Callable[[Request, Reply], None] = lambda request, reply: None
    heads: Heads = field(default_factory=Heads)
    _unsent: list[tuple[asyncio.Transport, Reply, bool, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tell_time()

    def send(self, transport: asyncio.Transport, reply: Reply, *, keep: bool, bodiless: bool) -> None:
        """Send ``reply`` once all connections that have something to read were heard.

        A send wakes the reader, which costs most of it; when many are sent together, most readers are awake. ``keep``:
        the connection stays; ``bodiless``: only the head is sent.
        """
        self._unsent.append((transport, reply, keep, bodiless))
        if len(self.connections) == 1:
            self.flush()
        elif len(self._unsent) == 1:
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits to be sent."""
        if not self._unsent:
            return
        unsent, self._unsent = self._unsent, []
        instead = self.settle()
        for transport, reply, keep, bodiless in unsent:
            if not transport.is_closing():
                said = instead if instead is not None and reply.held else reply
                head = self.head(said, keep=keep)
                transport.write(head if bodiless else head + said.body)
        self.sent()

    def head(self, reply: Reply, *, keep: bool) -> bytes:
        """Return the status line and the headers of ``reply``."""
        more = b"".join([b"%b: %b\r\n" % header for header in reply.headers]) if reply.headers else b""
        return b"%bdate: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n" % (
            _STATUS[reply.status], self.date, reply.content_type, len(reply.body), more, b"" if keep else _CLOSE,
        )  # fmt: skip

    def tell_time(self) -> None:
        """Take the machine's time for the date of replies."""
        self.date = formatdate(SystemClock().now() // SECOND, usegmt=True).encode()

    async def sweep(self) -> None:
        """Close what is overdue, over and over, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP)
            self.tell_time()
            now = loop.time()
            for connection in [each for each in self.connections if each.deadline < now]:
                connection.overdue()

    async def drain(self, seconds: float) -> None:
        """Let every connection finish what it has begun, within ``seconds``; then cut those that have not."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        deadline = asyncio.get_running_loop().time() + seconds
        while self.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.cut()


class Connection(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        "_begun",
        "_body",
        "_busy",
        "_close",
        "_data",
        "_head",
        "_headers",
        "_held",
        "_in_a_row",
        "_lingering",
        "_loop",
        "_parser",
        "_paused",
        "_resting",
        "_shared",
        "_transport",
        "_url",
        "_waiting",
        "deadline",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[Request, bool]] = deque()  # whole requests, each with whether to keep alive after it
        self._busy = False  # an answer is being worked on
        self._paused = False  # the client does not read what it was sent
        self._resting = False  # it has had enough answers in a row
        self._in_a_row = 0
        self._lingering = False  # the last reply is out; what still comes is thrown away
        self._close = False  # no request is taken any more
        self._held = 0
        self._body: bytes | bytearray
        self._data = b""  # in which the request begins that is parsed now, where it is the first to begin there
        self._clear()
        self.deadline = self._loop.time() + shared.patience

    # The transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in, or turn it away when there are too many."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        self._transport.set_write_buffer_limits(0)  # with another, uvloop writes at the end of its turn only
        self._shared.connections.add(self)
        if len(self._shared.connections) > self._shared.max_connections:
            self._refuse(503, "Too many connections are open; try again.", LATER)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it."""
        self._transport = None
        self._waiting.clear()
        self._release()
        self._shared.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; whole requests are answered from within."""
        if self._lingering:
            return
        if not self._resting:
            self._in_a_row = 0
        self._data = b""
        if not self._begun:
            request = self._shared.heads.find(data)
            if request is not None:
                self._take(request, keep=True)
                return
            self._data = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._close = True  # it is answered in HTTP/1.1, and what follows could be another protocol
        except httptools.HttpParserCallbackError:  # a fault of ours: the loop tells of it
            assert self._transport is not None
            self._transport.abort()
            raise
        except httptools.HttpParserError:
            if not self._lingering:
                self._refuse(400, "This is not HTTP/1.1.")

    def eof_received(self) -> bool:
        """Finish what is under way; nothing more will come."""
        self._close = True
        return bool(self._busy or self._waiting)

    def pause_writing(self) -> None:
        """Stop answering until the client has read what it was sent."""
        self._paused = True
        self.deadline = self._loop.time() + self._shared.patience

    def resume_writing(self) -> None:
        """Go on answering."""
        self._paused = False
        self._wait()
        self._next()

    # The parser's callbacks

    def on_url(self, url: bytes) -> None:
        """Collect the target of the request."""
        self._url += url
        self._head += len(url)
        if self._head > MAX_HEAD:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header."""
        self._headers.setdefault(name.lower(), value)
        self._head += len(name) + len(value) + 4
        if self._head > MAX_HEAD:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """Refuse a body that is announced as too long; ask for it where the client waits to be asked."""
        length = self._headers.get(b"content-length", b"")
        if 0 < len(length) < 20 and int(length) > self._shared.max_body:
            self._too_large()
        if b"expect" not in self._headers:
            return
        expects = self._headers[b"expect"].lower() == b"100-continue"
        if expects and self._transport is not None and not self._lingering:
            self._shared.flush()
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        """Collect a part of the body, within what one request and all together may take."""
        if self._lingering:
            return
        if not self._body:
            self._body = part  # most bodies come in one part
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += part
        size = len(self._body)
        if size > self._shared.max_body:
            self._too_large()
        elif size > SMALL:
            more = size if size - len(part) <= SMALL else len(part)
            self._shared.held += more
            self._held += more
            if self._shared.held > self._shared.memory:
                self._refuse(503, "Too many large bodies are under way; try again.", LATER)

    def on_message_complete(self) -> None:
        """Answer the request, unless another is still being answered."""
        if self._lingering or self._transport is None:
            return
        try:
            path = _path(self._url)
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            self._refuse(400, "The target of the request is no path.")
            return
        parser = self._parser
        request = Request(parser.get_method().decode(), path, self._headers, self._body)
        request.reading = self._loop.time() - (self.deadline - self._shared.patience)
        keep = parser.should_keep_alive() and not parser.should_upgrade()
        if keep and self._data:
            self._shared.heads.learn(self._data, request)
        self._data = b""
        self._clear()
        self._take(request, keep=keep)

    # Answering

    def _take(self, request: Request, *, keep: bool) -> None:
        """Answer ``request`` when its turn comes. ``keep``: the connection stays."""
        self._waiting.append((request, keep))
        self._next()

    def _next(self) -> None:
        """Answer the requests that wait, in order, until one takes its time or the client does not read."""
        while self._waiting and not (self._busy or self._paused or self._resting) and self._transport is not None:
            if self._in_a_row == IN_A_ROW:
                self._resting = True
                self._transport.pause_reading()
                self._loop.call_soon(self._go_on)
                return
            self._in_a_row += 1
            request, keep = self._waiting.popleft()
            answer = self._shared.answer(request)
            if isinstance(answer, Reply):
                self._write(request, answer, keep)
            else:
                self._busy = True
                self.deadline = float("inf")
                self._transport.pause_reading()
                task = self._loop.create_task(self._later(request, answer, keep))
                task.add_done_callback(_TASKS.discard)
                _TASKS.add(task)
        if self._close and not self._waiting and not self._busy and not self._lingering:
            self._end()

    def _go_on(self) -> None:
        """Go on answering, now that others had their turn."""
        self._resting = False
        self._in_a_row = 0
        if self._transport is not None:
            self._transport.resume_reading()
            self._next()

    async def _later(self, request: Request, answer: Coroutine[Any, Any, Reply], keep: bool) -> None:
        reply = await answer
        self._busy = False
        if self._transport is not None:
            self._transport.resume_reading()
            self._write(request, reply, keep)
            self._next()

    def _write(self, request: Request, reply: Reply, keep: bool) -> None:
        assert self._transport is not None
        self._release()
        keep = keep and not self._shared.draining and not (self._close and not self._waiting)
        if not self._paused:
            self._wait()
        self._shared.send(self._transport, reply, keep=keep, bodiless=request.method == "HEAD")
        if not keep:
            self._waiting.clear()
            self._end()

    def _refuse(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer that whatever was asked is refused, and take no more from this client.

        What it still sends is read and thrown away for a while: closed at once, it might never see the reply.
        """
        if self._transport is None or self._lingering:
            return
        if self._busy or self._waiting:  # its turn would come after those; they alone are owed an answer
            self._close = True
            self._next()
            return
        self._lingering = True
        reply = fault(self._url.decode("latin-1"), status, reason, *headers)
        body, self._body = self._body, b""
        self._release()
        self._shared.flush()
        self._transport.write(self._shared.head(reply, keep=False) + reply.body)
        self._shared.refused(Request(self._method(), self._url.decode("latin-1"), self._headers, body), reply)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline = self._loop.time() + LINGER

    def _method(self) -> str:
        """Return the method of the request that is parsed, "" before it is known."""
        return self._parser.get_method().decode() if self._url else ""

    def _too_large(self) -> None:
        self._refuse(413, f"The body is larger than {self._shared.max_body} bytes; send fewer rows.")

    def _refuse_head(self) -> None:
        self._refuse(431, f"The request's line and headers are longer than {MAX_HEAD} bytes.")

    # Time

    def overdue(self) -> None:
        """Act on a deadline that has passed."""
        if self._transport is None:
            return
        if self._lingering or self._paused:
            self._transport.abort()
        elif self._url or self._head:
            self._refuse(408, f"The request did not come within {self._shared.patience:g} s.")
        else:
            self._end()

    def drain(self) -> None:
        """Close it once what is under way is answered; an idle one now."""
        self._close = True
        if not self._busy and not self._waiting and not self._url:
            self._end()

    def _end(self) -> None:
        """Close it once what was answered is out."""
        if self._transport is not None:
            self._shared.flush()
            self._transport.close()

    def cut(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def _wait(self) -> None:
        self.deadline = self._loop.time() + (self._shared.patience if self._url else KEEP_ALIVE)

    def on_message_begin(self) -> None:
        """Give the request its time to come in."""
        self._begun = True
        self.deadline = self._loop.time() + self._shared.patience

    def _clear(self) -> None:
        self._begun = False
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._head = 0

    def _release(self) -> None:
        self._shared.held -= self._held
        self._held = 0


@lru_cache(256)  # a target may be as long as a head
def _path(target: bytes) -> str:
    """Return the path of a request's target, decoded and without its query. Raises what ``parse_url`` raises."""
    path: str = (httptools.parse_url(target).path or b"/").decode()
    return unquote(path) if "%" in path else path


_TASKS: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
