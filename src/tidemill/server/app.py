"""What the routes answer: the application over one ``Serving``, the path of a prediction first.

Where the work is done: a request of up to ``INLINE`` bytes is answered in the event loop's own thread, for handing one
row to another thread costs more than it saves while the interpreter runs one thread at a time; a longer body (a batch)
goes to one worker thread, so that it does not hold up single rows and health checks. So does what an estimator answers
itself, to another, for its code may take any time. A third thread follows the journal and loads versions; a fourth asks
the shadows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tidemill import __version__
from tidemill.base.clock import SECOND
from tidemill.base.errors import NotFoundError, NotReadyError, RequestError, TidemillError
from tidemill.base.schema import nearest
from tidemill.engine.predict.live import Kept
from tidemill.engine.predict.serving import Serving
from tidemill.engine.predict.turn import Turn
from tidemill.server import describe, infer, openapi
from tidemill.server.access import AccessLog
from tidemill.server.message import LATER, RefusedError, Reply, Request, encode, fault
from tidemill.server.metrics import CONTENT_TYPE, Metrics, gauge, render
from tidemill.server.peers import Peers, Told
from tidemill.spec.system import Endpoint

#: Bytes of a body up to which a request is answered in the event loop's thread.
INLINE = 16_384
#: Requests that wait for the shadows, at most; more are counted and not mirrored.
MIRRORS = 256
#: Seconds between two tellings of this worker's figures, and between two writings of the access log.
TELL = 1.0

_Later = Coroutine[Any, Any, Reply]
#: Answers a request about a name and a version (text; empty where the path has none).
_Handler = Callable[[Request, str, str], Reply | _Later]
#: What was kept of a request, the reply, and the seconds that writing the reply took.
_Worked = tuple[Kept, Reply, float]
#: Answers a request, in a turn of the loop if it is given one.
_Work = Callable[[Turn | None], _Worked]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on.

    ``in_flight``: requests being worked on at once. ``seconds``: within which one must be answered. ``poll``: seconds
    between looks at the journal.
    """

    in_flight: int = 256
    seconds: float = 10.0
    poll: float = 0.05

    @staticmethod
    def of(endpoint: Endpoint) -> Limits:
        """Return the limits that ``endpoint`` declares."""
        return Limits(endpoint.max_requests, endpoint.timeout / SECOND)


