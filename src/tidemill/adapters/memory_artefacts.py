"""Artefacts in memory: for backtests and tests."""

from __future__ import annotations

from tidemill.base.errors import ArtefactError
from tidemill.base.hashing import digest as digest_of


class MemoryArtefacts:
    """A content-addressed store that lives as long as the object."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def put(self, content: bytes) -> str:
        """Store ``content`` and return its digest."""
        name = digest_of(content)
        self._contents[name] = bytes(content)
        return name

    def get(self, digest: str) -> bytes:
        """Return the content. Raises ArtefactError when there is none."""
        try:
            return self._contents[digest]
        except KeyError:
            raise ArtefactError(f"There is no artefact {digest}. Retrain its model.") from None

    def __contains__(self, digest: object) -> bool:
        return digest in self._contents
