"""Serving: answers by the versions that the journal names, and follows the journal while it answers.

Everything a request needs hangs from one frozen value, ``_Now``. A request takes it once; ``refresh`` builds the next
one, with each new version loaded, and puts it in place by a single assignment. So a swap costs no request anything, a
request in flight ends on the version it began with, and a rollback or a new route is a swap like any other.

A route shares questions out by their keys (``route.py``). A version on trial cannot cost an answer: where an arm
cannot be loaded or fails, the champion answers. Shadows are asked after the answer is out, with the same features, and
what they say is logged by the route "shadow".
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from tidemill.base.errors import NotFoundError, NotReadyError, WorkspaceError
from tidemill.base.schema import nearest
from tidemill.engine.feature.freshness import Freshness, freshness
from tidemill.engine.feature.layout import Applied
from tidemill.engine.predict import single
from tidemill.engine.predict.inbox import Inbox
from tidemill.engine.predict.live import Answer, Kept, Live, Loaded, Looking
from tidemill.engine.predict.predict import Answerer, Columns, Features, Logged, Predictor
from tidemill.engine.predict.records import PREDICTIONS, sampled
from tidemill.engine.predict.request import RequestRows
from tidemill.engine.predict.route import CHAMPION, PINNED, SHADOW, mirrors, shadow_nonce, split
from tidemill.engine.predict.single import RowFeatures
from tidemill.engine.predict.state import ModelState, State, fold
from tidemill.engine.predict.turn import Turn
from tidemill.engine.table.plain import plain
from tidemill.ports.journal import Journal
from tidemill.ports.log import LogWriter
from tidemill.ports.online import Online
from tidemill.spec.model import Model
from tidemill.spec.system import System

#: Seconds between attempts to load a version that could not be loaded.
RETRY = 1.0
#: Versions kept loaded because a caller named them, beside those that a route names.
PINS = 8

_encode = msgspec.json.Encoder().encode


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
        self._share = system.endpoint.logged
        self._wanted = set(self._models) if system.endpoint.load == "start" else set()
        self._pinned: OrderedDict[tuple[str, int], Loaded] = OrderedDict()
        self._now = _Now()
        self._applied = 0
        self._retry_at = 0.0
        self._origin, self._count = os.urandom(12).hex(), itertools.count()
        self._turn = threading.Lock()  # held by the one refresh under way
        #: How often an arm or a shadow failed, by model and version.
        self.failures: Counter[tuple[str, int]] = Counter()

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
            return Live(model, self.request_rows(name), columns, champion, known.route, others)
        except Exception as error:
            troubles.setdefault(name, _cannot(number, error))
            self._retry_at = time.monotonic() + RETRY
            return now

    def _version(self, name: str, known: ModelState, number: int) -> Loaded:
        training = known.version(number).training
        return Loaded.of(number, training, self._load(name, training), self._models[name].columns)

    def request_rows(self, name: str) -> RequestRows:
        """Return what reads requests to the model ``name``. Raises what ``schema`` raises."""
        # A table's types are a contract that never changes, so they are read once.
        if name not in self._rows:
            self._rows[name] = RequestRows(self._schema(name), self._models[name].examples.key)
        return self._rows[name]

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
        if live.single and (request := live.rows.one(body)) is not None:
            return self._single(live, request, nonce, began, turn)
        rows, where = live.rows.objects(body)
        if live.single and not where:
            return self._single(live, live.rows.row(rows[0]), nonce, began, turn)
        if turn is not None:
            turn.release()
        frame = live.rows.frame(rows, where)
        return self.answer(live, frame, nonce=nonce, parsing=time.perf_counter() - began)

    def _single(self, live: Live, request: dict[str, Any], nonce: str | None, began: float, turn: Turn | None) -> Kept:
        if turn is None:
            alone = self.turn()
            try:
                kept = self._single(live, request, nonce, began, alone)
            finally:
                synced = alone.end()
            return kept._replace(synced=synced, held=False)
        parsed = time.perf_counter()
        nonce = f"{nonce or self._nonce()}:0"
        try:
            one, looking = single.answer(live, self._lookup(live.model), turn.snapshot(), request, nonce, CHAMPION)
        except WorkspaceError as error:
            raise _not_yet(error) from error
        answered = time.perf_counter()
        if held := sampled(one.id, self._share):
            turn.keep(_encode(one))
        seconds = parsed - began, looking, answered - parsed - looking, time.perf_counter() - answered
        return Kept(live.champion.answers((one,)), None, None, seconds, held)

    def answer(
        self,
        live: Live,
        requests: pl.DataFrame,
        *,
        nonce: str | None = None,
        version: int | None = None,
        parsing: float = 0.0,
    ) -> Kept:
        """Answer ``requests`` (the model's request columns) as ``live`` shares them out, or all by ``version``.

        ``parsing``: the seconds that reading them took. Errors as for ``predict``.
        """
        began = time.perf_counter()
        nonce = nonce or self._nonce()
        looking = Looking(self._lookup(live.model), requests)
        parts = self._share_out(live, requests, version)
        logged: list[Logged] = []
        answers: list[Answer] = []
        mirrored: dict[int, list[int]] = {}
        try:
            for route, by, places in parts:
                by, route, said = self._ask(live, by, route, requests, looking, places, nonce)
                logged += said
                answers += by.answers(said)
                for other in mirrors(live.route, live.champion.version, route, by.version):
                    mirrored.setdefault(other, []).extend(places)
        except WorkspaceError as error:  # the worker has not built the online state, or builds it for other views
            raise _not_yet(error) from error
        if len(parts) > 1:
            order = [place for _, _, places in parts for place in places]
            answers = [answer for _, answer in sorted(zip(order, answers, strict=True), key=lambda each: each[0])]
        answered = time.perf_counter()
        records = [_encode(each) for each in logged if sampled(each.id, self._share)]
        synced = self._predictions.append(*records) if records else None
        mirror = None
        if mirrored and self._share:
            ids = [answer.id for answer in answers]

            def mirror() -> None:
                for other, places in sorted(mirrored.items()):
                    self._mirror(live, other, requests, looking, sorted(places), nonce, ids)

        looked = looking.seconds
        return Kept(
            answers, synced, mirror, (parsing, looked, answered - began - looked, time.perf_counter() - answered)
        )

    def _nonce(self) -> str:
        """Return a nonce that no other process and no other request has."""
        return f"{self._origin}-{next(self._count):x}"

    def _share_out(
        self, live: Live, requests: pl.DataFrame, version: int | None
    ) -> list[tuple[str, Loaded, list[int]]]:
        """Return who answers which rows of ``requests``: (route, version, places)."""
        everything = list(range(requests.height))
        if version is not None:
            pinned = live.get(version) or self._pinned.get((live.model.name, version))
            if pinned is None:
                raise NotReadyError(f"Version {version} of model {live.model.name!r} is not loaded; try again.")
            return [(PINNED, pinned, everything)]
        if not live.route.arms:
            return [(CHAMPION, live.champion, everything)]
        keys = plain(requests.select(live.rows.key)).rows()
        parts: list[tuple[str, Loaded, list[int]]] = []
        for route, number, places in split(live.route, live.champion.version, keys):
            by = live.get(number)
            parts.append((CHAMPION, live.champion, places) if by is None else (route, by, places))
        return parts

    def _ask(
        self,
        live: Live,
        by: Loaded,
        route: str,
        requests: pl.DataFrame,
        looking: Looking,
        places: list[int],
        nonce: str,
    ) -> tuple[Loaded, str, list[Logged]]:
        """Return who answered, by which route, and what: the champion where an arm fails."""
        rows = requests if len(places) == requests.height else requests[places]
        nonces = [f"{nonce}:{place}" for place in places]
        try:
            return by, route, self._answerer(live, by, looking.of(places)).answer(rows, nonces=nonces, route=route)
        except WorkspaceError:
            raise
        except Exception:
            if route in (CHAMPION, PINNED):
                raise
        # What is wrong with the question itself, the champion will say as well.
        answered = self._ask(live, live.champion, CHAMPION, requests, looking, places, nonce)
        self.failures[live.model.name, by.version] += 1
        return answered

    def _mirror(
        self,
        live: Live,
        version: int,
        requests: pl.DataFrame,
        looking: Looking,
        places: list[int],
        nonce: str,
        ids: Sequence[str],
    ) -> None:
        """Ask ``version`` what others have answered, and log what it says where their answer ``ids`` are logged."""
        by = live.get(version)
        if by is None:
            return
        nonces = [shadow_nonce(f"{nonce}:{place}", version) for place in places]
        rows = requests if len(places) == requests.height else requests[places]
        try:
            said = self._answerer(live, by, looking.of(places)).answer(rows, nonces=nonces, route=SHADOW)
        except Exception:  # a shadow that fails is counted, and costs nobody an answer
            self.failures[live.model.name, version] += 1
            return
        records = [_encode(each) for place, each in zip(places, said, strict=True) if sampled(ids[place], self._share)]
        if records:
            self._predictions.append(*records)

    @staticmethod
    def _answerer(live: Live, by: Loaded, lookup: Features) -> Answerer:
        return Answerer(live.model.name, by.version, live.rows.key, lookup, by.predictor, live.columns)

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


def _not_yet(error: WorkspaceError) -> NotReadyError:
    return NotReadyError(f"Features cannot be looked up yet: {error}.")


def _cannot(version: int, error: Exception) -> str:
    return f"version {version} cannot be loaded: {type(error).__name__}: {error}"
