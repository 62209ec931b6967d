"""Bytes as lists of frames, and bytes as any plain object: both total, so that every input means something."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("<I")
MAX_FRAMES = 64
MAX_DEPTH = 24


def pack_frames(frames: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(f)) + f for f in frames)


def cut_frames(data: bytes) -> list[bytes]:
    """The inverse of `pack_frames`; a frame that is longer than what is left takes all of it."""
    frames: list[bytes] = []
    while len(data) >= 4 and len(frames) < MAX_FRAMES:
        (size,) = _LENGTH.unpack(data[:4])
        frames.append(data[4 : 4 + size])
        data = data[4 + size :]
    return frames


def pack_object(value: Any) -> bytes:
    """Plain data as a decoder of somebody else might hand it over."""
    if isinstance(value, bool) or value is None:
        return bytes([0 if value is None else 1 + value])
    if isinstance(value, int):
        return b"\x03" + value.to_bytes(8, "little", signed=True)
    if isinstance(value, float):
        return b"\x04" + struct.pack("<d", value)
    if isinstance(value, bytes | str):
        raw = value if isinstance(value, bytes) else value.encode()
        return bytes([5 if isinstance(value, bytes) else 6]) + struct.pack("<H", len(raw)) + raw
    items = list(value.items()) if isinstance(value, dict) else list(value)
    tag = 9 if isinstance(value, dict) else 7 if isinstance(value, list) else 8
    flat = [part for pair in items for part in pair] if isinstance(value, dict) else items
    return bytes([tag, len(items)]) + b"".join(pack_object(part) for part in flat)


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        self.at += count
        return part.ljust(min(count, 8), b"\0")


def cut_object(data: bytes) -> Any:
    """The inverse of `pack_object` on its image; some object for any other bytes."""
    return _object(_Cursor(data), 0)


def _object(cursor: _Cursor, depth: int) -> Any:
    tag = cursor.take(1)[0] % 10
    if tag < 3 or depth > MAX_DEPTH or cursor.at > len(cursor.data):
        return (None, False, True)[tag % 3]
    if tag == 3:
        return int.from_bytes(cursor.take(8), "little", signed=True)
    if tag == 4:
        return struct.unpack("<d", cursor.take(8))[0]
    if tag < 7:
        raw = cursor.take(struct.unpack("<H", cursor.take(2))[0])
        return raw if tag == 5 else raw.decode("utf-8", "replace")
    count = cursor.take(1)[0]
    if tag < 9:
        parts = [_object(cursor, depth + 1) for _ in range(count) if cursor.at < len(cursor.data)]
        return parts if tag == 7 else tuple(parts)
    pairs = [
        (_object(cursor, depth + 1), _object(cursor, depth + 1)) for _ in range(count) if cursor.at < len(cursor.data)
    ]
    # A key of another kind becomes a number: as text, quotes quoted in quotes would grow without bound.
    return {key if isinstance(key, str | bytes | int | None) else len(str(type(key))): value for key, value in pairs}
