"""The documents are true: every block runs, and every command, journal entry and public name is described.

A block of ``python`` is run, those of one file in one namespace; one that begins with ``# system.py`` is that file. In
a block of ``console``, each line after ``$`` is run as a command; with ``&`` it runs until the file ends. Blocks of
``text`` and ``json`` only show something. All files but ``declare.md`` go on in the folder that ``index.md`` makes.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

import tidemill
from tidemill.cli.main import COMMANDS
from tidemill.engine.check.check import check
from tidemill.engine.predict.state import KINDS
from tidemill.spec.system import System

DOCS = Path(__file__).parents[2] / "docs"
FOLLOWING = ("time.md", "operate.md", "predictors.md", "serve.md", "api.md")
SHOWN = ("text", "json")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_START_SECONDS = 120


def blocks(name: str) -> list[tuple[str, str, int]]:
    """Return each block's language, text and the line it starts on."""
    text = (DOCS / name).read_text()
    return [(found[1], found[2], text[: found.start()].count("\n") + 2) for found in _BLOCK.finditer(text)]


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run every block of a document in ``folder``; return the namespace of its Python."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        for language, text, line in blocks(name):
            if language == "python" and text.startswith("# system.py\n"):
                (folder / "system.py").write_text(text)
            elif language == "python":
                # Padding makes the lines of a traceback those of the document; fingerprints read functions' source.
                source, place = "\n" * (line - 1) + text, f"{name}:{line}"
                linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
                exec(compile(source, place, "exec"), namespace)
            elif language == "console":
                for command in text.splitlines():
                    assert command.startswith("$ tidemill "), command
                    _command(command.removeprefix("$ tidemill "), stack)
            else:
                assert language in SHOWN, f"{name}:{line}: a block of {language!r} would not be run"
    return namespace


def _command(line: str, stack: contextlib.ExitStack) -> None:
    arguments = [
        sys.executable,
        "-c",
        "from tidemill.cli.main import main; main()",
        *shlex.split(line.removesuffix("&")),
    ]
    if line.endswith("&"):
        stack.enter_context(_background(arguments))
        return
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"tidemill {line}\n{done.stdout}{done.stderr}"


@contextlib.contextmanager
def _background(arguments: list[str]) -> Iterator[None]:
    """Keep ``tidemill up`` running; it is there once it has written where it serves."""
    with Path("up.txt").open("wb") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not Path(".tidemill/endpoint").exists():
            assert process.poll() is None, Path("up.txt").read_text()
            assert time.monotonic() < deadline, Path("up.txt").read_text()
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, Path("up.txt").read_text()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that index.md makes."""
    folder = tmp_path_factory.mktemp("index")
    run("index.md", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWING)
def test_blocks_run(name: str, shop: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shop, tmp_path / "shop")
    run(name, folder)


def test_the_declarations_run_and_are_sound(tmp_path: Path) -> None:
    namespace = run("declare.md", tmp_path)
    system = namespace["system"]
    assert isinstance(system, System)
    assert check(system) == ()


@pytest.mark.slow
def test_the_document_on_cleaning_runs(tmp_path: Path) -> None:
    run("clean.md", tmp_path)


def test_every_document_is_run() -> None:
    without_blocks = {path.name for path in DOCS.glob("*.md") if "```" not in path.read_text()}
    assert {path.name for path in DOCS.glob("*.md")} - without_blocks == {
        "index.md",
        "declare.md",
        "clean.md",
        *FOLLOWING,
    }


def test_every_command_is_described() -> None:
    text = (DOCS / "operate.md").read_text()
    for name in COMMANDS:
        assert f"`tidemill {name}" in text, name


def test_every_kind_of_entry_is_described() -> None:
    text = (DOCS / "operate.md").read_text()
    for kind in KINDS:
        assert f"| `{kind}` |" in text, kind


def test_every_public_name_is_described() -> None:
    text = (DOCS / "declare.md").read_text()
    missing = [name for name in tidemill.__all__ if not re.search(rf"\btm\.{name}\b", text)]
    assert not missing


def test_every_route_is_described() -> None:
    source = Path(tidemill.__file__).with_name("server") / "app.py"
    text = (DOCS / "serve.md").read_text()
    routes = set(re.findall(r'"(/[^"]*)": \{"(?:GET|POST)"', source.read_text()))
    assert len(routes) == 18
    for route in routes:
        assert route in text, route


def test_links_lead_somewhere() -> None:
    for path in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_documented_options_exist() -> None:
    """Each option that a row of the table of commands names is one of that command."""
    for row in (DOCS / "operate.md").read_text().splitlines():
        found = re.match(r"\| `tidemill (\w+)", row)
        if found:
            command: click.Command = import_module(COMMANDS[found[1]][0]).command
            parts = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
            known = {option for part in parts for parameter in part.params for option in parameter.opts}
            assert set(re.findall(r"--[a-z]+", row)) <= known | {"--project", "--json"}, row
