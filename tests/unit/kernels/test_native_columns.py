"""The compiled reader of columns against Polars, and against what would crash it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.engine.predict.arrays import Arrays
from tidemill.kernels import compiled

native: Any = compiled.load("columns")
pytestmark = pytest.mark.skipif(native is None, reason="the compiled kernel is not built")

#: Texts around the length that Arrow keeps in a view, that share their beginning, or end, or all but one byte.
NASTY = [
    "",
    "a",
    "a\0",
    "\0",
    "abcd",
    "abcde",
    "abcdefghijkl",
    "abcdefghijklm",
    "abcdefghijkln",
    "xbcdefghijklm",
    "é" * 6,
]
NASTY += ["é" * 7, "z" * 100, "z" * 99 + "y", "z" * 101, "日本語", "abcdefghijkl\0"]
texts = st.sampled_from(NASTY) | st.text(max_size=20)
numbers = st.none() | st.floats() | st.sampled_from([0.0, -0.0, float("inf"), float("nan"), 5e-324])


def plain(columns: list[tuple[str, tuple[str, ...] | None]], frame: pl.DataFrame) -> tuple[np.ndarray[Any, Any], ...]:
    arrays = Arrays(columns)
    arrays._reader = None
    return arrays(frame)


@given(data=st.data(), rows=st.integers(0, 40), cut=st.tuples(st.integers(0, 40), st.integers(0, 40)))
@settings(max_examples=300, deadline=None)
def test_columns_are_read_as_by_polars(data: st.DataObject, rows: int, cut: tuple[int, int]) -> None:
    columns: list[tuple[str, tuple[str, ...] | None]] = [("x", None), ("s", ()), ("y", None)]
    columns.append(("t", tuple(data.draw(st.lists(texts, unique=True, max_size=30)))))
    known = st.sampled_from(columns[-1][1] or ("?",))
    frames = [
        pl.DataFrame(
            {
                "t": data.draw(st.lists(st.none() | known | texts, min_size=count, max_size=count)),
                "x": data.draw(st.lists(numbers, min_size=count, max_size=count)),
                "s": data.draw(st.lists(st.none() | texts, min_size=count, max_size=count)),
                "y": data.draw(st.lists(st.none() | st.integers(-(2**60), 2**60), min_size=count, max_size=count)),
            },
            schema={"t": pl.String, "x": pl.Float64, "s": pl.String, "y": pl.Int64},
        )
        for count in (rows, data.draw(st.integers(0, 9)))
    ]
    frame = pl.concat(frames, rechunk=False)[cut[0] : cut[0] + cut[1]]  # in chunks that begin within a byte of validity
    for mine, other in zip(Arrays(columns)(frame), plain(columns, frame), strict=True):
        assert mine.dtype == other.dtype
        assert mine.tobytes() == other.tobytes() or np.array_equal(mine, other, equal_nan=True)


def test_many_categories_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    values = tuple(f"{'kind of ' * (place % 3)}{place}" for place in range(20_000))
    asked = rng.integers(-2_000, len(values) + 2_000, 50_000)
    column = pl.Series("s", [values[each] if 0 <= each < len(values) else f"none {each}" for each in asked])
    (codes,) = Arrays([("s", values)])(column.to_frame())
    assert np.array_equal(codes, np.where((asked >= 0) & (asked < len(values)), asked, len(values)))


def test_parts_make_up_the_whole() -> None:
    frame = pl.DataFrame({"x": [1.0, None, 3.0, 4.0, None], "s": ["a", "b", None, "a", "c"]})
    arrays = Arrays([("x", None), ("s", ("a", "b"))])
    parts = list(arrays.parts(frame, 2))
    assert [rows for rows, _ in parts] == [2, 2, 1]
    for place, whole in enumerate(arrays(frame)):
        assert np.array_equal(np.concatenate([columns[place] for _, columns in parts]), whole, equal_nan=True)
    (empty,) = arrays.parts(frame[:0], 2)
    assert empty[0] == 0
    assert [len(column) for column in empty[1]] == [0, 0]


def test_what_does_not_fit_is_refused() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0], "s": ["a", "b"]})
    reader = native.Reader((None, ("a",)))

    def out(rows: int) -> tuple[np.ndarray[Any, Any], ...]:
        return np.empty(rows), np.empty(rows, np.int32)

    for wrong, reason in (
        (frame.select("s", "x"), "Arrow's type"),
        (frame.select("x"), "2 columns"),
        (frame.with_columns(pl.col("s").cast(pl.Categorical)), "Arrow's type"),
        (frame.with_columns(pl.col("x").cast(pl.Int64)), "Arrow's type"),
        (frame[:1], "fewer rows"),
        (pl.concat([frame, frame]), "more rows"),
    ):
        with pytest.raises(ValueError, match=reason):
            reader.read(wrong.__arrow_c_stream__(), out(2))
    stream: Any = frame.__arrow_c_stream__()
    reader.read(stream, out(2))
    with pytest.raises(ValueError, match="read already"):
        reader.read(stream, out(2))
    read_only = np.empty(2)
    read_only.flags.writeable = False
    for arrays in (out(2)[:1], (out(2)[1], out(2)[0]), (read_only, out(2)[1]), [*out(2)]):
        with pytest.raises((TypeError, ValueError)):
            reader.read(frame.__arrow_c_stream__(), arrays)
    with pytest.raises(ValueError):
        reader.read(object(), out(2))


def test_wrong_categories_are_refused() -> None:
    for wrong in ((("a", "a"),), (("x" * 20, "x" * 20),), ((1,),), (["a"],), (("\ud800",),)):
        with pytest.raises((TypeError, ValueError)):
            native.Reader(wrong)
    with pytest.raises(TypeError):
        native.Reader()
