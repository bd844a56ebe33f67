"""Artefacts: immutable bytes under the hash of their content."""

from __future__ import annotations

from typing import Protocol


class Artefacts(Protocol):
    """A content-addressed store. What is read back is checked against its hash."""

    def put(self, content: bytes) -> str:
        """Store ``content`` durably and return its digest (40 hexadecimal digits). Idempotent."""
        ...

    def get(self, digest: str) -> bytes:
        """Return the content. Raises ArtefactError when it is missing or no longer matches its digest."""
        ...

    def __contains__(self, digest: object) -> bool:
        """Tell whether the content is stored."""
        ...
