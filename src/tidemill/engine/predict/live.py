"""What a model answers by at one moment: its loaded versions and its route, and the answers as they go out."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import polars as pl

from tidemill.base.clock import format_time, from_datetime
from tidemill.base.schema import picker
from tidemill.engine.predict.predict import Columns, Features, Logged, Predictor
from tidemill.engine.predict.request import RequestRows
from tidemill.engine.predict.route import PLAIN, Route
from tidemill.spec.model import Model

#: The stages of an answer that are timed, in order.
STAGES = ("parse", "lookup", "predict", "log")

_spelled = lru_cache(16)(format_time)  # t stands still between two ticks


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
class Loaded:
    """A model version ready to answer.

    ``pick`` takes the predictor's values, in its order, from those of the model's columns; None where the predictor
    takes frames only. ``named``: answers name a class, for there are more than two, or they are text.
    """

    version: int
    training: str
    predictor: Predictor
    pick: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    named: bool = False

    @staticmethod
    def of(version: int, training: str, predictor: Predictor, columns: Sequence[str]) -> Loaded:
        """Return a version of a model with these ``columns``."""
        where = {name: place for place, name in enumerate(columns)}
        rows = predictor.runner is not None and all(name in where for name in predictor.encoding.columns)
        pick = picker([where[name] for name in predictor.encoding.columns]) if rows else None
        classes = predictor.encoding.classes
        named = len(classes) > 2 or any(isinstance(each, str) for each in classes)
        return Loaded(version, training, predictor, pick, named)

    def answers(self, logged: Sequence[Logged]) -> list[Answer]:
        """Return what goes out for each of ``logged``."""
        classes = self.predictor.encoding.classes
        asked = _spelled(logged[0].asked)
        answers = []
        for one in logged:
            prediction: Any = one.prediction
            probabilities = None
            if self.named:
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
class Live:
    """A model as it answers now: its champion, how questions are shared out, and the other versions of the route.

    ``by_value``: its versions can answer rows without a frame. ``mirrored``: other versions are asked, too.
    """

    model: Model
    rows: RequestRows
    columns: Columns
    champion: Loaded
    route: Route = PLAIN
    others: Mapping[int, Loaded] = field(default_factory=dict)
    by_value: bool = field(init=False)
    mirrored: bool = field(init=False)

    def __post_init__(self) -> None:
        picked = all(each.pick is not None for each in (self.champion, *self.others.values()))
        object.__setattr__(self, "by_value", picked and self.rows.plain)
        object.__setattr__(self, "mirrored", bool(self.route.shadows) or self.route.paired)

    def get(self, version: int) -> Loaded | None:
        """Return ``version`` when it is loaded."""
        return self.champion if version == self.champion.version else self.others.get(version)


class Kept(NamedTuple):
    """What has been written for a request, and when it is on disk: await ``synced`` where durability is "sync".

    ``held``: it is not written yet but at the end of the turn. ``mirror``, when there is one, asks the shadows; call it
    once the answer is out. ``seconds``: see ``STAGES``.
    """

    answers: list[Answer]
    synced: Future[None] | None
    mirror: Callable[[], None] | None = None
    seconds: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    held: bool = False


class Looking:
    """Looks features up once for a whole request; ``of`` gives the part of some of its rows."""

    def __init__(self, inner: Features, requests: pl.DataFrame) -> None:
        self._inner, self._requests = inner, requests
        self._found: tuple[pl.DataFrame, Any] | None = None
        self.seconds = 0.0

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Any]:
        """Return the features of the whole request, and what had been applied."""
        if self._found is None:
            began = time.perf_counter()
            self._found = self._inner.features(self._requests)
            self.seconds = time.perf_counter() - began
        return self._found

    def of(self, places: Sequence[int]) -> Features:
        """Return the look-up of the rows at ``places``."""
        return self if len(places) == self._requests.height else _Part(self, list(places))


@dataclass(frozen=True, slots=True)
class _Part:
    whole: Looking
    places: list[int]

    def features(self, requests: pl.DataFrame) -> tuple[pl.DataFrame, Any]:
        frame, applied = self.whole.features(requests)
        return frame[self.places], applied


def jsonable(value: Any) -> Any:
    """Return a value of a frame as requests and answers spell it in JSON: times and dates as ISO 8601."""
    if isinstance(value, dt.datetime):
        return format_time(from_datetime(value))
    return value.isoformat() if isinstance(value, dt.date) else value
