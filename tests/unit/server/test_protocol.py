"""Connections over real sockets, with an application that says what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tidemill.server import protocol
from tidemill.server.message import Reply, Request
from tidemill.server.protocol import Connection, Shared

Scenario = Callable[[Any, Shared], Awaitable[Any]]


def echo(request: Request) -> Reply | Coroutine[Any, Any, Reply]:
    said = Reply(200, f"{request.method} {request.path} {len(request.body)}".encode())
    return later(said) if request.path.startswith("/later") else said


async def later(reply: Reply) -> Reply:
    await asyncio.sleep(0.05)
    return reply


def play(scenario: Scenario, **limits: Any) -> Any:
    """Run ``scenario`` with a function that opens a connection, on the loop that servers run on."""

    async def run() -> Any:
        shared = Shared(limits.pop("answer", echo), **limits)
        server = await asyncio.get_running_loop().create_server(lambda: Connection(shared), "127.0.0.1", 0)
        sweeper = asyncio.create_task(shared.sweep())
        port = server.sockets[0].getsockname()[1]
        opened: list[asyncio.StreamWriter] = []

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.append(writer)
            return reader, writer

        try:
            async with asyncio.timeout(20):
                return await scenario(connect, shared)
        finally:
            for writer in opened:
                writer.transport.abort()
            sweeper.cancel()
            server.close()
            await shared.drain(0.1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def post(path: str, body: bytes, *more: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *more, "", ""]
    return "\r\n".join(head).encode() + body


def talk(data: bytes, replies: int = 1, **limits: Any) -> Any:
    async def scenario(connect: Any, _: Shared) -> Any:
        reader, writer = await connect()
        writer.write(data)
        found = [await answer(reader) for _ in range(replies)]
        writer.close()
        return found

    return play(scenario, **limits)


def test_requests_of_one_connection_are_answered_in_order() -> None:
    sent = b"".join(post(f"/{'later/' * (i % 3 == 0)}{i}", b"x" * i) for i in range(9))
    found = talk(sent, 9)
    assert [body.decode().split()[2] for _, _, body in found] == [str(i) for i in range(9)]
    assert all("connection" not in headers for _, headers, _ in found)


def test_a_body_in_chunks_and_a_path_with_signs() -> None:
    head = b"POST /a%20b/%C3%A4?q=1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked = head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    ((_, _, body),) = talk(chunked)
    assert body.decode() == "POST /a b/ä 5"


def test_http_1_0_is_closed_and_head_has_no_body() -> None:
    async def scenario(connect: Any, _: Shared) -> Any:
        reader, writer = await connect()
        writer.write(b"HEAD /x HTTP/1.0\r\n\r\n")
        said = await reader.read()
        writer.close()
        return said

    said = play(scenario)
    assert b"content-length: 9\r\n" in said
    assert said.endswith(b"connection: close\r\n\r\n")


def test_replies_go_out_once_the_turn_is_settled() -> None:
    """What cannot be settled takes the place of the replies that were held, and of no other."""
    settled: list[str] = []

    def hold(request: Request) -> Reply:
        settled.append(request.path)
        return Reply(200, request.path.encode(), held=request.path.startswith("/held"))

    def settle() -> Reply | None:
        settled.append("settled")
        return Reply(500, b"instead") if any("broken" in each for each in settled) else None

    async def scenario(connect: Any, shared: Shared) -> Any:
        first, second = await connect(), await connect()
        found = []
        for path in ("/held", "/free", "/held/broken", "/free"):
            for _, writer in (first, second):
                writer.write(post(path, b""))
            for reader, _ in (first, second):
                found.append((await answer(reader))[::2])
        return found

    found = play(scenario, answer=hold, settle=settle)
    assert found[:4] == [(200, b"/held")] * 2 + [(200, b"/free")] * 2
    assert found[4:] == [(500, b"instead")] * 2 + [(200, b"/free")] * 2
    assert settled.index("settled") > settled.index("/held")


def test_many_requests_at_once_do_not_hold_up_another_client() -> None:
    """One connection sends 500 requests in one piece; what others ask meanwhile is answered among them, not after."""
    order: list[str] = []

    def note(request: Request) -> Reply:
        order.append(request.path)
        return Reply(200, request.path.encode())

    async def scenario(connect: Any, _: Shared) -> Any:
        (reader, greedy), (other, writer) = await connect(), await connect()
        greedy.write(b"".join(post(f"/{number}", b"") for number in range(500)))
        writer.write(post("/other", b""))
        said = await answer(other)
        found = [(await answer(reader))[2] for _ in range(500)]
        return said[2], found

    said, found = play(scenario, answer=note)
    assert (said, found) == (b"/other", [b"/%d" % number for number in range(500)])
    assert order.index("/other") < 100
    assert len(order) == 501


def test_a_client_may_ask_before_it_sends() -> None:
    async def scenario(connect: Any, _: Shared) -> Any:
        reader, writer = await connect()
        writer.write(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"abc")
        return asked, await answer(reader)

    asked, (status, _, body) = play(scenario)
    assert (asked, status, body) == (b"HTTP/1.1 100 Continue\r\n\r\n", 200, b"POST /x 3")


def test_another_protocol_is_not_taken_up() -> None:
    upgrade = b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    ((status, headers, _),) = talk(upgrade)
    assert (status, headers["connection"]) == (200, "close")


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"NONSENSE\r\n\r\n", 400, "not HTTP/1.1"),
        (post("/x", b"", "content-length: 1")[:-4] + b"\r\n\r\n", 400, "not HTTP/1.1"),
        (b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 101\r\n\r\n", 413, "larger than 100 bytes"),
        (b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n65\r\n" + b"x" * 101, 413, "larger"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431, "longer than 32768 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 6000 + b"\r\n", 431, "longer than 32768 bytes"),
    ],
)
def test_what_cannot_be_taken_is_refused_and_the_connection_closed(sent: bytes, status: int, reason: str) -> None:
    ((got, headers, body),) = talk(sent, max_body=100)
    assert (got, headers["connection"]) == (status, "close")
    assert reason in json.loads(body)["error"]["reason"]


def test_errors_of_the_v2_protocol_have_its_form() -> None:
    ((_, _, body),) = talk(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 101\r\n\r\n", max_body=100)
    assert isinstance(json.loads(body)["error"], str)


def test_slow_clients_do_not_hold_up_others_and_are_given_up() -> None:
    async def scenario(connect: Any, shared: Shared) -> Any:
        halves = [await connect() for _ in range(30)]
        for place, (_, writer) in enumerate(halves):
            writer.write(post("/slow", b"x" * 50)[: 20 if place % 2 else -10])
        silent = await connect()
        reader, writer = await connect()
        for _ in range(20):
            writer.write(post("/quick", b"x"))
            assert (await answer(reader))[0] == 200
        given_up = [await answer(reader) for reader, _ in halves]
        assert await silent[0].read() == b""
        assert shared.held == 0
        return {status for status, _, _ in given_up}

    assert play(scenario, patience=0.3) == {408}


def test_a_reader_that_does_not_read_is_cut() -> None:
    async def scenario(connect: Any, shared: Shared) -> bool:
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(post("/big", b"") * 40)
        while not any(each._paused for each in shared.connections):
            await asyncio.sleep(0.01)
        while shared.connections:
            await asyncio.sleep(0.01)
        writer.close()
        return True

    big = Reply(200, b"x" * 1_000_000)
    assert play(scenario, answer=lambda _: big, patience=0.3)


def test_large_bodies_share_a_bounded_memory() -> None:
    async def scenario(connect: Any, shared: Shared) -> Any:
        reader, writer = await connect()
        writer.write(post("/first", b"x" * 60_000)[:-1])
        while shared.held < 50_000:
            await asyncio.sleep(0.01)
        second_reader, second = await connect()
        second.write(post("/second", b"x" * 60_000))
        refused = await answer(second_reader)
        third_reader, third = await connect()
        third.write(post("/small", b"x" * 1000))
        small = await answer(third_reader)
        writer.write(b"x")
        first = await answer(reader)
        return refused[0], refused[1]["retry-after"], small[0], first[0], shared.held

    assert play(scenario, memory=100_000, max_body=100_000) == (503, "1", 200, 200, 0)


def test_too_many_connections_are_told_when_to_come_back() -> None:
    async def scenario(connect: Any, _: Shared) -> Any:
        first = await connect()
        reader, _ = await connect()
        refused = await answer(reader)
        first[1].write(post("/x", b""))
        return refused, (await answer(first[0]))[0]

    (status, headers, _), first = play(scenario, max_connections=1)
    assert (status, headers["retry-after"], headers["connection"], first) == (503, "1", "close", 200)


def test_draining_finishes_what_has_begun_and_closes_the_rest() -> None:
    async def scenario(connect: Any, shared: Shared) -> Any:
        idle, half, busy = await connect(), await connect(), await connect()
        half[1].write(post("/half", b"abc")[:-1])
        busy[1].write(post("/later", b""))
        while len(shared.connections) < 3 or not any(each._busy for each in shared.connections):
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(shared.drain(5.0))
        assert await idle[0].read() == b""
        half[1].write(b"c")
        found = [await answer(half[0]), await answer(busy[0])]
        await draining
        return [(status, headers["connection"]) for status, headers, _ in found]

    assert play(scenario) == [(200, "close"), (200, "close")]


def test_a_client_that_goes_away_leaves_nothing_behind() -> None:
    async def scenario(connect: Any, shared: Shared) -> bool:
        for sent in (b"", post("/later", b""), post("/x", b"y" * 50_000)[:-1]):
            _, writer = await connect()
            writer.write(sent)
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.close()
        while shared.connections:
            await asyncio.sleep(0.01)
        return shared.held == 0 and not protocol._TASKS

    assert play(scenario)


def test_what_is_refused_is_told() -> None:
    told: list[tuple[str, str, int]] = []

    def refused(request: Request, reply: Reply) -> None:
        told.append((request.method, request.path, reply.status))

    talk(post("/large", b"x" * 11), max_body=10, refused=refused)
    talk(b"GET /x HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", refused=refused)
    talk(b"nonsense\r\n\r\n", refused=refused)
    talk(b"POST /slow HTTP/1.1\r\ncontent-length: 5\r\n\r\nx", patience=0.1, refused=refused)
    assert told == [("POST", "/large", 413), ("GET", "/x", 431), ("", "", 400), ("POST", "/slow", 408)]
