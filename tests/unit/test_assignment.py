from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.rules.assignment import Permutation, assignment_beacon, assignment_key, page_index

keys = st.binary(min_size=32, max_size=32)
KEY = bytes(range(32))


@given(keys, st.integers(1, 300))
def test_permutation_is_a_bijection(key: bytes, size: int) -> None:
    permutation = Permutation(key, size)
    assert sorted(permutation.forward(x) for x in range(size)) == list(range(size))


@given(keys, st.integers(1, 1 << 62), st.data())
def test_places_of_a_large_list_stay_apart_and_inside(key: bytes, size: int, data: st.DataObject) -> None:
    permutation = Permutation(key, size)
    places = data.draw(st.sets(st.integers(0, size - 1), max_size=20))
    found = {permutation.forward(x) for x in places}
    assert len(found) == len(places) and all(0 <= y < size for y in found)


@given(keys, st.integers(1, 200), st.integers(1, 20))
def test_uids_share_no_page_and_together_use_all(key: bytes, size: int, max_uids: int) -> None:
    permutation = Permutation(key, size)
    rows = range(size // max_uids + 2)
    pages = [page_index(permutation, max_uids, uid, i) for uid in range(max_uids) for i in rows]
    assert sorted(page for page in pages if page is not None) == list(range(size))


@given(keys, st.integers(1, 200), st.integers(1, 20), st.integers(0, 19))
def test_once_a_uid_is_beyond_the_list_it_stays_there(key: bytes, size: int, max_uids: int, uid: int) -> None:
    uid %= max_uids
    permutation = Permutation(key, size)
    absent = [page_index(permutation, max_uids, uid, i) is None for i in range(size + 1)]
    assert absent == sorted(absent)
    assert absent[-1]


def test_other_keys_give_other_orders() -> None:
    orders = {tuple(Permutation(bytes([k]) * 32, 64).forward(x) for x in range(64)) for k in range(20)}
    assert len(orders) == 20


def test_positions_spread_over_the_list() -> None:
    # Where position 0 lands over 4,000 keys: 16 pages, 250 each; 5 standard deviations are about 77.
    counts = [0] * 16
    for k in range(4000):
        counts[Permutation(k.to_bytes(32, "little"), 16).forward(0)] += 1
    assert max(abs(count - 250) for count in counts) < 77


def test_values_outside_are_refused() -> None:
    permutation = Permutation(KEY, 10)
    for bad in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            permutation.forward(bad)
    for size in (0, (1 << 62) + 1):
        with pytest.raises(ValueError, match="size"):
            Permutation(KEY, size)
    with pytest.raises(ValueError, match="key must be 32 bytes"):
        Permutation(b"short", 10)
    for uid, i in ((-1, 0), (4, 0), (0, -1)):
        with pytest.raises(ValueError, match="uid"):
            page_index(permutation, 4, uid, i)


def test_beacon_and_key_depend_on_every_argument() -> None:
    beacons = {assignment_beacon(bytes([h]) * 32, n, r) for h in (0, 1) for n in (0, 1, 256) for r in (0, 1, 65536)}
    assert len(beacons) == 18
    assert len({assignment_key(bytes([m]) * 32, r, b) for m in (0, 1) for r in (0, 1) for b in beacons}) == 72
    with pytest.raises(ValueError, match="block_hash"):
        assignment_beacon(b"", 1, 1)
    with pytest.raises(ValueError, match="beacon"):
        assignment_key(KEY, 1, b"")


def test_golden_vectors() -> None:
    beacon = assignment_beacon(bytes(range(32)), 38, 7)
    key = assignment_key(bytes(range(32, 64)), 7, beacon)
    assert beacon.hex() == "a5a55a58b537a4815e5120615cecdefb3a032e8b358d9abb92ca1da21da000da"
    assert key.hex() == "7dfd7fd4a0ccaa81ff68915f911e12e19fb9110b72068c10d5b31cb57f5d30ff"
    assert [Permutation(key, 512).forward(x) for x in range(8)] == [272, 357, 120, 48, 404, 315, 297, 452]
    assert [Permutation(key, 500_001).forward(x) for x in (0, 1, 256, 500_000)] == [364091, 52237, 335355, 180957]
    assert [Permutation(key, size).forward(size - 1) for size in (1, 2, 3, 5, 17)] == [0, 1, 2, 4, 10]