class App:
    """Answers whole requests. ``startup`` first, ``shutdown`` last; it follows the journal in between."""

    def __init__(
        self,
        serving: Serving,
        limits: Limits | None = None,
        *,
        peers: Peers | None = None,
        access: AccessLog | None = None,
    ) -> None:
        self._serving = serving
        self._limits = limits or Limits.of(serving.system.endpoint)
        self._peers = peers or Peers()
        self._access = access or AccessLog(None, "none")
        self._metrics = Metrics()
        #: Tells how many connections are open.
        self.connections: Callable[[], int] = lambda: 0
        self._sync = serving.system.endpoint.durability == "sync"
        self._turn = serving.turn()
        self._answered: list[tuple[Request, str, Reply, float]] = []  # and not yet accounted for
        self._instead: Reply | None = None  # of the held among them
        self._in_flight = 0
        self._mirroring = 0
        self._batches = ThreadPoolExecutor(1, "batch")
        self._estimators = ThreadPoolExecutor(1, "estimator")
        self._journal = ThreadPoolExecutor(1, "journal")
        self._shadows = ThreadPoolExecutor(1, "shadow")
        self._follower: asyncio.Task[None] | None = None
        self._document: tuple[int, bytes] | None = None
        self._routes: dict[str, dict[str, _Handler]] = {
            "/v1/models/{model}/predict": {"POST": self._predict},
            "/v1/models": {"GET": self._list_models},
            "/v1/models/{model}": {"GET": self._show_model},
            "/v1/feedback": {"POST": self._feedback},
            "/v1/tables/{source}": {"POST": self._push},
            "/v1/health": {"GET": self._health},
            "/v1/ready": {"GET": self._ready},
            "/v2": {"GET": self._show_server},
            "/v2/health/live": {"GET": self._alive},
            "/v2/health/ready": {"GET": self._ready},
            "/v2/models/{model}": {"GET": self._show_inputs},
            "/v2/models/{model}/versions/{version}": {"GET": self._show_inputs},
            "/v2/models/{model}/ready": {"GET": self._model_ready},
            "/v2/models/{model}/versions/{version}/ready": {"GET": self._model_ready},
            "/v2/models/{model}/infer": {"POST": self._infer},
            "/v2/models/{model}/versions/{version}/infer": {"POST": self._infer},
            "/openapi.json": {"GET": self._show_document},
            "/metrics": {"GET": self._show_metrics},
        }
        self._patterns = {tuple("*" if part[:1] == "{" else part for part in path.split("/")): path
                          for path in self._routes}  # fmt: skip
        # What is asked for most is looked up whole.
        self._known: dict[tuple[str, str], tuple[str, _Handler, str, str]] = {
            ("POST", f"/v1/models/{model.name}/predict"): ("/v1/models/{model}/predict", self._predict, model.name, "")
            for model in serving.system.models
        }

    # Answering

    def answer(self, request: Request) -> Reply | _Later:
        """Answer ``request``, at once or later. Never raises."""
        began = time.perf_counter()
        route = "unknown"
        try:
            found = self._known.get((request.method, request.path)) or self._find(request)
            route, handler, name, version = found
            if b"content-encoding" in request.headers:
                _refuse_compressed(request)
            reply = handler(request, name, version)
        except Exception as error:  # every failure has its answer, and none shows the program's inside
            reply = self._failure(route, request, error)
        if isinstance(reply, Reply):
            self._answered.append((request, route, reply, time.perf_counter() - began))
            return reply
        return self._finish(request, route, reply, began)

    def settle(self) -> Reply | None:
        """End the turn of the loop: what its replies state is in the log. Never raises.

        Returns None, or what goes out in place of the replies that were held.
        """
        self._instead = None
        try:
            self._turn.end()
        except Exception as error:
            self._instead = self._broken("/v1", "predictions", error)
        return self._instead

    def refused(self, request: Request, reply: Reply) -> None:
        """Take note of ``request``, which was refused before it was whole."""
        self._answered.append((request, "unknown", reply, 0.0))

    def account(self) -> None:
        """Count the requests that were answered, and take them down in the access log."""
        answered, self._answered = self._answered, []
        instead, self._instead = self._instead, None
        for request, route, reply, seconds in answered:
            said = instead if instead is not None and reply.held else reply
            self._metrics.observe(route, said.status, seconds)
            self._access.note(request, route, said.status, len(said.body), seconds)

    async def _finish(self, request: Request, route: str, answering: _Later, began: float) -> Reply:
        try:
            reply = await answering
        except Exception as error:
            reply = self._failure(route, request, error)
        self._answered.append((request, route, reply, time.perf_counter() - began))
        return reply

    def _find(self, request: Request) -> tuple[str, _Handler, str, str]:
        """Return the route, what answers it, and the name and the version in the path."""
        self._turn.release()
        path, method = request.path, request.method
        parts = path.split("/")
        name = version = ""
        route = self._patterns.get(tuple(parts))
        if route is None and len(parts) > 3:
            name, parts[3] = parts[3], "*"
            route = self._patterns.get(tuple(parts))
            if route is None and len(parts) > 5:
                version, parts[5] = parts[5], "*"
                route = self._patterns.get(tuple(parts))
        if route is None:
            raise NotFoundError(f"There is no route {path[:200]!r}.{nearest(path[:200], self._routes)}")
        handlers = self._routes[route]
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(handlers)
            raise RefusedError(405, f"{route} takes {allowed}, not {method[:20]}.", (b"allow", allowed.encode()))
        return route, handler, name, version

    def _failure(self, route: str, request: Request, error: Exception) -> Reply:
        headers: tuple[tuple[bytes, bytes], ...] = ()
        field: str | None = None
        match error:
            case RefusedError():
                status, reason, headers, field = error.status, error.reason, error.headers, error.field
            case RequestError():
                status, reason, field = 400, str(error), error.field
            case NotFoundError():
                status, reason = 404, str(error)
            case NotReadyError():
                status, reason, headers = 503, str(error), (LATER,)
            case _:
                return self._broken(request.path, route, error)
        return fault(request.path, status, reason, *headers, field=field)

    @staticmethod
    def _broken(path: str, route: str, error: Exception) -> Reply:
        id = os.urandom(8).hex()
        log("error", "a request failed", error, id=id, route=route)
        return fault(path, 500, "The server failed; its log has the details under this id.", id=id)

    # Predictions

    def _predict(self, request: Request, name: str, _: str) -> Reply | _Later:
        nonce = _nonce(request)
        if self._at_once(request, name, None):
            return self._said(request, name, *self._predicted(request, name, nonce, self._turn))
        return self._worked_later(request, name, None, partial(self._predicted, request, name, nonce))

    def _predicted(self, request: Request, name: str, nonce: str | None, turn: Turn | None) -> _Worked:
        kept = self._serving.predict(name, request.body, nonce=nonce, turn=turn)
        began = time.perf_counter()
        reply = Reply(200, encode({"model": name, "predictions": kept.answers}), held=kept.held)
        return kept, reply, time.perf_counter() - began

    def _infer(self, request: Request, name: str, version: str) -> Reply | _Later:
        nonce = _nonce(request)
        pinned = self._number(name, version)

        def work(turn: Turn | None) -> _Worked:
            live = self._serving.live(name)
            began = time.perf_counter()
            asked, columns = infer.read(request.body, request.headers.get(infer.LENGTH), live)
            parsing = time.perf_counter() - began
            kept = self._serving.predict_columns(live, columns, nonce=nonce, version=pinned, parsing=parsing, turn=turn)
            began = time.perf_counter()
            reply = infer.answer(name, live, asked, kept.answers)._replace(held=kept.held)
            return kept, reply, time.perf_counter() - began

        if self._at_once(request, name, pinned):
            return self._said(request, name, *work(self._turn))
        return self._worked_later(request, name, pinned, work)

    def _number(self, name: str, version: str) -> int | None:
        """Return the version that a path names, None for none. Raises NotFoundError."""
        if not version:
            return None
        self._serving.model(name)
        if not version.isdecimal() or len(version) > 9:
            raise NotFoundError(f"There is no version {version[:40]!r}; versions are whole numbers.")
        return self._serving.state.model(name).version(int(version)).number

    def _at_once(self, request: Request, name: str, version: int | None) -> bool:
        """Tell whether ``request`` is answered here and now: it is short, and nothing is to be waited for."""
        return len(request.body) <= INLINE and not self._sync and self._serving.quick(name, version)

    async def _worked_later(self, request: Request, name: str, version: int | None, work: _Work) -> Reply:
        with self._admitted():
            async with self._in_time():
                loop = asyncio.get_running_loop()
                if not self._serving.loaded(name, version):
                    await loop.run_in_executor(self._journal, self._serving.load, name, version)
                if len(request.body) > INLINE:
                    kept, reply, encoding = await loop.run_in_executor(self._batches, work, None)
                elif not self._serving.quick(name, version):
                    kept, reply, encoding = await loop.run_in_executor(self._estimators, work, None)
                else:
                    self._turn.release()
                    kept, reply, encoding = work(None)
                await self._durable(kept.synced)
        return self._said(request, name, kept, reply, encoding)

    def _said(self, request: Request, name: str, kept: Kept, reply: Reply, encoding: float) -> Reply:
        self._metrics.predicted(name, kept.answers, (request.reading, *kept.seconds, encoding))
        if kept.mirror is not None:
            if self._mirroring >= MIRRORS:
                self._metrics.dropped += 1
            else:
                self._mirroring += 1
                asyncio.get_running_loop().call_soon(self._mirror, kept.mirror)  # once the answer is out
        return reply

    def _mirror(self, mirror: Callable[[], None]) -> None:
        def done(_: Future[None]) -> None:
            self._mirroring -= 1

        self._shadows.submit(mirror).add_done_callback(done)

    # Feedback and pushed rows

    def _feedback(self, request: Request, _: str, __: str) -> Reply | _Later:
        nonce = _token(request, b"idempotency-key", "Idempotency-Key")
        work = partial(self._serving.inbox.feedback, request.body, nonce=nonce)
        return self._taken(request, work, "feedback")

    def _push(self, request: Request, name: str, _: str) -> Reply | _Later:
        key = _token(request, b"idempotency-key", "Idempotency-Key")
        work = partial(self._serving.inbox.push, name, request.body, idempotency_key=key)
        return self._taken(request, work, "rows")

    def _taken(self, request: Request, work: Callable[[], tuple[Any, Future[None]]], what: str) -> Reply | _Later:
        if len(request.body) <= INLINE and not self._sync:
            return Reply(202, encode({what: work()[0]}))
        return self._taken_later(request, work, what)

    async def _taken_later(self, request: Request, work: Callable[[], tuple[Any, Future[None]]], what: str) -> Reply:
        with self._admitted():
            async with self._in_time():
                loop = asyncio.get_running_loop()
                short = len(request.body) <= INLINE
                done, synced = work() if short else await loop.run_in_executor(self._batches, work)
                await self._durable(synced)
                return Reply(202, encode({what: done}))

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= self._limits.in_flight:
            raise RefusedError(503, "Too many requests are under way; try again.", LATER)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @contextlib.asynccontextmanager
    async def _in_time(self) -> Any:
        try:
            async with asyncio.timeout(self._limits.seconds):
                yield
        except TimeoutError:
            reason = f"It could not be done within {self._limits.seconds:g} s; try again, or send fewer rows."
            raise RefusedError(503, reason, LATER) from None

    async def _durable(self, synced: Future[None] | None) -> None:
        if self._sync and synced is not None:
            await asyncio.wrap_future(synced)

    # What is served, and how it is

    def _list_models(self, _: Request, __: str, ___: str) -> Reply:
        return Reply(
            200,
            encode({"models": [describe.model(self._serving, model.name) for model in self._serving.system.models]}),
        )

    def _show_model(self, _: Request, name: str, __: str) -> Reply:
        return Reply(200, encode(describe.model(self._serving, name)))

    def _show_inputs(self, _: Request, name: str, version: str) -> Reply | _Later:
        self._number(name, version)
        if not self._serving.loaded(name):
            return self._show_inputs_later(name)
        versions = len(self._serving.state.model(name).versions)
        return Reply(200, encode(infer.metadata(name, self._serving.live(name), versions)))

    async def _show_inputs_later(self, name: str) -> Reply:
        await asyncio.get_running_loop().run_in_executor(self._journal, self._serving.load, name)
        versions = len(self._serving.state.model(name).versions)
        return Reply(200, encode(infer.metadata(name, self._serving.live(name), versions)))

    def _model_ready(self, _: Request, name: str, version: str) -> Reply:
        self._serving.model(name)
        self._number(name, version)
        if reason := self._serving.waiting_for(name):
            raise NotReadyError(reason)
        return Reply(200, encode({"name": name, "ready": True}))

    def _show_server(self, _: Request, __: str, ___: str) -> Reply:
        extensions = ["binary_tensor_data"]
        return Reply(200, encode({"name": "tidemill", "version": __version__, "extensions": extensions}))

    def _alive(self, _: Request, __: str, ___: str) -> Reply:
        return Reply(200, encode({"live": True}))

    def _ready(self, _: Request, __: str, ___: str) -> Reply:
        if reason := self._serving.waiting_for():
            raise NotReadyError(reason)
        return Reply(200, encode({"ready": True}))

    def _show_document(self, _: Request, __: str, ___: str) -> Reply:
        if self._document is None or self._document[0] != self._serving.applied:
            self._document = self._serving.applied, encode(openapi.document(self._serving))
        return Reply(200, self._document[1])

    def _health(self, _: Request, __: str, ___: str) -> Reply:
        workers = {name: told.applied for name, told in self._peers.all(Told(self._serving.applied, [])).items()}
        return Reply(200, encode(describe.health(self._serving, workers)))

    def _show_metrics(self, _: Request, __: str, ___: str) -> Reply:
        workers = {name: told.families for name, told in self._peers.all(self._told()).items()}
        return Reply(200, render(workers), content_type=CONTENT_TYPE)

    def _told(self) -> Told:
        self._turn.release()
        self.account()
        return Told(
            self._serving.applied,
            [
                *self._metrics.families(),
                *describe.gauges(self._serving),
                gauge("tidemill_in_flight", "Requests being worked on.", [({}, self._in_flight)]),
                gauge("tidemill_connections", "Open connections.", [({}, self.connections())]),
            ],
        )

    # The server's life

    async def startup(self) -> None:
        """Take in the journal and follow it from now on. Raises what the journal raises."""
        await asyncio.get_running_loop().run_in_executor(self._journal, self._serving.refresh)
        self._tell()
        self._follower = asyncio.create_task(self._follow())

    async def shutdown(self) -> None:
        """Stop following, ask the shadows what still waits, sync and close the logs."""
        self.settle()
        if self._follower is not None:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        for each in (self._journal, self._batches, self._estimators, self._shadows):
            each.shutdown()
        self._serving.close()
        self._tell()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        said: object = None
        told_at, told = 0.0, -1
        while True:
            await asyncio.sleep(self._limits.poll)
            try:
                await loop.run_in_executor(self._journal, self._serving.refresh)
                trouble = dict(self._serving.troubles) or None
                if trouble and trouble != said:
                    log("error", "a version is not served", troubles=trouble)
                said = trouble
            except Exception as error:  # the database may be back at the next look; until then the old state serves
                if str(error) != said:
                    log("error", "the journal cannot be followed", error)
                said = str(error)
            if told != self._serving.applied or loop.time() - told_at >= TELL:
                told_at, told = loop.time(), self._serving.applied
                self._tell()

    def _tell(self) -> None:
        try:
            self._peers.tell(self._told())
            self._access.flush()
        except (OSError, TidemillError) as error:  # a full disk: predictions go on as long as their log takes them
            log("error", "figures or the access log cannot be written", error)


