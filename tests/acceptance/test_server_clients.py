"""A real server as others' programs meet it: the official Triton client, schemathesis, several workers, swaps."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
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
from click.testing import CliRunner
from sklearn.dummy import DummyClassifier

import tidemill.project as projects
from tidemill.cli.main import main
from tidemill.engine.encode import Encoding
from tidemill.engine.ledger import drain
from tidemill.engine.online import OnlineState
from tidemill.engine.predict import Logged
from tidemill.engine.records import PREDICTIONS, sampled
from tidemill.engine.route import Arm, choose, route
from tidemill.loop.supervisor import ServerProcess
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
system = tm.System("stage", late, endpoint=tm.Endpoint(access_log="all"))
"""
SCHEMA = {"id": "String", "distance": "Float64", "origin": "String"}
ROW = {"id": "a", "distance": 1.0, "origin": "EWR"}


def alias(version: int) -> Draft:
    body = {"model": "late", "alias": "champion", "version": version, "previous": None, "reasons": []}
    return Draft(0, "alias", body)


def make(project: Project, lease: Lease, version: int) -> Draft:
    """Store a version that answers ``version / 100``; return its entry, to be written."""
    workspace = project.workspace
    estimator = DummyClassifier(strategy="prior").fit(np.zeros((100, 2)), [1] * version + [0] * (100 - version))
    encoding = Encoding(("distance", "origin"), {"origin": ("EWR", "JFK")}, (), (False, True))
    step = {"estimator": workspace.models.save(estimator), "encoding": encoding.as_json(), "request": SCHEMA,
            "example": ROW}  # fmt: skip
    workspace.journal.record_step(f"training-{version}", step, lease)
    made = {"model": "late", "version": version, "training": f"training-{version}", "recipe": "r", "as_of": 0}
    return Draft(0, "version", made)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "system.py").write_text(SYSTEM)
    return projects.open(tmp_path)


@pytest.fixture
def lease(project: Project) -> Iterator[Lease]:
    held = project.workspace.journal.acquire()
    project.workspace.journal.append([make(project, held, 1), alias(1)], held)
    OnlineState(project.system.views, project.workspace.online).apply(1_000_000, {}, {}, 2)
    yield held
    held.release()


@contextlib.contextmanager
def serving(project: Project, workers: int = 1) -> Iterator[ServerProcess]:
    server = ServerProcess(project.path, 0, project.workspace.root / "log" / "server.txt", workers=workers)
    try:
        yield server
    finally:
        server.stop()


def logged(project: Project) -> list[Logged]:
    records = project.workspace.log(PREDICTIONS).read({}, limit=10_000_000)
    return [msgspec.json.decode(each.payload, type=Logged) for each in records]


def test_the_triton_client_works_unmodified(project: Project, lease: Lease) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="the Triton client is not installed: tritonclient[http]")
    with serving(project) as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        with contextlib.closing(client):
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("late")
            assert client.is_model_ready("late", "1")
            assert client.get_server_metadata()["name"] == "tidemill"
            described = client.get_model_metadata("late")
            assert [each["name"] for each in described["inputs"]] == list(SCHEMA)
            values = {
                "id": np.array(["x", "y", "z"], dtype=object),
                "distance": np.array([1.5, np.nan, 3.0]),
                "origin": np.array(["EWR", "JFK", "ä"], dtype=object),
            }
            for binary in (True, False):
                inputs = []
                for each in described["inputs"]:
                    tensor = triton.InferInput(each["name"], [3], each["datatype"])
                    # JSON has no NaN; a column with nulls goes out binary
                    tensor.set_data_from_numpy(values[each["name"]], binary_data=binary or each["name"] == "distance")
                    inputs.append(tensor)
                outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("prediction", "id")]
                for wanted in (outputs, None):
                    answer = client.infer("late", inputs, outputs=wanted, request_id="q")
                    assert answer.as_numpy("prediction").tolist() == [0.01] * 3
                    assert answer.get_response()["id"] == "q"
                    assert len(set(answer.as_numpy("id").tolist())) == 3
            with pytest.raises(triton.InferenceServerException, match="There is no model 'lat'"):
                client.infer("lat", inputs)
    assert [one.request for one in logged(project)][:3] == [
        {"id": "x", "distance": 1.5, "origin": "EWR"},
        {"id": "y", "distance": None, "origin": "JFK"},
        {"id": "z", "distance": 3.0, "origin": "ä"},
    ]


