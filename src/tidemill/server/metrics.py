"""What a server counts, in Prometheus' text format 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

#: Upper bounds of the latency histograms' buckets, in seconds; inclusive.
BUCKETS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
           0.1, 0.25, 0.5, 1.0, 2.5)  # fmt: skip
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

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def samples(self, labels: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], float]]:
        """Return its samples as Prometheus has them: buckets that add up, the sum, the count."""
        made: list[tuple[str, dict[str, Any], float]] = []
        total = 0
        for bound, count in zip(_BOUNDS, self.counts, strict=True):
            total += count
            made.append(("_bucket", {**labels, "le": bound}, total))
        return [*made, ("_sum", dict(labels), self.seconds), ("_count", dict(labels), total)]


class Metrics:
    """Counters of one process, all touched from the event loop's thread."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.predictions: Counter[tuple[str, int, str]] = Counter()
        self.dropped = 0
        self._seconds: dict[str, Histogram] = {}
        self._stages: dict[str, Histogram] = {}

    def observe(self, route: str, code: int, seconds: float) -> None:
        """Count one request to ``route`` (a template, never a raw path) that was answered with ``code``."""
        self.requests[route, code] += 1
        if (found := self._seconds.get(route)) is None:
            found = self._seconds[route] = Histogram()
        found.add(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """Count the time that one stage of a prediction took."""
        if (found := self._stages.get(name)) is None:
            found = self._stages[name] = Histogram()
        found.add(seconds)

    def families(self) -> list[Family]:
        """Return everything counted."""
        return [
            Family(
                "tidemill_requests_total",
                "counter",
                "HTTP requests answered.",
                [("", {"route": route, "code": code}, count) for (route, code), count in sorted(self.requests.items())],
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
                    for (model, version, route), count in sorted(self.predictions.items())
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
