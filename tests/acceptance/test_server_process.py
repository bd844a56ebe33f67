"""A real server process over a real workspace, as ``tidemill up`` starts it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tidemill.engine.predict.records import PREDICTIONS

#: Runs the server and notes, in the file that its first argument names, how long a file was that has been synced.
NOTING = """
import os, sys
notes = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
inner = os.fdatasync

def fdatasync(handle):
    size, path = os.fstat(handle).st_size, os.readlink(f"/proc/self/fd/{handle}")
    inner(handle)
    os.write(notes, f"{size} {path}\\n".encode())

os.fdatasync = fdatasync
from tidemill.server.main import main
main(sys.argv[2:])
"""


class Server:
    """One server process. Leaving the block kills it if it still runs."""

    def __init__(self, stage: Any, run: Sequence[str] = ("-m", "tidemill.server.main")) -> None:
        command = [sys.executable, *run, "--system", str(stage.project.path), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.port = int(json.loads(line)["port"])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with contextlib.closing(self.connect()) as connection:
            return exchange(connection, method, path, body)

    def wait_for(self, entry: int) -> None:
        """Return once the server has acknowledged journal entry ``entry``."""
        deadline = time.monotonic() + 30
        while self.ask("GET", "/v1/health")[1]["journal"] < entry:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def exchange(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_it_serves_swaps_and_drains(stage: Any) -> None:
    with Server(stage) as server:
        assert server.ask("GET", "/v1/ready") == (200, {"ready": True})
        status, answer = server.ask("POST", "/v1/models/late/predict", stage.row)
        assert (status, answer["predictions"][0]["prediction"], answer["predictions"][0]["version"]) == (200, 0.01, 1)
        server.wait_for(stage.promote(2))
        _, answer = server.ask("POST", "/v1/models/late/predict", stage.row)
        assert (answer["predictions"][0]["prediction"], answer["predictions"][0]["version"]) == (0.02, 2)
        assert server.ask("POST", "/v1/tables/flights", {"rows": [stage.row]}) == (202, {"rows": 1})
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert server.process.communicate()[1] == ""
    assert [each.version for each in stage.logged()] == [1, 2]
    assert [json.loads(each.payload)["rows"] for each in stage.project.workspace.log("push-flights").read({})] == [
        [stage.row]
    ]


def test_a_request_under_way_is_finished_when_the_server_drains(stage: Any) -> None:
    body = json.dumps(stage.row).encode()
    with Server(stage) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            head = f"POST /v1/models/late/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[:5])
            while "tidemill_connections 2" not in metrics(server):  # this one, and the one that asks
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            while True:  # until it no longer accepts
                try:
                    socket.create_connection(("127.0.0.1", server.port), timeout=30).close()
                except ConnectionRefusedError:
                    break
                time.sleep(0.01)
            client.sendall(body[5:])
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert server.process.wait(30) == 0
    assert len(stage.logged()) == 1


def metrics(server: Server) -> str:
    with contextlib.closing(server.connect()) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def test_an_oversized_body_is_refused_before_it_is_sent(stage: Any) -> None:
    with Server(stage) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_slow_and_greedy_clients_do_not_hurt_others(make_stage: Callable[..., Any]) -> None:
    """More than a hundred clients dawdle, send without end or never read, while another is answered at once."""
    stage = make_stage('max_body=100_000, timeout="2s"')
    stage.apply(stage.promote(1))
    head = b"POST /v1/models/late/predict HTTP/1.1\r\nhost: x\r\n"
    metrics_asked = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    openings = {
        "slow head": head,
        "slow body": head + b"content-length: 90000\r\n\r\n{",
        "endless": head + b"transfer-encoding: chunked\r\n\r\n" + (b"6400\r\n" + b"x" * 0x6400 + b"\r\n") * 4,
        "deaf": metrics_asked * 200,
    }
    with Server(stage) as server, contextlib.ExitStack() as stack:
        memory = resident(server.process.pid)
        clients: dict[str, list[socket.socket]] = {}
        for kind, opening in openings.items():
            for _ in range(5 if kind == "deaf" else 50):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.sendall(opening)
                clients.setdefault(kind, []).append(client)
        took = []
        with contextlib.closing(server.connect()) as connection:
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                for client in clients["slow head"] + clients["slow body"]:
                    with contextlib.suppress(OSError):
                        client.send(b"x")
                began = time.monotonic()
                status, _ = exchange(connection, "POST", "/v1/models/late/predict", stage.row)
                took.append(time.monotonic() - began)
                assert status == 200
        assert resident(server.process.pid) - memory < 60
        assert sorted(took)[len(took) // 2] < 0.1
        assert max(took) < 1.0
        for kind, refusal in (("slow head", b"408"), ("slow body", b"408"), ("endless", b"413")):
            for client in clients[kind]:
                assert client.recv(65536).split()[1] == refusal, kind
        assert server.ask("GET", "/v1/ready") == (200, {"ready": True})


def resident(pid: int) -> float:
    """Return the memory that a process has resident, in MB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize("durability", ["batch", "sync"])
