"""Signatures of this workspace: what we wrote ourselves may be loaded, what came from elsewhere may not.

HMAC-SHA256 (RFC 2104) by a random key that never leaves the machine's workspace and is not copied with the lake.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from tidemill.base.errors import WorkspaceError

_SIZE = 32  # bytes


class Key:
    """A workspace's secret. Shows itself nowhere: not in ``repr``, not in pickles."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, content: bytes) -> str:
        """Return the signature of ``content``, 64 hexadecimal digits."""
        return hmac.new(self._secret, content, hashlib.sha256).hexdigest()

    def verify(self, content: bytes, signature: str) -> bool:
        """Tell whether ``signature`` is this key's for ``content``, in time that does not depend on the answer."""
        return hmac.compare_digest(self.sign(content).encode(), signature.encode())

    def __repr__(self) -> str:
        return "Key(…)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not pickled")


def open_key(path: Path) -> Key:
    """Return the key in the file ``path``; on first use make one that only this user can read (mode 0600).

    Raises WorkspaceError when the file is damaged or others may read it.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        _make(path)
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with open(file, "rb") as opened:
        mode = os.fstat(opened.fileno()).st_mode & 0o777
        secret = opened.read(_SIZE + 1)
    if mode & 0o077:
        raise WorkspaceError(f"Others can read or change the signing key {path} (mode {mode:o}). Run: chmod 600 {path}")
    if len(secret) != _SIZE:
        raise WorkspaceError(
            f"The signing key {path} is damaged: it must be {_SIZE} bytes. Restore it from a copy, or delete it and "
            "retrain the models that it signed."
        )
    return Key(secret)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part, name = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with open(part, "wb") as file:
            file.write(secrets.token_bytes(_SIZE))
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces a key that another process made meanwhile.
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
