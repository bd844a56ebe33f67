from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]

def order(
    group: Int64,
    groups: int,
    times: tuple[Int64, ...],
    order: UInt32,
    bounds: Int64,
    /,
) -> int: ...
def answer(
    order: UInt32 | None,
    bounds: Int64,
    event: Int64,
    start: Int64,
    end: Int64,
    query_order: UInt32 | None,
    query_bounds: Int64,
    t: Int64,
    widths: tuple[int, ...],
    values: tuple[tuple[int, npt.NDArray[Any] | None, npt.NDArray[np.bool_] | None, int], ...],
    features: tuple[tuple[int, int, int, float, npt.NDArray[Any]], ...],
    first: int,
    last: int,
    way: int,
) -> None: ...
