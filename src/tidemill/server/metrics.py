"""What a server counts, in Prometheus' text format 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

#: Upper bounds of the latency histogram's buckets, in seconds; inclusive.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

#: Labels of one sample, in order, and its value.
Sample = tuple[Mapping[str, object], float]


class Metrics:
    """Counters of one process, all touched from the event loop's thread."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.predictions: Counter[tuple[str, int]] = Counter()
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self._seconds: Counter[str] = Counter()

    def observe(self, route: str, code: int, seconds: float) -> None:
        """Count one request to ``route`` (a template, never a raw path) that was answered with ``code``."""
        self.requests[route, code] += 1
        self._buckets[route][bisect_left(BUCKETS, seconds)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]  # a Counter adds floats as well

    def render(self, gauges: Iterable[tuple[str, str, Iterable[Sample]]]) -> bytes:
        """Return everything counted, then ``gauges``: (name, help, samples)."""
        lines: list[str] = []

        def family(name: str, kind: str, text: str) -> None:
            lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))

        family("tidemill_requests_total", "counter", "HTTP requests answered.")
        for (route, code), count in sorted(self.requests.items()):
            lines.append(_line("tidemill_requests_total", {"route": route, "code": code}, count))
        family("tidemill_request_seconds", "histogram", "Time from a request's headers to its answer.")
        for route, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), buckets, strict=True):
                total += count
                lines.append(_line("tidemill_request_seconds_bucket", {"route": route, "le": bound}, total))
            lines.append(_line("tidemill_request_seconds_sum", {"route": route}, self._seconds[route]))
            lines.append(_line("tidemill_request_seconds_count", {"route": route}, total))
        family("tidemill_predictions_total", "counter", "Rows predicted.")
        for (model, version), count in sorted(self.predictions.items()):
            lines.append(_line("tidemill_predictions_total", {"model": model, "version": version}, count))
        for name, text, samples in gauges:
            family(name, "gauge", text)
            lines.extend(_line(name, labels, value) for labels, value in samples)
        return ("\n".join(lines) + "\n").encode()


def _line(name: str, labels: Mapping[str, object], value: float) -> str:
    # Label values here are route templates, declared names and numbers: nothing that would need escaping.
    text = ",".join(f'{label}="{each}"' for label, each in labels.items())
    return f"{name}{{{text}}} {value}" if text else f"{name} {value}"
