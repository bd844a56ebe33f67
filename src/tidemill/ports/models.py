"""Where fitted estimators are kept."""

from __future__ import annotations

from typing import Any, Protocol


class Models(Protocol):
    """Saves fitted estimators and gives them back safely."""

    def save(self, estimator: Any) -> str:
        """Store a fitted estimator durably and return a reference to it."""
        ...

    def load(self, reference: str) -> Any:
        """Return the estimator. Raises ArtefactError when it is missing, damaged, unsigned or of other libraries."""
        ...
