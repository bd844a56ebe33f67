from collections.abc import Callable
from typing import Any

Blob = bytes | bytearray | memoryview

class Plan: ...  # a capsule

def plan(timeless: bool, kinds: str, features: tuple[tuple[str, int, int, float], ...], /) -> Plan: ...
def needs(plan: Plan, t: int, directory: Blob, /) -> tuple[int, ...]: ...
def answer(
    plan: Plan, t: int, head: Blob | None, directory: Blob | None, blocks: tuple[Blob, ...], /
) -> tuple[Any, ...]: ...
def answers(
    views: tuple[tuple[Plan, int], ...], t: int, record: Blob | None, /
) -> tuple[tuple[Any, ...] | bytes, ...]: ...
def columns(
    views: tuple[tuple[Plan, int], ...],
    t: int,
    records: list[Blob | None],
    fetch: Callable[[int, int], tuple[Blob, tuple[Blob, ...]]],
    names: tuple[str, ...],
    /,
) -> tuple[Any, Any]: ...
def summary(plan: Plan, block: Blob, /) -> bytes: ...
