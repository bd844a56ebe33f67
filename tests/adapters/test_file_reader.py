from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.adapters.file_reader import FileReader
from tidemill.base.errors import SourceError


def drain(reader: FileReader, cursor: str | None = None) -> tuple[list[dict[str, object]], list[str], str | None]:
    """Read what is new; return the rows, the raw broken pieces, and the cursor after them."""
    found, broken = [], []
    for batch in reader.poll(cursor):
        found += batch.rows.to_pylist()
        broken += [text for text, _ in batch.broken]
        cursor = batch.cursor
    return found, broken, cursor


def append(path: Path, text: str) -> None:
    with path.open("ab") as out:
        out.write(text.encode())


def test_csv_quotes_nulls_and_broken_lines(tmp_path: Path) -> None:
    text = 'a,b\r\n1,"x, ""y""\n z"\r\n2\r\n3,NA\r\n4,"NA"\r\n5,""\r\n6,\r\n7,8,9\r\n\r\n5" pipe,x\r\n'
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found, broken, _ = drain(FileReader("*.csv", tmp_path))
    assert [(row["a"], row["b"]) for row in found] == [
        ("1", 'x, "y"\n z'),
        ("3", None),
        ("4", "NA"),
        ("5", ""),
        ("6", None),
        ('5" pipe', "x"),
    ]
    assert [text.strip() for text in broken] == ["2", "7,8,9"]


def test_new_files_in_order_of_name_and_grown_ones_from_where_reading_stopped(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    append(tmp_path / "b.csv", "a\n1\n2\n")
    append(tmp_path / "a.csv", "a\n0\n")
    append(tmp_path / "sub" / "c.csv", "a\n3\n")
    reader = FileReader("**/*.csv", tmp_path)
    found, _, cursor = drain(reader)
    assert [row["a"] for row in found] == ["0", "1", "2", "3"]
    assert drain(FileReader("**/*.csv", tmp_path), cursor) == ([], [], cursor)
    append(tmp_path / "a.csv", "4\n5")
    append(tmp_path / "aa.csv", "a\n6\n")
    found, _, cursor = drain(reader, cursor)
    assert [row["a"] for row in found] == ["4", "6"]
    (tmp_path / "aa.csv").unlink()
    append(tmp_path / "a.csv", "0\n")
    found, _, cursor = drain(reader, cursor)
    assert [row["a"] for row in found] == ["50"]


def test_a_last_line_without_its_end_is_taken_once_the_file_rests(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    append(file, "a\n1\n2")
    reader = FileReader("*.csv", tmp_path)
    first, _, cursor = drain(reader)
    assert drain(reader, cursor) == ([], [], cursor)
    os.utime(file, (1, 1))
    second, _, cursor = drain(reader, cursor)
    assert ([row["a"] for row in first], [row["a"] for row in second]) == (["1"], ["2"])
    assert drain(reader, cursor) == ([], [], cursor)
    append(file, "\n3\n")
    assert [row["a"] for row in drain(reader, cursor)[0]] == ["3"]
    file.write_text("a\n1\n27\n")
    with pytest.raises(SourceError, match=r"x\.csv: its last line had no line end"):
        drain(reader, cursor)


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_line_by_line_and_whole_are_the_same(tmp_path: Path, suffix: str) -> None:
    lines = ["a,b\n"] if suffix == "csv" else []
    lines += [f'{i},"é\n{i}"\n' if suffix == "csv" else f'{{"a": {i}, "b": "é{i}"}}\n' for i in range(40)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "grown").mkdir()
    append(tmp_path / "whole" / f"x.{suffix}", "".join(lines))
    whole, broken, _ = drain(FileReader("*", tmp_path / "whole"))
    assert not broken
    text = "".join(lines).encode()
    grown, cursor = [], None
    for start in range(0, len(text), 7):
        with (tmp_path / "grown" / f"x.{suffix}").open("ab") as out:
            out.write(text[start : start + 7])
        found, broken, cursor = drain(FileReader("*", tmp_path / "grown"), cursor)
        assert not broken
        grown += found
    assert grown == whole
    assert len(whole) == 40


def test_small_blocks_give_the_same_rows(tmp_path: Path) -> None:
    append(tmp_path / "x.csv", "a,b\n" + "".join(f'{i},"l{i}\n""q"""\n' for i in range(200)))
    whole = FileReader("*.csv", tmp_path)
    blocks = FileReader("*.csv", tmp_path)
    blocks._block = 64
    assert drain(blocks)[0] == drain(whole)[0]
    cursors = [batch.cursor for batch in blocks.poll(None)]
    assert len(cursors) > 10
    for cursor in cursors[:5]:  # a reader may continue after any batch
        done = json.loads(cursor)["x.csv"][0]
        assert 0 < done < (tmp_path / "x.csv").stat().st_size
        rest = drain(blocks, cursor)[0]
        assert rest == drain(whole)[0][-len(rest) :]
    blocks._block = 8
    with pytest.raises(SourceError, match="never closed"):
        drain(blocks)


def test_ndjson_breaks_line_by_line(tmp_path: Path) -> None:
    append(tmp_path / "x.jsonl", '{"a": 1}\n\n{"a": \n[1]\n{"b": "x", "a": 2.5}\n')
    found, broken, _ = drain(FileReader("*.jsonl", tmp_path))
    assert found == [{"a": 1.0, "b": None}, {"a": 2.5, "b": "x"}]
    assert broken == ['{"a": ', "[1]"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"a,b\n1,\xff\n", r"x\.csv: the byte 0xff near offset 6 is not UTF-8"),
        ("x.csv", b"a,a\n1,2\n", r"x\.csv: its header repeats 'a'"),
        ("x.csv", b",a\n1,2\n", r"x\.csv: its header has a column without a name"),
        ("x.ndjson", b'{"a": "\xff"}\n', "is not UTF-8"),
        ("x.parquet", b"PAR1 and then nothing", r"x\.parquet is not a whole Parquet file"),
        ("x.xlsx", b"PK", "unknown format '.xlsx'"),
    ],
)
def test_a_faulty_file_is_an_error_and_nothing_of_it_is_read(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        next(FileReader("*", tmp_path).poll(None))


def test_damage_deep_in_a_parquet_file_shows_before_its_first_row(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"a": [f"{i:032x}" for i in range(400_000)]}), file, row_group_size=100_000, compression="snappy"
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = b"\xff" * 5000
    file.write_bytes(content)
    with pytest.raises(SourceError, match="Nothing of it was loaded"):
        next(FileReader("*", tmp_path).poll(None))


