from __future__ import annotations

import pytest
from blake3 import blake3

from distributed_training.protocol.merkle import digest, merkle_root

SIZES = range(1, 34)


def leaves(count: int) -> list[bytes]:
    return [digest(bytes([i])) for i in range(count)]


def reference_root(items: list[bytes]) -> bytes:
    """The definition, top down: the left part of a level is the largest power of two below its width."""

    def top(part: list[bytes]) -> bytes:
        if len(part) == 1:
            return blake3(b"\x00" + part[0]).digest()
        half = 1
        while half * 2 < len(part):
            half *= 2
        return blake3(b"\x01" + top(part[:half]) + top(part[half:])).digest()

    return blake3(b"\x02" + len(items).to_bytes(4, "little") + (top(items) if items else bytes(32))).digest()


@pytest.mark.parametrize("count", [0, *SIZES, 100])
def test_root_is_the_documented_one(count: int) -> None:
    assert merkle_root(leaves(count)) == reference_root(leaves(count))


def test_leaves_nodes_and_roots_are_apart() -> None:
    a, b = leaves(2)
    leaf = [blake3(b"\x00" + d).digest() for d in (a, b)]
    node = blake3(b"\x01" + leaf[0] + leaf[1]).digest()
    root = merkle_root([a, b])
    assert len({merkle_root([]), merkle_root([a]), root, node, *leaf, a, b}) == 8
    assert merkle_root([a]) != leaf[0]  # a leaf is not the root of its own tree
    assert merkle_root([leaf[0] + leaf[1]]) != root  # nor does a node pass as a leaf
    assert merkle_root([a, b, b]) != merkle_root([a, b, b, b])  # an odd node is carried up, not doubled
    assert merkle_root([a, b]) != merkle_root([b, a])
