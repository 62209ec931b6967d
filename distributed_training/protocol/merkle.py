"""blake3 digests and domain-separated Merkle trees.

leaf = H(0x00 | digest), node = H(0x01 | left | right), root = H(0x02 | u32 number of leaves | top). An odd node
is carried up unchanged; the leaf count in the root keeps trees of different size apart.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from blake3 import blake3

DIGEST_BYTES = 32
MAX_LEAVES = 0xFFFFFFFF  # the root holds their number as u32


def digest(data: bytes) -> bytes:
    """blake3, 32 bytes."""
    return blake3(data).digest()


def merkle_root(digests: Sequence[bytes]) -> bytes:
    """Root over 32-byte digests, in order; the tree of nothing has a root too."""
    level = [_leaf(d) for d in digests]
    while len(level) > 1:
        level = _parents(level)
    return _root(len(digests), level[0] if level else bytes(DIGEST_BYTES))


def merkle_proof(digests: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Siblings from leaf `index` to the top, bottom first."""
    if not 0 <= index < len(digests):
        raise IndexError(f"leaf {index} of {len(digests)}")
    level, path = [_leaf(d) for d in digests], []
    while len(level) > 1:
        if (sibling := index ^ 1) < len(level):
            path.append(level[sibling])
        level, index = _parents(level), index >> 1
    return tuple(path)


def verify_proof(root: bytes, num_leaves: int, index: int, leaf_digest: bytes, proof: Sequence[bytes]) -> bool:
    """True if `leaf_digest` is leaf `index` of the tree of `num_leaves` under `root`. Never raises."""
    if not 0 <= index < num_leaves <= MAX_LEAVES or any(len(p) != DIGEST_BYTES for p in proof):
        return False
    node, width, rest = _leaf(leaf_digest), num_leaves, list(proof)
    while width > 1:
        if index ^ 1 < width:
            if not rest:
                return False
            sibling = rest.pop(0)
            node = _node(node, sibling) if index % 2 == 0 else _node(sibling, node)
        index, width = index >> 1, (width + 1) >> 1
    return not rest and _root(num_leaves, node) == root


def _leaf(data: bytes) -> bytes:
    return blake3(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return blake3(b"\x01" + left + right).digest()


def _root(num_leaves: int, top: bytes) -> bytes:
    return blake3(b"\x02" + struct.pack("<I", num_leaves) + top).digest()


def _parents(level: Sequence[bytes]) -> list[bytes]:
    pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + ([level[-1]] if len(level) % 2 else [])
