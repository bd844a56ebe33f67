from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tidemill.adapters import bulk_files
from tidemill.adapters.bulk_files import BulkFiles
from tidemill.base.errors import NotFoundError, SourceError
from tidemill.ports.bulk import Chunk

TEXTS = st.one_of(st.none(), st.text("ab,\"\n ü'", min_size=1, max_size=6))


def read(bulk: BulkFiles, columns: list[str], rows: int = 3) -> pl.DataFrame:
    frames = [bulk.read(Chunk(*chunk.as_data()), columns) for chunk in bulk.chunks(rows)]
    return pl.concat(frames, how="vertical_relaxed")


@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), block=st.integers(40, 90))
@settings(max_examples=60, deadline=None)
def test_text_in_chunks_is_the_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str | None, str | None]], block: int
) -> None:
    folder = tmp_path_factory.mktemp("bulk")
    frame = pl.DataFrame(
        {"n": [str(n) for n in range(len(texts))], "a": [a for a, _ in texts], "b": [b for _, b in texts]},
        schema={"n": pl.String, "a": pl.String, "b": pl.String},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk_files, "BLOCK", block)
        for name in ("x.csv", "x.ndjson"):
            path = folder / name
            frame.write_csv(path, quote_style="non_numeric") if name == "x.csv" else frame.write_ndjson(path)
            bulk = BulkFiles([str(path)])
            assert bulk.columns() == ("n", "a", "b")
            try:
                chunks = bulk.chunks(1)
            except SourceError:  # a single line may be longer than the block
                assert max(map(len, path.read_bytes().split(b"\n"))) > block - 20 or '"' in path.read_text()
                continue
            assert_frame_equal(read(bulk, ["b", "n", "a"]).select(pl.all().cast(pl.String)), frame["b", "n", "a"])
            assert chunks[-1].end == path.stat().st_size
            assert [chunk.start for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]]


def test_parquet_is_read_by_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": range(20), "x": [n / 3 for n in range(20)]})
    frame[:13].write_parquet(tmp_path / "a.parquet", row_group_size=5)
    frame[13:].write_parquet(tmp_path / "b.parquet")
    bulk = BulkFiles([str(tmp_path)])
    assert_frame_equal(read(bulk, ["n", "x"]), frame)
    bounds = [(chunk.start, chunk.end) for chunk in bulk.chunks(3)]
    assert bounds == [(0, 3), (3, 5), (5, 8), (8, 10), (10, 13), (0, 3), (3, 6), (6, 7)]
    assert [chunk.first for chunk in bulk.chunks(100)] == [1, 6, 11, 1]
    before = bulk.identity()
    frame[:14].write_parquet(tmp_path / "b.parquet")
    assert BulkFiles([str(tmp_path)]).identity() != before


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,x\n1,2\n")
    (tmp_path / "b.txt").write_text("n,x\n")
    with pytest.raises(NotFoundError, match=r"no file .*c\.csv.*Did you mean .*a\.csv"):
        BulkFiles([str(tmp_path / "c.csv")])
    with pytest.raises(SourceError, match=r"b\.txt: unknown format '\.txt'. Known: .parquet"):
        BulkFiles([str(tmp_path / "*.txt")])
    (tmp_path / "twice.csv").write_text("n,n\n1,2\n")
    with pytest.raises(SourceError, match="repeats 'n'"):
        BulkFiles([str(tmp_path / "twice.csv")]).columns()
