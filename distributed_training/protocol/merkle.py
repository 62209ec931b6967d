"""blake3 digests and domain-separated Merkle trees.

leaf = H(0x00 | digest), node = H(0x01 | left | right), root = H(0x02 | u32 number of leaves | top). An odd node
is carried up unchanged; the leaf count in the root keeps trees of different size apart.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from blake3 import blake3

DIGEST_BYTES = 32


def digest(data: bytes | memoryview) -> bytes:
    """blake3, 32 bytes."""
    return blake3(data).digest()


def merkle_root(digests: Sequence[bytes]) -> bytes:
    """Root over 32-byte digests, in order; the tree of nothing has a root too."""
    level = [_leaf(d) for d in digests]
    while len(level) > 1:
        level = _parents(level)
    return _root(len(digests), level[0] if level else bytes(DIGEST_BYTES))


def _leaf(data: bytes) -> bytes:
    return blake3(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return blake3(b"\x01" + left + right).digest()


def _root(num_leaves: int, top: bytes) -> bytes:
    return blake3(b"\x02" + struct.pack("<I", num_leaves) + top).digest()


def _parents(level: Sequence[bytes]) -> list[bytes]:
    pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + ([level[-1]] if len(level) % 2 else [])
