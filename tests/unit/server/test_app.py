from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.base.errors import TidemillError
from tidemill.engine.predict.encode import Encoding
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.predict.request import FEW
from tidemill.server.app import INLINE, App, Limits
from tidemill.server.message import Reply as Made
from tidemill.server.message import Request

STAGES = ("read", "parse", "lookup", "predict", "log", "encode")
ROW = {"id": "a", "x": 1.0, "n": 2, "ok": True, "at": 5}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    made: Made

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(app: App, method: str, path: str, body: Any = b"", *, headers: dict[str, str] | None = None) -> Reply:
    """Ask the application, and check what every answer has to be."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    encoded = {name.lower().encode(): value.encode("latin-1") for name, value in (headers or {}).items()}
    answer = app.answer(Request(method, path, encoded, content))
    made = answer if isinstance(answer, Made) else await answer
    made = (app.settle() if made.held else None) or made
    return Reply(made.status, {name.decode(): value.decode() for name, value in made.headers}, made.body, made)


def get(app: App, path: str) -> Reply:
    return asyncio.run(ask(app, "GET", path))


def post(app: App, path: str, body: Any, **options: Any) -> Reply:
    return asyncio.run(ask(app, "POST", path, body, **options))


@asynccontextmanager
async def running(app: App) -> AsyncIterator[None]:
    """Run the application's life around the block."""
    await app.startup()
    yield
    await app.shutdown()


@pytest.fixture
def app(stage: Any) -> App:
    return App(stage.serving)


def test_a_prediction(app: App, stage: Any) -> None:
    reply = post(app, "/v1/models/risk/predict", ROW)
    assert (reply.status, reply.made.content_type) == (200, b"application/json")
    (answer,) = reply.json["predictions"]
    assert reply.json["model"] == "risk"
    assert answer == {
        "id": stage.predictions()[0].id,
        "prediction": 0.25,
        "version": 1,
        "route": "champion",
        "asked": "1970-01-01T00:00:01.000001Z",
    }
    many = post(app, "/v1/models/cost/predict", {"rows": [{"id": "a", "x": 1, "n": 2}, {"id": "b", "x": 2, "n": 2}]})
    assert [each["prediction"] for each in many.json["predictions"]] == [3.0, 4.0]


def test_a_large_batch_is_answered_off_the_event_loop(app: App, stage: Any) -> None:
    rows = [{**ROW, "id": f"{i:020}"} for i in range(1000)]
    assert len(json.dumps(rows)) > INLINE
    reply = post(app, "/v1/models/risk/predict", {"rows": rows})
    assert [each["id"] for each in reply.json["predictions"]] == [each.id for each in stage.predictions()]
    assert [each.key for each in stage.predictions()] == [[row["id"]] for row in rows]


def test_the_request_id_makes_ids_repeatable(app: App) -> None:
    def id(name: str, row: Any = ROW) -> Any:
        reply = post(app, "/v1/models/risk/predict", row, headers={"X-Request-Id": name})
        return reply.json["predictions"][0]["id"]

    assert id("one") == id("one") != id("two")
    assert id("one") != id("one", {**ROW, "x": 7.0})  # another question: both must be in the log
    refused = post(app, "/v1/models/risk/predict", ROW, headers={"X-Request-Id": "a b"})
    assert (refused.status, refused.json["error"]["field"]) == (400, "X-Request-Id")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field", "reason"),
    [
        ("POST", "/v1/models/risk/predict", {**ROW, "x": "1"}, 400, "x", "Expected a number, got text."),
        ("POST", "/v1/models/risk/predict", b"{", 400, None, "not JSON"),
        ("POST", "/v1/models/rsik/predict", ROW, 404, None, "Did you mean 'risk'?"),
        ("POST", "/v1/models/risk/predicts", ROW, 404, None, "There is no route"),
        ("GET", "/v1/modelz", b"", 404, None, "Did you mean '/v1/models'?"),
        ("GET", "/", b"", 404, None, "There is no route '/'."),
        ("GET", "/v1/models/risk/predict", b"", 405, None, "takes POST, not GET"),
        ("POST", "/v1/health", b"", 405, None, "takes GET, not POST"),
        ("GET", "/v1/models/rsik", b"", 404, None, "Did you mean 'risk'?"),
        ("POST", "/v1/tables/results", {"rows": [{"id": "a"}]}, 400, "source", "another reader"),
        ("POST", "/v1/tables/thing", {"rows": [{"id": "a"}]}, 404, None, "Did you mean 'things'?"),
        ("POST", "/v1/tables/things", {"rows": []}, 400, "rows", "no rows"),
        ("POST", "/v1/feedback", {"model": "risk"}, 400, "value", "Missing field."),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    app: App, method: str, path: str, body: Any, status: int, field: str | None, reason: str
) -> None:
    reply = asyncio.run(ask(app, method, path, body))
    assert reply.status == status
    assert reply.json["error"]["field"] == field
    assert reason in reply.json["error"]["reason"]


