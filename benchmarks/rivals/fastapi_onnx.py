"""FastAPI, pydantic and ONNX Runtime, the best that users write by hand: ``python fastapi_onnx.py MODEL PORT``."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pipeline
import uvicorn
from fastapi import FastAPI
from pydantic import create_model

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
fields = dict.fromkeys(pipeline.NUMBERS, (float | None, None)) | dict.fromkeys(pipeline.WORDS, (str, ...))
Row = create_model("Row", **fields)  # type: ignore[call-overload]
app = FastAPI()


@app.post("/predict")
async def predict(row: Row) -> dict[str, float]:  # type: ignore[valid-type]
    """Return the probability of the second class."""
    values = row.__dict__
    given = {
        name: np.array([[np.nan if values[name] is None else values[name]]], dtype=np.float32)
        for name in pipeline.NUMBERS
    }
    given |= {name: np.array([[values[name]]], dtype=object) for name in pipeline.WORDS}
    return {"prediction": float(session.run(["probabilities"], given)[0][0, 1])}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
