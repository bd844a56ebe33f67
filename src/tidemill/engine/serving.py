"""Serving: answers by the champions that the journal names, and follows the journal while it answers.

Everything a request needs hangs from one frozen value, ``_Now``. A request takes it once; ``refresh`` builds the next
one, with each new champion loaded, and puts it in place by a single assignment. So a swap costs no request anything, a
request in flight ends on the version it began with, and a rollback is a swap like any other.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from tidemill.base.clock import format_time
from tidemill.base.errors import NotFoundError, NotReadyError, RequestError, TidemillError, WorkspaceError
from tidemill.base.hashing import fingerprint
from tidemill.base.schema import nearest
from tidemill.engine.ledger import FEEDBACK, PREDICTIONS, Feedback
from tidemill.engine.online import Applied
from tidemill.engine.predict import Answerer, Features, Logged, Predictor, plain
from tidemill.engine.request import RequestRows, fields, pushed_rows, read_json, scalar
from tidemill.engine.state import State, fold
from tidemill.ports.journal import Journal
from tidemill.ports.log import LogWriter
from tidemill.ports.online import Online
from tidemill.spec.model import Model
from tidemill.spec.source import Push
from tidemill.spec.system import System

CHAMPION = "champion"

#: Seconds between attempts to load a champion that could not be loaded.
RETRY = 1.0


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer as it goes out.

    ``prediction``: the value of a regression; the probability of the second of two classes that are numbers or truth
    values; else the likeliest class, and ``probabilities`` has each. ``asked``: t, ISO 8601.
    """

    id: str
    prediction: Any
    version: int
    route: str
    asked: str
    probabilities: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Champion:
    """A model version ready to answer."""

    version: int
    training: str
    predictor: Predictor
    rows: RequestRows

    def answers(self, logged: Sequence[Logged]) -> list[Answer]:
        """Return what goes out for each of ``logged``."""
        classes = self.predictor.encoding.classes
        asked = format_time(logged[0].asked)
        named = len(classes) > 2 or any(isinstance(each, str) for each in classes)
        answers = []
        for one in logged:
            prediction: Any = one.prediction
            probabilities = None
            if named:
                each = prediction if isinstance(prediction, list) else [1.0 - prediction, prediction]
                probabilities = {str(name): probability for name, probability in zip(classes, each, strict=True)}
                prediction = classes[each.index(max(each))]
            answers.append(
                Answer(
                    id=one.id,
                    prediction=prediction,
                    version=one.version,
                    route=one.route,
                    asked=asked,
                    probabilities=probabilities,
                )
            )
        return answers


@dataclass(frozen=True, slots=True)
class Kept:
    """What has been written for a request, and when it is on disk: await ``synced`` where durability is "sync"."""

    answers: list[Answer]
    synced: tuple[Future[None], ...]


@dataclass(frozen=True, slots=True)
class _Now:
    """One moment of serving: the state folded, the champions that answer, and why a champion could not be loaded."""

    state: State = field(default_factory=State)
    champions: Mapping[str, Champion] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)


