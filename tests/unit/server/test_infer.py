"""The Open Inference Protocol over the application, as clients speak it."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.server.app import App
from tidemill.server.message import Reply, Request

COLUMNS = {"id": "BYTES", "x": "FP64", "n": "INT64", "ok": "BOOL", "at": "INT64"}
NUMPY = {"FP64": "<f8", "FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "BOOL": "?"}
ROWS: dict[str, list[Any]] = {"id": ["a", "ä"], "x": [1.0, 2.5], "n": [2, 3], "ok": [True, False], "at": [5, 6]}


class Three:
    """Three classes by name."""

    def predict_proba(self, frame: Any) -> Any:
        return np.tile([0.25, 0.5, 0.25], (frame.height, 1))


@pytest.fixture
def app(stage: Any) -> App:
    return App(stage.serving)


def ask(app: App, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    answered = app.answer(Request(method, path, named, body))

    async def wait() -> Reply:
        return answered if isinstance(answered, Reply) else await answered

    return asyncio.run(wait())


def tensors(rows: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": COLUMNS[name], "shape": [len(rows[name])], "data": rows[name]} for name in COLUMNS
    ]


def infer(app: App, request: Any, path: str = "/v2/models/risk/infer") -> Any:
    reply = ask(app, "POST", path, json.dumps(request).encode())
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def binary(values: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in values)
    return np.array(values, dtype=NUMPY[datatype]).tobytes()


def test_json_tensors(app: App, stage: Any) -> None:
    said = infer(app, {"id": "q", "inputs": tensors(ROWS)})
    assert (said["model_name"], said["model_version"], said["id"]) == ("risk", "1", "q")
    outputs = {each["name"]: each for each in said["outputs"]}
    assert outputs["prediction"] == {"name": "prediction", "datatype": "FP64", "shape": [2], "data": [0.25, 0.25]}
    assert outputs["route"]["data"] == ["champion", "champion"]
    logged = stage.predictions()
    assert outputs["id"]["data"] == [each.id for each in logged]
    assert logged[1].request == {"id": "ä", "x": 2.5, "n": 3, "ok": False, "at": 6}


def test_the_same_rows_give_the_same_predictions_as_json_rows(app: App, stage: Any) -> None:
    infer(app, {"inputs": tensors(ROWS)})
    rows = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    ask(app, "POST", "/v1/models/risk/predict", json.dumps({"rows": rows}).encode())
    first, second = stage.predictions()[:2], stage.predictions()[2:]
    assert [(each.request, each.features) for each in first] == [(each.request, each.features) for each in second]


floats = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(
        st.tuples(st.text(), floats | st.none(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.integers(0, 9**9)),
        min_size=1,
        max_size=5,
    )
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_binary_tensors_hold_what_was_sent(app: App, stage: Any, rows: list[tuple[Any, ...]]) -> None:
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    inputs, parts = [], []
    for name, datatype in COLUMNS.items():
        sent = [float("nan") if each is None else each for each in columns[name]]
        parts.append(binary(sent, datatype))
        sized = {"binary_data_size": len(parts[-1])}
        inputs.append({"name": name, "datatype": datatype, "shape": [len(rows), 1], "parameters": sized})
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    negative = any(row[1] is not None and row[1] < 0 for row in rows)
    reply = ask(
        app, "POST", "/v2/models/risk/infer", b"".join((head, *parts)), inference_header_content_length=str(len(head))
    )
    if negative:  # the model of the stage refuses those
        assert reply.status == 400
        return
    assert (reply.status, reply.content_type) == (200, b"application/octet-stream")
    length = int(dict(reply.headers)[b"inference-header-content-length"])
    said, rest = json.loads(reply.body[:length]), reply.body[length:]
    read = {}
    for output in said["outputs"]:
        size = output["parameters"]["binary_data_size"]
        read[output["name"]], rest = rest[:size], rest[size:]
    assert rest == b""
    assert np.frombuffer(read["prediction"], "<f8").tolist() == [0.25] * len(rows)
    logged = stage.predictions()[-len(rows) :]
    assert [tuple(each.request.values()) for each in logged] == rows
    assert read["id"] == binary([each.id for each in logged], "BYTES")


def test_named_classes_and_outputs_that_are_asked_for(app: App, stage: Any) -> None:
    stage.made("risk", 2, Three(), ("high", "low", "mid"))
    stage.point("risk", 2)
    stage.serving.refresh()
    wanted = [{"name": "probabilities"}, {"name": "prediction"}]
    said = infer(app, {"inputs": tensors(ROWS), "outputs": wanted})
    assert said["outputs"] == [
        {"name": "probabilities", "datatype": "FP64", "shape": [2, 3], "data": [0.25, 0.5, 0.25] * 2,
         "parameters": {"classes": "high,low,mid"}},
        {"name": "prediction", "datatype": "BYTES", "shape": [2], "data": ["low", "low"]},
    ]  # fmt: skip
    described = json.loads(ask(app, "GET", "/v2/models/risk").body)
    assert [each["name"] for each in described["outputs"]] == ["prediction", "probabilities", "id", "version", "route"]


def test_a_version_can_be_named(app: App, stage: Any) -> None:
    stage.made("risk", 2, Three(), ("high", "low", "mid"))
    stage.serving.refresh()
    said = infer(app, {"inputs": tensors(ROWS)}, "/v2/models/risk/versions/2/infer")
    assert said["model_version"] == "2"
    assert {each.route for each in stage.predictions()} == {"pinned"}
    for version in ("3", "0", "x", "1e3", "²"):
        reply = ask(app, "POST", f"/v2/models/risk/versions/{version}/infer", b"{}")
        assert (reply.status, "There is no version" in json.loads(reply.body)["error"]) == (404, True)


def test_metadata_and_health(app: App, stage: Any) -> None:
    assert json.loads(ask(app, "GET", "/v2").body)["extensions"] == ["binary_tensor_data"]
    assert ask(app, "GET", "/v2/health/live").status == 200
    assert ask(app, "GET", "/v2/health/ready").status == 200
    described = json.loads(ask(app, "GET", "/v2/models/risk/versions/1").body)
    assert described["versions"] == ["1"]
    assert {each["name"]: each["datatype"] for each in described["inputs"]} == COLUMNS
    assert json.loads(ask(app, "GET", "/v2/models/risk/ready").body) == {"name": "risk", "ready": True}
    assert ask(app, "GET", "/v2/models/rsik/ready").status == 404


def without(name: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda inputs: [each for each in inputs if each["name"] != name]


def change(which: str, /, **fields: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda inputs: [{**each, **fields} if each["name"] == which else each for each in inputs]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (without("x"), "x: Missing column"),
        (lambda inputs: [*inputs, inputs[0]], "id: This input is given twice"),
        (change("x", name="y"), "y: Unknown column. Columns: id, x, n, ok, at."),
        (change("x", datatype="FP128"), "x: The datatype 'FP128' is not taken"),
        (change("x", shape=[3]), "x: The shape says 3 values, the data has 2."),
        (change("x", shape=[2, 2]), "x: The shape is [2, 2]"),
        (change("x", shape=[]), "x: The shape is []"),
        (change("x", shape=[1], data=[1.0]), "All columns must have the same number of values"),
        (change("x", data="abc"), "x: The data must be a list."),
        (change("x", data=["1", "2"]), "rows[0].x: Expected a number, got text."),
        (change("id", data=["a", None]), "rows[1].id: A key cannot be null."),
        (change("n", datatype="UINT8", data=[300, 2]), "n: 300 is no UINT8: it lies outside 0 to 255."),
        (change("x", data=None, parameters={"binary_data_size": 16}), "x: Its binary_data_size is not the number"),
        (lambda _: [], "Missing column"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(app: App, stage: Any, broken: Any, said: str) -> None:
    reply = ask(app, "POST", "/v2/models/risk/infer", json.dumps({"inputs": broken(tensors(ROWS))}).encode())
    assert (reply.status, said in json.loads(reply.body)["error"]) == (400, True), reply.body
    assert stage.predictions() == []


@pytest.mark.parametrize(
    ("body", "length", "said"),
    [
        (b"[]", None, "no inference request"),
        (b"{}", "3", "Must be the number of bytes"),
        (b"{}", "-1", "Must be the number of bytes"),
        (b'{"inputs": [{"name": "id", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}' +
         b"\x09\x00\x00\x00a", 102, "The text is cut off."),
        (b'{"inputs": [{"name": "id", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}' +
         b"\x01\x00\x00\x00\xff", 102, "not UTF-8"),
        (b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 5}}]}' +
         b"12345", 100, "no whole number of FP64 values"),
        (b'{"inputs": []}12', 14, "2 bytes of the body belong to no input"),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit_are_refused(app: App, body: bytes, length: Any, said: str) -> None:
    headers = {} if length is None else {"inference_header_content_length": str(length)}
    reply = ask(app, "POST", "/v2/models/risk/infer", body, **headers)
    assert (reply.status, said in json.loads(reply.body)["error"]) == (400, True), reply.body


def test_a_compressed_body_is_refused(app: App) -> None:
    reply = ask(app, "POST", "/v2/models/risk/infer", b"\x1f\x8b", content_encoding="gzip")
    assert reply.status == 415


def test_an_unknown_output_is_refused_before_anything_is_logged(app: App, stage: Any) -> None:
    body = json.dumps({"inputs": tensors(ROWS), "outputs": [{"name": "predictions"}]}).encode()
    reply = ask(app, "POST", "/v2/models/risk/infer", body)
    assert (reply.status, stage.predictions()) == (400, [])


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinity_is_no_value(app: App, stage: Any, value: float) -> None:
    """JSON rows cannot bring one, nor can CSV, and the log, which is JSON, could not keep it."""
    inputs = tensors({name: values[:1] for name, values in ROWS.items()})
    place = [each["name"] for each in inputs].index("x")
    inputs[place] = {"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": inputs}).encode()
    length = {b"inference-header-content-length": b"%d" % len(head)}
    request = Request("POST", "/v2/models/risk/infer", length, head + struct.pack("<d", value))
    answer = app.answer(request)
    reply = answer if isinstance(answer, Reply) else asyncio.run(waited(answer))
    assert (reply.status, "x: It holds an infinity" in json.loads(reply.body)["error"]) == (400, True)


async def waited(answer: Any) -> Reply:
    reply: Reply = await answer
    return reply
