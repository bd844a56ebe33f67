"""Fitted estimators kept in memory: for backtests and tests."""

from __future__ import annotations

from typing import Any


class MemoryModels:
    """Implements ports.models.Models; a reference is a number counted up."""

    def __init__(self) -> None:
        self._estimators: list[Any] = []

    def save(self, estimator: Any) -> str:
        """Keep the estimator itself and return its reference."""
        self._estimators.append(estimator)
        return str(len(self._estimators) - 1)

    def load(self, reference: str) -> Any:
        """Return the estimator saved under ``reference``."""
        return self._estimators[int(reference)]
