"""Files of predictions: whole or not at all, whatever their parts are like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tidemill.adapters.bulk_output import Output, check_output
from tidemill.base.errors import NotFoundError, SourceError


def write(path: Path, tables: Sequence[pa.Table]) -> None:
    with Output(path) as out:
        for table in tables:
            out.add(table)
        out.finish(lambda: tables)


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_parts_of_other_types_are_written_as_what_they_have_in_common(tmp_path: Path, name: str) -> None:
    parts = [
        pa.table({"key": pa.array([1, 2], pa.int32()), "kept": pa.nulls(2)}),
        pa.table({"key": pa.array([3], pa.int64()), "kept": ["x"]}),
        pa.table({"key": pa.array([4], pa.int32()), "kept": pa.nulls(1)}),
    ]
    write(tmp_path / name, parts)
    got = pl.read_parquet(tmp_path / name) if name.endswith("parquet") else pl.read_csv(tmp_path / name)
    assert got.rows() == [(1, None), (2, None), (3, "x"), (4, None)]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_left_before_the_end_leaves_nothing(tmp_path: Path) -> None:
    for name in ("out.parquet", "out.csv"):
        with Output(tmp_path / name) as out:
            out.add(pa.table({"key": [1]}))
    assert list(tmp_path.iterdir()) == []


def test_output_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    rows = pl.DataFrame({"key": ["a", "b"], "prediction": [0.1, 1 / 3]}).to_arrow()
    for name in ("out.parquet", "out.csv"):
        path = tmp_path / name
        check_output(path, overwrite=False)
        write(path, [rows, rows.slice(1).select(["key", "prediction"])])
        got = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
        assert got.rows() == [("a", 0.1), ("b", 1 / 3), ("b", 1 / 3)]
        before = path.read_bytes()
        other = pa.table({"key": ["c"], "prediction": [b"x"]})
        with pytest.raises(SourceError, match="do not fit together"):
            write(path, [rows, other])
        assert path.read_bytes() == before
        with pytest.raises(SourceError, match="there already"):
            check_output(path, overwrite=False)
        check_output(path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.parquet"]
    with pytest.raises(NotFoundError, match="no folder"):
        check_output(tmp_path / "none" / "out.csv", overwrite=False)


def test_text_has_times_as_iso_8601_in_utc(tmp_path: Path) -> None:
    moment = pl.Series([1_700_000_000_000_000, 1_700_000_000_000_001, None]).cast(pl.Datetime("us"))
    times = {
        "utc": moment.dt.replace_time_zone("UTC"),
        "there": moment.dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York"),
        "bare": moment,
    }
    rows = pl.DataFrame({"key": ["a,b", "c", None], **times}).to_arrow()
    write(tmp_path / "out.csv", [rows, rows[:1]])
    first, second = "2023-11-14T22:13:20Z", "2023-11-14T22:13:20.000001Z"
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "key,utc,there,bare", f'"a,b",{first},{first},{first}', f"c,{second},{second},{second}", ",,,",
        f'"a,b",{first},{first},{first}',
    ]  # fmt: skip
    with pytest.raises(SourceError, match="'tags' holds lists or structures"):
        write(tmp_path / "tags.csv", [pa.table({"tags": [[1.0]]})])
    assert not (tmp_path / "tags.csv").exists()
