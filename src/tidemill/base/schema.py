"""Names and system columns of the lake's tables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

#: When the system could first have known the row: timestamp[us, UTC]; null waits until a later version fills it.
KNOWN_AT = "_known_at"
#: The row's number in its table, counted over all commits from 0: int64, no gaps.
SEQ = "_seq"
#: True when the row withdraws its key: bool.
TOMBSTONE = "_tombstone"
#: The logical tick whose commit brought the row: timestamp[us, UTC].
TICK = "_tick"
#: True when the row came with the first load or a back-fill and kept its declared known-at: bool.
HISTORY = "_history"

SYSTEM_COLUMNS = (KNOWN_AT, SEQ, TOMBSTONE, TICK, HISTORY)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of ``known``, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def picker(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what takes the values under ``keys`` from a mapping or a sequence, always as a tuple."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda values: tuple([values[key] for key in keys])
