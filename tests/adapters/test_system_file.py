"""Loading the declared file: the System, or one clear fault at the user's own line."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidemill.adapters.system_file import load_system
from tidemill.base.errors import DeclarationError, Fault
from tidemill.base.fingerprint import code_fingerprint

Write = Callable[..., Path]

HEAD = """
import polars as pl
import tidemill as tm
reports = tm.Source("reports", tm.files("*.csv"), key="id", event_time="at")
class Never:
    def fit(self, X, y): return self
    def predict(self, X): return X
def model(name):
    return tm.Model(name, examples=reports, asked_at=tm.after("at", "1h"), features=["x"], estimator=Never(),
                    label=tm.Label(reports, "x", within="1d"))
"""


@pytest.fixture(autouse=True)
def _modules_put_back() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name in ("system", "neighbour"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_one(text: str, *, name: str = "system.py", folder: str = "flights") -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEAD + textwrap.dedent(text) if name == "system.py" else textwrap.dedent(text))
        return path

    return write_one


def fault(path: Path) -> Fault:
    with pytest.raises(DeclarationError) as raised:
        load_system(path)
    (found,) = raised.value.faults
    return found


def test_the_variable_system_is_found(write: Write) -> None:
    path = write("""
        other = tm.System("other", model("a"))
        system = tm.System("flights", model("b"))
    """)
    assert load_system(path).name == "flights"
    assert sys.modules["system"].__file__ == str(path)


def test_the_only_system_is_found_whatever_its_name(write: Write) -> None:
    assert load_system(write("mill = same = tm.System('flights', model('a'))")).name == "flights"


def test_none_or_two_systems_are_refused(write: Write) -> None:
    found = fault(write("sistem = 3"))
    assert (found.where, found.what) == ("system.py", "declares no System.")
    assert found.do == "Write system = tm.System('name', model) at its end."  # another name would be taken, too
    found = fault(
        write("""
        one = tm.System("one", model("a"))
        two = tm.System("two", model("b"))
    """)
    )
    assert found.where == "system.py:13"
    assert found.what == "declares 2 Systems: one, two."


def test_a_missing_or_unreadable_file_is_named(write: Write, tmp_path: Path) -> None:
    found = fault(tmp_path / "nowhere.py")
    assert found.where == str(tmp_path / "nowhere.py")
    assert "there is no such file" in found.what
    path = write("")
    path.write_bytes(b"x = '\xff'")
    assert "is not UTF-8" in fault(path).what
    assert "has the name of the module 'json'" in fault(write("", name="json.py")).what


def test_a_syntax_error_is_at_its_line(write: Write) -> None:
    found = fault(write("x = (1,\ny = ]\n"))
    assert found.where.startswith("system.py:1")
    assert found.what.startswith("cannot be parsed: ")


def test_a_missing_library_comes_with_its_pip_command(write: Write) -> None:
    found = fault(write("import cv2.nothing\n"))
    assert found.where == "system.py:11"
    assert found == Fault("system.py:11", "no module named 'cv2'.", "Run: pip install opencv-python-headless")
    assert fault(write("from polars import nothing_like_it\n")).what.startswith("ImportError: cannot import name")


def test_the_users_own_exception_is_at_the_users_own_line(write: Write) -> None:
    found = fault(write("tm.before('at', 'two days')\n"))
    assert found.where == "system.py:11"
    assert found.what.startswith("ValueError: 'two days' is not a duration.")
    assert found.do == "The line is: tm.before('at', 'two days')"
    assert fault(write("import sys\nsys.exit(3)")).what == "SystemExit: 3"


def test_faults_of_a_declaration_pass_through(write: Write) -> None:
    path = write("""
        from tidemill.base.errors import DeclarationError, Fault
        raise DeclarationError([Fault("source 'a'", "is bad."), Fault("source 'b'", "is worse.")])
    """)
    with pytest.raises(DeclarationError) as raised:
        load_system(path)
    assert [each.where for each in raised.value.faults] == ["source 'a'", "source 'b'"]


def test_neighbours_can_be_imported_while_it_loads_and_are_fresh_each_time(write: Write) -> None:
    write("NAME = 'first'\ndef f(x): return 1\n", name="neighbour.py")
    path = write("from neighbour import NAME, f\nsystem = tm.System(NAME, model('a'))")
    before = list(sys.path)
    assert load_system(path).name == "first"
    first = code_fingerprint(sys.modules["system"].f)
    write("NAME = 'second'\ndef f(x): return 200\n", name="neighbour.py")
    assert load_system(path).name == "second"
    assert code_fingerprint(sys.modules["system"].f) != first
    write("NAME = 'third'", name="neighbour.py", folder="elsewhere")
    third = write("from neighbour import NAME\nsystem = tm.System(NAME, model('a'))", folder="elsewhere")
    assert load_system(third).name == "third"
    assert sys.path == before


def test_a_fault_in_a_neighbour_is_at_the_neighbours_line(write: Write) -> None:
    write("x = 1\ny = x / 0\n", name="neighbour.py")
    path = write("import neighbour")
    before = list(sys.path)
    found = fault(path)
    assert (found.where, found.what) == ("neighbour.py:2", "ZeroDivisionError: division by zero")
    write("x = (\n", name="neighbour.py")
    found = fault(path)
    assert found.where == "neighbour.py:1"
    assert found.what.startswith("cannot be parsed")
    assert sys.path == before


def test_a_failed_load_leaves_the_last_good_module(write: Write) -> None:
    path = write("system = tm.System('flights', model('a'))")
    load_system(path)
    good = sys.modules["system"]
    write("1 / 0")
    fault(path)
    assert sys.modules["system"] is good


def test_fingerprints_are_of_the_code_that_was_loaded(write: Write) -> None:
    path = write("def f(x): return 1\nsystem = tm.System('flights', model('a'))")
    load_system(path)
    function = sys.modules["system"].f
    before = code_fingerprint(function)
    write("\n\n\ndef f(x): return 2\nsystem = tm.System('flights', model('a'))")
    assert code_fingerprint(function) == before
    load_system(path)
    assert code_fingerprint(sys.modules["system"].f) != before


def test_a_system_that_lies_among_installed_packages_is_read_too(write: Write) -> None:
    path = write("def f(x): return 1\nsystem = tm.System('flights', model('a'))", folder="site-packages")
    load_system(path)
    before = code_fingerprint(sys.modules["system"].f)
    write("def f(x): return 2\nsystem = tm.System('flights', model('a'))", folder="site-packages")
    load_system(path)
    assert code_fingerprint(sys.modules["system"].f) != before


def test_warnings_of_the_file_reach_the_caller(write: Write) -> None:
    path = write("import warnings\nwarnings.warn('old', UserWarning)\nsystem = tm.System('flights', model('a'))")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_system(path)
    assert [(str(each.message), Path(each.filename).name, each.lineno) for each in caught] == [("old", "system.py", 12)]