def test_feedback_and_pushed_rows_are_accepted_once_written(app: App, stage: Any) -> None:
    value = {"model": "risk", "prediction": "abc", "value": True}
    replies = [post(app, "/v1/feedback", value, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [reply.status for reply in replies] == [202, 202]
    assert replies[0].json == replies[1].json == {"feedback": stage.feedback()[0]["id"]}
    pushed = post(app, "/v1/tables/things", {"rows": [{"id": "a"}]}, headers={"Idempotency-Key": "p"})
    assert (pushed.status, pushed.json) == (202, {"rows": 1})
    assert stage.records("things")[0]["idempotency_key"] == "p"


def test_more_than_can_be_worked_on_is_refused(make_stage: Callable[..., Any]) -> None:
    stage = promoted(make_stage(tm.Endpoint(durability="sync")))
    waiting: list[Future[None]] = []

    def append(_: bytes) -> Future[None]:
        waiting.append(Future())
        return waiting[-1]

    stage.serving._predictions.append = append

    async def scenario() -> tuple[Reply, Reply, Reply]:
        app = App(stage.serving, Limits(in_flight=1))
        first = asyncio.ensure_future(ask(app, "POST", "/v1/models/risk/predict", ROW))
        while not waiting:
            await asyncio.sleep(0.001)
        second = await ask(app, "POST", "/v1/models/risk/predict", ROW)
        health = await ask(app, "GET", "/v1/health")
        waiting[0].set_result(None)
        return await first, second, health

    first, second, health = asyncio.run(scenario())
    assert (first.status, second.status, health.status) == (200, 503, 200)
    assert second.headers["retry-after"] == "1"


def test_what_cannot_be_done_in_time_is_given_up(make_stage: Callable[..., Any]) -> None:
    stage = promoted(make_stage(tm.Endpoint(durability="sync")))
    stage.serving._predictions.append = lambda _: Future()
    app = App(stage.serving, Limits(seconds=0.01))
    reply = post(app, "/v1/models/risk/predict", ROW)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "within 0.01 s" in reply.json["error"]["reason"]
    assert get(app, "/metrics").body.decode().splitlines().count("tidemill_in_flight 0") == 1


def promoted(stage: Any) -> Any:
    stage.made("risk", 1, 0.5)
    stage.point("risk", 1)
    stage.apply(0)
    stage.serving.refresh()
    return stage


def test_sync_durability_answers_after_the_sync(make_stage: Callable[..., Any]) -> None:
    stage = promoted(make_stage(tm.Endpoint(durability="sync")))
    app = App(stage.serving)
    on_disk: list[Future[None]] = []

    def append(*payloads: bytes) -> Future[None]:
        assert len(payloads) == 2
        on_disk.append(Future())
        return on_disk[-1]

    stage.serving._predictions.append = append

    async def scenario() -> bool:
        asked = asyncio.ensure_future(ask(app, "POST", "/v1/models/risk/predict", {"rows": [ROW, ROW]}))
        await asyncio.sleep(0.01)
        waited = not asked.done()
        on_disk[0].set_result(None)
        reply = await asked
        return waited and reply.status == 200

    assert asyncio.run(scenario())


class Summing:
    """The columns of ``COLUMNS`` added up; with a runner, so that single rows need no frame."""

    def batch(self, features: pl.DataFrame) -> np.ndarray[Any, Any]:
        return features.select(pl.sum_horizontal("x", "n")).to_numpy()

    def row(self, values: Sequence[Any]) -> float:
        return float(sum(values))


@pytest.fixture
def quick(stage: Any) -> Any:
    """Return a stage whose ``risk`` answers single rows without a frame."""
    inner = stage.load

    def load(model: str, training: str) -> Predictor:
        made = Predictor(Encoding(("x", "n"), {}, (), ()), None, Summing())
        return made if model == "risk" else inner(model, training)

    stage.serving._load = load
    stage.made("risk", 2, None, ())
    stage.point("risk", 2)
    stage.serving.refresh()
    return stage


def test_answers_of_a_turn_share_one_write_and_one_snapshot(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(quick.serving)
    opened: list[None] = []
    inner = quick.online.snapshot

    def snapshot() -> Any:
        opened.append(None)
        return inner()

    monkeypatch.setattr(quick.online, "snapshot", snapshot)
    body = json.dumps(ROW).encode()
    replies = [app.answer(Request("POST", "/v1/models/risk/predict", None, body)) for _ in range(5)]
    assert all(isinstance(reply, Made) and reply.status == 200 and reply.held for reply in replies)
    assert (len(opened), quick.predictions()) == (1, [])  # none may go out yet
    assert app.settle() is None
    ids = [json.loads(reply.body)["predictions"][0]["id"] for reply in replies if isinstance(reply, Made)]
    assert [each.id for each in quick.predictions()] == ids
    assert app.settle() is None
    assert len(quick.predictions()) == 5


def test_the_loop_never_holds_two_snapshots(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that has to take a new size would wait for the first while the second is being opened."""
    app = App(quick.serving)
    held: list[int] = []
    inner = quick.online.snapshot

    @contextmanager
    def snapshot() -> Iterator[Any]:
        held.append(1)
        assert len(held) == 1
        try:
            with inner() as found:
                yield found
        finally:
            held.pop()

    monkeypatch.setattr(quick.online, "snapshot", snapshot)
    kinds = {"id": "BYTES", "x": "FP64", "n": "INT64", "ok": "BOOL", "at": "INT64"}
    inputs = [{"name": name, "shape": [1], "datatype": kind, "data": [ROW[name]]} for name, kind in kinds.items()]
    for method, path, body, shared in (
        ("POST", "/v1/models/risk/predict", {"rows": [ROW, ROW]}, 1),
        ("POST", "/v1/models/risk/predict", {"rows": [ROW] * (FEW + 1)}, 0),
        ("POST", "/v2/models/risk/infer", {"inputs": inputs}, 1),
        ("GET", "/v1/health", None, 0),
        ("GET", "/v1/ready", None, 0),
        ("GET", "/metrics", None, 0),
    ):
        first = app.answer(Request("POST", "/v1/models/risk/predict", None, json.dumps(ROW).encode()))
        assert isinstance(first, Made)
        assert len(held) == 1
        said = app.answer(Request(method, path, None, json.dumps(body).encode() if body else b""))
        assert isinstance(said, Made)
        assert (said.status, len(held)) == (200, shared), path
        assert said.held == bool(shared)
    app.settle()
    assert len(quick.predictions()) == 6 + 2 + FEW + 1 + 1


def test_an_answer_that_cannot_be_logged_does_not_go_out(quick: Any, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(quick.serving)

    def full(*payloads: bytes) -> Future[None]:
        raise TidemillError("cannot write: No space left on device.")

    quick.serving._predictions.append = full
    reply = app.answer(Request("POST", "/v1/models/risk/predict", None, json.dumps(ROW).encode()))
    assert isinstance(reply, Made)
    assert reply.held
    instead = app.settle()
    assert instead is not None
    assert instead.status == 500
    assert b"space" not in instead.body
    assert "No space left" in capsys.readouterr().err
    app.account()
    counted = [line for line in get(app, "/metrics").body.decode().splitlines() if "requests_total{" in line]
    assert counted == ['tidemill_requests_total{route="/v1/models/{model}/predict",code="500"} 1']
    assert app.settle() is None


def test_before_a_champion_there_is_503_and_when_to_come_back(make_stage: Callable[..., Any]) -> None:
    stage = make_stage()
    app = App(stage.serving)
    for reply in (post(app, "/v1/models/risk/predict", ROW), get(app, "/v1/ready")):
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "no champion yet" in post(app, "/v1/models/risk/predict", ROW).json["error"]["reason"]
    assert get(app, "/v1/ready").json["error"]["reason"] == "The online state is not built yet."
    health = get(app, "/v1/health")
    assert (health.status, health.json["watermark"]) == (200, None)
    assert get(app, "/v1/models").json["models"][0]["champion"] is None


def test_health_readiness_and_models(app: App, stage: Any) -> None:
    assert get(app, "/v1/ready").json == {"ready": True}
    health = get(app, "/v1/health").json
    assert health["journal"] == stage.journal.last() == 4
    assert (health["watermark"], health["champions"]) == ("1970-01-01T00:00:01.000001Z", {"risk": 1, "cost": 1})
    risk = get(app, "/v1/models/risk").json
    assert risk["champion"] == {"version": 1, "training": "risk-1"}
    assert risk["columns"] == {
        "id": "String",
        "x": "Float64",
        "n": "Int64",
        "ok": "Boolean",
        "at": "Datetime(time_unit='us', time_zone='UTC')",
    }
    assert get(app, "/v1/models").json["models"][0] == risk


def test_metrics_count_what_happened(app: App) -> None:
    post(app, "/v1/models/risk/predict", {"rows": [ROW, ROW]})
    post(app, "/v1/models/nothing/predict", ROW)
    get(app, "/no/such/place")
    reply = get(app, "/metrics")
    assert reply.made.content_type == b"text/plain; version=0.0.4; charset=utf-8"
    lines = reply.body.decode().splitlines()
    for line in (
        'tidemill_requests_total{route="/v1/models/{model}/predict",code="200"} 1',
        'tidemill_requests_total{route="/v1/models/{model}/predict",code="404"} 1',
        'tidemill_requests_total{route="unknown",code="404"} 1',
        'tidemill_predictions_total{model="risk",version="1",route="champion"} 2',
        'tidemill_request_seconds_count{route="/v1/models/{model}/predict"} 2',
        'tidemill_request_seconds_bucket{route="/v1/models/{model}/predict",le="+Inf"} 2',
        "tidemill_journal_applied 4",
        "tidemill_watermark_seconds 1.000001",
        *(f'tidemill_stage_seconds_count{{stage="{stage}"}} 1' for stage in STAGES),
    ):
        assert line in lines


def test_an_unexpected_error_shows_an_id_and_nothing_else(
    app: App, stage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.made("risk", 2, KeyError("a secret inside"))
    stage.point("risk", 2)
    stage.serving.refresh()
    reply = post(app, "/v1/models/risk/predict", ROW)
    assert reply.status == 500
    assert b"secret" not in reply.body
    (line,) = capsys.readouterr().err.splitlines()
    logged = json.loads(line)
    assert logged["id"] == reply.json["error"]["id"]
    assert "a secret inside" in logged["trace"]


def test_champions_swap_under_load_without_a_failed_request(stage: Any) -> None:
    """1,000 requests while the champion changes 100 times: each answer is of the version it names."""
    swaps, requests = 100, 1_000
    for version in range(2, swaps + 2):
        stage.made("risk", version, version / 1000)
    app = App(stage.serving, Limits(poll=0.0))
    expected = {1: 0.25, **{version: version / 1000 for version in range(2, swaps + 2)}}

    async def swap() -> None:
        # Back and forth: a promotion, and now and then a rollback.
        for version in range(2, swaps + 2):
            stage.point("risk", version if version % 5 else version - 3)
            while stage.serving.applied < stage.journal.last():
                await asyncio.sleep(0)
            await asyncio.sleep(0.002)  # for some answers by each

    async def scenario() -> list[Any]:
        answers: list[Any] = []

        async def client(asks: Callable[[], Awaitable[Reply]]) -> None:
            while len(answers) < requests or not swapping.done():
                answers.append(await asks())
                await asyncio.sleep(0)

        async with running(app):
            swapping = asyncio.ensure_future(swap())
            batch = {"rows": [{**ROW, "id": f"{i:030}"} for i in range(300)]}
            clients = [
                *(client(lambda: ask(app, "POST", "/v1/models/risk/predict", ROW)) for _ in range(3)),
                client(lambda: ask(app, "POST", "/v1/models/risk/predict", batch)),
            ]
            await asyncio.gather(*clients)
            await swapping
        return answers

    answers = asyncio.run(scenario())
    assert len(answers) >= requests
    assert {reply.status for reply in answers} == {200}
    seen = set()
    for reply in answers:
        for answer in reply.json["predictions"]:
            assert answer["prediction"] == pytest.approx(expected[answer["version"]], abs=0)
            seen.add(answer["version"])
        assert len({answer["version"] for answer in reply.json["predictions"]}) == 1
    assert len(seen) > swaps / 2


def test_the_journal_is_followed_from_startup_to_shutdown(stage: Any) -> None:
    async def scenario() -> None:
        app = App(stage.serving, Limits(poll=0.001))
        async with running(app):
            stage.made("risk", 2, 0.5)
            entry = stage.point("risk", 2)
            while stage.serving.applied < entry.number:
                await asyncio.sleep(0.001)
            reply = await ask(app, "POST", "/v1/models/risk/predict", ROW)
            assert reply.json["predictions"][0]["version"] == 2

    asyncio.run(scenario())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["risk", "cost", "a"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["rows", "model", "prediction", "key", "value", *ROW]) | st.text(), inner)
    ),
    max_leaves=25,
)
almost = st.fixed_dictionaries(dict.fromkeys(ROW, values)) | st.sampled_from([ROW]).flatmap(
    lambda row: st.tuples(st.sampled_from(list(row)), values).map(lambda pair: {**row, pair[0]: pair[1]})
)
bodies = st.binary() | (values | almost | almost.map(lambda row: {"rows": [ROW, row]})).map(
    lambda value: json.dumps(value).encode()
)
paths = st.sampled_from(
    [
        "/v1/models/risk/predict",
        "/v1/models/cost/predict",
        "/v1/feedback",
        "/v1/tables/things",
        "/v1/models/*/predict",
        "/v2/models/risk/infer",
        "/v2/models/risk/versions/1/infer",
        "/v2/models/risk/versions/2/infer",
        "/v2/models/risk/versions/²",
    ]
) | st.text().map(lambda text: "/" + text)


@given(paths, bodies, st.sampled_from(["POST", "GET", "DELETE"]), st.text(st.characters(codec="latin-1")))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_request_makes_the_server_fail(app: App, path: str, body: bytes, method: str, token: str) -> None:
    reply = asyncio.run(ask(app, method, path, body, headers={"X-Request-Id": token, "Idempotency-Key": token}))
    assert reply.status < 500
    if reply.status >= 400 and path.startswith("/v2"):
        assert isinstance(reply.json["error"], str)
    elif reply.status >= 400:
        assert set(reply.json["error"]) == {"field", "reason"}


def test_an_estimator_that_takes_its_time_holds_nothing_up(make_stage: Callable[..., Any]) -> None:
    """What it would answer too late is given up, and meanwhile others are answered."""
    going = threading.Event()

    class Slow:
        def predict_proba(self, frame: pl.DataFrame) -> np.ndarray[Any, Any]:
            going.wait(20)
            return np.tile((0.5, 0.5), (frame.height, 1))

    for endpoint in (tm.Endpoint(), tm.Endpoint(durability="sync")):
        going.clear()
        stage = make_stage(endpoint)
        stage.made("risk", 1, Slow())
        stage.point("risk", 1)
        stage.apply(1_000_000, things=3)
        stage.serving.refresh()
        app = App(stage.serving, Limits(seconds=0.3))

        async def scenario(app: App = app) -> tuple[Reply, Reply]:
            slow = asyncio.ensure_future(ask(app, "POST", "/v1/models/risk/predict", ROW))
            await asyncio.sleep(0.01)
            health = await ask(app, "GET", "/v1/health")
            assert not slow.done()
            found = await slow
            going.set()
            return found, health

        slow, health = asyncio.run(scenario())
        assert (slow.status, health.status) == (503, 200)


def test_what_is_refused_before_it_is_whole_is_counted(app: App) -> None:
    app.refused(Request("POST", "/v1/models/risk/predict", {}, b""), Made(413, b"{}"))
    lines = get(app, "/metrics").body.decode().splitlines()
    assert 'tidemill_requests_total{route="unknown",code="413"} 1' in lines
