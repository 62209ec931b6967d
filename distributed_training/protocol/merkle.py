"""blake3 digests and domain-separated Merkle trees.

leaf = H(0x00 | digest), node = H(0x01 | left | right), root = H(0x02 | u32 number of leaves | top). An odd node
is carried up unchanged; the leaf count in the root keeps trees of different size apart.

Some leaves alone are *shown* with the nodes beside their paths, level by level from the leaves, each level from the
left. What follows from what is there already is left out, so there is one spelling, and its length follows from the
number of leaves and the places.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence

from blake3 import blake3

from distributed_training.errors import WireError

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


class Tree:
    """All nodes over 32-byte digests, in order: for who shows some of them to several."""

    def __init__(self, digests: Sequence[bytes]) -> None:
        self._digests, self._levels = digests, [[_leaf(d) for d in digests]]
        while len(self._levels[-1]) > 1:
            self._levels.append(_parents(self._levels[-1]))

    @property
    def root(self) -> bytes:
        """As `merkle_root`."""
        top = self._levels[-1]
        return _root(len(self._digests), top[0] if top else bytes(DIGEST_BYTES))

    def show(self, places: Collection[int]) -> bytes:
        """The digests at these places in ascending order, then the nodes that lead from them to the root."""
        nodes = [self._levels[level][i] for level, i in _beside(len(self._digests), places)]
        return b"".join([self._digests[i] for i in sorted(places)] + nodes)


def shown_bytes(count: int, places: Collection[int]) -> int:
    """How long `Tree.show` of a tree of `count` leaves is."""
    return DIGEST_BYTES * (len(places) + sum(1 for _ in _beside(count, places)))


def read_shown(data: bytes, count: int, places: Collection[int], root: bytes) -> Mapping[int, bytes]:
    """Place -> digest, from the bytes that `Tree.show` gave. Raises WireError unless they lead to `root`.

    places: one or more different ones below `count`.
    """
    if len(data) != shown_bytes(count, places):
        raise WireError(f"digests: {len(data)} bytes, {shown_bytes(count, places)} expected")
    parts = [data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES)]
    shown = dict(zip(sorted(places), parts, strict=False))
    nodes, rest = {i: _leaf(each) for i, each in shown.items()}, iter(parts[len(shown) :])
    size = count
    while size > 1:
        nodes |= {i: next(rest) for i in _siblings(sorted(nodes), size)}
        pairs = ((i, nodes.get(i + 1)) for i in sorted(nodes) if i % 2 == 0)
        nodes = {i // 2: nodes[i] if right is None else _node(nodes[i], right) for i, right in pairs}
        size = (size + 1) // 2
    if _root(count, nodes[0]) != root:
        raise WireError("digests do not hash into the committed root")
    return shown


def _beside(count: int, places: Collection[int]) -> Iterator[tuple[int, int]]:
    """(level, place in it) of each node that has to be given."""
    known, level = sorted(places), 0
    while count > 1:
        yield from ((level, i) for i in _siblings(known, count))
        known, count, level = sorted({i // 2 for i in known}), (count + 1) // 2, level + 1


def _siblings(known: Sequence[int], count: int) -> list[int]:
    """The other halves of these nodes' pairs, of a level of `count` nodes, where they are not known too."""
    there = set(known)
    return [i ^ 1 for i in known if i ^ 1 < count and i ^ 1 not in there]
