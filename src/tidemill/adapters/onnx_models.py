"""Estimators as ONNX, run by ONNX Runtime: for what has no compiled form and may differ by a declared tolerance.

Numbers go in as float64 where the converter can, else as float32, which is why it is never exact for trees; texts go in
as text, null as the empty one. Only the converted graph is stored, so the process that runs it needs no scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from tidemill.base.errors import ArtefactError, MissingExtraError, NotCompiledError
from tidemill.ports.models import Session

try:
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
except ModuleNotFoundError:  # a server needs only the runtime
    skl2onnx = None

_Columns = Sequence[tuple[str, tuple[str, ...] | None]]


class OnnxModels:
    """Implements ports.models.Converter."""

    def convert(self, estimator: Any, columns: _Columns) -> Sequence[bytes]:
        """Return the estimator as ONNX, in float64 and in float32 where each can be made."""
        if skl2onnx is None:
            raise MissingExtraError("skl2onnx", "onnx")
        classifies = hasattr(estimator, "predict_proba")
        made, reason = [], ""
        for number in (DoubleTensorType, FloatTensorType):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    graph = skl2onnx.convert_sklearn(
                        estimator,
                        initial_types=_inputs(estimator, columns, number),
                        options={id(estimator): {"zipmap": False}} if classifies else None,
                    )
                content = bytes(graph.SerializeToString())
                onnxruntime.InferenceSession(content, _options(), providers=["CPUExecutionProvider"])
                made.append(content)
            except Exception as error:  # the converter's own faults are many: skl2onnx raises whatever breaks in it
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        if not made:
            raise NotCompiledError(f"{type(estimator).__name__} cannot be converted: {reason}")
        return made

    def open(self, content: bytes, classes: int) -> Session:
        """Return a session over a converted estimator, on one thread."""
        try:
            return _Session(
                onnxruntime.InferenceSession(content, _options(), providers=["CPUExecutionProvider"]), classes
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this one
            raise ArtefactError(f"ONNX Runtime cannot run a model: {str(error).partition(chr(10))[0]}") from error


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    return options


def _inputs(estimator: Any, columns: _Columns, number: Any) -> list[tuple[str, Any]]:
    steps = getattr(estimator, "steps", None)
    first = steps[0][1] if steps else estimator
    if hasattr(first, "transformers_"):  # it chooses columns by name
        return [
            (name, number([None, 1]) if values is None else StringTensorType([None, 1])) for name, values in columns
        ]
    if any(values is not None for _, values in columns):
        raise NotCompiledError("texts reach a step that is not a column transformer")
    return [("X", number([None, len(columns)]))]


class _Session:
    def __init__(self, session: Any, classes: int) -> None:
        self._session, self._classes = session, classes
        self._types = {
            each.name: {"tensor(double)": np.float64, "tensor(float)": np.float32}.get(each.type)
            for each in session.get_inputs()
        }
        self._output = session.get_outputs()[1 if classes else 0].name

    def run(self, columns: Sequence[Any]) -> Any:
        names = list(self._types)
        if len(names) == 1 and len(columns) != 1:
            given = {names[0]: np.stack(columns, axis=1).astype(self._types[names[0]])}
        else:
            given = {
                name: (
                    np.array(["" if value is None else value for value in column.tolist()], dtype=object)
                    if self._types[name] is None
                    else column.astype(self._types[name])
                ).reshape(-1, 1)
                for name, column in zip(names, columns, strict=True)
            }
        try:
            made = np.asarray(self._session.run([self._output], given)[0], dtype=np.float64)
        except Exception as error:  # see above: refused values are among them
            raise ValueError(f"ONNX Runtime refuses the values: {str(error).partition(chr(10))[0]}") from error
        made = made.reshape(len(columns[0]), -1)
        return made[:, 1:2] if self._classes == 2 else made
