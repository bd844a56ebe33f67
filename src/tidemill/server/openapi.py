"""The OpenAPI 3.1 document of one server: its routes with the models' own columns, types and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from tidemill import __version__
from tidemill.engine.predict.live import Live
from tidemill.engine.predict.request import MAX_ROWS, bounds
from tidemill.engine.predict.serving import Serving
from tidemill.spec.source import Push

_JSON = "application/json"


def document(serving: Serving) -> dict[str, Any]:
    """Return the document of ``serving``: the models that answer now, the sources that take rows."""
    system = serving.system
    schemas: dict[str, Any] = dict(_SHARED)
    paths: dict[str, Any] = {}
    for name, live in serving.lives.items():
        schemas[f"{name}_row"] = row_schema(live, serving.example(name))
        schemas[f"{name}_answer"] = answer_schema(live)
        paths |= _model_paths(name, live)
    for source in system.sources:
        if isinstance(source.reader, Push):
            paths[f"/v1/tables/{source.name}"] = {"post": _push(source.name)}
    paths |= {
        "/v1/feedback": {"post": _feedback(list(serving.lives))},
        "/v1/models": {"get": _get("listModels", "The models and what serves.")},
        "/v1/health": {"get": _get("health", "Alive, and how far it has followed.")},
        "/v1/ready": {"get": _get("ready", "Every champion is served.", 503)},
        "/v2": {"get": _get("server", "The server, as the Open Inference Protocol tells it.")},
        "/v2/health/live": {"get": _get("live", "The process lives.")},
        "/v2/health/ready": {"get": _get("readyV2", "Every champion is served.", 503, v2=True)},
        "/metrics": {"get": _get("metrics", "Prometheus text.", media="text/plain")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": system.name,
            "version": __version__,
            "description": "Predictions of the champions, feedback and pushed rows.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def row_schema(live: Live, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON schema of a request row of ``live``. A column that is not of the key may be null."""
    schema = live.rows.schema
    return {
        "type": "object",
        "description": f"One row: the columns that {live.model.name} asks for.",
        "required": list(live.rows.needed),
        "additionalProperties": False,
        "properties": {name: _column(dtype, nullable=name not in live.rows.key) for name, dtype in schema.items()},
        "example": dict(example) if example else {name: _sample(dtype) for name, dtype in schema.items()},
    }


def answer_schema(live: Live) -> dict[str, Any]:
    """Return the JSON schema of one answer of ``live``."""
    classes = list(live.champion.predictor.encoding.classes)
    prediction: dict[str, Any] = {"type": "number", "description": "The value that is predicted."}
    properties: dict[str, Any] = {}
    if live.champion.named:
        prediction = {"description": "The likeliest class.", "examples": classes}
        properties["probabilities"] = {
            "type": "object",
            "description": "The probability of each class.",
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
        }
    elif classes:
        prediction = {"type": "number", "description": f"The probability of {classes[-1]}.", "minimum": 0, "maximum": 1}
    return {
        "type": "object",
        "required": ["id", "prediction", "version", "route", "asked", *properties],
        "properties": {
            "id": {"type": "string", "description": "Names the prediction for feedback."},
            "prediction": prediction,
            "version": {"type": "integer", "minimum": 1},
            "route": {"type": "string", "examples": ["champion"]},
            "asked": {"type": "string", "format": "date-time", "description": "As of when features were looked up."},
            **properties,
        },
    }


def _column(dtype: pl.DataType, *, nullable: bool) -> dict[str, Any]:
    kind: list[str]
    more: dict[str, Any] = {}
    if dtype.is_integer():
        kind = ["integer"]
        low, high = bounds(dtype)
        more = {"minimum": low, "maximum": high}
    elif dtype.is_float():
        kind = ["number"]
    elif dtype == pl.Boolean:
        kind = ["boolean"]
    elif dtype == pl.Date:
        kind, more = ["string"], {"format": "date"}
    elif isinstance(dtype, pl.Datetime):
        kind = ["string", "integer"]
        more = {"format": "date-time", "description": "ISO 8601, or whole microseconds since 1970 UTC."}
    else:
        kind = ["string"]
    if nullable:
        kind.append("null")
    return {"type": kind[0] if len(kind) == 1 else kind, **more, "examples": [_sample(dtype)]}


def _sample(dtype: pl.DataType) -> Any:
    if dtype.is_integer():
        return 1
    if dtype.is_float():
        return 1.5
    if dtype == pl.Boolean:
        return True
    if dtype == pl.Date:
        return "2024-05-01"
    return "2024-05-01T12:00:00Z" if isinstance(dtype, pl.Datetime) else "text"


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: Mapping[str, Any], media: str = _JSON) -> dict[str, Any]:
    return {"content": {media: {"schema": dict(schema)}}}


def _said(text: str, schema: Mapping[str, Any], media: str = _JSON) -> dict[str, Any]:
    return {"description": text, **_content(schema, media)}


