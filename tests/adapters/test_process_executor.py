from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tidemill.adapters.inline_executor import InlineExecutor
from tidemill.adapters.process_executor import ProcessExecutor
from tidemill.adapters.thread_executor import ThreadExecutor
from tidemill.base.errors import RequestError, TidemillError, TrainingError
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

def mixed(payload, report):
    """Return at once, or say who it is in a file and wait for ever."""
    if payload["wait"]:
        open(payload["mark"] + ".part", "w").write(str(os.getpid()))
        os.rename(payload["mark"] + ".part", payload["mark"])
        time.sleep(600)
    time.sleep(payload.get("rest", 0))
    return {}

def fail_some(payload, report):
    if payload["number"] == 3:
        raise ValueError("three is too many")
    return {"pid": os.getpid()}

def spawn(payload, report):
    """Report, start a grandchild, and wait for ever."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report(os.getpid(), child.pid, "waiting")
    time.sleep(600)
'''
NAMES = ["add", "environment", "fail", "refuse", "odd", "leave", "abort", "fail_some", "mixed", "spawn"]
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
    return ProcessExecutor(TABLE, tmp_path / "jobs", threads=2, workers=2, environment={"PYTHONPATH": str(modules)})


@pytest.fixture(params=["process", "inline", "threads"])
def executor(request: pytest.FixtureRequest, processes: ProcessExecutor) -> Executor:
    if request.param == "threads":
        return ThreadExecutor(TABLE, threads=2, workers=2)
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


def test_a_map_gives_every_result_its_place(executor: Executor) -> None:
    with closing(executor):
        for count in (0, 1, 7):
            payloads = [{"a": number, "b": 1} for number in range(count)]
            found = dict(executor.map("add", payloads))
            assert found == {number: {"sum": number + 1, "pair": [1, 2]} for number in range(count)}


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("fail", TidemillError, "Task 'fail' failed: ValueError: the label has one class"),
        ("refuse", RequestError, "^the window is empty. Widen it.$"),
        ("odd", TidemillError, "canonical JSON"),
    ],
)
def test_the_first_failure_of_a_map_is_raised(
    executor: Executor, task: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(executor.map(task, [{}, {}, {}]))
    with closing(executor):
        assert dict(executor.map("add", [{"a": 1, "b": 2}]))[0]["sum"] == 3


def test_a_map_of_an_unknown_task_names_the_known(executor: Executor) -> None:
    with pytest.raises(TidemillError, match=r"no task 'trian'.*add, environment"):
        list(executor.map("trian", [{}]))


def test_what_follows_a_failure_is_not_begun(executor: Executor) -> None:
    done: list[tuple[int, dict[str, Any]]] = []
    with pytest.raises(TidemillError, match="three is too many"):
        done.extend(executor.map("fail_some", [{"number": number} for number in range(100)]))
    assert len(done) <= 5


def test_a_map_keeps_its_processes_until_it_is_closed(processes: ProcessExecutor, tmp_path: Path) -> None:
    pids = {result["pid"] for _ in range(3) for _, result in processes.map("fail_some", [{"number": 0}, {"number": 1}])}
    assert len(pids) <= 2
    processes.close()
    processes.close()
    _wait_until(lambda: all(_gone(pid) for pid in pids))
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_process_of_a_map_that_dies_is_a_failure_with_a_log(processes: ProcessExecutor) -> None:
    with pytest.raises(TidemillError, match="killed by SIGABRT") as caught:
        list(processes.map("abort", [{}]))
    assert "Aborted" in Path(str(caught.value).rpartition("The whole log is in ")[2]).read_text()


def test_closing_a_map_kills_what_is_under_way(processes: ProcessExecutor, tmp_path: Path) -> None:
    results = processes.map("mixed", [{"wait": False}, {"wait": True, "mark": str(tmp_path / "mark")}])
    next(results)
    _wait_until((tmp_path / "mark").exists)
    pid = int((tmp_path / "mark").read_text())
    results.close()
    _wait_until(lambda: _gone(pid))
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_job_in_a_thread_can_be_given_up(modules: Path) -> None:
    executor = ThreadExecutor(TABLE, threads=1, workers=1)
    job = executor.submit("mixed", {"wait": False, "rest": 0.2})
    job.cancel()
    assert job.finished()
    with pytest.raises(TrainingError, match="cancelled"):
        job.result()
