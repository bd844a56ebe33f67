"""Every command says what it does, and asking for the list of commands loads none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidemill.cli.main import COMMANDS, main

HEAVY = ("polars", "numpy", "sklearn", "lance", "pyarrow", "sqlalchemy", "lmdb", "uvicorn", "rich", "msgspec")
LIST_LOADED = f"""
import sys
from tidemill.cli.main import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules))
"""


def test_one_fault_is_not_many(tmp_path: Path) -> None:
    (tmp_path / "system.py").write_text("import not_there\n")
    done = CliRunner().invoke(main, ["status", "--project", str(tmp_path)])
    assert (done.exit_code, done.stderr.splitlines()[0]) == (2, "1 fault")


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIST_LOADED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"
    assert all(name in done.stdout for name in COMMANDS)


def test_an_interrupted_command_promises_only_what_every_command_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tidemill.cli.backtest.projects.open", interrupt)
    result = CliRunner().invoke(main, ["backtest"])
    assert (result.exit_code, result.stderr) == (
        130, "Interrupted. Nothing that is stored is lost; the command can be run again.\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "check",
        "plan",
        "up",
        "status",
        "journal",
        "quarantine",
        "history",
        "trace",
        "retrain",
        "rebuild",
        "rollback",
        "parity",
        "predict",
    ],
)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "--project" in result.output


@pytest.mark.parametrize(
    "name",
    ["check", "plan", "status", "journal", "history", "trace", "retrain", "rebuild", "rollback", "parity", "predict"],
)
def test_every_command_that_answers_can_answer_in_json(name: str) -> None:
    assert "--json" in CliRunner().invoke(main, [name, "--help"]).output
