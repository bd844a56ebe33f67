"""Types of the compiled kernel for on-demand expressions; ``kernels/expressions.py`` says what it means."""

from collections.abc import Sequence
from typing import Any

Column = tuple[Any, int, Any | None, Any | None]

class Program:
    def __init__(
        self,
        inputs: Sequence[tuple[str, str]],
        constants: Sequence[tuple[str, Any]],
        tables: Sequence[tuple[Any, ...]],
        code: Sequence[tuple[str, tuple[int, ...], int]],
        outputs: Sequence[tuple[int, str]],
    ) -> None: ...
    def row(self, values: dict[str, Any], /) -> tuple[Any, ...] | str | None: ...
    def columns(
        self, columns: Sequence[Column], rows: int, /
    ) -> list[tuple[bytes | None, bytes, bytes | None]] | str | None: ...
    def add_zone(self, name: str, changes: tuple[int, ...] | None, offsets: tuple[int, ...] | None, /) -> bool: ...

def xxh64(content: bytes, /) -> int: ...
