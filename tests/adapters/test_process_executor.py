from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tidemill.adapters.inline_executor import InlineExecutor
from tidemill.adapters.process_executor import ProcessExecutor
from tidemill.base.errors import TidemillError, TrainingError
from tidemill.ports.executor import Executor, Progress

TASKS = '''
import os, subprocess, sys, time
from tidemill.base.errors import RequestError

def add(payload, report):
    print("chatter on standard output")
    report(1, 2, "adding")
    return {"sum": payload["a"] + payload["b"], "pair": (1, 2)}

def environment(payload, report):
    return {name: os.environ[name] for name in payload["names"]}

def fail(payload, report):
    raise ValueError("the label has one class")

def refuse(payload, report):
    raise RequestError("the window is empty. Widen it.")

def odd(payload, report):
    return {"x": float("nan")}

def leave(payload, report):
    sys.exit("stopped early")

def abort(payload, report):
    os.abort()

def spawn(payload, report):
    """Report, start a grandchild, and wait for ever."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report(os.getpid(), child.pid, "waiting")
    time.sleep(600)
'''
NAMES = ["add", "environment", "fail", "refuse", "odd", "leave", "abort", "spawn"]
TABLE = {name: f"executor_tasks:{name}" for name in NAMES}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "modules"
    directory.mkdir()
    (directory / "executor_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, "executor_tasks", raising=False)
    return directory


@pytest.fixture
def processes(tmp_path: Path, modules: Path) -> ProcessExecutor:
    return ProcessExecutor(TABLE, tmp_path / "jobs", threads=2, environment={"PYTHONPATH": str(modules)})


@pytest.fixture(params=["process", "inline"])
def executor(request: pytest.FixtureRequest, processes: ProcessExecutor) -> Executor:
    return processes if request.param == "process" else InlineExecutor(TABLE, threads=2)


def _gone(pid: int) -> bool:
    """Tell whether a process has ended; a zombie that init has not collected yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _wait_until(condition: Any) -> None:
    for _ in range(3_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 30 seconds")


def test_a_task_gets_its_payload_and_returns_json(executor: Executor) -> None:
    job = executor.submit("add", {"a": 1, "b": 2})
    assert job.result() == {"sum": 3, "pair": [1, 2]}
    assert job.result() == {"sum": 3, "pair": [1, 2]}
    assert job.finished()
    assert job.progress() == Progress(1, 2, "adding")
    job.cancel()
    assert job.result()["sum"] == 3


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("fail", "Task 'fail' failed: ValueError: the label has one class"),
        ("refuse", "Task 'refuse' failed: the window is empty. Widen it."),
        ("odd", "canonical JSON"),
    ],
)
def test_a_failure_carries_the_error_without_its_traceback(executor: Executor, task: str, message: str) -> None:
    job = executor.submit(task, {})
    for _ in range(2):
        with pytest.raises(TrainingError, match=message) as caught:
            job.result()
        assert "Traceback" not in str(caught.value)
    assert job.finished()


def test_an_unknown_task_names_the_known(executor: Executor) -> None:
    with pytest.raises(TidemillError, match=r"no task 'trian'.*add, environment"):
        executor.submit("trian", {})


def test_the_log_has_the_traceback_and_the_chatter(processes: ProcessExecutor, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        processes.submit("fail", {}).result()
    log = Path(str(caught.value).rpartition("The whole log is in ")[2])
    assert log.is_relative_to(tmp_path / "jobs")
    assert "Traceback" in log.read_text()
    assert "executor_tasks.py" in log.read_text()


def test_success_leaves_no_files(processes: ProcessExecutor, tmp_path: Path) -> None:
    processes.submit("add", {"a": 1, "b": 2}).result()
    assert list((tmp_path / "jobs").iterdir()) == []


@pytest.mark.parametrize(
    ("task", "message"), [("leave", "SystemExit: stopped early"), ("abort", "killed by SIGABRT.*Aborted")]
)
def test_a_process_that_ends_early_is_a_failure(processes: ProcessExecutor, task: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        processes.submit(task, {}).result()


def test_threads_and_hash_seed_are_pinned(processes: ProcessExecutor) -> None:
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "PYTHONHASHSEED"]
    assert processes.submit("environment", {"names": names}).result() == dict(
        zip(names, ["2", "2", "2", "0"], strict=True)
    )


def test_cancelling_kills_the_task_and_its_children(processes: ProcessExecutor, tmp_path: Path) -> None:
    job = processes.submit("spawn", {})
    _wait_until(lambda: job.progress().doing == "waiting")
    assert not job.finished()
    pids = (job.progress().done, job.progress().total)
    job.cancel()
    job.cancel()
    assert job.finished()
    _wait_until(lambda: all(_gone(pid) for pid in pids))
    with pytest.raises(TrainingError, match="cancelled"):
        job.result()
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_task_killed_from_outside_is_a_failure(processes: ProcessExecutor) -> None:
    job = processes.submit("spawn", {})
    _wait_until(lambda: job.progress().doing == "waiting")
    os.kill(job.progress().done, signal.SIGKILL)
    os.kill(job.progress().total, signal.SIGKILL)
    with pytest.raises(TrainingError, match="killed by SIGKILL"):
        job.result()


def test_the_task_dies_with_its_parent(modules: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from tidemill.adapters.process_executor import ProcessExecutor\n"
        "executor = ProcessExecutor({'spawn': 'executor_tasks:spawn'}, pathlib.Path(sys.argv[1]), threads=1)\n"
        "job = executor.submit('spawn', {})\n"
        "while job.progress().doing != 'waiting': time.sleep(0.01)\n"
        "print(job.progress().done, job.progress().total, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "jobs")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(modules)},
    )
    assert parent.stdout is not None
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert not any(_gone(pid) for pid in pids)
        parent.kill()
    _wait_until(lambda: all(_gone(pid) for pid in pids))
