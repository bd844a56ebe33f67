from collections.abc import Mapping, Sequence
from typing import Any

from numpy import dtype, float64, ndarray

class Program:
    def __init__(
        self,
        columns: tuple[tuple[str, tuple[str, ...] | None], ...],
        kind: str,
        arrays: Mapping[str, ndarray[Any, Any]],
        link: int,
        width: int,
        single: bool,
        divisor: float,
        scale: float,
        /,
    ) -> None: ...
    def row(self, values: Sequence[Any], /) -> float | list[float]: ...
    def batch(
        self, columns: tuple[ndarray[Any, Any], ...], rows: int, out: ndarray[Any, dtype[float64]], /
    ) -> None: ...
