"""The Open Inference Protocol, version 2, over HTTP: tensors in, one a column; tensors out. With binary tensors.

A tensor of n values (shape [n] or [n, 1]) holds one column of n rows. What JSON rows may hold, tensors may hold: whole
numbers and numbers in any numeric type, text as BYTES, times as BYTES (ISO 8601) or INT64 (microseconds). Null is null
in JSON data and NaN in a floating tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from tidemill.base.errors import RequestError
from tidemill.engine.predict.live import Answer, Live
from tidemill.engine.predict.request import MAX_ROWS
from tidemill.server.message import BINARY, Reply, encode

#: The header that says how many bytes of a body are JSON, where binary tensors follow.
LENGTH = b"inference-header-content-length"

_NUMPY = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "<u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_TYPES = (*_NUMPY, "BYTES")
_BOUNDS = {name: (np.iinfo(code).min, np.iinfo(code).max) for name, code in _NUMPY.items() if "INT" in name}
_SIZE = struct.Struct("<I")


class Tensor(msgspec.Struct):
    """A tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class Wanted(msgspec.Struct):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class Inference(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[Wanted] | None = None


_decode = msgspec.json.Decoder(Inference).decode


def read(body: bytes | bytearray, length: bytes | None, live: Live) -> tuple[Inference, dict[str, list[Any]]]:
    """Return the request in ``body`` and its columns. ``length``: the value of the header ``LENGTH``.

    Raises RequestError.
    """
    split = len(body)
    if length is not None:
        if not length.isdigit() or len(length) > 12 or int(length) > split:
            raise RequestError("Must be the number of bytes of the JSON part.", field="Inference-Header-Content-Length")
        split = int(length)
    try:
        request = _decode(memoryview(body)[:split])
    except RecursionError as error:
        raise RequestError("The body is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"The body is no inference request: {error}.") from error
    columns: dict[str, list[Any]] = {}
    rest = memoryview(body)[split:]
    for tensor in request.inputs:
        if tensor.name in columns:
            raise RequestError("This input is given twice.", field=tensor.name)
        try:
            columns[tensor.name], rest = _values(tensor, rest)
        except ValueError as error:
            raise RequestError(str(error), field=tensor.name) from error
    if len(rest):
        raise RequestError(f"{len(rest)} bytes of the body belong to no input.")
    there = [each[0] for each in _outputs(live)]
    for one in request.outputs or ():
        if one.name not in there:
            raise RequestError(f"There is no such output; there are {', '.join(there)}.", field=one.name)
    return request, columns


def _values(tensor: Tensor, rest: memoryview) -> tuple[list[Any], memoryview]:
    """Return the values of ``tensor``, and of ``rest`` what follows its own bytes."""
    shape = tensor.shape
    if tensor.datatype not in _TYPES:
        raise ValueError(f"The datatype {tensor.datatype!r} is not taken; known are {', '.join(_TYPES)}.")
    if not shape or shape[0] < 0 or (len(shape) > 1 and any(each != 1 for each in shape[1:])):
        raise ValueError(f"The shape is {shape}; a column of n rows has [n] or [n, 1].")
    if not 1 <= shape[0] <= MAX_ROWS:
        raise ValueError(f"There are {shape[0]} rows; send 1 to {MAX_ROWS}.")
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        values = tensor.data
        if not isinstance(values, list):
            raise ValueError("The data must be a list.")
        while values and isinstance(values[0], list) and all(isinstance(each, list) for each in values):
            values = [one for each in values for one in each]
        _fit(values, tensor.datatype)
    else:
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise ValueError("Its binary_data_size is not the number of bytes that follow.")
        own, rest = rest[:size], rest[size:]
        values = _texts(own) if tensor.datatype == "BYTES" else _numbers(own, tensor.datatype)
    if len(values) != shape[0]:
        raise ValueError(f"The shape says {shape[0]} values, the data has {len(values)}.")
    return values, rest


def _fit(values: Sequence[Any], datatype: str) -> None:
    """Raise ValueError where a whole number of JSON data lies outside the tensor's own type."""
    if "INT" in datatype:
        low, high = _BOUNDS[datatype]
        for value in values:
            if type(value) is int and not low <= value <= high:
                raise ValueError(f"{value} is no {datatype}: it lies outside {low} to {high}.")


def _numbers(data: memoryview, datatype: str) -> list[Any]:
    dtype = np.dtype(_NUMPY[datatype])
    if len(data) % dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of {datatype} values.")
    values: list[Any] = np.frombuffer(data, dtype).tolist()
    if dtype.kind != "f":
        return values
    if any(map(math.isinf, values)):
        raise ValueError("It holds an infinity, which is no value of a column.")
    return [None if math.isnan(each) else each for each in values]


def _texts(data: memoryview) -> list[Any]:
    texts, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("The text is cut off.")
        (size,) = _SIZE.unpack_from(data, at)
        at += 4
        if at + size > len(data):
            raise ValueError("The text is cut off.")
        try:
            texts.append(str(data[at : at + size], "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError("The text is not UTF-8.") from error
        at += size
    return texts


# Answers --------------------------------------------------------------------------------------------------------------


def _outputs(live: Live) -> list[tuple[str, str, list[int]]]:
    """Return what ``live`` can say: (name, datatype, shape)."""
    said = [("prediction", prediction_type(live), [-1])]
    if live.champion.named:
        said.append(("probabilities", "FP64", [-1, len(live.champion.predictor.encoding.classes)]))
    return [*said, ("id", "BYTES", [-1]), ("version", "INT64", [-1]), ("route", "BYTES", [-1])]


def prediction_type(live: Live) -> str:
    """Return the datatype of a prediction of ``live``."""
    classes = live.champion.predictor.encoding.classes
    if not live.champion.named:
        return "FP64"
    return "INT64" if all(type(each) is int for each in classes) else "BYTES"


def answer(name: str, live: Live, request: Inference, answers: Sequence[Answer]) -> Reply:
    """Return the answer to ``request``: the outputs that it wants, or all."""
    every = {output: (datatype, shape) for output, datatype, shape in _outputs(live)}
    wanted = request.outputs or [Wanted(each) for each in every]
    default = bool(request.parameters.get("binary_data_output"))
    described, parts = [], []
    for one in wanted:
        datatype, shape = every[one.name]
        tensor: dict[str, Any] = {"name": one.name, "datatype": datatype, "shape": [len(answers), *shape[1:]]}
        values = _said(one.name, live, answers)
        if one.parameters.get("binary_data", default):
            parts.append(_bytes(datatype, values))
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = values
        if one.name == "probabilities":
            classes = [str(each) for each in live.champion.predictor.encoding.classes]
            tensor["parameters"] = {**tensor.get("parameters", {}), "classes": ",".join(classes)}
        described.append(tensor)
    version = max(each.version for each in answers)
    said: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": described}
    if request.id:
        said["id"] = request.id
    head = encode(said)
    if not parts:
        return Reply(200, head)
    return Reply(200, b"".join((head, *parts)), ((LENGTH, str(len(head)).encode()),), BINARY)


def _said(output: str, live: Live, answers: Sequence[Answer]) -> list[Any]:
    """Return the values of an output, row by row."""
    match output:
        case "probabilities":
            classes = [str(each) for each in live.champion.predictor.encoding.classes]
            return [(each.probabilities or {}).get(name, 0.0) for each in answers for name in classes]
        case "prediction" if live.champion.named:
            return [each.prediction if type(each.prediction) is int else str(each.prediction) for each in answers]
        case _:
            return [getattr(each, output) for each in answers]


def _bytes(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [str(each).encode() for each in values]
        return b"".join(part for text in texts for part in (_SIZE.pack(len(text)), text))
    return np.array(values, dtype=_NUMPY[datatype]).tobytes()


def metadata(name: str, live: Live, versions: int) -> dict[str, Any]:
    """Return what the protocol calls a model's metadata."""
    return {
        "name": name,
        "versions": [str(number) for number in range(1, versions + 1)],
        "platform": "tidemill",
        "inputs": [
            {"name": column, "datatype": type_of(dtype), "shape": [-1]} for column, dtype in live.rows.schema.items()
        ],
        "outputs": [{"name": output, "datatype": kind, "shape": shape} for output, kind, shape in _outputs(live)],
    }


def type_of(dtype: pl.DataType) -> str:
    """Return the protocol's name of a column's type."""
    if dtype.is_integer():
        return str(dtype).upper()
    if dtype.is_float():
        return "FP64" if dtype == pl.Float64 else "FP32"
    if dtype == pl.Boolean:
        return "BOOL"
    return "INT64" if isinstance(dtype, pl.Datetime) else "BYTES"