def test_no_request_by_the_document_makes_the_server_fail(project: Project, lease: Lease) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    with serving(project) as server:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--max-examples", "15",
             "--checks", "not_a_server_error,content_type_conformance,status_code_conformance",
             "--phases", "examples,fuzzing", "--seed", "1", "--generation-database", "none"],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert server.running()


def test_the_access_log_and_the_metrics_tell_what_happened(project: Project, lease: Lease) -> None:
    with serving(project) as server:
        server.call("POST", "/v1/models/late/predict", ROW, {"X-Request-Id": "r1"})
    (line,) = (
        each
        for each in map(json.loads, (project.workspace.root / "log" / "access-0.jsonl").read_text().splitlines())
        if each["path"] == "/v1/models/late/predict"
    )
    assert (line["status"], line["route"], line["id"]) == (200, "/v1/models/{model}/predict", "r1")


# Several workers ------------------------------------------------------------------------------------------------------


def test_workers_share_a_port_and_none_loses_what_it_acknowledged(project: Project, lease: Lease) -> None:
    """Three workers, one killed again and again: all that was answered is in the lake, once."""
    acknowledged: list[str] = []
    done = threading.Event()

    def client(port: int) -> None:
        while not done.is_set():
            # A kill cuts its own connections; what was answered in full before counts as acknowledged.
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                for _ in range(20):
                    connection.request("POST", "/v1/models/late/predict", json.dumps({"rows": [ROW, ROW]}))
                    answer = json.loads(connection.getresponse().read())
                    acknowledged.extend(each["id"] for each in answer["predictions"])

    with serving(project, workers=3) as server:
        assert sorted(server.call("GET", "/v1/health")["workers"]) == ["0", "1", "2"]
        clients = [threading.Thread(target=client, args=(server.port,)) for _ in range(6)]
        for each in clients:
            each.start()
        for _ in range(2):
            wait_for(lambda: len(acknowledged) > 300)
            victims = workers_of(server)
            assert len(victims) == 3
            os.kill(victims[1], signal.SIGKILL)
            wait_for(lambda gone=victims[1]: gone not in workers_of(server) and len(workers_of(server)) == 3)
        done.set()
        for each in clients:
            each.join(60)
        server.follow(2)
    assert len(acknowledged) == len(set(acknowledged)) > 300
    segments = list((project.workspace.root / "log" / PREDICTIONS).glob("*.log"))
    assert len(segments) >= 5  # one for each worker that ever was
    drained = drain(PREDICTIONS, project.workspace.log(PREDICTIONS), project.workspace.lake, lease, 2_000_000)
    assert drained is not None
    ids = drained.rows["id"].to_list()
    assert len(ids) == len(set(ids))
    assert set(acknowledged) <= set(ids)
    assert drain(PREDICTIONS, project.workspace.log(PREDICTIONS), project.workspace.lake, lease, 3_000_000) is None


def wait_for(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_of(server: ServerProcess) -> list[int]:
    """Return the processes of the workers that live, in order of their start."""
    children = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]]


def test_figures_of_all_workers_come_from_any_of_them(project: Project, lease: Lease) -> None:
    with serving(project, workers=2) as server:
        number = project.workspace.journal.append([make(project, lease, 2), alias(2)], lease)[-1].number
        server.follow(number)  # every worker has followed, whichever is asked
        for _ in range(10):
            assert server.call("GET", "/v1/health")["workers"] == {"0": number, "1": number}
            answer = server.call("POST", "/v1/models/late/predict", ROW)
            assert answer["predictions"][0]["version"] == 2
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
    assert f'tidemill_journal_applied{{worker="0"}} {number}' in text
    assert f'tidemill_journal_applied{{worker="1"}} {number}' in text


