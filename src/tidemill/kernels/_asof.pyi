import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

def last(
    group: Int64,
    time: Int64,
    known: Int64,
    seq: Int64,
    start: Int64,
    end: Int64,
    query_order: npt.NDArray[np.uint32] | None,
    query_bounds: Int64,
    t: Int64,
    width: int,
    out: Int64,
    first: int,
    last: int,
    /,
) -> bool: ...
