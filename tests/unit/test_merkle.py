from __future__ import annotations

import random

import pytest
from blake3 import blake3

from distributed_training.errors import WireError
from distributed_training.protocol.merkle import Tree, digest, merkle_root, read_shown, shown_bytes

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


def sets(count: int, seed: int) -> list[list[int]]:
    """Ranges, single places, all, and some drawn ones, in any order."""
    draw = random.Random(seed)
    ends = [sorted(draw.sample(range(count + 1), 2)) for _ in range(4)]
    drawn = [draw.sample(range(count), draw.randint(1, count)) for _ in range(4)]
    return [list(range(count)), [0], [count - 1], *(list(range(a, b)) for a, b in ends), *drawn]


@pytest.mark.parametrize("count", [*SIZES, 100, 4206])
def test_what_is_shown_leads_to_the_root_and_is_as_long_as_was_said(count: int) -> None:
    items = [digest(i.to_bytes(4, "little")) for i in range(count)]
    tree = Tree(items)
    assert tree.root == merkle_root(items)
    for places in sets(count, count):
        shown = tree.show(places)
        assert len(shown) == shown_bytes(count, places)
        assert read_shown(shown, count, places, tree.root) == {i: items[i] for i in places}


def test_a_range_takes_its_digests_and_few_nodes_more() -> None:
    for count in (64, 473, 4206):
        part = count // 64 or 1
        for first in range(0, count - part, part):
            assert shown_bytes(count, range(first, first + part)) <= 32 * (part + 2 * count.bit_length())
    assert shown_bytes(473, range(473)) == 32 * 473, "who is shown everything needs nothing else"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 33])
def test_every_changed_bit_and_every_other_place_or_length_is_refused(count: int) -> None:
    tree, other = Tree(leaves(count)), Tree(leaves(count + 1))
    for places in sets(count, 5):
        shown = tree.show(places)
        wrong = [shown[:-32], shown[:-1], shown + bytes(32), b""]
        wrong += [shown[:i] + bytes([shown[i] ^ 1]) + shown[i + 1 :] for i in range(0, len(shown), 7)]
        for data in wrong:
            with pytest.raises(WireError):
                read_shown(data, count, places, tree.root)
        with pytest.raises(WireError):
            read_shown(shown, count, places, other.root)
        moved = [(i + 1) % count for i in places]
        if sorted(moved) != sorted(places):
            with pytest.raises(WireError):
                read_shown(shown, count, moved, tree.root)


def test_a_node_does_not_pass_as_a_digest() -> None:
    """Who shows an inner node in the place of a leaf, of a tree said to be smaller, is refused."""
    a, b, c, d = leaves(4)
    root = merkle_root([a, b, c, d])
    inner = [
        blake3(b"\x01" + b"".join(blake3(b"\x00" + x).digest() for x in pair)).digest() for pair in ((a, b), (c, d))
    ]
    for data in (inner[0] + inner[1], a + inner[1], inner[0]):
        for count, places in ((2, [0]), (2, [0, 1]), (4, [0]), (1, [0])):
            with pytest.raises(WireError):
                read_shown(data, count, places, root)
