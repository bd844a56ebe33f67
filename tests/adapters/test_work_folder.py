from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.adapters.work_folder import KEEP, REST, fresh, hold, passing, resumable, sweep
from tidemill.base.clock import DAY, SECOND, SystemClock
from tidemill.base.errors import RequestError, WorkspaceError


def age(directory: Path, micros: int) -> None:
    then = (SystemClock().now() - micros) / SECOND
    for path in (*directory.iterdir(), directory):
        os.utime(path, (then, then))


def interrupted(folder: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), resumable(folder) as held:
        _begin(held, error)


def _begin(folder: Path, error: BaseException) -> None:
    (folder / "piece").touch()
    raise error


def test_what_is_passing_is_held_and_leaves_nothing(tmp_path: Path) -> None:
    with passing(tmp_path / "work", "scratch") as folder:
        (folder / "piece").touch()
        assert sweep(tmp_path / "work") == 0
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), passing(tmp_path / "work", "scratch") as folder:
        _begin(folder, KeyboardInterrupt())
    assert list((tmp_path / "work").iterdir()) == []


def test_finished_work_leaves_nothing_and_interrupted_work_stays(tmp_path: Path) -> None:
    with resumable(tmp_path / "work" / "a") as folder:
        (folder / "piece").touch()
    assert not folder.exists()
    interrupted(folder, KeyboardInterrupt())
    assert sweep(tmp_path / "work") == 0
    with resumable(folder):
        assert (folder / "piece").exists()
    interrupted(folder, RequestError("a row is wrong"))  # the same rows will never be right
    assert not folder.exists()


def test_one_process_does_a_work_at_a_time(tmp_path: Path) -> None:
    with resumable(tmp_path / "a"), pytest.raises(WorkspaceError, match=f"Another process .*{tmp_path / 'a'}"):
        resumable(tmp_path / "a").__enter__()
    assert not (tmp_path / "a").exists()


def test_what_is_left_over_is_swept_and_what_is_held_is_not(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none") == 0
    mine, handle = fresh(tmp_path, "train")
    (tmp_path / "train-dead" / "in").mkdir(parents=True)
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / KEEP).touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / KEEP).touch()
    age(tmp_path / "old", REST + DAY)
    (tmp_path / "file").touch()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "failed")
    (tmp_path / ".being-made").mkdir()
    assert sweep(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [mine.name, "failed", "file", "elsewhere", ".being-made"]
    )
    os.close(handle)
    age(tmp_path / ".being-made", REST + DAY)
    assert sweep(tmp_path) == 2
    assert not mine.exists()


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom tidemill.adapters.work_folder import fresh\n"
        "print(fresh(Path(sys.argv[1]), 'x')[0], flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = Path(process.stdout.readline().strip())
        assert hold(held) is None
        assert sweep(tmp_path) == 0
        process.kill()
    assert sweep(tmp_path) == 1
