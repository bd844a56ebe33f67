from __future__ import annotations

from typing import Any

from tidemill.engine.parity.trace import Data, lineage
from tidemill.ports.journal import Entry


def entries(*parts: tuple[str, dict[str, Any]]) -> list[Entry]:
    return [Entry(number, number * 10, kind, body, {"version": number}) for number, (kind, body) in enumerate(parts, 1)]


def alias(version: int, model: str = "m", name: str = "champion") -> tuple[str, dict[str, Any]]:
    return "alias", {"model": model, "alias": name, "version": version}


def test_lineage_finds_the_entries_behind_a_version_and_its_route() -> None:
    journal = entries(
        ("commit", {"table": "a", "next_seq": 5}),
        ("train", {"model": "other", "training": "x"}),
        ("train", {"model": "m", "training": "t1"}),
        ("judge", {"model": "m", "training": "t1"}),
        ("version", {"model": "m", "training": "t1", "version": 1}),
        alias(1),
        ("train", {"model": "m", "training": "t2"}),
        ("version", {"model": "m", "training": "t2", "version": 2}),
        alias(2),
        alias(1),  # rolled back
        ("commit", {"table": "a", "next_seq": 5}),  # moved the cursor only
        alias(1),  # after the prediction
    )
    found = lineage(journal, {"model": "m", "version": 1, "journal": 11, "route": "champion"}, {"a": 5, "b": 0})
    assert [entry.number for entry in found.entries] == [3, 4, 5, 10]
    assert found.data == {"a": Data(5, 10, 1), "b": Data(0)}


def test_lineage_of_a_version_that_the_journal_does_not_know_is_empty() -> None:
    found = lineage([], {"model": "m", "version": 1, "journal": 0, "route": "champion"}, {})
    assert found.entries == ()
