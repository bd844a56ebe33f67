"""The HTTP face of a system: a bare ASGI application, the path of a prediction first.

Where the work is done: a request of up to ``INLINE`` bytes is answered in the event loop's own thread, for handing one
row to another thread costs more than it saves while the interpreter runs one thread at a time; a longer body (a batch)
goes to one worker thread, so that it does not hold up single rows and health checks. A second worker thread follows the
journal and loads champions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from tidemill.base.clock import format_time
from tidemill.base.errors import NotFoundError, NotReadyError, RequestError
from tidemill.base.schema import nearest
from tidemill.engine.serving import Serving
from tidemill.server.metrics import CONTENT_TYPE, Metrics, Sample
from tidemill.spec.feature import OnDemand

#: Bytes of a body up to which a request is answered in the event loop's thread.
INLINE = 16_384

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_T = TypeVar("_T")
_Handler = Callable[["_Call"], Awaitable["_Reply"]]

_JSON = b"application/json"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes on.

    ``body``: bytes of a request's body. ``in_flight``: requests with a body being worked on at once. ``patience``:
    seconds within which the whole body must have come. ``poll``: seconds between looks at the journal.
    """

    body: int = 8 * 1024 * 1024
    in_flight: int = 256
    patience: float = 10.0
    poll: float = 0.05


@dataclass(frozen=True, slots=True)
class _Call:
    """One request: the name in its path, if any, its headers, and where its body comes from."""

    name: str
    headers: Iterable[tuple[bytes, bytes]]
    receive: Receive

    def header(self, wanted: bytes) -> bytes | None:
        return next((value for name, value in self.headers if name == wanted), None)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = _JSON


class _RefusedError(Exception):
    """The request is refused with this reply."""

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes], field: str | None = None) -> None:
        self.reply = _Reply(status, _encode({"error": {"field": field, "reason": reason}}), headers)
        super().__init__(reason)


class _GoneError(Exception):
    """The client went away before its request was whole."""


