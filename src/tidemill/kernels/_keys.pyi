import numpy as np
import numpy.typing as npt
from typing_extensions import CapsuleType

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

def number(columns: tuple[Int64, ...], null: Bool | None, out: Int64, /) -> tuple[CapsuleType, int]: ...
def find(
    keys: CapsuleType, columns: tuple[Int64, ...], null: Bool | None, out: Int64, first: int, last: int, /
) -> None: ...
def repeated(hashes: npt.NDArray[np.uint64], out: Bool, /) -> None: ...
