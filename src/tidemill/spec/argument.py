"""What declarations ask of their arguments: a wrong one is refused where it is written, with what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any


def require(given: object, kinds: type | UnionType | tuple[type, ...], what: str, do: str) -> None:
    """Raise TypeError unless ``given`` is of ``kinds``: ``what`` takes something else, and ``do`` says what."""
    if not isinstance(given, kinds):
        raise TypeError(f"{what} cannot be {shown(given)}. {do}")


def shown(given: object) -> str:
    """Return how messages speak of a value of the wrong type: by its type, plain values with themselves."""
    if given is None:
        return "None"
    kind = type(given).__name__
    return f"the {kind} {given!r}" if isinstance(given, str | int | float | bytes) else f"of type {kind}"


def name(given: object, what: str) -> None:
    """Raise TypeError unless the name of a declaration is a text."""
    require(given, str, f"the name of {what}", "Write it first, as a text of letters, digits and _.")


def column(given: object, what: str) -> None:
    """Raise TypeError unless ``given`` is the name of a column, or None."""
    require(given, str | None, what, "Name a column.")


def number(given: object, what: str) -> None:
    """Raise TypeError unless ``given`` is a number."""
    require(given, int | float, what, "Write a number.")


def names(given: Any, what: str) -> tuple[str, ...]:
    """Return the name or the names that ``given`` is. Raises TypeError when it is neither."""
    each: tuple[str, ...] = listed(given, str, what, "Name a column, or list several.")
    return each


def listed(given: Any, kinds: type | UnionType | tuple[type, ...], what: str, do: str) -> tuple[Any, ...]:
    """Return one value of ``kinds`` or several as a tuple. Raises TypeError when they are of another type."""
    if isinstance(given, kinds):
        return (given,)
    require(given, kinds if isinstance(given, str) else Iterable, what, do)  # a text is not its letters
    each = tuple(given)
    for one in each:
        require(one, kinds, what, do)
    return each


def spread(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of ``f(a, b)``; those of ``f([a, b])`` are the same."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else given


def named(given: Any, what: str, do: str) -> dict[str, Any]:
    """Return a mapping from names. Raises TypeError when it is none, or its names are no texts or empty."""
    require(given, Mapping, what, do)
    for key in given:
        if not isinstance(key, str) or not key:
            raise TypeError(f"{what} cannot have the name {key!r}. {do}")
    return dict(given)


def renaming(given: Any, what: str) -> tuple[tuple[str, str], ...]:
    """Return what ``on=`` says, by name of the table's column. Raises TypeError when it is not from names to names."""
    do = "Write on={'column of the table': 'column of the examples'}."
    pairs = named(given or {}, what, do)
    for value in pairs.values():
        require(value, str, what, do)
    return tuple(sorted(pairs.items()))
