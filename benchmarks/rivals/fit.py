"""Fits the pipeline as its users do, on pandas frames, and saves it, by joblib and as ONNX.

``python fit.py FOLDER KIND ROWS``; prints its answer to the row in ``FOLDER/row.json``, for servers to be held to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib
import pandas as pd
import pipeline

folder, kind = Path(sys.argv[1]), sys.argv[2]
made = pd.DataFrame(pipeline.rows(int(sys.argv[3])))
fitted = pipeline.estimator(kind).fit(made.drop(columns="y"), made["y"])
joblib.dump(fitted, folder / f"{kind}.joblib")
from skl2onnx import to_onnx, update_registered_converter  # noqa: E402
from skl2onnx.common.data_types import FloatTensorType, StringTensorType  # noqa: E402

if kind == "xgboost":
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
    from xgboost import XGBClassifier

    update_registered_converter(
        XGBClassifier, "XGBoostXGBClassifier", calculate_linear_classifier_output_shapes, convert_xgboost,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]},
    )  # fmt: skip
types = [(name, FloatTensorType([None, 1])) for name in pipeline.NUMBERS]
types += [(name, StringTensorType([None, 1])) for name in pipeline.WORDS]
converted = to_onnx(
    fitted, initial_types=types, options={id(fitted): {"zipmap": False}}, target_opset={"": 18, "ai.onnx.ml": 3}
)
(folder / f"{kind}.onnx").write_bytes(converted.SerializeToString())
asked = pd.DataFrame([json.loads((folder / "row.json").read_text())])
print(json.dumps({"answer": float(fitted.predict_proba(asked)[0, 1])}))
