"""Answering: which versions are asked, what they say, and what of it is logged.

A route shares questions out by their keys (``route.py``). A version on trial cannot cost an answer: where an arm fails,
the champion answers. Shadows are asked after the answer is out, with the same features, and what they say is logged by
the route "shadow". A few rows are answered value by value, many by frames; what is said and logged is the same.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import polars as pl

from tidemill.base.errors import NotReadyError, WorkspaceError
from tidemill.engine.predict import single
from tidemill.engine.predict.live import Answer, Kept, Live, Loaded, Looking
from tidemill.engine.predict.predict import Answerer, Features, Logged
from tidemill.engine.predict.records import sampled
from tidemill.engine.predict.route import CHAMPION, PINNED, SHADOW, choose, mirrors, shadow_nonce, split
from tidemill.engine.predict.single import RowFeatures
from tidemill.engine.predict.turn import Turn
from tidemill.engine.table.plain import plain
from tidemill.ports.log import LogWriter
from tidemill.spec.model import Model

_encode = msgspec.json.Encoder().encode


class Answering:
    """Answers questions and logs ``share`` of them. Safe to share between threads.

    ``lookup`` gives the calling thread's look-up of a model's features.
    """

    def __init__(self, log: LogWriter, share: float, lookup: Callable[[Model], RowFeatures]) -> None:
        self._log, self._share, self._lookup = log, share, lookup
        self._origin, self._count = os.urandom(12).hex(), itertools.count()
        #: How often an arm or a shadow failed, by model and version.
        self.failures: Counter[tuple[str, int]] = Counter()

    def rows(
        self,
        live: Live,
        requests: Sequence[dict[str, Any]],
        turn: Turn,
        nonce: str | None = None,
        pinned: Loaded | None = None,
        parsing: float = 0.0,
    ) -> Kept:
        """Answer ``requests`` (see RequestRows.row) value by value, or all by ``pinned``; only where ``live.by_value``.

        What is logged is in the log when ``turn`` ends. ``parsing``: the seconds that reading the requests took. Raises
        RequestError, or NotReadyError while features cannot be looked up.
        """
        began = time.perf_counter()
        nonce = nonce or self._nonce()
        schema, lookup, snapshot = live.rows.schema, self._lookup(live.model), turn.snapshot()
        found: list[tuple[list[Any], Any]] = []
        logged: list[Logged] = []
        try:
            for request in requests:
                found.append(lookup.row(request, schema, snapshot))  # noqa: PERF401  a comprehension is a call
        except WorkspaceError as error:
            raise _not_yet(error) from error
        looked = time.perf_counter()
        if pinned is None and live.route.arms:
            answers = self._by_arms(live, requests, found, nonce, logged)
        else:
            by, route = (live.champion, CHAMPION) if pinned is None else (pinned, PINNED)
            for place, request in enumerate(requests):
                logged.append(single.answer(live, by, route, request, found[place], f"{nonce}:{place}"))
            answers = by.answers(logged)
        answered = time.perf_counter()
        held = False
        for one in logged:
            if sampled(one.id, self._share):
                turn.keep(_encode(one))
                held = True
        mirror = partial(self._mirror_rows, live, requests, found, logged) if live.mirrored and self._share else None
        seconds = parsing, looked - began, answered - looked, time.perf_counter() - answered
        return Kept(answers, None, mirror, seconds, held)

    def frame(
        self,
        live: Live,
        requests: pl.DataFrame,
        nonce: str | None = None,
        pinned: Loaded | None = None,
        parsing: float = 0.0,
    ) -> Kept:
        """Answer ``requests`` (the model's request columns) as ``live`` shares them out, or all by ``pinned``.

        What is logged is in the log when it returns. ``parsing`` and errors as for ``rows``.
        """
        began = time.perf_counter()
        nonce = nonce or self._nonce()
        looking = Looking(self._lookup(live.model), requests)
        parts = _parts(live, requests, pinned)
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
        except WorkspaceError as error:
            raise _not_yet(error) from error
        if len(parts) > 1:
            order = [place for _, _, places in parts for place in places]
            answers = [answer for _, answer in sorted(zip(order, answers, strict=True), key=lambda each: each[0])]
        answered = time.perf_counter()
        records = [_encode(each) for each in logged if sampled(each.id, self._share)]
        synced = self._log.append(*records) if records else None
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

    # Value by value

    def _by_arms(
        self,
        live: Live,
        requests: Sequence[dict[str, Any]],
        found: Sequence[tuple[list[Any], Any]],
        nonce: str,
        logged: list[Logged],
    ) -> list[Answer]:
        """Return what goes out for each of ``requests``, and add to ``logged``: by the champion where an arm fails."""
        answers: list[Answer] = []
        for place, (request, each) in enumerate(zip(requests, found, strict=True)):
            route, by = _arm(live, [request[column] for column in live.rows.key])
            name = f"{nonce}:{place}"
            try:
                one = single.answer(live, by, route, request, each, name)
            except Exception:
                if route == CHAMPION:
                    raise
                # What is wrong with the question itself, the champion will say as well.
                one = single.answer(live, live.champion, CHAMPION, request, each, name)
                self.failures[live.model.name, by.version] += 1
                by = live.champion
            logged.append(one)
            answers += by.answers((one,))
        return answers

    def _mirror_rows(
        self,
        live: Live,
        requests: Sequence[dict[str, Any]],
        found: Sequence[tuple[list[Any], Any]],
        answered: Sequence[Logged],
    ) -> None:
        """Ask others what was ``answered``, and log what they say where that is logged."""
        for request, each, one in zip(requests, found, answered, strict=True):
            for version in mirrors(live.route, live.champion.version, one.route, one.version):
                by = live.get(version)
                if by is None:
                    continue
                try:
                    said = single.answer(live, by, SHADOW, request, each, shadow_nonce(one.nonce, version))
                except Exception:  # a shadow that fails is counted, and costs nobody an answer
                    self.failures[live.model.name, version] += 1
                    continue
                if sampled(one.id, self._share):
                    self._log.append(_encode(said))

    # By frames

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
            return by, route, _answerer(live, by, looking.of(places)).answer(rows, nonces=nonces, route=route)
        except WorkspaceError:
            raise
        except Exception:
            if route in (CHAMPION, PINNED):
                raise
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
            said = _answerer(live, by, looking.of(places)).answer(rows, nonces=nonces, route=SHADOW)
        except Exception:
            self.failures[live.model.name, version] += 1
            return
        records = [_encode(each) for place, each in zip(places, said, strict=True) if sampled(ids[place], self._share)]
        if records:
            self._log.append(*records)


def _arm(live: Live, key: Sequence[Any]) -> tuple[str, Loaded]:
    """Return who answers about ``key``: (route, version)."""
    arm = choose(live.route, key)
    by = None if arm is None else live.get(arm.version)
    return (CHAMPION, live.champion) if arm is None or by is None else (arm.name, by)


def _parts(live: Live, requests: pl.DataFrame, pinned: Loaded | None) -> list[tuple[str, Loaded, list[int]]]:
    """Return who answers which rows of ``requests``: (route, version, places)."""
    everything = list(range(requests.height))
    if pinned is not None:
        return [(PINNED, pinned, everything)]
    if not live.route.arms:
        return [(CHAMPION, live.champion, everything)]
    parts: list[tuple[str, Loaded, list[int]]] = []
    for route, number, places in split(live.route, live.champion.version, plain(requests.select(live.rows.key)).rows()):
        by = live.get(number)
        parts.append((CHAMPION, live.champion, places) if by is None else (route, by, places))
    return parts


def _answerer(live: Live, by: Loaded, lookup: Features) -> Answerer:
    return Answerer(live.model.name, by.version, live.rows.key, lookup, by.predictor, live.columns)


def _not_yet(error: WorkspaceError) -> NotReadyError:
    """Say that the worker has not built the online state, or builds it for other views."""
    return NotReadyError(f"Features cannot be looked up yet: {error}.")
