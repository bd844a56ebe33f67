"""Serving: answers by the versions that the journal names, and follows the journal while it answers.

Everything a request needs hangs from one frozen value, ``_Now``. A request takes it once; ``refresh`` builds the next
one, with each new version loaded, and puts it in place by a single assignment. So a swap costs no request anything, a
request in flight ends on the version it began with, and a rollback or a new route is a swap like any other.

A version on trial cannot cost an answer: where an arm cannot be loaded, the champion answers its questions.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tidemill.base.errors import NotFoundError, NotReadyError, RequestError
from tidemill.base.schema import nearest
from tidemill.engine.feature.freshness import Freshness, freshness
from tidemill.engine.feature.layout import Applied
from tidemill.engine.predict.answering import Answering
from tidemill.engine.predict.inbox import Inbox
from tidemill.engine.predict.live import Kept, Live, Loaded
from tidemill.engine.predict.predict import Columns, Predictor
from tidemill.engine.predict.records import PREDICTIONS
from tidemill.engine.predict.request import FEW, RequestRows
from tidemill.engine.predict.route import CHAMPION
from tidemill.engine.predict.single import RowFeatures
from tidemill.engine.predict.state import ModelState, State, fold
from tidemill.engine.predict.turn import Turn
from tidemill.ports.journal import Journal
from tidemill.ports.log import LogWriter
from tidemill.ports.online import Online
from tidemill.spec.model import Model
from tidemill.spec.system import System

#: Seconds between attempts to load a version that could not be loaded.
RETRY = 1.0
#: Versions kept loaded because a caller named them, beside those that a route names.
PINS = 8


@dataclass(frozen=True, slots=True)
class _Now:
    """One moment of serving: the state folded, the models that answer, and why a version could not be loaded."""

    state: State = field(default_factory=State)
    lives: Mapping[str, Live] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)


class Serving:
    """Answers predictions, takes feedback and pushed rows, and follows the journal. Safe to share between threads.

    ``lookup`` makes the feature look-up of a model over ``online``. ``load`` returns the predictor that a model's
    training made, ``schema`` a model's request columns with their types, ``example`` one of its request rows as JSON
    takes it, when one is known. ``log`` opens this process's segment of the log that is drained into the named table.
    """

    def __init__(
        self,
        system: System,
        journal: Journal,
        online: Online,
        *,
        lookup: Callable[[Model, Online], RowFeatures],
        load: Callable[[str, str], Predictor],
        schema: Callable[[str], Mapping[str, pl.DataType]],
        log: Callable[[str], LogWriter],
        example: Callable[[str], Mapping[str, Any] | None] = lambda _: None,
    ) -> None:
        self.system = system
        self.example = example
        self._journal = journal
        self._online = online
        self._models = {model.name: model for model in system.models}
        self._make_lookup, self._load, self._schema = lookup, load, schema
        self._lookups = threading.local()  # a look-up keeps answers, so each thread has its own
        self._rows: dict[str, RequestRows] = {}
        self._predictions = log(PREDICTIONS)
        self.inbox = Inbox(system, log=log, rows=self.request_rows, classes=self._classes)
        self.answering = Answering(self._predictions, system.endpoint.logged, self._lookup)
        self._wanted = set(self._models) if system.endpoint.load == "start" else set()
        self._pinned: OrderedDict[tuple[str, int], Loaded] = OrderedDict()
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
        """The state folded from the journal; ahead of ``applied`` while a version cannot be loaded."""
        return self._now.state

    @property
    def lives(self) -> Mapping[str, Live]:
        """The models that answer now."""
        return self._now.lives

    @property
    def troubles(self) -> Mapping[str, str]:
        """Why a model's versions are not served as the journal says, by model; its champion before still answers."""
        return self._now.troubles

    def refresh(self) -> int:
        """Take in new journal entries, load the versions they name, then swap them in; returns ``applied``.

        A champion that cannot be loaded leaves the one before it in place and ``applied`` where it is, and is tried
        again every ``RETRY`` seconds. Cheap when nothing is new. Raises what the journal raises.
        """
        with self._turn:
            now = self._now
            retry = now.troubles and time.monotonic() >= self._retry_at
            if self._journal.last() == now.state.number and not retry:
                return self._applied
            self._swap(fold(self._journal.read(after=now.state.number), now.state))
            return self._applied

    def load(self, name: str, version: int | None = None) -> None:
        """Load the model ``name``, or one ``version`` of it for a caller that names it. Blocks; see ``loaded``.

        Raises NotFoundError when there is none, NotReadyError when it cannot be loaded.
        """
        known = self._state_of(name)
        with self._turn:
            if name not in self._wanted:
                self._wanted.add(name)
                self._swap(self._now.state)
            if version is None or (live := self._now.lives.get(name)) is None or live.get(version) is not None:
                return
            if (name, version) not in self._pinned:
                try:
                    self._pinned[name, version] = self._version(name, known, version)
                except NotFoundError:
                    raise
                except Exception as error:
                    raise NotReadyError(f"Model {name!r}: {_cannot(version, error)}") from error
            self._pinned.move_to_end((name, version))
            while len(self._pinned) > PINS:
                self._pinned.popitem(last=False)

    def loaded(self, name: str, version: int | None = None) -> bool:
        """Tell whether asking ``name`` (a ``version`` of it) needs no loading first."""
        live = self._now.lives.get(name)
        if live is None:
            return name in self._wanted or name not in self._models
        return version is None or live.get(version) is not None or (name, version) in self._pinned

    def quick(self, name: str, version: int | None = None) -> bool:
        """Tell whether asking ``name`` (a ``version`` of it) asks compiled predictors alone, or fails at once.

        They take microseconds a row; an estimator's own code, or loading, may take any time.
        """
        live = self._now.lives.get(name)
        if live is None or version is None:
            return live.by_value if live is not None else self.loaded(name)
        pinned = live.get(version) or self._pinned.get((name, version))
        return pinned is not None and pinned.pick is not None and live.rows.plain

    def _swap(self, state: State) -> None:
        lives: dict[str, Live] = {}
        troubles: dict[str, str] = {}
        for name in self._models:
            if name in self._wanted:
                live = self._make_live(name, state.model(name), self._now.lives.get(name), troubles)
                if live is not None:
                    lives[name] = live
        self._now = _Now(state, lives, troubles)
        if not troubles:
            self._applied = state.number

    def _make_live(self, name: str, known: ModelState, now: Live | None, troubles: dict[str, str]) -> Live | None:
        number = known.aliases.get(CHAMPION)
        if number is None:
            return None

        def have(version: int) -> Loaded | None:
            found = now.get(version) if now else None
            try:
                return found or self._version(name, known, version)
            except Exception as error:  # whatever ails a new version, the old one keeps answering
                troubles.setdefault(name, _cannot(version, error))
                self._retry_at = time.monotonic() + RETRY
                return None

        champion = have(number) or (now.champion if now else None)
        others = {version: found for version in known.route.versions if (found := have(version)) is not None}
        if champion is None:
            return None
        try:
            model = self._models[name]
            columns = Columns.of(model.columns, model.plain)
            rows = self._rows_for(name, (champion, *others.values()))
            return Live(model, rows, columns, champion, known.route, others)
        except Exception as error:
            troubles.setdefault(name, _cannot(number, error))
            self._retry_at = time.monotonic() + RETRY
            return now

    def _version(self, name: str, known: ModelState, number: int) -> Loaded:
        training = known.version(number).training
        return Loaded.of(number, training, self._load(name, training), self._models[name].columns)

    def request_rows(self, name: str) -> RequestRows:
        """Return what reads requests to the model ``name`` with all of their columns. Raises what ``schema`` raises."""
        # A table's types are a contract that never changes, so they are read once.
        if name not in self._rows:
            self._rows[name] = RequestRows(self._schema(name), self._models[name].examples.key)
        return self._rows[name]

    def _rows_for(self, name: str, answering: Sequence[Loaded]) -> RequestRows:
        """Return what reads requests to ``name``, of which columns may be left out that none of ``answering`` reads."""
        every, model = self.request_rows(name), self._models[name]
        needed = {column for each in answering for column in asked(model, each)}
        return every if needed.issuperset(every.schema) else RequestRows(every.schema, every.key, needed)

    def _classes(self, name: str) -> tuple[Any, ...]:
        live = self._now.lives.get(name)
        return tuple(live.champion.predictor.encoding.classes) if live else ()

    def watermark(self) -> Applied | None:
        """Return what online state has applied, by which questions are answered now; None before it is built."""
        with self._online.snapshot() as snapshot:
            mark = snapshot.mark()
        return None if mark is None else Applied.decode(mark)

    def freshness(self) -> Freshness:
        """Return how fresh the online state and each feature view in it is."""
        return freshness(self._online)

    def waiting_for(self, name: str | None = None) -> str | None:
        """Return why predictions (of one model) cannot be answered yet, or None when every champion is served."""
        if self.watermark() is None:
            return "The online state is not built yet."
        names = list(self._models) if name is None else [name]
        for each in names:
            if each in self._now.troubles:
                return f"Model {each!r}: {self._now.troubles[each]}"
        if not any(CHAMPION in self._now.state.model(each).aliases for each in names):
            return "No model has a champion yet." if name is None else f"Model {name!r} has no champion yet."
        return None

    # Answering

    def model(self, name: str) -> Model:
        """Return the declared model. Raises NotFoundError with the nearest name."""
        found = self._models.get(name)
        if found is None:
            raise NotFoundError(f"There is no model {name!r}.{nearest(name, self._models)}")
        return found

    def live(self, name: str) -> Live:
        """Return ``name`` as it answers now. Raises NotFoundError, NotReadyError when it has no champion."""
        live = self._now.lives.get(name)
        if live is None:
            self.model(name)
            trouble = self._now.troubles.get(name)
            raise NotReadyError(
                f"Model {name!r}: {trouble}" if trouble else f"Model {name!r} has no champion yet; none was promoted."
            )
        return live

    def turn(self) -> Turn:
        """Return what questions that are answered in one turn of an event loop can share; see ``predict``."""
        return Turn(self._online, self._predictions)

    def predict(
        self, name: str, body: bytes | bytearray, *, nonce: str | None = None, turn: Turn | None = None
    ) -> Kept:
        """Answer the rows in ``body`` (see RequestRows.read); the predictions are in the log when it returns.

        With a ``turn`` they may be there only when that ends: ``Kept.held`` tells. ``nonce`` makes the predictions' ids
        repeatable while t stands; by default it is unique. Raises RequestError, NotFoundError, NotReadyError.
        """
        live = self.live(name)
        began = time.perf_counter()
        requests = live.rows.few(body) if live.by_value else None
        if requests is None:
            rows, where = live.rows.objects(body)
            if not live.by_value or len(rows) > FEW:
                if turn is not None:
                    turn.release()
                frame = live.rows.frame(rows, where)
                return self.answering.frame(live, frame, nonce, None, time.perf_counter() - began)
            requests = [live.rows.row(row, where.format(place)) for place, row in enumerate(rows)]
        if turn is None:
            return self._alone(live, requests, nonce, None, time.perf_counter() - began)
        return self.answering.rows(live, requests, turn, nonce, None, time.perf_counter() - began)

    def predict_columns(
        self,
        live: Live,
        columns: Mapping[str, list[Any]],
        *,
        nonce: str | None = None,
        version: int | None = None,
        parsing: float = 0.0,
        turn: Turn | None = None,
    ) -> Kept:
        """Answer as ``live`` the rows given column by column (see RequestRows.columns), or have ``version`` answer all.

        ``parsing``: the seconds that reading them took. Else as ``predict``.
        """
        began = time.perf_counter()
        pinned = None if version is None else self._pin(live, version)
        if pinned is not None:
            for name in asked(live.model, pinned):
                if name not in columns and name not in live.rows.needed:
                    raise RequestError(f"Missing column: version {version} reads it.", field=name)
        few = live.rows.height(columns) <= FEW
        if few and live.by_value and (pinned is None or pinned.pick is not None):
            requests = live.rows.turned(columns)
            parsing += time.perf_counter() - began
            if turn is None:
                return self._alone(live, requests, nonce, pinned, parsing)
            return self.answering.rows(live, requests, turn, nonce, pinned, parsing)
        if turn is not None:
            turn.release()
        frame = live.rows.columns(columns)
        return self.answering.frame(live, frame, nonce, pinned, parsing + time.perf_counter() - began)

    def _alone(
        self,
        live: Live,
        requests: Sequence[dict[str, Any]],
        nonce: str | None,
        pinned: Loaded | None,
        parsing: float,
    ) -> Kept:
        """Answer ``requests`` in a turn of their own."""
        turn = self.turn()
        try:
            kept = self.answering.rows(live, requests, turn, nonce, pinned, parsing)
        finally:
            synced = turn.end()
        return kept._replace(synced=synced, held=False)

    def _pin(self, live: Live, version: int) -> Loaded:
        pinned = live.get(version) or self._pinned.get((live.model.name, version))
        if pinned is None:
            raise NotReadyError(f"Version {version} of model {live.model.name!r} is not loaded; try again.")
        return pinned

    def _lookup(self, model: Model) -> RowFeatures:
        mine: dict[str, RowFeatures] = self._lookups.__dict__
        if model.name not in mine:
            mine[model.name] = self._make_lookup(model, self._online)
        return mine[model.name]

    def _state_of(self, name: str) -> ModelState:
        self.model(name)
        return self._now.state.model(name)

    def close(self) -> None:
        """Sync and close this process's log segments. Idempotent."""
        self._predictions.close()
        self.inbox.close()


def asked(model: Model, by: Loaded) -> tuple[str, ...]:
    """Return the columns of a request to ``model`` that ``by`` needs, the key among them."""
    return model.reading(by.predictor.encoding.columns).request_columns


def _cannot(version: int, error: Exception) -> str:
    return f"version {version} cannot be loaded: {type(error).__name__}: {error}"
