"""Artefacts as files named by the hash of their content: ``root/3f/3fa9…``.

A file appears under its name only when it is whole and on disk: written beside, synced, renamed, directory synced. A
crash leaves at most a file ending in ``.part``, which nothing reads.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from tidemill.base.errors import ArtefactError
from tidemill.base.hashing import digest as digest_of

_DIGEST = re.compile(r"[0-9a-f]{40}\Z")


class ArtefactFiles:
    """A content-addressed store in the directory ``root``, made on first use. Safe for many processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, content: bytes) -> str:
        """Store ``content`` durably and return its digest. Mends a file that was damaged."""
        name = digest_of(content)
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            self._write(path, content)
        # Also when the file was there: the process that renamed it may have died before this.
        _sync_directory(path.parent)
        _sync_directory(self._root)
        return name

    def get(self, digest: str) -> bytes:
        """Return the content. Raises ArtefactError when it is missing or no longer matches its digest."""
        if not _DIGEST.match(digest):
            raise ArtefactError(f"{digest[:60]!r} is not the digest of an artefact: it must be 40 hexadecimal digits.")
        path = self._path(digest)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ArtefactError(
                f"The artefact {digest} is missing from {self._root}. Restore it from a copy, or retrain its model."
            ) from error
        if digest_of(content) != digest:
            raise ArtefactError(
                f"The artefact {path} is damaged: its content does not match its name. "
                "Restore it from a copy, or retrain its model."
            )
        return content

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and bool(_DIGEST.match(digest)) and self._path(digest).exists()

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / name

    def _write(self, path: Path, content: bytes) -> None:
        part, name = tempfile.mkstemp(suffix=".part", dir=path.parent)
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