_WORDS = {
    "400": "The body, a row or a value is not what was asked for.",
    "404": "There is no such model or source.",
    "408": "The request did not come in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "500": "A fault of the server; its log has the details under the id.",
    "503": "Not ready, or too much is under way; see Retry-After.",
}
_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def _errors(*codes: str, v2: bool = False) -> dict[str, Any]:
    schema = _ref("error_v2" if v2 else "error")
    return {code: {**_said(_WORDS[code], schema), **({"headers": _RETRY} if code == "503" else {})} for code in codes}


_FAULTS = ("400", "404", "408", "413", "415", "500", "503")


def _header(name: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]{1,128}$"},
    }


def _model_paths(name: str, live: Live) -> dict[str, Any]:
    rows = {"type": "array", "items": _ref(f"{name}_row"), "minItems": 1, "maxItems": MAX_ROWS}
    many = {"type": "object", "required": ["rows"], "additionalProperties": False, "properties": {"rows": rows}}
    answers = {
        "type": "object",
        "required": ["model", "predictions"],
        "properties": {
            "model": {"const": name},
            "predictions": {"type": "array", "items": _ref(f"{name}_answer")},
        },
    }
    repeatable = _header("X-Request-Id", "Makes the ids of the predictions repeatable.")
    predict = {
        "operationId": f"predict_{name}",
        "summary": f"Predict with {name}: one row, or many.",
        "parameters": [repeatable],
        "requestBody": {"required": True, **_content({"anyOf": [_ref(f"{name}_row"), many]})},
        "responses": {"200": _said("The predictions, in the order of the rows.", answers), **_errors(*_FAULTS)},
    }
    infer = {
        "operationId": f"infer_{name}",
        "summary": f"Predict with {name} by the Open Inference Protocol v2: a tensor for each column.",
        "parameters": [repeatable],
        "requestBody": {"required": True, **_content(_ref("inference"))},
        "responses": {"200": _said("The outputs.", _ref("inferred")), **_errors(*_FAULTS, v2=True)},
    }
    columns = ", ".join(live.rows.schema)
    return {
        f"/v1/models/{name}/predict": {"post": predict},
        f"/v1/models/{name}": {"get": _get(f"show_{name}", f"What serves, and the columns: {columns}.")},
        f"/v2/models/{name}": {"get": _get(f"metadata_{name}", "Inputs and outputs.", 503, v2=True)},
        f"/v2/models/{name}/ready": {"get": _get(f"ready_{name}", "The model answers.", 503, v2=True)},
        f"/v2/models/{name}/infer": {"post": infer},
    }


def _push(source: str) -> dict[str, Any]:
    row = {"type": "object", "minProperties": 1}
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": MAX_ROWS}
    body = {"type": "object", "required": ["rows"], "additionalProperties": False, "properties": {"rows": rows}}
    taken = {"type": "object", "required": ["rows"], "properties": {"rows": {"type": "integer", "minimum": 1}}}
    return {
        "operationId": f"push_{source}",
        "summary": f"Push rows into {source}; they are in the table after the next tick.",
        "parameters": [_header("Idempotency-Key", "A repeated key is the same push.")],
        "requestBody": {"required": True, **_content(body)},
        "responses": {"202": _said("The number of rows that were taken.", taken), **_errors(*_FAULTS)},
    }


def _feedback(models: list[str]) -> dict[str, Any]:
    about = {
        "prediction": {"type": "string", "minLength": 1, "maxLength": 64, "description": "The id of a prediction."},
        "key": {"type": "object", "description": "The key of what came true, instead."},
    }
    body = {
        "type": "object",
        "required": ["model", "value"],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string", "enum": models} if models else {"type": "string"},
            "value": {"type": ["number", "string", "boolean"], "description": "What came true."},
            **about,
        },
        "oneOf": [{"required": ["prediction"]}, {"required": ["key"]}],
    }
    taken = {"type": "object", "required": ["feedback"], "properties": {"feedback": {"type": "string"}}}
    return {
        "operationId": "feedback",
        "summary": "Say what came true.",
        "parameters": [_header("Idempotency-Key", "A repeated key is the same feedback.")],
        "requestBody": {"required": True, **_content(body)},
        "responses": {"202": _said("The feedback's id.", taken), **_errors(*_FAULTS)},
    }


def _get(id: str, text: str, *codes: int, v2: bool = False, media: str = _JSON) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"} if media == _JSON else {"type": "string"}
    return {
        "operationId": id,
        "summary": text,
        "responses": {"200": _said(text, schema, media), **_errors(*map(str, codes), v2=v2)},
    }


_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "examples": ["FP64", "INT64", "BOOL", "BYTES"]},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}

_SHARED: Mapping[str, Any] = {
    "error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["field", "reason"],
                "properties": {
                    "field": {"type": ["string", "null"]},
                    "reason": {"type": "string"},
                    "id": {"type": "string"},
                },
            }
        },
    },
    "error_v2": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "inference": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    },
    "inferred": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _TENSOR},
        },
    },
}