def test_kill_9_loses_no_acknowledged_prediction(
    make_stage: Callable[..., Any], tmp_path: Path, durability: str
) -> None:
    """Nor does the loss of the machine where that is promised: with ``sync``, what was not synced goes, too."""
    stage = make_stage(f'durability="{durability}"')
    stage.apply(stage.promote(1))
    acknowledged: list[str] = []
    enough = threading.Event()

    def client(server: Server) -> None:
        # The kill cuts the connection: whatever was answered in full before counts as acknowledged.
        with (
            contextlib.closing(server.connect()) as connection,
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            while True:
                _, answer = exchange(connection, "POST", "/v1/models/late/predict", {"rows": [stage.row, stage.row]})
                acknowledged.extend(each["id"] for each in answer["predictions"])
                if len(acknowledged) > wanted:
                    enough.set()

    for _ in range(2):  # the second server finds the torn segment of the first
        enough.clear()
        wanted = len(acknowledged) + 200
        with Server(stage, ("-c", NOTING, str(tmp_path / "synced"))) as server:
            clients = [threading.Thread(target=client, args=(server,)) for _ in range(3)]
            for each in clients:
                each.start()
            assert enough.wait(60)
            os.kill(server.process.pid, signal.SIGKILL)
            for each in clients:
                each.join(60)
        if durability == "sync":
            lose_power(tmp_path / "synced", stage.project.workspace.root / "log" / PREDICTIONS)
        assert set(acknowledged) <= {each.id for each in stage.logged()}


def lose_power(notes: Path, log: Path) -> None:
    """Cut every segment of ``log`` to where it had been synced."""
    lines = (line.partition(" ") for line in notes.read_text().splitlines())
    synced = {path: int(size) for size, _, path in lines}
    for segment in log.glob("*.log"):
        os.truncate(segment, synced.get(str(segment), 0))


def test_a_server_without_a_champion_waits_for_one(make_stage: Callable[..., Any]) -> None:
    stage = make_stage()
    with Server(stage) as server:
        status, answer = server.ask("POST", "/v1/models/late/predict", stage.row)
        assert (status, "no champion yet" in answer["error"]["reason"]) == (503, True)
        entry = stage.promote(1)
        stage.apply(entry)
        server.wait_for(entry)
        assert server.ask("POST", "/v1/models/late/predict", stage.row)[1]["predictions"][0]["prediction"] == 0.01


def test_a_second_server_on_the_same_port_says_so(stage: Any) -> None:
    with Server(stage) as server:
        command = [sys.executable, "-m", "tidemill.server.main", "--system", str(stage.project.path)]
        second = subprocess.run([*command, "--port", str(server.port)], capture_output=True, text=True, check=False)
        assert (second.returncode, "cannot be had" in second.stderr) == (2, True)
        outside = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, check=False)
        assert (outside.returncode, "loopback only" in outside.stderr) == (2, True)


def test_features_see_the_columns_of_the_request(stage: Any) -> None:
    with Server(stage) as server:
        server.ask("POST", "/v1/models/late/predict", {"id": "b", "distance": 2.5, "origin": None})
    (one,) = stage.logged()
    assert (one.key, one.request) == (["b"], {"id": "b", "distance": 2.5, "origin": None})
    assert one.whole() == {"distance": 2.5, "origin": None}
    assert one.asked == 1_000_001
