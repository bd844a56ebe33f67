"""What servers log, besides predictions, and the tables that it goes to. ``ledger.py`` keeps those tables."""

from __future__ import annotations

from typing import Any

import msgspec

PREDICTIONS = "predictions"
FEEDBACK = "feedback"

#: Names that no source or derived table may take.
RESERVED_TABLES = (PREDICTIONS, FEEDBACK)


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What a person or a system says came true: of a prediction by its id, or of a key. ``id`` makes it idempotent."""

    id: str
    model: str
    prediction: str | None
    key: list[Any] | None
    value: Any


def sampled(id: str, share: float) -> bool:
    """Tell whether the prediction ``id`` is in a sample of that ``share``: ids are hashes, so always the same ones."""
    return share >= 1.0 or int(id[:12], 16) < share * 16**12