class Serving:
    """Answers predictions, takes feedback and pushed rows, and follows the journal. Safe to share between threads.

    ``lookup`` makes the feature look-up of a model over ``online``. ``load`` returns the predictor that a model's
    training made, ``schema`` a model's request columns with their types. ``log`` opens this process's segment of the
    log that is drained into the named table.
    """

    def __init__(
        self,
        system: System,
        journal: Journal,
        online: Online,
        *,
        lookup: Callable[[Model, Online], Features],
        load: Callable[[str, str], Predictor],
        schema: Callable[[str], Mapping[str, pl.DataType]],
        log: Callable[[str], LogWriter],
    ) -> None:
        self.system = system
        self._journal = journal
        self._online = online
        self._models = {model.name: model for model in system.models}
        self._make_lookup, self._load, self._schema = lookup, load, schema
        self._lookups = threading.local()  # a look-up keeps answers, so each thread has its own
        self._rows: dict[str, RequestRows] = {}
        self._predictions = log(PREDICTIONS)
        self._feedback = log(FEEDBACK)
        self._pushed = {source.name: log(source.name) for source in system.sources if isinstance(source.reader, Push)}
        self._now = _Now()
        self._applied = 0
        self._retry_at = 0.0
        self._turn = threading.Lock()  # held by the one refresh under way

    # Following the journal

    @property
    def applied(self) -> int:
        """The number of the journal entry by which every answer from now on is given."""
        return self._applied

    @property
    def state(self) -> State:
        """The state folded from the journal; ahead of ``applied`` while a champion cannot be loaded."""
        return self._now.state

    @property
    def champions(self) -> Mapping[str, Champion]:
        """The champions that answer now, by model."""
        return self._now.champions

    @property
    def troubles(self) -> Mapping[str, str]:
        """Why a model's newest champion is not served, by model; the one before it, if any, still answers."""
        return self._now.troubles

    def refresh(self) -> int:
        """Take in new journal entries, load the champions they name, then swap them in; returns ``applied``.

        A champion that cannot be loaded leaves the one before it in place and ``applied`` where it is, and is tried
        again every ``RETRY`` seconds. Cheap when nothing is new. Raises what the journal raises.
        """
        with self._turn:
            now = self._now
            retry = now.troubles and time.monotonic() >= self._retry_at
            if self._journal.last() == now.state.number and not retry:
                return self._applied
            state = fold(self._journal.read(after=now.state.number), now.state)
            champions: dict[str, Champion] = {}
            troubles: dict[str, str] = {}
            for name in self._models:
                known = state.model(name)
                serving = now.champions.get(name)
                number = known.aliases.get(CHAMPION)
                try:
                    if number is None:
                        continue
                    if serving is None or serving.version != number:
                        serving = self._champion(name, number, known.version(number).training)
                except Exception as error:  # whatever ails a new version, the old one keeps answering
                    troubles[name] = f"version {number} cannot be loaded: {type(error).__name__}: {error}"
                    self._retry_at = time.monotonic() + RETRY
                if serving is not None:
                    champions[name] = serving
            self._now = _Now(state, champions, troubles)
            if not troubles:
                self._applied = state.number
            return self._applied

    def _champion(self, name: str, number: int, training: str) -> Champion:
        return Champion(number, training, self._load(name, training), self._request_rows(name))

    def _request_rows(self, name: str) -> RequestRows:
        # A table's types are a contract that never changes, so they are read once.
        if name not in self._rows:
            self._rows[name] = RequestRows(self._schema(name), self._models[name].examples.key)
        return self._rows[name]

    def watermark(self) -> Applied | None:
        """Return what online state has applied, by which questions are answered now; None before it is built."""
        with self._online.snapshot() as snapshot:
            mark = snapshot.mark()
        return None if mark is None else Applied.decode(mark)

    def waiting_for(self) -> str | None:
        """Return why predictions cannot be answered yet, or None when every promoted champion is served."""
        if self.watermark() is None:
            return "The online state is not built yet."
        if self._now.troubles:
            name, trouble = next(iter(self._now.troubles.items()))
            return f"Model {name!r}: {trouble}"
        if not self._now.champions:
            return "No model has a champion yet."
        return None

    # Answering

    def model(self, name: str) -> Model:
        """Return the declared model. Raises NotFoundError with the nearest name."""
        found = self._models.get(name)
        if found is None:
            raise NotFoundError(f"There is no model {name!r}.{nearest(name, self._models)}")
        return found

    def champion(self, name: str) -> Champion:
        """Return the version of ``name`` that answers now. Raises NotFoundError, NotReadyError when there is none."""
        champion = self._now.champions.get(name)
        if champion is None:
            self.model(name)
            trouble = self._now.troubles.get(name)
            raise NotReadyError(
                f"Model {name!r}: {trouble}" if trouble else f"Model {name!r} has no champion yet; none was promoted."
            )
        return champion

    def predict(self, name: str, body: bytes, *, nonce: str | None = None) -> Kept:
        """Answer the rows in ``body`` (see RequestRows.read); the predictions are in the log when it returns.

        ``nonce`` makes the predictions' ids repeatable while t stands; by default it is random. Raises RequestError,
        NotFoundError, NotReadyError.
        """
        champion = self.champion(name)
        return self.answer(name, champion, champion.rows.read(body), nonce=nonce)

    def answer(self, name: str, champion: Champion, requests: pl.DataFrame, *, nonce: str | None = None) -> Kept:
        """Answer ``requests`` (the champion's request columns) by ``champion``."""
        synced: list[Future[None]] = []

        def keep(answers: Sequence[Logged]) -> None:
            if self.system.endpoint.log == "all":
                synced.extend(self._predictions.append(msgspec.json.encode(each)) for each in answers)

        lookup = self._lookup(self.model(name))
        answerer = Answerer(name, champion.version, champion.rows.key, lookup, champion.predictor, keep)
        nonce = nonce or os.urandom(16).hex()
        try:
            logged = answerer.answer(requests, nonces=[f"{nonce}:{i}" for i in range(requests.height)], route=CHAMPION)
        except WorkspaceError as error:  # the worker has not built the online state, or builds it for other views
            raise NotReadyError(f"Features cannot be looked up yet: {error}.") from error
        return Kept(champion.answers(logged), tuple(synced))

    def _lookup(self, model: Model) -> Features:
        mine: dict[str, Features] = self._lookups.__dict__
        if model.name not in mine:
            mine[model.name] = self._make_lookup(model, self._online)
        return mine[model.name]

    # Taking in

    def feedback(self, body: bytes, *, nonce: str | None = None) -> tuple[str, Future[None]]:
        """Write feedback to its log: ``{"model", "prediction": id or "key": {…}, "value"}``; returns its id.

        The same ``nonce`` for the same model is the same feedback. Raises RequestError, NotFoundError, NotReadyError.
        """
        value = fields(read_json(body), ("model", "prediction", "key", "value"))
        for name in ("model", "value"):
            if name not in value:
                raise RequestError("Missing field.", field=name)
        if not isinstance(value["model"], str):
            raise RequestError("Must be the name of a model.", field="model")
        model = self.model(value["model"])
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
            schema = self._request_rows(model.name).schema
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
        champion = self._now.champions.get(model.name)
        classes = champion.predictor.encoding.classes if champion else ()
        alike = any(type(each) is type(value) or (number and type(each) in (int, float)) for each in classes)
        if classes and not alike:
            raise RequestError(
                f"Must be one of the model's classes, {msgspec.json.encode(classes).decode()}, or of their type.",
                field="value",
            )
        return value

    def push(self, name: str, body: bytes, *, idempotency_key: str | None = None) -> tuple[int, Future[None]]:
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
        for writer in (self._predictions, self._feedback, *self._pushed.values()):
            writer.close()
