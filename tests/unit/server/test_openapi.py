from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tidemill.server.app import App
from tidemill.server.message import Reply, Request

ROW = {"id": "a", "x": 1.0, "n": 2, "ok": True, "at": "2024-05-01T12:00:00Z"}


@pytest.fixture
def document(stage: Any) -> Any:
    stage.serving.example = lambda model: ROW if model == "risk" else None
    reply = App(stage.serving).answer(Request("GET", "/openapi.json"))
    assert isinstance(reply, Reply)
    return json.loads(reply.body)


async def answered(app: App, request: Request) -> Reply:
    reply = app.answer(request)
    return reply if isinstance(reply, Reply) else await reply


def test_it_has_the_models_own_columns_with_types_and_nulls(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    row = document["components"]["schemas"]["risk_row"]
    types = {name: column["type"] for name, column in row["properties"].items()}
    assert types == {
        "id": "string",  # the key is never null
        "x": ["number", "null"],
        "n": ["integer", "null"],
        "ok": ["boolean", "null"],
        "at": ["string", "integer", "null"],
    }
    assert row["required"] == ["id", "x"]  # the champion reads no other
    assert row["additionalProperties"] is False
    assert row["properties"]["n"]["minimum"] == -(2**63)


def test_its_examples_are_real_rows_that_are_answered(document: Any, stage: Any) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["risk_row"]["example"] == ROW
    app = App(stage.serving)
    for model in ("risk", "cost"):  # without a known row, one is made up by the types
        body = json.dumps(schemas[f"{model}_row"]["example"]).encode()
        reply = asyncio.run(answered(app, Request("POST", f"/v1/models/{model}/predict", None, body)))
        assert reply.status == 200, reply.body


def test_every_path_is_a_route_and_every_reference_has_its_target(document: Any, stage: Any) -> None:
    app = App(stage.serving)
    for path, operations in document["paths"].items():
        for method in operations:
            asked = Request(method.upper(), path, None, b"{}" if method == "post" else b"")
            reply = asyncio.run(answered(app, asked))
            assert reply.status not in (404, 405), (method, path)
            assert str(reply.status) in operations[method]["responses"], (method, path, reply.status)

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [value["$ref"]] if "$ref" in value else [one for each in value.values() for one in references(each)]
        return [one for each in value for one in references(each)] if isinstance(value, list) else []

    found = references(document["paths"])
    assert {each.rpartition("/")[2] for each in found} <= document["components"]["schemas"].keys()
    ids = [operation["operationId"] for each in document["paths"].values() for operation in each.values()]
    assert len(set(ids)) == len(ids)


def test_it_follows_the_journal(stage: Any) -> None:
    app = App(stage.serving)
    first = app.answer(Request("GET", "/openapi.json"))
    assert app.answer(Request("GET", "/openapi.json")) == first
