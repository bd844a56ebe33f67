"""Arguments of the wrong type are refused where they are written; one value is taken where several are asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import tidemill as tm
from tidemill.adapters.system_file import load_system
from tidemill.base.errors import DeclarationError

t: Any = tm  # the declarations, to be given what their types forbid


def source(reader: Any = None, **changes: Any) -> Any:
    return t.Source("s", reader or tm.files("*.csv"), **{"key": "id", "event_time": "at", **changes})


S = source()
COUNT = tm.count(over="1d")
VIEW = tm.Aggregation("v", S, by="g", features={"n": COUNT})


def model(**changes: Any) -> Any:
    given = {"examples": S, "asked_at": "at", "label": tm.Label(S, "y", within="1d"), "features": [VIEW, "x"]}
    return t.Model("m", **{**given, "estimator": None, **changes})


def view(name: Any = "v", table: Any = S, by: Any = "g", features: Any = None, on: Any = None) -> Any:
    return t.Aggregation(name, table, by=by, features={"n": COUNT} if features is None else features, on=on)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "table a text": (lambda: view(table="s"), "the table of feature view 'v' cannot be the str 's'. Pass the decl"),
    "table None": (lambda: view(table=None), "the table of feature view 'v' cannot be None."),
    "latest of None": (lambda: t.Latest("v", None, by="g", columns="x"), "the table of feature view 'v' cannot be"),
    "view's name": (lambda: view(name=None), "the name of a feature view cannot be None."),
    "on-demand name": (lambda: t.OnDemand(5, {}), "the name of a feature view cannot be the int 5."),
    "by None": (lambda: view(by=None), "by= of feature view 'v' cannot be None. Name a column, or list several."),
    "by numbers": (lambda: view(by=[1]), "by= of feature view 'v' cannot be the int 1."),
    "on a text": (lambda: view(on="g"), "on= of feature view 'v' cannot be the str 'g'. Write on={"),
    "on a number": (lambda: view(on={"g": 1}), "on= of feature view 'v' cannot be the int 1. Write on={"),
    "label's on": (lambda: t.Label(S, "y", within="1d", on="g"), "on= of a label cannot be the str 'g'."),
    "features a list": (lambda: view(features=[COUNT]), "features= of feature view 'v' cannot be of type list."),
    "features an expression": (lambda: view(features={"n": pl.col("x")}), "'n' of feature view 'v' cannot be of type"),
    "feature without name": (
        lambda: view(features={"": COUNT}),
        "features= of feature view 'v' cannot have the name",
    ),
    "feature named 5": (lambda: view(features={5: COUNT}), "features= of feature view 'v' cannot have the name 5."),
    "on-demand list": (lambda: t.OnDemand("o", [pl.col("x")]), "the features of feature view 'o' cannot be of type"),
    "on-demand name empty": (lambda: t.OnDemand("o", {"": "x"}), "the features of feature view 'o' cannot have the"),
    "over a number": (lambda: t.count(over=3), "3 is not a duration. Write a number and a unit"),
    "over None": (lambda: t.count(over=None), "None is not a duration."),
    "cyclic of a number": (lambda: t.cyclic("h", 5, 24), "a column cannot be the int 5."),
    "source's name": (lambda: t.Source(None, tm.push(), key="id"), "the name of a source or table cannot be None."),
    "reader a text": (lambda: source("s.csv"), "the reader of 's' cannot be the str 's.csv'. Write tm.files("),
    "known-at a number": (lambda: source(known_at=5), "known_at= of 's' cannot be the int 5. Name a column, or write"),
    "key None": (lambda: source(key=None), "key= of 's' cannot be None."),
    "tombstone True": (lambda: source(tombstone=True), "tombstone= of 's' cannot be the bool True. Name a column."),
    "checks texts": (lambda: source(checks=["x"]), "checks= of 's' cannot be the str 'x'. Checks are tm.not_null"),
    "one_of None": (lambda: t.one_of("g", None), "a value of one_of('g') cannot be None. Write plain values"),
    "one_of a set": (lambda: t.one_of("g", {"a"}), "a value of one_of('g') cannot be of type set."),
    "between texts": (lambda: t.between("g", "a", 1), "a bound of between('g') cannot be the str 'a'."),
    "files absolute": (
        lambda: t.files("/s/*.csv"),
        "the pattern '/s/*.csv' of files() is absolute. Write one",
    ),
    "files a folder": (lambda: t.files("."), "the pattern '.' of files() names no file."),
    "files nothing": (lambda: t.files(""), "the pattern '' of files() names no file."),
    "files a list": (lambda: t.files(["s.csv"]), "the pattern of files() cannot be of type list."),
    "rows a text": (lambda: t.rows("x"), "rows() cannot read the str 'x'. Pass a function"),
    "cleaned text": (lambda: t.clean("c", "s", []), "the table of 'c' cannot be the str 's'."),
    "recode to lists": (lambda: t.recode("g", {"a": ["b"]}), "a code of recode('g') cannot be of type list."),
    "examples a view": (lambda: model(examples=VIEW), "examples= of model 'm' cannot be of type Aggregation."),
    "examples None": (lambda: model(examples=None), "examples= of model 'm' cannot be None."),
    "asked-at None": (lambda: model(asked_at=None), "asked_at= of model 'm' cannot be None."),
    "label a text": (lambda: model(label="y"), "label= of model 'm' cannot be the str 'y'."),
    "features with a source": (lambda: model(features=[VIEW, S]), "features= of model 'm' cannot be of type Source."),
    "task": (lambda: model(task="ranking"), "task= of model 'm' cannot be 'ranking'. Write 'classification' or"),
    "split a number": (lambda: model(split=0.2), "split= of model 'm' cannot be the float 0.2. Write tm.by_time"),
    "gate a text": (lambda: model(gate="mae"), "gate= of model 'm' cannot be the str 'mae'. Write tm.Gate"),
    "gate's margin": (lambda: t.Gate("mae", margin="5"), "margin= of a gate cannot be the str '5'."),
    "split's test": (lambda: t.by_time(test=0.2), "0.2 is not a duration."),
    "port a text": (lambda: t.Endpoint(port="a"), "port= of an endpoint cannot be the str 'a'. Write a whole number."),
    "drift a number": (lambda: t.Monitor(drift=0.2), "drift= of a monitor cannot be the float 0.2. Write tm.psi"),
    "psi a text": (lambda: t.psi(over="0.2"), "over= of psi() cannot be the str '0.2'."),
    "retrain a text": (lambda: t.Policy(retrain="30d"), "retrain= of a policy cannot be the str '30d'. Write tm.every"),
    "system's name": (lambda: t.System(model()), "the name of a system cannot be of type Model."),
    "system of a view": (lambda: t.System("e", model(), VIEW), "a model of system 'e' cannot be of type Aggregation."),
    "endpoint a number": (lambda: t.System("e", model(), endpoint=8321), "endpoint= of system 'e' cannot be the int"),
    "tick a number": (lambda: t.System("e", model(), tick=5), "5 is not a duration."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_declaration_is_refused_at_once(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        build()


def test_one_stands_for_a_list_of_one() -> None:
    assert model(features="at").features == ("at",)
    assert model(features=VIEW, retired="x").features == (VIEW, "x")
    assert model(slices="origin", metrics="mae").slices == ("origin",)
    assert model(metrics="mae").metrics == ("mae",)
    assert source(checks=tm.not_null("g")).checks == (tm.not_null("g"),)
    assert tm.Policy(retrain=t.every("30d")).retrain == (tm.every("30d"),)
    assert t.clean("c", S, tm.trim("g")).steps == (tm.trim("g"),)


def test_a_list_stands_for_arguments() -> None:
    assert t.one_of("g", ["a", "b"]) == tm.one_of("g", "a", "b")
    assert t.not_null(["a", "b"]) == tm.not_null("a", "b")
    assert t.trim(["a", "b"]) == tm.trim("a", "b")
    assert t.duplicates(("a", "b")) == tm.duplicates("a", "b")


def test_the_file_and_the_line_are_named(tmp_path: Path) -> None:
    file = tmp_path / "system.py"
    file.write_text("import tidemill as tm\nview = tm.Latest('v', None, by='g', columns='x')\n")
    with pytest.raises(DeclarationError) as caught:
        load_system(file)
    (fault,) = caught.value.faults
    assert fault.where == "system.py:2"
    assert "the table of feature view 'v' cannot be None." in fault.what
