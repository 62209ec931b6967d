from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.protocol.merkle import digest, merkle_proof, merkle_root, verify_proof

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


@pytest.mark.parametrize("count", SIZES)
def test_every_leaf_is_proven_at_its_own_place_only(count: int) -> None:
    items = leaves(count)
    root = merkle_root(items)
    for index in range(count):
        proof = merkle_proof(items, index)
        assert len(proof) <= 6
        places = [i for i in range(-1, count + 1) if verify_proof(root, count, i, items[index], proof)]
        sizes = [n for n in range(count + 3) if verify_proof(root, n, index, items[index], proof)]
        assert (places, sizes) == ([index], [count])


@settings(max_examples=100)
@given(st.integers(2, 40), st.data())
def test_anything_changed_is_refused(count: int, data: st.DataObject) -> None:
    items = leaves(count)
    index = data.draw(st.integers(0, count - 1))
    root, proof = merkle_root(items), merkle_proof(items, index)
    other = digest(b"other")
    at = data.draw(st.integers(0, len(proof) - 1))
    assert verify_proof(root, count, index, items[index], proof)
    assert not verify_proof(root, count, index, other, proof)
    assert not verify_proof(other, count, index, items[index], proof)
    assert not verify_proof(root, count, index, items[index], (*proof[:at], other, *proof[at + 1 :]))
    assert not verify_proof(root, count, index, items[index], proof[:at] + proof[at + 1 :])
    assert not verify_proof(root, count, index, items[index], (*proof, other))
    assert not verify_proof(root, count, index, items[index], (*proof[:at], proof[at][:31], *proof[at + 1 :]))
    assert not verify_proof(root, count, index, items[index], (*proof[:at], proof[at] + b"\0", *proof[at + 1 :]))


@pytest.mark.parametrize("count", [-1, 0, 1 << 32, 1 << 40])
def test_a_tree_of_an_impossible_size_proves_nothing(count: int) -> None:
    assert not verify_proof(merkle_root(leaves(1)), count, 0, leaves(1)[0], (bytes(32),) * max(0, count.bit_length()))


def test_leaves_nodes_and_roots_are_apart() -> None:
    a, b = leaves(2)
    leaf = [blake3(b"\x00" + d).digest() for d in (a, b)]
    node = blake3(b"\x01" + leaf[0] + leaf[1]).digest()
    root = merkle_root([a, b])
    assert len({merkle_root([]), merkle_root([a]), root, node, *leaf, a, b}) == 8
    assert merkle_root([a]) != leaf[0]  # a leaf is not the root of its own tree
    assert merkle_root([leaf[0] + leaf[1]]) != root  # nor does a node pass as a leaf
    assert not verify_proof(root, 1, 0, leaf[0] + leaf[1], ())
    assert merkle_root([a, b, b]) != merkle_root([a, b, b, b])  # an odd node is carried up, not doubled
    assert merkle_root([a, b]) != merkle_root([b, a])


@pytest.mark.parametrize("index", [-1, 3])
def test_no_proof_of_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(IndexError, match="of 3"):
        merkle_proof(leaves(3), index)