def test_undecodable_bytes_late_in_a_file_show_before_its_first_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a\n" + b"1\n" * 100 + b"\xff\n")
    reader = FileReader("*", tmp_path)
    reader._block = 16
    with pytest.raises(SourceError, match="not UTF-8"):
        next(reader.poll(None))


def test_rewritten_files_stop_the_source(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    append(file, "a\n1\n2\n")
    _, _, cursor = drain(FileReader("*", tmp_path))
    file.write_text("a\n1\n")
    with pytest.raises(
        SourceError, match=r"x\.csv was loaded before and has been rewritten: it shrank from 6 to 4 bytes"
    ):
        drain(FileReader("*", tmp_path), cursor)
    file.write_text("a\n9\n2\n3\n")
    with pytest.raises(SourceError, match=r"what was read of it has changed"):
        drain(FileReader("*", tmp_path), cursor)
    file.write_text("a\n1\n2\n3\n")
    assert [row["a"] for row in drain(FileReader("*", tmp_path), cursor)[0]] == ["3"]


def test_a_rewrite_is_noticed_by_the_reader_that_read_it(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    append(file, "a\n1\n")
    reader = FileReader("*", tmp_path)
    _, _, cursor = drain(reader)
    drain(reader, cursor)
    file.write_text("a\n7\n")
    os.utime(file, ns=(1, 1))
    with pytest.raises(SourceError, match="has changed"):
        drain(reader, cursor)


def test_parquet_is_read_whole_and_resumed_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.adapters.file_reader.BATCH_ROWS", 10)
    pl.DataFrame({"a": range(25)}).write_parquet(tmp_path / "x.parquet")
    reader = FileReader("*.parquet", tmp_path)
    batches = list(reader.poll(None))
    assert [batch.rows.num_rows for batch in batches] == [10, 10, 5]
    assert batches[0].file == "x.parquet"
    rest, _, cursor = drain(FileReader("*.parquet", tmp_path), batches[0].cursor)
    assert [row["a"] for row in rest] == list(range(10, 25))
    assert drain(reader, cursor)[0] == []
    pl.DataFrame({"a": range(26)}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="rewritten"):
        drain(reader, cursor)
