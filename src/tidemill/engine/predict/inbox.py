"""What a server takes in beside questions: feedback and pushed rows, checked and written to their logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from tidemill.base.errors import NotFoundError, NotReadyError, RequestError, TidemillError
from tidemill.base.hashing import fingerprint
from tidemill.base.schema import nearest
from tidemill.engine.predict.records import FEEDBACK, Feedback
from tidemill.engine.predict.request import RequestRows, fields, pushed_rows, read_json, scalar
from tidemill.engine.table.plain import plain
from tidemill.ports.log import LogWriter
from tidemill.spec.model import Model
from tidemill.spec.source import Push
from tidemill.spec.system import System


class Inbox:
    """Takes feedback and pushed rows. Safe to share between threads.

    ``log`` opens this process's segment of the log of a table. ``rows`` gives what reads requests to a model,
    ``classes`` the classes that its champion knows, none when it predicts a number or there is no champion.
    """

    def __init__(
        self,
        system: System,
        *,
        log: Callable[[str], LogWriter],
        rows: Callable[[str], RequestRows],
        classes: Callable[[str], tuple[Any, ...]],
    ) -> None:
        self.system = system
        self._models = {model.name: model for model in system.models}
        self._read, self._classes = rows, classes
        self._feedback = log(FEEDBACK)
        self._pushed = {source.name: log(source.name) for source in system.sources if isinstance(source.reader, Push)}

    def feedback(self, body: bytes | bytearray, *, nonce: str | None = None) -> tuple[str, Future[None]]:
        """Write feedback to its log: ``{"model", "prediction": id or "key": {…}, "value"}``; returns its id.

        The same ``nonce`` for the same model is the same feedback. Raises RequestError, NotFoundError, NotReadyError.
        """
        value = fields(read_json(body), ("model", "prediction", "key", "value"))
        for name in ("model", "value"):
            if name not in value:
                raise RequestError("Missing field.", field=name)
        if not isinstance(value["model"], str):
            raise RequestError("Must be the name of a model.", field="model")
        model = self._model(value["model"])
        prediction, key = value.get("prediction"), value.get("key")
        if (prediction is None) == (key is None):
            raise RequestError("Send the id of a prediction, or a key; one of the two.", field="prediction")
        if prediction is not None and not (isinstance(prediction, str) and 0 < len(prediction) <= 64):
            raise RequestError("Must be the id that came with the prediction.", field="prediction")
        record = Feedback(
            id=fingerprint(FEEDBACK, model.name, nonce or os.urandom(16).hex())[:24],
            model=model.name,
            prediction=prediction,
            key=None if key is None else self._key(model, key),
            value=self._truth(model, value["value"]),
        )
        return record.id, self._feedback.append(msgspec.json.encode(record))

    def _key(self, model: Model, key: Any) -> list[Any]:
        if not isinstance(key, dict):
            raise RequestError(f"Must be an object with {', '.join(model.examples.key)}.", field="key")
        try:
            schema = self._read(model.name).schema
        except TidemillError as error:
            raise NotReadyError(f"The key of {model.name!r} has no types yet: {error}") from error
        columns = {name: schema[name] for name in model.examples.key}
        return list(plain(RequestRows(columns, model.examples.key).frame([key], "key.")).row(0))

    def _truth(self, model: Model, value: Any) -> Any:
        scalar(value, "value")
        number = type(value) in (int, float)
        if model.task == "regression":
            if not number:
                raise RequestError("Must be a number: the model predicts one.", field="value")
            return value
        classes = self._classes(model.name)
        alike = any(type(each) is type(value) or (number and type(each) in (int, float)) for each in classes)
        if classes and not alike:
            raise RequestError(
                f"Must be one of the model's classes, {msgspec.json.encode(classes).decode()}, or of their type.",
                field="value",
            )
        return value

    def push(
        self, name: str, body: bytes | bytearray, *, idempotency_key: str | None = None
    ) -> tuple[int, Future[None]]:
        """Write ``{"rows": [{…}, …]}`` for source ``name`` to its log; returns the number of rows.

        Their types are checked at ingest, where a row that breaks the contract is quarantined, and where a repeated
        ``idempotency_key`` is dropped. Raises RequestError, NotFoundError.
        """
        writer = self._pushed.get(name)
        if writer is None:
            known = [source.name for source in self.system.sources]
            if name in known:
                raise RequestError(
                    f"Source {name!r} does not take pushed rows; it is declared with another reader than tm.push().",
                    field="source",
                )
            raise NotFoundError(f"There is no source {name!r}.{nearest(name, known)}")
        value = fields(read_json(body), ("rows",))
        rows = pushed_rows(value.get("rows"))
        record = msgspec.json.encode({"source": name, "rows": rows, "idempotency_key": idempotency_key})
        return len(rows), writer.append(record)

    def close(self) -> None:
        """Sync and close this process's log segments. Idempotent."""
        for writer in (self._feedback, *self._pushed.values()):
            writer.close()

    def _model(self, name: str) -> Model:
        found = self._models.get(name)
        if found is None:
            raise NotFoundError(f"There is no model {name!r}.{nearest(name, self._models)}")
        return found
