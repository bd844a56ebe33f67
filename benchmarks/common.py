"""What benchmarks share: rivals in environments of their own, alternate timing, medians, and the last line.

    python benchmarks/checks.py            # the full size
    python benchmarks/checks.py --quick    # under a minute, installs aside

A benchmark makes its own data, runs ours and its rivals alternately in one run, and prints, as its last line, one JSON
object: ``benchmark``, ``ours``, ``rival``, ``ratio``, ``goal``, ``ok``, and the sizes and machine it ran on.
Environments of rivals and made data lie in ``$TIDEMILL_BENCHMARKS``, else ``~/.cache/tidemill-benchmarks``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import hashlib
import json
import operator
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_HOLDS = {"<=": operator.le, ">=": operator.ge}


def cache() -> Path:
    """Return the folder that keeps environments and data between runs."""
    folder = Path(os.environ.get("TIDEMILL_BENCHMARKS") or Path.home() / ".cache" / "tidemill-benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def arguments(about: str | None, **numbers: int) -> argparse.Namespace:
    """Read the command line: ``--quick``, and an option for each of ``numbers`` with its default."""
    parser = argparse.ArgumentParser(description=(about or "").strip().partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size: under a minute, installs aside")
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser.parse_args()


# Rivals -----------------------------------------------------------------------------------------------------------


def rival(name: str, *packages: str, options: Sequence[str] = ()) -> Path:
    """Return the Python of an environment with ``packages`` (as pip takes them), made the first time it is asked for.

    ``options`` go to ``pip install``. Other packages or another Python make another environment. Raises RuntimeError
    with pip's last words when they cannot be installed.
    """
    content = json.dumps([sys.version_info[:2], list(packages), list(options)])
    folder = cache() / "environments" / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    with lock(folder.with_suffix(".lock")):
        if not ready.exists():
            say(f"installing {', '.join(packages)} for {name}, once")
            venv.create(folder, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run([*command, *options, *packages], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}: pip could not install {', '.join(packages)}:\n{done.stderr[-2000:]}")
            ready.touch()
    return python


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the file ``path`` for one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ask(python: Path | str, script: Path | str, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
    """Run ``script`` (a file, or source text) with ``python``; return the JSON of the last line that it prints.

    ``env`` is added to this process's. Raises RuntimeError with its last words when it fails.
    """
    code = ["-c", script] if isinstance(script, str) else [str(script)]
    done = subprocess.run(
        [str(python), *code, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        raise RuntimeError(f"{Path(python).parent.parent.name} failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# Time -------------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], Any]) -> float:
    """Return how long ``function()`` takes, garbage collected before it and not during it."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    finally:
        gc.enable()


def alternate(
    contestants: Mapping[str, Callable[[], float]], *, rounds: int = 5, warm: int = 1
) -> dict[str, list[float]]:
    """Ask each contestant for a figure ``rounds`` times in turn, after ``warm`` rounds that do not count.

    A contestant returns its own figure (seconds, most often): ``lambda: seconds(work)`` here, ``lambda: ask(…)`` for a
    rival that times itself in its own process. The order turns around each round, so that none is always first.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm + rounds):
        names = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]
        for name in names:
            figure = contestants[name]()
            if turn >= warm:
                figures[name].append(figure)
    return figures


def medians(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each contestant's figures."""
    return {name: statistics.median(each) for name, each in figures.items()}


def pin(place: int) -> None:
    """Keep this process on the first (0) or last (-1) core, where there are several: two do not take turns on one then.

    Of those that the benchmark was given: what a process keeps itself to its children inherit.
    """
    given = os.environ.setdefault("BENCHMARK_CORES", " ".join(map(str, sorted(os.sched_getaffinity(0)))))
    os.sched_setaffinity(0, {int(given.split()[place])})


def peak() -> float:
    """Return the most memory that this process has had resident, in MB (getrusage would count its parent's, too)."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


# What is said -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line for whoever watches, at once."""
    print(text, flush=True)


def goal(ours: float, rival: float, limit: float, *, holds: str = "<=", of: str = "ours / rival") -> dict[str, Any]:
    """Return one comparison: its ratio, its goal, and whether it is met.

    ``of``: "ours / rival" (for times, held to be ``<=`` a limit), or "rival / ours" (times faster, held to be ``>=``).
    """
    ratio = ours / rival if of == "ours / rival" else rival / ours
    return {
        "ours": round(ours, 6),
        "rival": round(rival, 6),
        "ratio": round(ratio, 4),
        "goal": f"{of} {holds} {limit}",
        "ok": _HOLDS[holds](ratio, limit),
    }


def finish(benchmark: str, main: Mapping[str, Any], *, quick: bool, **more: Any) -> None:
    """Print the last line, made of the ``main`` comparison (see ``goal``) and ``more``; exit with 1 unless it is met.

    Further comparisons go in as ``others={name: goal(…)}``; ``ok`` is then that of all.
    """
    others: Mapping[str, Mapping[str, Any]] = more.get("others", {})
    ok = bool(main["ok"]) and all(each["ok"] for each in others.values())
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    say(json.dumps({"benchmark": benchmark, **main, "ok": ok, "quick": quick, **more, "machine": machine}))
    sys.exit(0 if ok else 1)
