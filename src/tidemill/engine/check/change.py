"""What differs between two descriptions of a declaration, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]

# Parts that only hold named things; the things' own names say enough.
_CONTAINERS = frozenset({"features", "parameters", "fields", "value", "reads", "versions", "feature views", "kpis"})
_ITEMS = {
    "windows": "window", "columns": "column", "by": "column", "key": "column", "metrics": "metric", "slices": "slice",
    "inputs": "input", "checks": "check", "retrain": "trigger",
}  # fmt: skip
_BINARY = frozenset(["+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^"])


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what changed from ``old`` to ``new`` (from ``fingerprint.py``), a phrase each; empty when equal.

    ``feature view 'carrier': delay: window 3d added``, ``estimator changed: max_iter 100 -> 200``.
    """
    phrases = [_phrase(path, text) for path, text in _differences(old, new, ())]
    # The list of all input columns repeats what the views and the order of their features have said.
    if any(phrase.startswith("feature view ") for phrase in phrases):
        phrases = [phrase for phrase in phrases if not phrase.startswith("columns: column ")]
    return tuple(dict.fromkeys(phrases))


def _differences(old: Any, new: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if _same(old, new):
        return
    if path[-1:] == ("source",) and isinstance(old, dict) and isinstance(new, dict):
        yield from ((path[:-1], text) for text in _sources(old, new))
    elif _is_expression(old) or _is_expression(new):
        yield path, f"{_show(old)} -> {_show(new)}"
    elif _is_table(old) and _is_table(new):
        yield path, _table(old, new)
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            if name not in new:
                yield path, _named(path, name, "removed")
            elif name not in old:
                yield path, _named(path, name, "added")
            else:
                yield from _differences(old[name], new[name], (*path, name))
    elif isinstance(old, list) and isinstance(new, list):
        yield from _lists(old, new, path)
    else:
        yield path, f"{_show(old)} -> {_show(new)}"


def _lists(old: list[Any], new: list[Any], path: Path) -> Iterator[tuple[Path, str]]:
    if all(map(_is_table, old)) and all(map(_is_table, new)) and len(old) == len(new):
        yield from ((path, _table(*pair)) for pair in zip(old, new, strict=True) if not _same(*pair))
        return
    before, after = ([json.dumps(each, sort_keys=True) for each in side] for side in (old, new))
    item = _ITEMS.get(path[-1] if path else "", "item")
    added = [each for each, text in zip(new, after, strict=True) if text not in before]
    removed = [each for each, text in zip(old, before, strict=True) if text not in after]
    if not added and not removed:
        yield path, "order changed"
    elif len(added) == len(removed) == 1 and len(old) == len(new) and isinstance(added[0], dict | list):
        yield from _differences(removed[0], added[0], path)
    else:
        yield from ((path, f"{item} {_show(each)} added") for each in added)
        yield from ((path, f"{item} {_show(each)} removed") for each in removed)


def _sources(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            verb = "changed" if name in old and name in new else "added" if name in new else "no longer used"
            yield f"code of {name} {verb}"


def _table(old: dict[str, str], new: dict[str, str]) -> str:
    if old["name"] != new["name"]:
        return f"reads table '{new['name']}' instead of '{old['name']}'"
    return f"table '{new['name']}' changed"


def _named(path: Path, name: str, verb: str) -> str:
    return f"feature view '{name}' {verb}" if path[-1:] == ("feature views",) else f"{name} {verb}"


def _phrase(path: Path, text: str) -> str:
    words: list[str] = []
    for place, part in enumerate(path):
        if place and path[place - 1] == "feature views":
            words.append(f"feature view '{part}'")
        elif part in ("estimator", "label", "function") and place == 0:
            words.append(f"{part} changed")
        elif part not in _CONTAINERS and not _speaks(part, text):
            words.append(part)
    if words and " -> " in text and not words[-1].endswith("changed"):
        return ": ".join([*words[:-1], f"{words[-1]} {text}"])
    return ": ".join([*words, text])


def _speaks(part: str, text: str) -> bool:
    """Tell whether the text itself says what ``part`` would."""
    if part in ("windows", "metrics", "slices", "checks"):
        return text.startswith(f"{_ITEMS[part]} ")
    return part in ("table", "inputs", "examples") and text.startswith(("table ", "reads table "))


def _same(old: Any, new: Any) -> bool:
    return json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _is_expression(part: Any) -> bool:
    return isinstance(part, dict) and set(part) == {"expression"}


def _is_table(part: Any) -> bool:
    return isinstance(part, dict) and set(part) == {"name", "rows"}


def _show(part: Any) -> str:
    if _is_expression(part):
        return _spell(part["expression"])
    if part is None or isinstance(part, bool):
        return {None: "none", True: "true", False: "false"}[part]
    return part if isinstance(part, str) else json.dumps(part, sort_keys=True)


def _spell(tree: Any) -> str:
    """Write an expression's canonical tree as people would."""
    match tree:
        case ["column", name]:
            return str(name)
        case ["literal", _, value]:
            return json.dumps(value)
        case [operator, left, right] if operator in _BINARY:
            return f"({_spell(left)} {operator} {_spell(right)})"
        case ["if", condition, yes, no]:
            return f"({_spell(yes)} if {_spell(condition)} else {_spell(no)})"
        case ["call", function, *arguments]:
            return f"{_function(function)}({', '.join(map(_spell, arguments))})"
        case ["polars", _, text]:
            return str(text)
        case _:
            return json.dumps(tree, sort_keys=True)


def _function(function: Any) -> str:
    """Return the innermost name in Polars' spelling of a function: {"TemporalExpr": "Hour"} is Hour."""
    while isinstance(function, dict) and len(function) == 1:
        ((name, inner),) = function.items()
        if not isinstance(inner, str | dict) or not _is_name(inner):
            return f"{name}[{json.dumps(inner, sort_keys=True)}]"
        function = inner
    return str(function)


def _is_name(inner: str | dict[str, Any]) -> bool:
    return isinstance(inner, str) or (len(inner) == 1 and next(iter(inner))[:1].isupper())
