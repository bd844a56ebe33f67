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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

import tidemill.project as projects
from tidemill.engine.encode import Encoding
from tidemill.engine.online import OnlineState
from tidemill.engine.predict import Logged
from tidemill.engine.records import PREDICTIONS
from tidemill.ports.journal import Draft, Lease
from tidemill.project import Project

SYSTEM = """
import tidemill as tm
from sklearn.dummy import DummyClassifier

flights = tm.Source("flights", tm.push(), key="id", event_time="at")
landed = tm.Source("landed", tm.files("landed/*.csv"), key="id", event_time="at")
late = tm.Model(
    "late", examples=flights, asked_at="at", label=tm.Label(landed, "late", within="1d"),
    features=["distance", "origin"], estimator=DummyClassifier(),
)
system = tm.System("stage", late, endpoint=tm.Endpoint(durability="batch"))
"""
SCHEMA = {"id": "String", "distance": "Float64", "origin": "String"}
ROW = {"id": "a", "distance": 1, "origin": "EWR"}


def promote(project: Project, lease: Lease, version: int) -> int:
    """Make and promote a version that answers ``version / 10``; return the journal entry of its promotion."""
    workspace = project.workspace
    ones = version
    estimator = DummyClassifier(strategy="prior").fit(np.zeros((10, 2)), [1] * ones + [0] * (10 - ones))
    encoding = Encoding(("distance", "origin"), {"origin": ("EWR", "JFK")}, (), (False, True))
    step = {"estimator": workspace.models.save(estimator), "encoding": encoding.as_json(), "request": SCHEMA}
    training = f"training-{version}"
    workspace.journal.record_step(training, step, lease)
    drafts = [
        Draft(0, "version", {"model": "late", "version": version, "training": training, "recipe": "r", "as_of": 0}),
        Draft(0, "alias", {"model": "late", "alias": "champion", "version": version, "previous": None, "reasons": []}),
    ]
    return workspace.journal.append(drafts, lease)[-1].number


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "system.py").write_text(SYSTEM)
    return projects.open(tmp_path)


@pytest.fixture
def lease(project: Project) -> Iterator[Lease]:
    held = project.workspace.journal.acquire()
    promote(project, held, 1)
    OnlineState(project.system.views, project.workspace.online).apply(1_000_000, {}, {}, 2)
    yield held
    held.release()


class Server:
    """One server process. Leaving the block kills it if it still runs."""

    def __init__(self, project: Project) -> None:
        command = [sys.executable, "-m", "tidemill.server.main", "--system", str(project.path), "--port", "0"]
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


def logged(project: Project) -> list[Logged]:
    records = project.workspace.log(PREDICTIONS).read({}, limit=1_000_000)
    return [msgspec.json.decode(each.payload, type=Logged) for each in records]


def test_it_serves_swaps_and_drains(project: Project, lease: Lease) -> None:
    with Server(project) as server:
        assert server.ask("GET", "/v1/ready") == (200, {"ready": True})
        status, answer = server.ask("POST", "/v1/models/late/predict", ROW)
        assert (status, answer["predictions"][0]["prediction"], answer["predictions"][0]["version"]) == (200, 0.1, 1)
        server.wait_for(promote(project, lease, 2))
        _, answer = server.ask("POST", "/v1/models/late/predict", ROW)
        assert (answer["predictions"][0]["prediction"], answer["predictions"][0]["version"]) == (0.2, 2)
        assert server.ask("POST", "/v1/tables/flights", {"rows": [ROW]}) == (202, {"rows": 1})
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert server.process.communicate()[1] == ""
    assert [each.version for each in logged(project)] == [1, 2]
    assert [json.loads(each.payload)["rows"] for each in project.workspace.log("push-flights").read({})] == [[ROW]]


def test_a_request_under_way_is_finished_when_the_server_drains(project: Project, lease: Lease) -> None:
    body = json.dumps(ROW).encode()
    with Server(project) as server:
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
    assert len(logged(project)) == 1


def metrics(server: Server) -> str:
    with contextlib.closing(server.connect()) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def test_an_oversized_body_is_refused_before_it_is_sent(project: Project, lease: Lease) -> None:
    with Server(project) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_kill_9_loses_no_acknowledged_prediction(project: Project, lease: Lease) -> None:
    acknowledged: list[str] = []
    enough = threading.Event()

    def client(server: Server) -> None:
        # The kill cuts the connection: whatever was answered in full before counts as acknowledged.
        with (
            contextlib.closing(server.connect()) as connection,
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            while True:
                _, answer = exchange(connection, "POST", "/v1/models/late/predict", {"rows": [ROW, ROW]})
                acknowledged.extend(each["id"] for each in answer["predictions"])
                if len(acknowledged) > 200:
                    enough.set()

    for _ in range(2):  # the second server finds the torn segment of the first
        enough.clear()
        with Server(project) as server:
            clients = [threading.Thread(target=client, args=(server,)) for _ in range(3)]
            for each in clients:
                each.start()
            assert enough.wait(60)
            os.kill(server.process.pid, signal.SIGKILL)
            for each in clients:
                each.join(60)
        assert set(acknowledged) <= {each.id for each in logged(project)}


def test_a_server_without_a_champion_waits_for_one(project: Project) -> None:
    with Server(project) as server:
        status, answer = server.ask("POST", "/v1/models/late/predict", ROW)
        assert (status, "no champion yet" in answer["error"]["reason"]) == (503, True)
        with contextlib.ExitStack() as stack:
            held = project.workspace.journal.acquire()
            stack.callback(held.release)
            entry = promote(project, held, 1)
            OnlineState(project.system.views, project.workspace.online).apply(1_000_000, {}, {}, entry)
            server.wait_for(entry)
        assert server.ask("POST", "/v1/models/late/predict", ROW)[1]["predictions"][0]["prediction"] == 0.1


def test_a_second_server_on_the_same_port_says_so(project: Project, lease: Lease) -> None:
    with Server(project) as server:
        command = [sys.executable, "-m", "tidemill.server.main", "--system", str(project.path)]
        second = subprocess.run([*command, "--port", str(server.port)], capture_output=True, text=True, check=False)
        assert (second.returncode, "cannot be had" in second.stderr) == (2, True)
        outside = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, check=False)
        assert (outside.returncode, "loopback only" in outside.stderr) == (2, True)


def test_features_see_the_columns_of_the_request(project: Project, lease: Lease) -> None:
    with Server(project) as server:
        server.ask("POST", "/v1/models/late/predict", {"id": "b", "distance": 2.5, "origin": None})
    (one,) = logged(project)
    assert (one.key, one.request) == (["b"], {"id": "b", "distance": 2.5, "origin": None})
    assert one.whole() == {"distance": 2.5, "origin": None}
    assert one.asked == 1_000_001
