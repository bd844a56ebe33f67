"""One row over HTTP: a pipeline of 25 columns behind one worker that logs every prediction, against the floor.

The floor is nginx with a static reply. The rivals serve the same pipeline, each with one worker, uvloop and httptools,
and log no predictions: FastAPI with ONNX Runtime (in float32, so not quite the estimator's own answers), MLflow and
BentoML with scikit-learn, their access logs off. Load comes from ``wrk`` on loopback, one connection for the latency
and sixteen for the rate, and posts a thousand different rows in turn. Servers run on the last core and wrk on the first
(with one core, on the same). ``busy`` in the last line is the share of its core that a server used at sixteen
connections: well below 1, wrk was the limit and the server could do more. Needs nginx and wrk (``apt install nginx
wrk``).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import common

RIVALS = Path(__file__).parent / "rivals"
sys.path.insert(0, str(RIVALS))

import pipeline  # noqa: E402 - beside this file, not installed

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
PACKAGES = ["scikit-learn==1.9.1", "pandas", "joblib", "xgboost-cpu==3.2.0", "uvicorn[standard]"]
ROWS = 1_000  # that are asked in turn
SLOW = {"mlflow": "mlflow==3.17.2", "bentoml": "bentoml==1.4.40"}  # rivals with scikit-learn, and what they are
STARTED_WITHIN = 180.0  # seconds

Row = dict[str, Any]
Start = Callable[[], AbstractContextManager["Server"]]


@dataclass
class Server:
    """A running server: where to post which bodies, its process, and the seconds it took to answer the first."""

    url: str
    bodies: list[bytes]
    pid: int
    started: float


def pinned(place: int) -> list[str]:
    """Return what keeps a command on the first (0) or the last (-1) core: servers and wrk do not take turns on one."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[place])] if len(cores) > 1 else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, body: bytes) -> tuple[int, bytes]:
    host, _, path = url.removeprefix("http://").partition("/")
    with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as link:
        link.request("POST", f"/{path}", body, {"Content-Type": "application/json"})
        answer = link.getresponse()
        return answer.status, answer.read()


