"""Canonical JSON and content hashes. Everything that is compared, signed or fingerprinted goes through here."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tidemill.base.errors import TidemillError

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical(value: Any) -> bytes:
    """Return ``value`` as JSON with sorted keys, no spaces, UTF-8; the same value gives the same bytes everywhere.

    Floats are written with the shortest digits that read back to the same number. Raises TidemillError on values JSON
    does not know, NaN and infinities included.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError) as error:
        raise TidemillError(f"a value cannot be written as canonical JSON: {error}") from error
    return text.encode()


def digest(content: bytes) -> str:
    """Return the BLAKE2b-160 hash of ``content`` as 40 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return the hash of the canonical JSON of ``parts``; tuples count as lists."""
    return digest(canonical(list(parts)))


def bucket(key: str, *, salt: str = "") -> float:
    """Return a number in [0, 1) that depends on ``key`` and ``salt`` alone: sticky routes, hash splits, samples."""
    raw = hashlib.blake2b(key.encode(), digest_size=8, salt=salt.encode()[:16]).digest()
    return (int.from_bytes(raw, "big") >> 11) / (1 << 53)


def seed(text: str) -> int:
    """Return a seed in [0, 2**31) that depends on ``text`` alone, for estimators and resampling."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 2**31
