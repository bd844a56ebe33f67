"""One row over HTTP: a pipeline of 25 columns behind one worker that logs every prediction, against the floor.

The floor is nginx with a static reply. The rivals serve the same pipeline: FastAPI with ONNX Runtime (in float32, so
not the estimator's own answers), MLflow and BentoML with scikit-learn. Load comes from ``wrk`` on loopback, one
connection for the latency and sixteen for the rate; nginx and wrk have to be installed (``apt install nginx wrk``).
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

RIVALS = Path(__file__).parent / "rivals"
sys.path.insert(0, str(RIVALS))

import pipeline  # noqa: E402 - beside this file, not installed

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
PACKAGES = ["scikit-learn==1.9.1", "pandas", "joblib", "xgboost-cpu==3.2.0"]


@dataclass
class Server:
    """A running server: where to post which body, and the processes that work for it."""

    url: str
    body: bytes
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
    link = http.client.HTTPConnection(host, timeout=60)
    link.request("POST", f"/{path}", body, {"Content-Type": "application/json"})
    answer = link.getresponse()
    content = answer.read()
    link.close()
    return answer.status, content


@contextlib.contextmanager
def serve(
    command: list[str], url: str, body: bytes, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Server]:
    """Start ``command``; yield when ``url`` first answers 200, with how long that took."""
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [*pinned(-1), *command],
            env={**os.environ, **ONE_THREAD, **(env or {})}, cwd=cwd, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
        answer: tuple[int, bytes] = (0, b"")
        try:
            while True:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    answer = post(url, body)
                    if answer[0] == 200:
                        break
                if process.poll() is not None or time.perf_counter() - begun > 60 or 400 <= answer[0] < 500:
                    said.seek(0)
                    raise RuntimeError(f"{url} answers {answer}:\n{said.read()[-3000:].decode(errors='replace')}")
                time.sleep(0.005)
            yield Server(url, body, process.pid, time.perf_counter() - begun)
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
    """Return the resident memory of the family of ``pid`` in MB."""
    total = 0.0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{each}/status").read_text())[0]) / 1024
    return total


def load(server: Server, connections: int, seconds: float, folder: Path) -> dict[str, float]:
    """Return what wrk saw: ``p50`` (µs), ``rate`` (requests a second); and the ``cpu`` of a request (µs)."""
    script = folder / "post.lua"
    escaped = server.body.decode().replace("\\", "\\\\").replace("'", "\\'")
    script.write_text(f"wrk.method='POST'\nwrk.body='{escaped}'\nwrk.headers['Content-Type']='application/json'\n")
    before = cpu(server.pid)
    command = [
        *pinned(0),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        server.url,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = cpu(server.pid) - before
    if "Non-2xx" in said:
        raise RuntimeError(f"{server.url} refused requests:\n{said}")
    value, unit = re.findall(r"50%\s+([\d.]+)(us|ms|s)", said)[0]
    requests = int(re.findall(r"(\d+) requests in", said)[0])
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    return {"p50": float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit], "rate": rate, "cpu": used / requests * 1e6}


def project(folder: Path, many: int) -> Path:
    """Lay down the system, train its models once, and return its folder."""
    import polars as pl

    made = pl.DataFrame(pipeline.rows(many)).with_row_index("id")
    spread = pl.int_range(pl.len()) * (60 * 86_400_000_000 // many)
    at = (pl.datetime(2026, 1, 1, time_unit="us", time_zone="UTC") + pl.duration(microseconds=spread)).alias("at")
    rows = made.with_columns(at)
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


def ours(folder: Path, model: str, row: dict[str, Any]) -> Any:
    port = free_port()
    command = [sys.executable, "-m", "tidemill.server.main", "--system", str(folder), "--port", str(port)]
    asked = {"at": "2026-03-01T12:00:00Z"} if model == "looked" else {}
    body = json.dumps({"id": 0, **asked, **row}).encode()
    return serve(command, f"http://127.0.0.1:{port}/v1/models/{model}/predict", body)


def nginx(folder: Path, row: dict[str, Any]) -> Any:
    port, home = free_port(), folder / "nginx"
    home.mkdir()
    (home / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {home}/body;\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json;\n"
        "return 200 '{\"prediction\": 0.5}'; } } }\n"
    )
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(home / "nginx.conf"), "-p", str(home)]
    return serve(command, f"http://127.0.0.1:{port}/", json.dumps(row).encode())


def rivals(folder: Path, kind: str, row: dict[str, Any], many: int, *, all_of_them: bool) -> dict[str, Any]:
    """Return how to start each rival, fitted and saved first."""
    onnx = common.rival("fastapi-onnx", *PACKAGES, "fastapi", "uvicorn[standard]", "onnxruntime==1.31.1",
                        "skl2onnx==1.20.0", "onnxmltools==1.16.0", "protobuf<7")  # fmt: skip
    common.ask(onnx, RIVALS / "fit.py", str(folder), kind, str(many))
    port = free_port()
    found = {
        "fastapi_onnx": serve(
            [str(onnx), str(RIVALS / "fastapi_onnx.py"), str(folder / f"{kind}.onnx"), str(port)],
            f"http://127.0.0.1:{port}/predict", json.dumps(row).encode(),
        )
    }  # fmt: skip
    if all_of_them:
        mlflow, port = common.rival("mlflow", *PACKAGES, "mlflow"), free_port()
        common.ask(mlflow, RIVALS / "mlflow_save.py", str(folder / f"{kind}.joblib"), str(folder / f"{kind}-mlflow"))
        found["mlflow"] = serve(
            [str(mlflow.parent / "mlflow"), "models", "serve", "-m", str(folder / f"{kind}-mlflow"), "-p", str(port),
             "--env-manager", "local"],
            f"http://127.0.0.1:{port}/invocations", json.dumps({"dataframe_records": [row]}).encode(),
            env={"PATH": f"{mlflow.parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        bento, port = common.rival("bentoml", *PACKAGES, "bentoml"), free_port()
        found["bentoml"] = serve(
            [str(bento.parent / "bentoml"), "serve", "bentoml_service:Late", "--port", str(port)],
            f"http://127.0.0.1:{port}/predict", json.dumps({"row": row}).encode(), cwd=RIVALS,
            env={"RIVAL_MODEL": str(folder / f"{kind}.joblib"), "PATH": f"{bento.parent}:{os.environ['PATH']}"},
        )  # fmt: skip
    return found


def main() -> None:
    """Run it."""
    given = common.arguments(__doc__)
    if shutil.which("wrk") is None or not (shutil.which("nginx") or Path("/usr/sbin/nginx").exists()):
        sys.exit("nginx and wrk are needed: apt install nginx wrk")
    seconds, rounds, many = (1, 2, 4_000) if given.quick else (4, 5, 20_000)
    kinds = ("hgb",) if given.quick else pipeline.KINDS
    row = {name: value for name, value in pipeline.rows(1, seed=11)[0].items() if name != "y"}
    others: dict[str, Any] = {}
    seen: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "project").mkdir()
        common.say(f"training {len(pipeline.KINDS) + 1} models on {many:,} rows")
        system = project(folder / "project", many)
        servers = {"nginx": stack.enter_context(nginx(folder, row))}
        for kind in (*kinds, "looked"):
            servers[kind] = stack.enter_context(ours(system, kind, row))
        for rival, starting in rivals(folder, "hgb", row, many, all_of_them=not given.quick).items():
            servers[rival] = stack.enter_context(starting)
        slow = {"mlflow", "bentoml"}
        for turn in range(rounds):
            for server_name, server in list(servers.items())[:: 1 if turn % 2 == 0 else -1]:
                alone = load(server, 1, seconds, folder)
                many_at_once = {"rate": 0.0, "cpu": 0.0} if server_name in slow else load(server, 16, seconds, folder)
                figures = seen.setdefault(server_name, {})
                for key, value in (("p50", alone["p50"]), ("cpu", many_at_once["cpu"]), ("rate", many_at_once["rate"])):
                    figures.setdefault(f"{key}s", []).append(value)  # type: ignore[arg-type]
                common.say(f"{server_name}: p50 {alone['p50']:.0f} µs, {many_at_once['rate']:,.0f} requests/s")
        found = {
            server_name: {
                **{key.removesuffix("s"): value for key, value in common.medians(figures).items()},  # type: ignore[arg-type]
                "start": servers[server_name].started, "memory": memory(servers[server_name].pid),
            }
            for server_name, figures in seen.items()
        }  # fmt: skip
    for kind in kinds:
        us, floor = found[kind], found["nginx"]
        others |= {
            f"{kind}: p50 to nginx": common.goal(us["p50"], floor["p50"], 2.0),
            f"{kind}: rate to nginx": common.goal(us["rate"], floor["rate"], 0.3, holds=">="),
            f"{kind}: µs of CPU a request": common.goal(us["cpu"], 1.0, 40.0),
            f"{kind}: seconds to the first answer": common.goal(us["start"], 1.0, 1.0),
            f"{kind}: MB": common.goal(us["memory"], 1.0, 100.0),
        }
    others["looked up: p50 to nginx"] = common.goal(found["looked"]["p50"], found["nginx"]["p50"], 3.0)
    fast = found["fastapi_onnx"]
    others["p50 to FastAPI + ONNX"] = common.goal(found["hgb"]["p50"], fast["p50"], 2.0, holds=">=", of="rival / ours")
    others["rate to FastAPI + ONNX"] = common.goal(found["hgb"]["rate"], fast["rate"], 4.0, holds=">=")
    for rival in slow & set(found):
        others[f"p50 to {rival}"] = common.goal(
            found["hgb"]["p50"], found[rival]["p50"], 40.0, holds=">=", of="rival / ours"
        )
    main_goal = others.pop("hgb: p50 to nginx")
    rounded = {name: {key: round(value, 2) for key, value in each.items()} for name, each in found.items()}
    common.finish("serving", main_goal, quick=given.quick, others=others, seen=rounded)


if __name__ == "__main__":
    main()
