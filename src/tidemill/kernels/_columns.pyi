from typing import Any

import numpy.typing as npt
from typing_extensions import CapsuleType

class Reader:
    def __new__(cls, categories: tuple[tuple[str, ...] | None, ...], /) -> Reader: ...
    def read(self, stream: CapsuleType, out: tuple[npt.NDArray[Any], ...], /) -> None: ...
