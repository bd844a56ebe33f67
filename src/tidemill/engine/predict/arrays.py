"""The columns of a frame as the arrays that a compiled predictor takes, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.kernels import compiled

Array: TypeAlias = npt.NDArray[Any]


class Arrays:
    """Reads ``columns`` of frames: each its name, and its categories or None for a number.

    A number is float64 with null as NaN; a text is int32, the place of its category, or the number of categories for
    null and for any other text. By the compiled kernel where there is one, else by Polars, with the same values.
    """

    def __init__(self, columns: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        self._categories = tuple(values for _, values in columns)
        self._typed = [pl.col(name).cast(pl.Float64 if values is None else pl.String) for name, values in columns]
        kernel = compiled.load("columns")
        self._reader = None if kernel is None else kernel.Reader(self._categories)

    def __call__(self, frame: pl.DataFrame) -> tuple[Array, ...]:
        """Return the arrays, contiguous, as long as ``frame``. Raises ValueError when a column is of another kind."""
        return self._read(frame.select(self._typed))

    def parts(self, frame: pl.DataFrame, rows: int) -> Iterator[tuple[int, tuple[Array, ...]]]:
        """Yield (how many, their arrays) for each ``rows`` of ``frame``, in order; once at least."""
        typed = frame.select(self._typed)
        for first in range(0, max(frame.height, 1), rows):
            part = typed[first : first + rows]
            yield part.height, self._read(part)

    def _read(self, typed: pl.DataFrame) -> tuple[Array, ...]:
        if self._reader is None:
            return tuple(map(_plain, typed.get_columns(), self._categories))
        out = tuple(np.empty(typed.height, np.float64 if each is None else np.int32) for each in self._categories)
        self._reader.read(typed.__arrow_c_stream__(), out)
        return out


def _plain(column: pl.Series, categories: tuple[str, ...] | None) -> Array:
    if categories is None:
        return np.ascontiguousarray(column.fill_null(float("nan")).to_numpy())
    codes = column.cast(pl.Enum(categories), strict=False).to_physical().cast(pl.Int32)
    return np.ascontiguousarray(codes.fill_null(len(categories)).to_numpy())
