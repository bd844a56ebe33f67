from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tidemill.adapters.arrow_scratch import ArrowScratch
from tidemill.adapters.memory_scratch import MemoryScratch
from tidemill.base.errors import NotFoundError
from tidemill.ports.scratch import Scratch

TABLE = pl.DataFrame({"x": [1, 2, None, 4], "text": ["a", None, "c", "d"], "t": [0, 1, 2, 3]}).to_arrow()


@pytest.fixture(params=["files", "memory"])
def scratch(request: pytest.FixtureRequest, tmp_path: Path) -> Scratch:
    return ArrowScratch(tmp_path / "pieces") if request.param == "files" else MemoryScratch()


def test_pieces_come_back_as_given(scratch: Scratch) -> None:
    assert not scratch.has("a")
    chunked = pa.concat_tables([TABLE, TABLE.slice(1, 2)])
    scratch.put("a", [TABLE, TABLE.slice(0, 0), chunked], {"rows": 4, "ü": [None]})
    assert scratch.has("a")
    assert scratch.get("a").equals(TABLE)
    assert scratch.get("a", 1).equals(TABLE.slice(0, 0))
    assert scratch.get("a", 2).equals(chunked)
    assert scratch.note("a") == {"rows": 4, "ü": [None]}
    scratch.put("a", [TABLE.slice(2)])
    assert scratch.get("a").equals(TABLE.slice(2))
    assert scratch.note("a") == {}
    for read in (scratch.get, scratch.note):
        with pytest.raises(NotFoundError, match="'b'"):
            read("b")


def test_a_piece_without_columns_holds_a_note(scratch: Scratch) -> None:
    scratch.put("run", [pa.table({})], {"model": "m"})
    assert scratch.note("run") == {"model": "m"}


def test_a_torn_piece_is_none(tmp_path: Path) -> None:
    scratch = ArrowScratch(tmp_path)
    scratch.put("a", [TABLE])
    whole = (tmp_path / "a.arrow").read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.arrow").write_bytes(whole[:length])
        assert not scratch.has("a")


def test_a_piece_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    scratch = ArrowScratch(tmp_path)
    with pytest.raises(pa.ArrowException):
        scratch.put("a", [TABLE, TABLE.select(["x"])])
    assert list(tmp_path.iterdir()) == []
