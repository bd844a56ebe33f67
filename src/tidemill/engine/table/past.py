"""What was known before each row of a frame: statistics, counts and the last value, over a trailing stretch.

The past of a row known at t are the rows, alike in the columns asked for, that were known in ``[t - over, t)``. Rows
known at one and the same time are not in each other's past. A null in those columns is like nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tidemill.base.clock import FOREVER
from tidemill.engine.table.table import TIME
from tidemill.kernels.exact import deviation, exact, quotient, squares
from tidemill.kernels.latest import Line
from tidemill.kernels.windows import Windows

Array = npt.NDArray[Any]

_KNOWN = ".known"
_ROW = ".row"
_ALIKE = ".alike"
_VALUE = ".value"


class Rows:
    """The rows of a frame in order of when they were known, in groups of those alike in ``by``.

    ``ties``: columns that order rows known at one time. ``over``: the stretch, in microseconds. Rows without a
    known-at, and those with a null in ``by``, are in nobody's past and have none.
    """

    def __init__(self, frame: pl.DataFrame, known: str, by: Sequence[str], over: int, ties: Sequence[str]) -> None:
        self.height, self.over = frame.height, over
        sorted = _ordered(frame, known, by, ties)
        self.order = sorted[_ROW].to_numpy()  # places in the frame
        self.known = sorted[_KNOWN].to_physical().to_numpy()
        self.group = sorted[_ALIKE].to_numpy()
        self.groups = int(self.group.max(initial=-1)) + 1

    def spread(self, values: pl.Series, where: Array | None = None) -> pl.Series:
        """Return ``values`` of these rows in the frame's order; null for other rows, and for those not ``where``."""
        if where is not None and not where.all():
            values = values.set(pl.Series(~where), None)
        whole = pl.Series(values.name, [None], dtype=values.dtype).new_from_index(0, self.height)
        return whole.scatter(self.order, values) if len(self.order) else whole


def moments(rows: Rows, values: pl.Series, least: int) -> tuple[pl.Series, pl.Series]:
    """Return mean and sample deviation of each row's past, correctly rounded; null for fewer than ``least`` values.

    What went by before the stretch leaves no trace in them, as it does in running sums of floats.
    """
    value = values.cast(pl.Float64).gather(rows.order)
    value = value.set(~value.is_finite().fill_null(value=True), None)
    present = value.is_not_null().to_numpy()
    numbers = exact(value.fill_null(0.0).to_numpy(), present)
    end = np.full(len(rows.known), FOREVER, dtype=np.int64)
    windows = Windows(rows.group, rows.groups, rows.known, rows.known, end, asked=rows.group, t=rows.known)
    counts = windows.total(present.astype(np.int64), rows.over)
    sums = windows.total(numbers.integers, rows.over)
    squared = windows.total(squares(numbers).integers, rows.over)
    mean = np.where(counts > 0, quotient(sums, np.maximum(counts, 1), numbers.exponent), np.nan)
    spread = deviation(counts, sums, squared, numbers.exponent)
    means = pl.Series(values.name, mean, dtype=pl.Float64, nan_to_null=True)
    spreads = pl.Series(values.name, spread, dtype=pl.Float64, nan_to_null=True)
    return rows.spread(means, counts >= least), rows.spread(spreads, counts >= least)


def quantiles(rows: Rows, values: pl.Series, least: int, at: Sequence[float]) -> tuple[pl.Series, ...]:
    """Return quantiles of each row's past (between two values, linearly); null for fewer than ``least`` values."""
    value = values.cast(pl.Float64).gather(rows.order)
    frame = pl.DataFrame(
        {
            _VALUE: value.set(~value.is_finite().fill_null(value=True), None),
            _KNOWN: pl.Series(rows.known).cast(pl.Datetime("us")),
            _ALIKE: rows.group,
        }
    )
    found = frame.select(
        pl.col(_VALUE)
        .rolling_quantile_by(
            _KNOWN,
            window_size=f"{rows.over}us",
            quantile=each,
            interpolation="linear",
            closed="left",
            min_samples=max(least, 1),
        )
        .over(_ALIKE)
        .alias(f"{place}")
        for place, each in enumerate(at)
    )
    return tuple(rows.spread(found[f"{place}"].alias(values.name)) for place in range(len(at)))


