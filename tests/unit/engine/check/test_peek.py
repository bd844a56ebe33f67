"""What the data at hand says: a tombstone that is none, patterns that are none, expressions that fail on the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import tidemill as tm
from tidemill.adapters.file_reader import FileReader
from tidemill.adapters.row_reader import RowReader
from tidemill.base.clock import parse_time
from tidemill.base.errors import SourceError
from tidemill.engine.check.feature import staying
from tidemill.engine.check.peek import Seen, expression_faults
from tidemill.spec.source import Source

NOW = parse_time("2014-01-01")


class Regressor:
    def fit(self, rows: Any, truth: Any) -> Any: ...

    def predict(self, rows: Any) -> Any: ...


def source(**changes: Any) -> Source:
    return tm.Source("rides", tm.files("*.csv"), key="id", event_time="at", **changes)


def look(source: Source, values: list[Any], folder: Path | None = None) -> Seen:
    """Look at rows with ``values`` in the column "x": of dictionaries, or of a CSV file in ``folder``."""
    rows = [{"id": place, "at": "2013-01-01T00:00Z", "x": value} for place, value in enumerate(values)]
    seen = Seen()
    if folder is None:
        seen.look(source, RowReader(lambda taken: rows[taken:]))
    else:
        pl.DataFrame(rows).write_csv(folder / "rides.csv")
        seen.look(source, FileReader("*.csv", folder))
    return seen


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], ["no", "yes"]], ids=["whole", "float", "text"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_tombstone_without_a_truth_value_is_a_fault(values: list[Any], tmp_path: Path, as_file: bool) -> None:
    seen = look(source(tombstone="x"), values, tmp_path if as_file else None)
    (fault,) = seen.faults
    assert fault.where == "source 'rides'"
    assert fault.what.startswith("'x' is declared as the tombstone but holds ")
    assert "Write true where a key is withdrawn" in fault.what


@pytest.mark.parametrize(
    "values", [[True, False], ["true", "False"], ["true", "?"], [None, None]], ids=["truth", "text", "mixed", "empty"]
)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_tombstone_may_be_written_as_text_or_be_empty(values: list[Any], tmp_path: Path, as_file: bool) -> None:
    seen = look(source(tombstone="x"), values, tmp_path if as_file else None)
    assert not seen.faults
    assert seen.schemas["rides"]["x"] == pl.Boolean


def test_what_is_no_pattern_is_a_fault_of_the_source(tmp_path: Path) -> None:
    seen = Seen()
    seen.look(source(), FileReader("/rides/*.csv", tmp_path))
    assert "the pattern '/rides/*.csv' cannot be used" in seen.faults[0].what
    with pytest.raises(SourceError, match="cannot be used"):
        FileReader("/rides/*.csv", tmp_path).pending(None)


def faults_of(values: list[Any], **changes: Any) -> list[str]:
    rides = source(**changes)
    model = tm.Model(
        "m",
        examples=rides,
        asked_at="at",
        label=tm.Label(rides, pl.col("x").cast(pl.Int64), within="1d"),
        features=[
            tm.OnDemand("o", {**tm.cyclic("hour", "x", 24), "far": tm.distance("x", "x", "x", "x")}),
            tm.Aggregation("a", rides, by="x", features={"m": tm.mean(pl.col("x").cast(pl.Float64), over="1d")}),
        ],
        estimator=Regressor(),
    )
    seen = look(rides, values)
    assert not seen.faults
    return [str(fault) for fault in expression_faults(tm.System("s", model), seen, NOW)]


def test_expressions_that_fail_on_the_rows_are_faults() -> None:
    found = faults_of(["a", "07"])
    assert len(found) == 5
    assert found[0].startswith("model 'm', label: 'its value' fails on rows of source 'rides', on 'x' (String): ")
    assert found[1].startswith("model 'm', feature view 'o': 'hour_sin' fails on rows of source 'rides', on 'x' (Str")
    assert found[4].startswith("feature view 'a': 'm' fails on rows of source 'rides', on 'x' (String): conversion")
    assert "tm.cast" in found[0]


def test_expressions_that_work_on_the_rows_are_none() -> None:
    assert faults_of(["12", "07"]) == []
    assert faults_of(["12", "?"], checks=[tm.one_of("x", "12")]) == []  # a row that is refused is read by nobody


def test_an_expression_whose_cost_cannot_be_measured_is_a_note() -> None:
    """Texts that Tidemill makes up are no numbers; whether those of the data are, it cannot tell without them."""
    view = tm.OnDemand("o", tm.cyclic("hour", "x", 24))
    notes = list(staying(view, source(), {"rides": {"x": pl.String()}}))
    assert [note.where for note in notes] == ["feature view 'o'"] * 2
    assert notes[0].what.startswith("'hour_sin' fails on made-up rows of 'x' (String): conversion from `str` to `f64`")
