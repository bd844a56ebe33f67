"""Fitted estimators kept in memory: for backtests and tests."""

from __future__ import annotations

import secrets
from typing import Any

from tidemill.adapters.estimator_files import dump_estimator, load_estimator
from tidemill.adapters.signing import Key


class MemoryModels:
    """Implements ports.models.Models; a reference is a number counted up.

    What is given back has been written and read as ``EstimatorFiles`` would, so that a backtest predicts with what a
    server would load, and refuses what could not be stored.
    """

    def __init__(self) -> None:
        self._written: list[bytes] = []
        self._read: dict[str, Any] = {}
        self._key = Key(secrets.token_bytes(32))

    def save(self, estimator: Any) -> str:
        """Keep a fitted estimator as it would be written, and return its reference. Raises TrainingError."""
        self._written.append(dump_estimator(estimator, self._key)[1])
        return str(len(self._written) - 1)

    def load(self, reference: str) -> Any:
        """Return the estimator saved under ``reference``, read once. Raises ArtefactError."""
        if reference not in self._read:
            self._read[reference] = load_estimator(self._written[int(reference)], self._key)
        return self._read[reference]

    def save_form(self, content: bytes) -> str:
        """Keep a compiled form and return its reference."""
        self._written.append(content)
        return str(len(self._written) - 1)

    def load_form(self, reference: str) -> bytes:
        """Return a compiled form."""
        return self._written[int(reference)]