def last_before(rows: Rows, values: pl.Series, least: int) -> pl.Series:
    """Return the last value that is there in each row's past; null for fewer than ``least``."""
    value = values.gather(rows.order)
    there = np.flatnonzero(value.is_not_null().to_numpy())
    known, group = rows.known[there], rows.group[there]
    end = np.full(len(there), FOREVER, dtype=np.int64)
    line = Line(
        group, rows.groups, known, known, np.arange(len(there)), known, end, asked=rows.group, t=rows.known
    )  # fmt: skip
    found = line.last(rows.over)
    chosen = np.where(found < 0, -1, there[found] if len(there) else -1)
    index = pl.Series(chosen, dtype=pl.Int64).set(pl.Series(chosen < 0), None)
    windows = Windows(group, rows.groups, known, known, end, asked=rows.group, t=rows.known)
    return rows.spread(value.gather(index), windows.count(rows.over) >= least)


def earlier(frame: pl.DataFrame, known: str, alike: Sequence[str], ties: Sequence[str]) -> pl.Series:
    """Return for each row when the one before it that is alike was known: int64 microseconds, null for the first.

    Rows known at one time come one after the other, by ``ties``.
    """
    ordered = _ordered(frame, known, alike, ties)
    before = ordered.select(pl.col(_KNOWN).to_physical().shift(1).over(_ALIKE).alias("before"))["before"]
    whole = pl.Series("before", [None], dtype=pl.Int64).new_from_index(0, frame.height)
    return whole.scatter(ordered[_ROW], before) if ordered.height else whole


def frequencies(frame: pl.DataFrame, known: str, by: str, over: int) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Return how often in each row's past there was its own value of ``by``, the rarest of those there, and any."""
    rows = Rows(frame, known, (), over, ())
    values = frame[by].gather(rows.order)
    code = values.rank("dense").cast(pl.Int64).fill_null(0).to_numpy() - 1
    nothing = np.zeros(len(rows.known), dtype=np.int64)
    end = np.full(len(rows.known), FOREVER, dtype=np.int64)
    windows = Windows(nothing, 1, rows.known, rows.known, end, asked=nothing, t=rows.known)
    own, total = nothing.copy(), nothing.copy()
    rarest = np.full(len(rows.known), FOREVER, dtype=np.int64)
    for each in range(int(code.max(initial=-1)) + 1):  # classes are few
        counts = windows.total((code == each).astype(np.int64), over)
        own = np.where(code == each, counts, own)
        total += counts
        rarest = np.where(counts > 0, np.minimum(rarest, counts), rarest)
    own_, rarest_, total_ = (rows.spread(pl.Series(each, dtype=pl.Int64)).fill_null(0) for each in (own, rarest, total))
    return own_, rarest_, total_


def _ordered(frame: pl.DataFrame, known: str, by: Sequence[str], ties: Sequence[str]) -> pl.DataFrame:
    """Return known-at, place and group (from 0) of rows, in order of known-at and ``ties``.

    Rows without a known-at are left out, and so are those with a null or NaN in ``by``: they are like nothing.
    """
    marked = frame.with_columns(
        pl.col(known).cast(TIME).alias(_KNOWN), pl.int_range(pl.len(), dtype=pl.Int64).alias(_ROW)
    ).filter(pl.col(_KNOWN).is_not_null())
    for name in by:
        there = pl.col(name).is_not_null()
        marked = marked.filter(there & pl.col(name).is_not_nan() if frame.schema[name].is_float() else there)
    ordered = marked.sort(_KNOWN, *(name for name in ties if name in frame.columns), _ROW)
    first = pl.col(_ROW).first().over(list(by)) if by else pl.lit(0, dtype=pl.Int64)
    ordered = ordered.with_columns(first.alias(_ALIKE))
    return ordered.select(_KNOWN, _ROW, (pl.col(_ALIKE).rank("dense") - 1).cast(pl.Int64).alias(_ALIKE))
