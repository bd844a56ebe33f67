"""The 64-bit xxHash, seed 0: the hash behind ``tm.bucket``.

Yann Collet's specification, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md; the same in every process,
on every machine and in ``native/expressions.h``.
"""

from __future__ import annotations

import struct

_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_MASK = 2**64 - 1


def xxh64(content: bytes) -> int:
    """Return the hash of ``content``, in [0, 2**64)."""
    size = len(content)
    stripes = size // 32 * 32
    words = size // 8 * 8
    value = _P5
    if stripes:
        lanes = [(_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK]
        for stripe in struct.iter_unpack("<4Q", content[:stripes]):
            lanes = [_turn(lane, word) for lane, word in zip(lanes, stripe, strict=True)]
        value = sum(_rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
        for lane in lanes:
            value = ((value ^ _turn(0, lane)) * _P1 + _P4) & _MASK
    value = (value + size) & _MASK
    for (word,) in struct.iter_unpack("<Q", content[stripes:words]):
        value = (_rotate(value ^ _turn(0, word), 27) * _P1 + _P4) & _MASK
    rest = content[words:]
    if len(rest) >= 4:
        half = int.from_bytes(rest[:4], "little")
        value = (_rotate(value ^ half * _P1 & _MASK, 23) * _P2 + _P3) & _MASK
        rest = rest[4:]
    for byte in rest:
        value = _rotate(value ^ byte * _P5 & _MASK, 11) * _P1 & _MASK
    value = (value ^ value >> 33) * _P2 & _MASK
    value = (value ^ value >> 29) * _P3 & _MASK
    return value ^ value >> 32


def bucket(value: str | int, buckets: int) -> int:
    """Return the hash, modulo ``buckets``, of a text's UTF-8 bytes or of a whole number's 8, little-endian."""
    return xxh64(value.encode() if isinstance(value, str) else struct.pack("<q", value)) % buckets


def _rotate(value: int, by: int) -> int:
    return (value << by | value >> 64 - by) & _MASK


def _turn(lane: int, word: int) -> int:
    return _rotate((lane + word * _P2) & _MASK, 31) * _P1 & _MASK
