"""A real server as others' programs meet it: the Triton and KServe clients, schemathesis, several workers, swaps."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tidemill.cli.main import main
from tidemill.engine.example.ledger import drain
from tidemill.engine.predict.records import PREDICTIONS, sampled
from tidemill.engine.predict.route import Arm, choose, route
from tidemill.loop.supervisor import ServerProcess
from tidemill.ports.journal import Draft


def test_the_triton_client_works_unmodified(stage: Any) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="the Triton client is not installed: tritonclient[http]")
    with stage.serving() as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        with contextlib.closing(client):
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("late")
            assert client.is_model_ready("late", "1")
            assert client.get_server_metadata()["name"] == "tidemill"
            described = client.get_model_metadata("late")
            assert [each["name"] for each in described["inputs"]] == list(stage.schema)
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
    assert [one.request for one in stage.logged()][:3] == [
        {"id": "x", "distance": 1.5, "origin": "EWR"},
        {"id": "y", "distance": None, "origin": "JFK"},
        {"id": "z", "distance": 3.0, "origin": "ä"},
    ]


#: Asks the server at its first argument by KServe's own client; prints what it was answered as JSON.
KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferInput, InferRequest, InferenceRESTClient, RESTConfig

COLUMNS = {"id": ["x", "y"], "distance": [1.5, 2.0], "origin": ["EWR", "ä"]}

async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    states = [await client.is_server_live(url), await client.is_server_ready(url),
              await client.is_model_ready(url, "late")]
    found = []
    for binary in (False, True):
        inputs = []
        for name, values in COLUMNS.items():
            numbers = name == "distance"
            inputs.append(InferInput(name, [2], "FP64" if numbers else "BYTES"))
            inputs[-1].set_data_from_numpy(np.array(values, dtype=float if numbers else object), binary_data=binary)
        answer = await client.infer(url, InferRequest("late", inputs, request_id="q"), model_name="late")
        found.append([answer.id, answer.outputs[0].name, answer.outputs[0].as_numpy().tolist()])
    print(json.dumps([states, found]))

asyncio.run(main(sys.argv[1]))
"""


def test_the_kserve_client_works_unmodified(stage: Any) -> None:
    python = os.environ.get("KSERVE_PYTHON")
    if python is None:
        # It wants pandas < 3 and protobuf < 7, so it does not install beside what we test with.
        pytest.skip("set KSERVE_PYTHON to the Python of an environment that has kserve")
    with stage.serving() as server:
        done = subprocess.run([python, "-c", KSERVE, server.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states, found = json.loads(done.stdout.strip().splitlines()[-1])
    assert states == [True, True, True]
    assert found == [["q", "prediction", [0.01, 0.01]]] * 2
    assert [one.request["origin"] for one in stage.logged()] == ["EWR", "ä"] * 2


def test_no_request_by_the_document_makes_the_server_fail(stage: Any) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    with stage.serving() as server:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--max-examples", "15",
             "--checks", "not_a_server_error,content_type_conformance,status_code_conformance",
             "--phases", "examples,fuzzing", "--seed", "1", "--generation-database", "none"],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert server.running()


def test_the_access_log_and_the_metrics_tell_what_happened(stage: Any) -> None:
    with stage.serving() as server:
        server.call("POST", "/v1/models/late/predict", stage.row, {"X-Request-Id": "r1"})
    (line,) = (
        each
        for each in map(json.loads, (stage.project.workspace.root / "log" / "access-0.jsonl").read_text().splitlines())
        if each["path"] == "/v1/models/late/predict"
    )
    assert (line["status"], line["route"], line["id"]) == (200, "/v1/models/{model}/predict", "r1")


# Several workers ------------------------------------------------------------------------------------------------------


def test_workers_share_a_port_and_none_loses_what_it_acknowledged(stage: Any) -> None:
    """Three workers, one killed again and again: all that was answered is in the lake, once."""
    acknowledged: list[str] = []
    done = threading.Event()

    def client(port: int) -> None:
        while not done.is_set():
            # A kill cuts its own connections; what was answered in full before counts as acknowledged.
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                for _ in range(20):
                    connection.request("POST", "/v1/models/late/predict", json.dumps({"rows": [stage.row, stage.row]}))
                    answer = json.loads(connection.getresponse().read())
                    acknowledged.extend(each["id"] for each in answer["predictions"])

    with stage.serving(workers=3) as server:
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
    segments = list((stage.project.workspace.root / "log" / PREDICTIONS).glob("*.log"))
    assert len(segments) >= 5  # one for each worker that ever was
    drained = drain(
        PREDICTIONS, stage.project.workspace.log(PREDICTIONS), stage.project.workspace.lake, stage.lease, 2_000_000
    )
    assert drained is not None
    ids = drained.rows["id"].to_list()
    assert len(ids) == len(set(ids))
    assert set(acknowledged) <= set(ids)
    assert (
        drain(
            PREDICTIONS, stage.project.workspace.log(PREDICTIONS), stage.project.workspace.lake, stage.lease, 3_000_000
        )
        is None
    )


def wait_for(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_of(server: ServerProcess) -> list[int]:
    """Return the processes of the workers that live, in order of their start."""
    children = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]]