class App:
    """The ASGI application over one ``Serving``.

    It follows the journal from the server's startup to its shutdown, and then closes the logs.
    """

    def __init__(self, serving: Serving, limits: Limits | None = None) -> None:
        self._serving = serving
        self._limits = limits or Limits()
        self._metrics = Metrics()
        self._in_flight = 0
        self._batches = ThreadPoolExecutor(1, "batch")
        self._journal = ThreadPoolExecutor(1, "journal")
        self._routes: dict[tuple[str, ...], tuple[str, dict[str, _Handler]]] = {
            ("v1", "models", "*", "predict"): ("/v1/models/{model}/predict", {"POST": self._predict}),
            ("v1", "feedback"): ("/v1/feedback", {"POST": self._feedback}),
            ("v1", "tables", "*"): ("/v1/tables/{source}", {"POST": self._push}),
            ("v1", "models"): ("/v1/models", {"GET": self._list_models}),
            ("v1", "models", "*"): ("/v1/models/{model}", {"GET": self._show_model}),
            ("v1", "health"): ("/v1/health", {"GET": self._health}),
            ("v1", "ready"): ("/v1/ready", {"GET": self._ready}),
            ("metrics",): ("/metrics", {"GET": self._show_metrics}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the server's life."""
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        started = time.perf_counter()
        route = "unknown"
        try:
            route, handler, name = self._find(scope["path"], scope["method"])
            reply = await handler(_Call(name, scope["headers"], receive))
        except _GoneError:
            return None
        except Exception as error:  # every failure has its answer, and none shows the program's inside
            reply = self._failure(route, error)
        self._metrics.observe(route, reply.status, time.perf_counter() - started)
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", str(len(reply.body)).encode()),
            *reply.headers,
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        return await send({"type": "http.response.body", "body": reply.body})

    def _find(self, path: str, method: str) -> tuple[str, _Handler, str]:
        parts = tuple(path.split("/")[1:])
        name = ""
        found = self._routes.get(parts)
        if found is None and len(parts) > 2:
            name, found = parts[2], self._routes.get((*parts[:2], "*", *parts[3:]))
        if found is None:
            known = [route for route, _ in self._routes.values()]
            raise NotFoundError(f"There is no route {path[:200]!r}.{nearest(path[:200], known)}")
        route, handlers = found
        handler = handlers.get(method)
        if handler is None:
            allowed = ", ".join(handlers)
            raise _RefusedError(405, f"{route} takes {allowed}, not {method[:20]}.", (b"allow", allowed.encode()))
        return route, handler, name

    def _failure(self, route: str, error: Exception) -> _Reply:
        match error:
            case _RefusedError():
                return error.reply
            case RequestError():
                return _RefusedError(400, str(error), field=error.field).reply
            case NotFoundError():
                return _RefusedError(404, str(error)).reply
            case NotReadyError():
                return _RefusedError(503, str(error), (b"retry-after", b"1")).reply
        id = os.urandom(8).hex()
        log("error", "a request failed", error, id=id, route=route)
        reason = "The server failed; its log has the details under this id."
        return _Reply(500, _encode({"error": {"id": id, "field": None, "reason": reason}}))

    # Predictions, feedback, pushed rows

    async def _predict(self, call: _Call) -> _Reply:
        nonce = _token(call, b"x-request-id", "X-Request-Id")
        with self._admitted():
            body = await self._body(call)
            kept = await self._work(body, partial(self._serving.predict, call.name, body, nonce=nonce))
            await self._durable(kept.synced)
        self._metrics.predictions[call.name, kept.answers[0].version] += len(kept.answers)
        return _Reply(200, _encode({"model": call.name, "predictions": kept.answers}))

    async def _feedback(self, call: _Call) -> _Reply:
        nonce = _token(call, b"idempotency-key", "Idempotency-Key")
        with self._admitted():
            body = await self._body(call)
            id, synced = await self._work(body, partial(self._serving.feedback, body, nonce=nonce))
            await self._durable((synced,))
        return _Reply(202, _encode({"feedback": id}))

    async def _push(self, call: _Call) -> _Reply:
        key = _token(call, b"idempotency-key", "Idempotency-Key")
        with self._admitted():
            body = await self._body(call)
            rows, synced = await self._work(body, partial(self._serving.push, call.name, body, idempotency_key=key))
            await self._durable((synced,))
        return _Reply(202, _encode({"rows": rows}))

    @contextlib.contextmanager
    def _admitted(self) -> Any:
        if self._in_flight >= self._limits.in_flight:
            raise _RefusedError(503, "Too many requests are under way; try again.", (b"retry-after", b"1"))
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _body(self, call: _Call) -> bytes:
        limit = self._limits.body
        too_large = _RefusedError(
            413, f"The body is larger than {limit} bytes; send fewer rows.", (b"connection", b"close")
        )
        announced = call.header(b"content-length") or b""
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.patience):
                while True:
                    message = await call.receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part: bytes = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise too_large
                    parts.append(part)
                    if not message.get("more_body"):
                        return part if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            reason = f"The body did not come within {self._limits.patience:g} s."
            raise _RefusedError(408, reason, (b"connection", b"close")) from None

    async def _work(self, body: bytes, work: Callable[[], _T]) -> _T:
        if len(body) <= INLINE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._batches, work)

    async def _durable(self, synced: Iterable[Future[None]]) -> None:
        if self._serving.system.endpoint.durability == "sync":
            for each in synced:
                await asyncio.wrap_future(each)

    # What is served, and how it is

    async def _list_models(self, _: _Call) -> _Reply:
        return _Reply(200, _encode({"models": [self._describe(model.name) for model in self._serving.system.models]}))

    async def _show_model(self, call: _Call) -> _Reply:
        return _Reply(200, _encode(self._describe(call.name)))

    def _describe(self, name: str) -> dict[str, Any]:
        model = self._serving.model(name)
        champion = self._serving.champions.get(name)
        described: dict[str, Any] = {
            "model": name,
            "task": model.task,
            "key": model.examples.key,
            "champion": None,
            "versions": len(self._serving.state.model(name).versions),
            "trouble": self._serving.troubles.get(name),
        }
        if champion:
            described["champion"] = {"version": champion.version, "training": champion.training}
            described["classes"] = champion.predictor.encoding.classes
            described["columns"] = {column: str(dtype) for column, dtype in champion.rows.schema.items()}
        return described

    def _behind(self) -> dict[str, int]:
        """Return for each table how many committed rows the online state has not applied."""
        applied = self._serving.watermark()
        seen = dict(applied.next_seq) if applied else {}
        rows = self._serving.state.rows
        tables = {view.table.name for view in self._serving.system.views if not isinstance(view, OnDemand)}
        return {table: max(rows.get(table, 0) - seen.get(table, 0), 0) for table in sorted(tables)}

    async def _health(self, _: _Call) -> _Reply:
        applied = self._serving.watermark()
        behind = self._behind()
        views = {
            view.name: {"table": view.table.name, "rows_behind": behind[view.table.name]}
            for view in self._serving.system.views
            if not isinstance(view, OnDemand)
        }
        health = {
            "alive": True,
            "journal": self._serving.applied,
            "watermark": format_time(applied.t) if applied else None,
            "views": views,
            "champions": {name: champion.version for name, champion in self._serving.champions.items()},
            "troubles": dict(self._serving.troubles),
        }
        return _Reply(200, _encode(health))

    async def _ready(self, _: _Call) -> _Reply:
        reason = self._serving.waiting_for()
        if reason:
            raise NotReadyError(reason)
        return _Reply(200, _encode({"ready": True}))

    async def _show_metrics(self, _: _Call) -> _Reply:
        applied = self._serving.watermark()
        behind = self._behind().items()
        gauges: list[tuple[str, str, list[Sample]]] = [
            ("tidemill_journal_applied", "Journal entry served by.", [({}, self._serving.applied)]),
            (
                "tidemill_journal_behind",
                "Journal entries that online state has not applied.",
                [({}, max(self._serving.state.number - (applied.journal if applied else 0), 0))],
            ),
            (
                "tidemill_watermark_seconds",
                "Time as of which questions are answered, seconds since the epoch.",
                [({}, applied.t / 1e6)] if applied else [],
            ),
            (
                "tidemill_rows_behind",
                "Committed rows of a table that online state has not applied.",
                [({"table": table}, rows) for table, rows in behind],
            ),
            ("tidemill_in_flight", "Requests with a body under way.", [({}, self._in_flight)]),
        ]
        return _Reply(200, self._metrics.render(gauges), content_type=CONTENT_TYPE)

    # The server's life

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # startup
        try:
            await asyncio.get_running_loop().run_in_executor(self._journal, self._serving.refresh)
        except Exception as error:
            log("error", "the journal cannot be followed", error)
            return await send({"type": "lifespan.startup.failed", "message": str(error)})
        follower = asyncio.create_task(self._follow())
        await send({"type": "lifespan.startup.complete"})
        await receive()  # shutdown, when no request is under way any more
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        self._journal.shutdown()
        self._batches.shutdown()
        self._serving.close()
        return await send({"type": "lifespan.shutdown.complete"})

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        told: object = None
        while True:
            await asyncio.sleep(self._limits.poll)
            try:
                await loop.run_in_executor(self._journal, self._serving.refresh)
                trouble = dict(self._serving.troubles) or None
                if trouble and trouble != told:
                    log("error", "a champion is not served", troubles=trouble)
                told = trouble
            except Exception as error:  # the database may be back at the next look; until then the old state serves
                if str(error) != told:
                    log("error", "the journal cannot be followed", error)
                told = str(error)


def log(level: str, event: str, error: BaseException | None = None, **details: Any) -> None:
    """Write one line of JSON to the error stream, with the traceback when there is an ``error``."""
    line = {"level": level, "event": event, **details}
    if error is not None:
        line |= {"error": f"{type(error).__name__}: {error}", "trace": "".join(traceback.format_exception(error))}
    print(json.dumps(line), file=sys.stderr, flush=True)


def _token(call: _Call, header: bytes, name: str) -> str | None:
    value = call.header(header)
    if value is None:
        return None
    if not 0 < len(value) <= 128 or not all(0x21 <= byte <= 0x7E for byte in value):
        raise RequestError("Must be 1 to 128 visible ASCII characters without spaces.", field=name)
    return value.decode()