def log(level: str, event: str, error: BaseException | None = None, **details: Any) -> None:
    """Write one line of JSON to the error stream, with the traceback when there is an ``error``."""
    line = {"level": level, "event": event, **details}
    if error is not None:
        line |= {"error": f"{type(error).__name__}: {error}", "trace": "".join(traceback.format_exception(error))}
    print(json.dumps(line), file=sys.stderr, flush=True)


def _refuse_compressed(request: Request) -> None:
    if request.body and request.headers[b"content-encoding"].lower() != b"identity":
        raise RefusedError(415, "The body must not be compressed.", field="Content-Encoding")


def _nonce(request: Request) -> str | None:
    """Return what makes the ids of this very request repeatable, where its client asks for that.

    Another request under the same header gets other ids, or one prediction would stand for both in the log.
    """
    token = _token(request, b"x-request-id", "X-Request-Id")
    if token is None:
        return None
    asked = hashlib.blake2b(request.path.encode(), digest_size=8)
    asked.update(b"\0")
    asked.update(request.body)
    return f"{token}-{asked.hexdigest()}"


def _token(request: Request, header: bytes, name: str) -> str | None:
    value = request.headers.get(header)
    if value is None:
        return None
    if not 0 < len(value) <= 128 or not all(0x21 <= byte <= 0x7E for byte in value):
        raise RequestError("Must be 1 to 128 visible ASCII characters without spaces.", field=name)
    return value.decode()