# Swaps under load -----------------------------------------------------------------------------------------------------


def test_versions_and_routes_swap_under_64_connections_without_a_failed_request(project: Project, lease: Lease) -> None:
    """Champions and routes change 60 times: every request is answered, by the version that it names."""
    journal = project.workspace.journal
    journal.append([make(project, lease, version) for version in range(2, 21)], lease)
    answers: list[tuple[str, dict[str, Any]]] = []
    failures: list[object] = []
    done = threading.Event()

    def client(port: int, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        id = f"k{number}"
        row = {**ROW, "id": id}
        try:
            with contextlib.closing(connection):
                while not done.is_set():
                    connection.request("POST", "/v1/models/late/predict", json.dumps(row))
                    response = connection.getresponse()
                    said = json.loads(response.read())
                    if response.status != 200:
                        failures.append(said)
                    else:
                        answers.append((id, said["predictions"][0]))
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    with serving(project) as server:
        clients = [threading.Thread(target=client, args=(server.port, number)) for number in range(64)]
        for each in clients:
            each.start()
        for turn in range(60):
            version = 2 + turn % 19
            shared = route("late", [Arm("canary", 1 + (turn * 7) % 20, 0.5)], [version] if turn % 4 == 0 else [])
            body: dict[str, Any] = {
                "model": "late",
                "route": shared.as_json(),
                "previous": "",
                "judged": None,
                "reasons": [],
            }
            drafts = [alias(version), Draft(0, "route", body)] if turn % 3 == 0 else [alias(version)]
            number = journal.append(drafts, lease)[-1].number
            server.follow(number)
        done.set()
        for each in clients:
            each.join(60)
    assert failures == []
    assert len(answers) > 640
    assert {answer["prediction"] == pytest.approx(answer["version"] / 100) for _, answer in answers} == {True}
    assert {answer["route"] for _, answer in answers} == {"champion", "canary"}
    by_id = {one.id: one for one in logged(project)}
    for id, answer in answers:
        one = by_id[answer["id"]]
        assert (one.key, one.version, one.route, one.prediction) == (
            [id], answer["version"], answer["route"], answer["prediction"]
        )  # fmt: skip


# Commands -------------------------------------------------------------------------------------------------------------


def test_a_route_is_asked_for_and_shown(project: Project, lease: Lease) -> None:
    project.workspace.journal.append([make(project, lease, 2)], lease)
    run = CliRunner()
    folder = ["--project", str(project.path)]
    asked = run.invoke(
        main,
        ["route", "set", "late", "--canary", "v2", "--share", "0.2", "--shadow", "1", "--reason", "to see", *folder],
    )
    assert asked.exit_code == 0, asked.output
    assert "canary v2 0.2, shadow v1" in asked.output.replace("\n", " ")
    (request,) = project.workspace.journal.requests()
    assert (request.kind, request.body["arms"]) == ("route", [{"name": "canary", "version": "v2", "share": 0.2}])
    shown = run.invoke(main, ["route", "show", "--json", *folder])
    assert json.loads(shown.output)["late"]["champion"] == 1
    for wrong in (["--canary", "v9"], ["--arm", "b=v2"], ["--arm", "b=v2:1.5"], []):
        refused = run.invoke(main, ["route", "set", "late", *wrong, "--reason", "x", *folder])
        assert refused.exit_code == 2, refused.output
    ended = run.invoke(main, ["route", "end", "late", "--reason", "seen", "--json", *folder])
    assert json.loads(ended.output)["arms"] == []


def test_a_key_meets_the_same_version_in_every_process() -> None:
    shared = route("late", [Arm("canary", 2, 0.5)])
    said = [choose(shared, [f"k{number}", number, None, True]) is not None for number in range(32)]
    code = (
        "from tidemill.engine.route import *; r = route('late', [Arm('canary', 2, 0.5)]);"
        "print([choose(r, [f'k{n}', n, None, True]) is not None for n in range(32)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(said)
    assert sampled("0" * 24, 0.5)
    assert not sampled("f" * 24, 0.5)
