"""Which pages a uid trains on in a round: a keyed permutation of the page list (protocol section 4)."""

from __future__ import annotations

import hashlib

FEISTEL_ROUNDS = 8
_MAX_SIZE = 1 << 62


def assignment_beacon(block_hash: bytes, netuid: int, round_index: int) -> bytes:
    """The assignment beacon A of a round, 32 bytes: blake2b-256("assign" | hash(s-B) | netuid u16 | round u32).

    `block_hash` is the 32-byte hash of the round's roster block; integers are little-endian.
    """
    _check_length("block_hash", block_hash)
    return _blake(b"assign", block_hash, netuid.to_bytes(2, "little"), round_index.to_bytes(4, "little"))


def assignment_key(manifest_digest: bytes, round_index: int, beacon: bytes) -> bytes:
    """The key K of a round's page permutation, 32 bytes: blake2b-256("pages" | manifest | round u32 | A)."""
    _check_length("manifest_digest", manifest_digest)
    _check_length("beacon", beacon)
    return _blake(b"pages", manifest_digest, round_index.to_bytes(4, "little"), beacon)


class Permutation:
    """A keyed bijection on [0, size): balanced Feistel network of 8 rounds with cycle walking over blake2b.

    The network permutes [0, 4^h), the smallest such domain that holds `size`, and is repeated until the value falls
    below `size`: fewer than 4 passes on average. Stateless; `inverse` undoes `forward`.
    """

    def __init__(self, key: bytes, size: int) -> None:
        _check_length("key", key)
        if not 1 <= size <= _MAX_SIZE:
            raise ValueError(f"size must be in [1, 2^62], got {size}")
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half_bits) - 1
        self._rounds = tuple(
            hashlib.blake2b(key=key, digest_size=8, person=b"page" + bytes([index])) for index in range(FEISTEL_ROUNDS)
        )

    def forward(self, x: int) -> int:
        """P(x). Raises ValueError outside [0, size)."""
        self._check(x)
        x = self._encrypt(x)
        while x >= self.size:
            x = self._encrypt(x)
        return x

    def _encrypt(self, x: int) -> int:
        left, right = x >> self._half_bits, x & self._mask
        for index in range(FEISTEL_ROUNDS):
            left, right = right, left ^ self._mix(index, right)
        return (left << self._half_bits) | right

    def _mix(self, index: int, half: int) -> int:
        state = self._rounds[index].copy()  # keyed once, copied: about half the cost of keying each time
        state.update(half.to_bytes(8, "little"))
        return int.from_bytes(state.digest(), "little") & self._mask

    def _check(self, value: int) -> None:
        if not 0 <= value < self.size:
            raise ValueError(f"{value} is outside [0, {self.size})")


def page_index(permutation: Permutation, max_uids: int, uid: int, i: int) -> int | None:
    """The i-th page of `uid` in this round, P(i * max_uids + uid); None beyond the page list: the miner stops there.

    Pages of different uids, and of different i, are disjoint. Raises ValueError for a uid outside [0, max_uids).
    """
    if not 0 <= uid < max_uids or i < 0:
        raise ValueError(f"uid {uid} must be in [0, {max_uids}) and i {i} must not be negative")
    position = i * max_uids + uid
    return permutation.forward(position) if position < permutation.size else None


def _blake(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=32).digest()


def _check_length(name: str, value: bytes) -> None:
    if len(value) != 32:
        raise ValueError(f"{name} must be 32 bytes, got {len(value)}")
