"""The outside world. One file an adapter; this table joins short names to them, loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tidemill.base.errors import MissingExtraError, NotFoundError
from tidemill.base.schema import nearest

#: (port, short name) -> module, attribute, and the extra that brings its library (None: always installed).
TABLE: dict[tuple[str, str], tuple[str, str, str | None]] = {
    ("lake", "lance"): ("tidemill.adapters.lance_lake", "LanceLake", None),
    ("lake", "memory"): ("tidemill.adapters.memory_lake", "MemoryLake", None),
    ("journal", "sql"): ("tidemill.adapters.sql_journal", "SqlJournal", None),
    ("journal", "memory"): ("tidemill.adapters.memory_journal", "MemoryJournal", None),
    ("online", "lmdb"): ("tidemill.adapters.lmdb_online", "LmdbOnline", None),
    ("online", "memory"): ("tidemill.adapters.memory_online", "MemoryOnline", None),
    ("artefacts", "files"): ("tidemill.adapters.artefact_files", "ArtefactFiles", None),
    ("artefacts", "memory"): ("tidemill.adapters.memory_artefacts", "MemoryArtefacts", None),
    ("models", "files"): ("tidemill.adapters.estimator_files", "EstimatorFiles", None),
    ("models", "memory"): ("tidemill.adapters.memory_models", "MemoryModels", None),
    ("compiler", "all"): ("tidemill.adapters.compilers", "Compilers", None),
    ("converter", "onnx"): ("tidemill.adapters.onnx_models", "OnnxModels", "onnx"),
    ("compiler", "sklearn"): ("tidemill.adapters.compile_sklearn", "compile_model", None),
    ("compiler", "xgboost"): ("tidemill.adapters.compile_xgboost", "compile_model", "xgboost"),
    ("compiler", "lightgbm"): ("tidemill.adapters.compile_lightgbm", "compile_model", "lightgbm"),
    ("log", "segments"): ("tidemill.adapters.segment_log", "SegmentLog", None),
    ("log", "memory"): ("tidemill.adapters.memory_log", "MemoryLog", None),
    ("executor", "process"): ("tidemill.adapters.process_executor", "ProcessExecutor", None),
    ("executor", "inline"): ("tidemill.adapters.inline_executor", "InlineExecutor", None),
    ("executor", "threads"): ("tidemill.adapters.thread_executor", "ThreadExecutor", None),
    ("scratch", "files"): ("tidemill.adapters.arrow_scratch", "ArrowScratch", None),
    ("scratch", "memory"): ("tidemill.adapters.memory_scratch", "MemoryScratch", None),
    ("reader", "files"): ("tidemill.adapters.file_reader", "FileReader", None),
    ("reader", "rows"): ("tidemill.adapters.row_reader", "RowReader", None),
    ("reader", "log"): ("tidemill.adapters.log_reader", "LogReader", None),
}


def adapter(port: str, name: str) -> Any:
    """Return the class of the adapter that is called ``name`` for ``port``.

    Raises NotFoundError for an unknown name and MissingExtraError, with the command to run, for a missing library.
    """
    if (port, name) not in TABLE:
        known = [each for kind, each in TABLE if kind == port]
        raise NotFoundError(f"There is no {port} adapter {name!r} (known: {', '.join(known)}).{nearest(name, known)}")
    module, attribute, extra = TABLE[port, name]
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("tidemill"):
            raise
        raise MissingExtraError(error.name or name, extra) from error
