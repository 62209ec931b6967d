"""Seeded edits of valid samples: most of a hostile input is right, so that it gets past the first check."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

MAX_BYTES = 16_384  # no input grows beyond this
_INTEGERS = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    4095,
    4096,
    32767,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 1e-310, 1e-30, 3.4e38, 65504.0, 6e-8)
_WIDTHS = ("<B", "<H", "<I", "<Q", ">H", ">I", ">Q")
_DIGITS = re.compile(rb"[0-9]+")
_NUMBERS = (
    b"0",
    b"1",
    b"-1",
    b"2",
    b"07",
    b"1.0",
    b"1e3",
    b"1e400",
    b"4294967296",
    b"9" * 30,
    b"true",
    b"null",
    b"NaN",
    b'"1"',
)
_TEXT = (b'"', b"{", b"[" * 40, b"]", b"}", b",", b":", b"null", b"NaN", b"-1", b"1e999", b"\xff", b"\0", b" ", b"0x")


def mutate(data: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """`data` with one to four edits; the same `rng` state gives the same bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(_EDITS)(changed, seeds, rng)
    return bytes(changed[:MAX_BYTES])


def _place(data: bytearray, rng: random.Random, width: int = 1) -> int:
    """Half of the time near the front, where the lengths and tags are."""
    room = max(0, len(data) - width)
    return rng.randint(0, min(room, 64) if rng.random() < 0.5 else room)


def _flip(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))


def _integer(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    layout = rng.choice(_WIDTHS)
    width = struct.calcsize(layout)
    at = _place(data, rng, width)
    data[at : at + width] = struct.pack(layout, rng.choice(_INTEGERS) % (1 << (8 * width)))


def _nudge(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    """A count that is off by one is likelier to reach deep than a wild one."""
    if data:
        at = _place(data, rng)
        data[at] = (data[at] + rng.choice((-1, 1))) % 256


def _float(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    layout = rng.choice(("<f", "<f", "<d", "<e"))
    width = struct.calcsize(layout)
    at = _place(data, rng, width)
    value = rng.choice(_FLOATS)
    if layout == "<e" and abs(value) > 65504 and value not in (float("inf"), float("-inf")):
        value = float("inf")
    data[at : at + width] = struct.pack(layout, value)


def _cut(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 8, 32, 64))]


def _insert(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 32, 64)))


def _append(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    data += rng.randbytes(rng.choice((1, 2, 4, 32, 256)))


def _repeat(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 4, 32, 128))] * rng.choice((1, 2, 8))


def _splice(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    other = rng.choice(seeds)
    at, source = _place(data, rng), rng.randint(0, len(other))
    length = rng.choice((4, 32, 64, 256))
    data[at : at + length] = other[source : source + length]


def _text(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    at = rng.randint(0, len(data))
    data[at : at + rng.choice((0, 0, 1))] = rng.choice(_TEXT)


def _number(data: bytearray, _: Sequence[bytes], rng: random.Random) -> None:
    """Another number where a text has one."""
    found = _DIGITS.search(data, rng.randint(0, len(data)))
    if found is not None:
        data[found.start() : found.end()] = rng.choice(_NUMBERS)


_Edit = Callable[[bytearray, Sequence[bytes], random.Random], None]
_EDITS: tuple[_Edit, ...] = (
    _flip, _flip, _byte, _integer, _nudge, _nudge, _float, _float, _cut, _remove, _insert, _append, _repeat, _splice,
    _text, _number, _number,
)  # fmt: skip
