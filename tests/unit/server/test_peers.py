from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tidemill.engine.predict.live import Answer
from tidemill.server import access
from tidemill.server.access import AccessLog
from tidemill.server.message import Request
from tidemill.server.metrics import Metrics, gauge, render
from tidemill.server.peers import Peers, Told


def told(applied: int, count: float = 1.0) -> Told:
    return Told(applied, [gauge("g", "A gauge.", [({"a": "b"}, count)])])


def test_a_worker_reads_what_the_others_tell(tmp_path: Path) -> None:
    peers = [Peers(number, tmp_path) for number in (0, 1, 10)]
    for number, each in enumerate(peers):
        each.tell(told(number))
    found = peers[1].all(told(99))
    assert {name: one.applied for name, one in found.items()} == {"0": 0, "1": 99, "10": 2}
    assert list(found) == ["0", "1", "10"]
    assert Peers().all(told(7)) == {"0": told(7)}


def test_figures_of_several_workers_name_their_worker() -> None:
    text = render({"0": told(1, 2.0).families, "1": told(1, 3.0).families}).decode()
    assert text.splitlines() == [
        "# HELP g A gauge.",
        "# TYPE g gauge",
        'g{a="b",worker="0"} 2.0',
        'g{a="b",worker="1"} 3.0',
    ]
    assert 'g{a="b"} 2.0' in render({"0": told(1, 2.0).families}).decode().splitlines()


def test_buckets_add_up() -> None:
    metrics = Metrics()
    answer = Answer(id="a", prediction=0.5, version=1, route="champion", asked="now")
    for seconds in (0.00001, 0.00002, 0.3, 99.0):
        metrics.predicted("m", [answer], (0.0, 0.0, 0.0, 0.0, seconds, 0.0))
    lines = render({"0": metrics.families()}).decode().splitlines()
    for line in (
        'tidemill_stage_seconds_bucket{stage="log",le="0.00001"} 1',
        'tidemill_stage_seconds_bucket{stage="log",le="0.000025"} 2',
        'tidemill_stage_seconds_bucket{stage="log",le="2.5"} 3',
        'tidemill_stage_seconds_bucket{stage="log",le="+Inf"} 4',
        'tidemill_stage_seconds_count{stage="log"} 4',
    ):
        assert line in lines


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_access_log_has_a_line_for_what_it_is_to_keep(tmp_path: Path) -> None:
    request = Request("POST", "/v1/x", {b"x-request-id": b"r1"}, b"abc")
    for which, kept in (("all", [200, 404]), ("errors", [404]), ("none", [])):
        file = tmp_path / which / "access.jsonl"
        made = AccessLog(file, which)  # type: ignore[arg-type]
        for status in (200, 404):
            made.note(request, "/v1/{x}", status, 7, 0.001)
        made.flush()
        assert [each["status"] for each in (lines(file) if kept else [])] == kept
        assert file.exists() == bool(kept)
    (first, _) = lines(tmp_path / "all" / "access.jsonl")
    assert {name: first[name] for name in ("method", "path", "route", "received", "sent", "us", "id")} == {
        "method": "POST",
        "path": "/v1/x",
        "route": "/v1/{x}",
        "received": 3,
        "sent": 7,
        "us": 1000,
        "id": "r1",
    }


def test_the_access_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "WAITING", 2)
    monkeypatch.setattr(access, "ROTATE", 200)
    file = tmp_path / "access.jsonl"
    made = AccessLog(file, "all")
    for _ in range(5):
        made.note(Request("GET", "/"), "/", 200, 1, 0.0)
    made.flush()
    assert lines(tmp_path / "access.jsonl.1")[-1]["lost"] == 3
    assert not file.exists()
    made.note(Request("GET", "/"), "/", 200, 1, 0.0)
    made.flush()
    assert len(lines(file)) == 1