@contextlib.contextmanager
def serve(command: list[str], url: str, bodies: list[bytes], env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start ``command``; yield when ``url`` first answers 200, with how long that took."""
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [*pinned(-1), *command], env={**os.environ, **ONE_THREAD, **(env or {})}, cwd=RIVALS,
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
        answer: tuple[int, bytes] = (0, b"")
        try:
            while answer[0] != 200:
                if process.poll() is not None or time.perf_counter() - begun > STARTED_WITHIN or 400 <= answer[0] < 500:
                    said.seek(0)
                    raise RuntimeError(f"{url} answers {answer}:\n{said.read()[-3000:].decode(errors='replace')}")
                time.sleep(0.002)
                with contextlib.suppress(OSError, http.client.HTTPException):
                    answer = post(url, bodies[0])
            yield Server(url, bodies, process.pid, time.perf_counter() - begun)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """Return the process and all below it."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu(pid: int) -> float:
    """Return the processor seconds that the family of ``pid`` has used."""
    ticks = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Return the resident memory of the family of ``pid`` in MB; what its processes share counts for each."""
    total = 0.0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{each}/status").read_text())[0]) / 1024
    return total


def load(server: Server, connections: int, seconds: int, folder: Path) -> dict[str, float]:
    """Return what wrk saw: ``p50`` (µs) and ``rate`` (requests a second); the ``cpu`` of a request (µs), and ``busy``.

    Raises RuntimeError when a request failed.
    """
    script = folder / "post.lua"
    bodies = ",\n".join(json.dumps(body.decode(), ensure_ascii=False) for body in server.bodies)
    script.write_text(
        f"wrk.method, wrk.headers['Content-Type'], wrk.body = 'POST', 'application/json', {bodies}"
        if len(server.bodies) == 1
        else f"local bodies, requests, at = {{{bodies}}}, {{}}, 0\n"
        "function init()\n"
        "  for i, body in ipairs(bodies) do\n"
        "    requests[i] = wrk.format('POST', nil, {['Content-Type'] = 'application/json'}, body)\n"
        "  end\n"
        "end\n"
        "function request() at = at % #requests + 1; return requests[at] end\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(script)]
    before, begun = cpu(server.pid), time.perf_counter()
    said = subprocess.run([*pinned(0), *command, server.url], capture_output=True, text=True, check=True).stdout
    used, took = cpu(server.pid) - before, time.perf_counter() - begun
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"{server.url} failed requests:\n{said}")
    value, unit = re.findall(r"50%\s+([\d.]+)(us|ms|s)", said)[0]
    requests = int(re.findall(r"(\d+) requests in", said)[0])
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    p50 = float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]
    return {"p50": p50, "rate": rate, "cpu": used / requests * 1e6, "busy": used / took}


# Servers ----------------------------------------------------------------------------------------------------------


def project(folder: Path, many: int) -> Path:
    """Lay down the system, train its models once, and return its folder. The rows end now, so windows are full."""
    import polars as pl

    made = pl.DataFrame(pipeline.rows(many)).with_row_index("id")
    first = datetime.now(UTC) - timedelta(days=60)
    at = (pl.lit(first) + pl.duration(microseconds=pl.int_range(pl.len()) * (60 * 86_400_000_000 // many))).alias("at")
    rows = made.with_columns(at.dt.cast_time_unit("us"))
    rows.drop("y").write_parquet(folder / "rows.parquet")
    rows.write_parquet(folder / "came.parquet")
    shutil.copy(RIVALS / "served_system.py", folder / "system.py")
    shutil.copy(RIVALS / "pipeline.py", folder / "pipeline.py")
    tidemill = Path(sys.executable).parent / "tidemill"
    done = subprocess.run(
        [str(tidemill), "up", "--once", "--wait", "10m"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"tidemill up --once failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return folder


def bodies(rows: list[Row], wrapped: Callable[[Row], Any] = lambda row: row) -> list[bytes]:
    return [json.dumps(wrapped(row)).encode() for row in rows]


def ours(folder: Path, model: str, rows: list[Row]) -> AbstractContextManager[Server]:
    port = free_port()
    command = [sys.executable, "-m", "tidemill.server.main", "--system", str(folder), "--port", str(port)]
    asked = {"at": datetime.now(UTC).isoformat()} if model == "looked" else {}
    keyed = [{"id": place, **asked, **row} for place, row in enumerate(rows)]
    return serve(command, f"http://127.0.0.1:{port}/v1/models/{model}/predict", bodies(keyed))


def nginx(folder: Path, rows: list[Row]) -> AbstractContextManager[Server]:
    port, home = free_port(), folder / "nginx"
    home.mkdir(exist_ok=True)
    (home / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {home}/body;\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json;\n"
        "return 200 '{\"prediction\": 0.5}'; } } }\n"
    )
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(home / "nginx.conf"), "-p", str(home)]
    # One row over and over: choosing among many costs wrk more than nginx needs, and would hide what it can do.
    return serve(command, f"http://127.0.0.1:{port}/", bodies(rows[:1]))


def fastapi_onnx(python: Path, folder: Path, kind: str, rows: list[Row]) -> AbstractContextManager[Server]:
    port = free_port()
    command = [str(python), "fastapi_onnx.py", str(folder / f"{kind}.onnx"), str(port)]
    return serve(command, f"http://127.0.0.1:{port}/predict", bodies(rows))


def mlflow(python: Path, folder: Path, rows: list[Row]) -> AbstractContextManager[Server]:
    port, binaries = free_port(), python.parent
    command = [str(binaries / "mlflow"), "models", "serve", "-m", str(folder / "mlflow"), "-p", str(port),
               "--env-manager", "local", "--workers", "1"]  # fmt: skip
    env = {"PATH": f"{binaries}:{os.environ['PATH']}", "UVICORN_ACCESS_LOG": "false"}
    records = bodies(rows, lambda row: {"dataframe_records": [row]})
    return serve(command, f"http://127.0.0.1:{port}/invocations", records, env)


def bentoml(python: Path, folder: Path, rows: list[Row]) -> AbstractContextManager[Server]:
    port, binaries = free_port(), python.parent
    command = [str(binaries / "bentoml"), "serve", "bentoml_service:Late", "--host", "127.0.0.1", "--port", str(port)]
    env = {"RIVAL_MODEL": str(folder / "hgb.joblib"), "PATH": f"{binaries}:{os.environ['PATH']}",
           "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")}  # fmt: skip
    return serve(command, f"http://127.0.0.1:{port}/predict", bodies(rows, lambda row: {"row": row}), env)


def rivals(folder: Path, kinds: tuple[str, ...], rows: list[Row], many: int, *, slow: bool) -> dict[str, Start]:
    """Fit and save what the rivals serve; return how to start each. They answer as it does."""
    python = common.rival("fastapi-onnx", *PACKAGES, "fastapi", "onnxruntime==1.31.1", "skl2onnx==1.20.0",
                          "onnxmltools==1.16.0", "protobuf<7")  # fmt: skip
    (folder / "row.json").write_text(json.dumps(rows[0]))
    wanted = {kind: common.ask(python, RIVALS / "fit.py", str(folder), kind, str(many))["answer"] for kind in kinds}
    starts: dict[str, Start] = {
        f"fastapi_onnx, {kind}": lambda kind=kind: fastapi_onnx(python, folder, kind, rows)  # type: ignore[misc]
        for kind in kinds
    }
    if slow:
        saving, serving = (common.rival(name, *PACKAGES, version) for name, version in SLOW.items())
        common.ask(saving, RIVALS / "mlflow_save.py", str(folder / "hgb.joblib"), str(folder / "mlflow"))
        starts |= {"mlflow": lambda: mlflow(saving, folder, rows), "bentoml": lambda: bentoml(serving, folder, rows)}
    for name, start in starts.items():
        with start() as server:
            last = float(re.findall(rb"[\d.]+(?:e-?\d+)?", post(server.url, server.bodies[0])[1])[-1])
        kind = name.partition(", ")[2] or "hgb"
        # Trees in float32 may take another turn at a split, so ONNX is only near.
        assert abs(last - wanted[kind]) < 0.05, f"{name} answers {last}, and the estimator {wanted[kind]}"
    return starts


# What is measured -------------------------------------------------------------------------------------------------


def measure(servers: Mapping[str, Server], rounds: int, seconds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return the medians of each server's figures, over ``rounds`` in turn, after one that does not count."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for turn in range(rounds + 1):
        for name in list(servers)[:: 1 if turn % 2 == 0 else -1]:
            alone = load(servers[name], 1, seconds if turn else 1, folder)
            many = load(servers[name], 16, seconds if turn else 1, folder)
            if turn:
                figures[name].append({**many, "p50": alone["p50"]})
                common.say(f"{name}: p50 {alone['p50']:.0f} µs, {many['rate']:,.0f} requests/s")
    return {
        name: {each: statistics.median(figure[each] for figure in seen) for each in seen[0]}
        for name, seen in figures.items()
    }


def main() -> None:
    """Run it."""
    given = common.arguments(__doc__)
    if shutil.which("wrk") is None or not (shutil.which("nginx") or Path("/usr/sbin/nginx").exists()):
        sys.exit("nginx and wrk are needed: apt install nginx wrk")
    seconds, rounds, many = (1, 2, 4_000) if given.quick else (4, 5, 20_000)
    kinds = ("hgb",) if given.quick else pipeline.KINDS
    rows = [{name: value for name, value in row.items() if name != "y"} for row in pipeline.rows(ROWS, seed=11)]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "project").mkdir()
        common.say(f"training {len(pipeline.KINDS) + 1} models on {many:,} rows, and fitting what the rivals serve")
        system = project(folder / "project", many)
        starts: dict[str, Start] = {"nginx": lambda: nginx(folder, rows)}
        starts |= {kind: lambda kind=kind: ours(system, kind, rows) for kind in (*kinds, "looked")}  # type: ignore[misc]
        starts |= rivals(folder, kinds, rows, many, slow=not given.quick)
        started: dict[str, list[float]] = {name: [] for name in starts}
        for _ in range(rounds):
            for each in (*kinds, "looked"):
                with starts[each]() as server:
                    started[each].append(server.started)
        servers = {}
        for each, start in starts.items():
            servers[each] = stack.enter_context(start())
            started[each].append(servers[each].started)
        found = measure(servers, rounds, seconds, folder)
        for each, server in servers.items():
            found[each] |= {"start": statistics.median(started[each]), "memory": memory(server.pid)}
    others = goals(found, kinds)
    main_goal = others.pop("hgb: p50 to nginx")
    rounded = {name: {key: round(value, 2) for key, value in each.items()} for name, each in found.items()}
    common.finish("serving", main_goal, quick=given.quick, others=others, seen=rounded)


def goals(found: Mapping[str, Mapping[str, float]], kinds: tuple[str, ...]) -> dict[str, Any]:
    floor, made = found["nginx"], {}
    for kind in kinds:
        us, onnx = found[kind], found[f"fastapi_onnx, {kind}"]
        made |= {
            f"{kind}: p50 to nginx": common.goal(us["p50"], floor["p50"], 2.0),
            f"{kind}: rate to nginx": common.goal(us["rate"], floor["rate"], 0.3, holds=">="),
            f"{kind}: µs of CPU a request": common.goal(us["cpu"], 1.0, 40.0),
            f"{kind}: seconds to the first answer": common.goal(us["start"], 1.0, 1.0),
            f"{kind}: MB": common.goal(us["memory"], 1.0, 100.0),
            f"{kind}: p50 to FastAPI + ONNX": common.goal(us["p50"], onnx["p50"], 2.0, holds=">=", of="rival / ours"),
            f"{kind}: rate to FastAPI + ONNX": common.goal(us["rate"], onnx["rate"], 4.0, holds=">="),
        }
    made["looked up: p50 to nginx"] = common.goal(found["looked"]["p50"], floor["p50"], 3.0)
    us = found["hgb"]
    for rival in set(SLOW) & set(found):
        made[f"hgb: p50 to {rival}"] = common.goal(us["p50"], found[rival]["p50"], 40.0, holds=">=", of="rival / ours")
    return made


if __name__ == "__main__":
    main()
