"""What a server counts, in Prometheus' text format 0.0.4."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from tidemill.engine.predict import live

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

#: Upper bounds of the latency histograms' buckets, in seconds; inclusive.
BUCKETS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
           0.1, 0.25, 0.5, 1.0, 2.5)  # fmt: skip
#: What is timed of an answer to a question, in order.
STAGES = ("read", *live.STAGES, "encode")
#: Requests counted together.
TOGETHER = 256

_BOUNDS = (*(f"{bound:.9f}".rstrip("0").rstrip(".") for bound in BUCKETS), "+Inf")


class Family(msgspec.Struct, frozen=True):
    """One metric with its samples: (what follows its name, labels, value)."""

    name: str
    kind: str
    text: str
    samples: list[tuple[str, dict[str, Any], float]]


def gauge(name: str, text: str, samples: Iterable[tuple[Mapping[str, Any], float]]) -> Family:
    """Return a gauge with its samples: (labels, value)."""
    return Family(name, "gauge", text, [("", dict(labels), value) for labels, value in samples])


class Histogram:
    """Durations in buckets."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * len(_BOUNDS)
        self.seconds = 0.0

    def add(self, durations: Sequence[float]) -> None:
        """Count some durations, in seconds."""
        places = np.searchsorted(BUCKETS, durations)
        self.counts = (self.counts + np.bincount(places, minlength=len(_BOUNDS))).tolist()
        self.seconds += sum(durations)

    def samples(self, labels: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], float]]:
        """Return its samples as Prometheus has them: buckets that add up, the sum, the count."""
        made: list[tuple[str, dict[str, Any], float]] = []
        total = 0
        for bound, count in zip(_BOUNDS, self.counts, strict=True):
            total += count
            made.append(("_bucket", {**labels, "le": bound}, total))
        return [*made, ("_sum", dict(labels), self.seconds), ("_count", dict(labels), total)]


class Metrics:
    """Counters of one process, all touched from the event loop's thread.

    What is observed is put aside and counted ``TOGETHER`` at a time, column by column, for that costs a request less.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._predictions: Counter[tuple[str, int, str]] = Counter()
        self._seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._stages = {stage: Histogram() for stage in STAGES}
        self._observed: list[tuple[str, int, float]] = []
        self._predicted: list[tuple[str, int, str]] = []
        self._timed: list[tuple[float, ...]] = []

    def observe(self, route: str, code: int, seconds: float) -> None:
        """Count one request to ``route`` (a template, never a raw path) that was answered with ``code``."""
        self._observed.append((route, code, seconds))
        if len(self._observed) >= TOGETHER:
            self._count()

    def predicted(self, model: str, answers: Sequence[live.Answer], seconds: tuple[float, ...]) -> None:
        """Count the answers to one request and the time that each of ``STAGES`` took."""
        counted = [(model, answer.version, answer.route) for answer in answers]
        if len(counted) == 1:
            self._predicted += counted
        else:  # thousands of rows, perhaps: not put aside
            self._predictions.update(counted)
        self._timed.append(seconds)

    def _count(self) -> None:
        """Count what was put aside."""
        self._requests.update([(route, code) for route, code, _ in self._observed])
        self._predictions.update(self._predicted)
        durations: defaultdict[str, list[float]] = defaultdict(list)
        for route, _, seconds in self._observed:
            durations[route].append(seconds)
        for route, each in durations.items():
            self._seconds[route].add(each)
        for histogram, stage in zip(self._stages.values(), zip(*self._timed, strict=True), strict=False):
            histogram.add(stage)
        self._observed, self._predicted, self._timed = [], [], []

    def families(self) -> list[Family]:
        """Return everything counted."""
        self._count()
        return [
            Family(
                "tidemill_requests_total",
                "counter",
                "HTTP requests answered.",
                [
                    ("", {"route": route, "code": code}, count)
                    for (route, code), count in sorted(self._requests.items())
                ],
            ),
            Family(
                "tidemill_request_seconds",
                "histogram",
                "Time from a whole request to its answer.",
                [each for route, found in sorted(self._seconds.items()) for each in found.samples({"route": route})],
            ),
            Family(
                "tidemill_stage_seconds",
                "histogram",
                "Time that the stages of a prediction took.",
                [each for stage, found in self._stages.items() for each in found.samples({"stage": stage})],
            ),
            Family(
                "tidemill_predictions_total",
                "counter",
                "Rows predicted.",
                [
                    ("", {"model": model, "version": version, "route": route}, count)
                    for (model, version, route), count in sorted(self._predictions.items())
                ],
            ),
            Family(
                "tidemill_mirrors_dropped_total",
                "counter",
                "Requests that shadows were not asked, for too many waited.",
                [("", {}, self.dropped)],
            ),
        ]


def render(workers: Mapping[str, Iterable[Family]]) -> bytes:
    """Return the families of each worker as text; where there are several, each sample names its worker."""
    merged: dict[str, Family] = {}
    for worker, families in workers.items():
        own = {"worker": worker} if len(workers) > 1 else {}
        for each in families:
            known = merged.setdefault(each.name, Family(each.name, each.kind, each.text, []))
            known.samples.extend((suffix, {**labels, **own}, value) for suffix, labels, value in each.samples)
    lines: list[str] = []
    for each in merged.values():
        lines += (f"# HELP {each.name} {each.text}", f"# TYPE {each.name} {each.kind}")
        lines += (_line(each.name + suffix, labels, value) for suffix, labels, value in each.samples)
    return ("\n".join(lines) + "\n").encode()


def _line(name: str, labels: Mapping[str, Any], value: float) -> str:
    # Label values here are route templates, declared names and numbers: nothing that would need escaping.
    text = ",".join(f'{label}="{each}"' for label, each in labels.items())
    return f"{name}{{{text}}} {value}" if text else f"{name} {value}"