def test_figures_of_all_workers_come_from_any_of_them(stage: Any) -> None:
    with stage.serving(workers=2) as server:
        number = stage.promote(2)
        server.follow(number)  # every worker has followed, whichever is asked
        for _ in range(10):
            assert server.call("GET", "/v1/health")["workers"] == {"0": number, "1": number}
            answer = server.call("POST", "/v1/models/late/predict", stage.row)
            assert answer["predictions"][0]["version"] == 2
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
    assert f'tidemill_journal_applied{{worker="0"}} {number}' in text
    assert f'tidemill_journal_applied{{worker="1"}} {number}' in text


# Swaps under load -----------------------------------------------------------------------------------------------------

SWAPS, CONNECTIONS = 1_000, 64


@pytest.mark.slow
def test_a_thousand_champions_swap_under_64_connections_without_a_failed_request(stage: Any, zygote: Any) -> None:
    """Champions change 1,000 times, routes with them: all is answered, by the version that an answer names.

    The server looks at the journal every 5 ms. An answer of the champion is of one that was champion between its
    question and itself: never of one that the server has said it has left behind.
    """
    versions = range(1, 21)
    stage.write(*(stage.version(number) for number in versions[1:]))
    champions = [1]  # after each swap that has been written
    followed = 0  # the newest swap that the server has said it follows
    failures: list[object] = []
    answers: list[tuple[str, dict[str, Any]]] = []
    done = threading.Event()

    async def client(port: int, key: str) -> None:
        body = json.dumps({**stage.row, "id": key}).encode()
        head = f"POST /v1/models/late/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not done.is_set():
                first = followed
                writer.write(head + body)
                status, said = await response(reader)
                if status != 200:
                    failures.append(said)
                    continue
                (answer,) = said["predictions"]
                answers.append((key, answer))
                if answer["route"] == "champion" and answer["version"] not in champions[first:]:
                    failures.append(f"{answer} is of none of the champions {champions[first:]}")
                await asyncio.sleep(0.05)  # this process asks and swaps, and must not be the bottleneck
        except (OSError, EOFError) as error:
            failures.append(error)
        finally:
            writer.close()

    def swap(port: int) -> None:
        nonlocal followed
        for turn in range(1, SWAPS + 1):
            drafts = [stage.champion(versions[turn % 20])]
            if turn % 3 == 0:
                shared = route("late", [Arm("canary", versions[turn * 7 % 20], 0.5)], [2] if turn % 4 == 0 else [])
                body: dict[str, Any] = {
                    "model": "late",
                    "route": shared.as_json(),
                    "previous": "",
                    "judged": None,
                    "reasons": [],
                }
                drafts.append(Draft(0, "route", body))
            champions.append(versions[turn % 20])
            wait_until_followed(port, stage.write(*drafts))
            followed = turn

    async def play(port: int) -> None:
        clients = [asyncio.ensure_future(client(port, f"k{number}")) for number in range(CONNECTIONS)]
        try:
            await asyncio.to_thread(swap, port)
        finally:
            done.set()
        await asyncio.gather(*clients)

    server = zygote.fork("serve", stage.project.path.parent, death=None)
    asyncio.run(play(server.receive()["port"]))
    assert failures == []
    assert len(answers) > SWAPS
    assert {answer["route"] for _, answer in answers} == {"champion", "canary"}
    assert {answer["version"] for _, answer in answers} == set(versions)
    by_id = {one.id: one for one in stage.logged()}
    for key, answer in answers:
        one = by_id[answer["id"]]
        assert answer["prediction"] == answer["version"] / 100
        assert (one.key, one.version, one.route, one.prediction) == (
            [key], answer["version"], answer["route"], answer["prediction"]
        )  # fmt: skip


async def response(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split()[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


def wait_until_followed(port: int, entry: int) -> None:
    """Return once the server on ``port`` says that it has followed journal entry ``entry``."""
    deadline = time.monotonic() + 60
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        while True:
            connection.request("GET", "/v1/health")
            if json.loads(connection.getresponse().read())["journal"] >= entry:
                return
            assert time.monotonic() < deadline
            time.sleep(0.002)


# Commands -------------------------------------------------------------------------------------------------------------


def test_a_route_is_asked_for_and_shown(stage: Any) -> None:
    stage.write(stage.version(2))
    run = CliRunner()
    folder = ["--project", str(stage.project.path)]
    asked = run.invoke(
        main,
        ["route", "set", "late", "--canary", "v2", "--share", "0.2", "--shadow", "1", "--reason", "to see", *folder],
    )
    assert asked.exit_code == 0, asked.output
    assert "canary v2 0.2, shadow v1" in asked.output.replace("\n", " ")
    (request,) = stage.project.workspace.journal.requests()
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
        "from tidemill.engine.predict.route import *; r = route('late', [Arm('canary', 2, 0.5)]);"
        "print([choose(r, [f'k{n}', n, None, True]) is not None for n in range(32)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(said)
    assert sampled("0" * 24, 0.5)
    assert not sampled("f" * 24, 0.5)
