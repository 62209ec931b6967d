from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ROUND, SMALL, D, Senders, deltas, group, key, reduced

from distributed_training.averaging.codecs.base import HEAD_BYTES, Chunk, Vector, head
from distributed_training.averaging.codecs.int8 import INT8, encode_chunk
from distributed_training.averaging.combine import (
    ChunkReducer,
    SliceOutput,
    check_output,
    reduce_slice,
)
from distributed_training.averaging.members import included_keys, sender_weight
from distributed_training.errors import WireError
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import Carry, vector_norm
from distributed_training.protocol.wire import decode_output, encode_output


def literal_chunk(g: Senders, chunk: int, who: list[int]) -> Chunk:
    """The definition, one operation a line: fp32, in the order of the public keys, encoded once."""
    weights = {i: sender_weight(g.works[key(i)], g.plan, g.run.average) for i in who}
    total = sum(weights[i] for i in sorted(who))
    start, stop = g.plan.layout.coords(chunk)
    result = np.zeros(stop - start, np.float32)
    for i in sorted(who):
        share = np.float32(weights[i] / total)
        data = g.made[key(i)].chunks[chunk]
        blocks = -(-(stop - start) // 16)
        scales = np.frombuffer(data, "<f4", blocks, HEAD_BYTES)
        codes = np.frombuffer(data, np.int8, offset=HEAD_BYTES + 4 * blocks)
        for at in range(stop - start):
            value = np.float32(codes[at]) * scales[at // 16]
            result[at] = result[at] + value * share
    return encode_chunk(result, g.plan.layout)


# --- reduce ------------------------------------------------------------------------------------------


def test_a_slice_equals_the_literal_float32_sum() -> None:
    g = group()
    outputs = reduced(g)
    for spec in g.plan.slices:
        for offset, chunk in enumerate(range(spec.first_chunk, spec.last_chunk)):
            assert outputs[spec.index].chunks[offset] == literal_chunk(g, chunk, [0, 1, 2, 3])


def test_the_output_record_says_what_was_done() -> None:
    g = group()
    for spec in g.plan.slices:
        made = reduce_slice(g.plan, spec, g.received(), g.works, g.run)
        record = made.record
        assert (record.manifest, record.round, record.slice) == (g.run.digest, ROUND.index, spec.index)
        assert record.public_key == spec.reducer
        assert record.senders == tuple(c.record_hash for c in g.plan.candidates)
        assert record.included == ((True,) * 4,) * (spec.last_chunk - spec.first_chunk)
        assert record.output_root == merkle_root([digest(c.data) for c in made.chunks])
        assert decode_output(encode_output(record)) == record


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bytes_do_not_depend_on_the_order_of_arrival(seed: int) -> None:
    shuffle = random.Random(seed)

    def shuffled(mapping: dict[Any, Any]) -> dict[Any, Any]:
        items = list(mapping.items())
        shuffle.shuffle(items)
        return dict(items)

    received = shuffled({k: shuffled(chunks) for k, chunks in GROUP.received().items()})
    for spec in GROUP.plan.slices:
        made = reduce_slice(GROUP.plan, spec, received, shuffled(GROUP.works), GROUP.run)
        assert (made.record, made.chunks) == (EXPECTED[spec.index].record, EXPECTED[spec.index].chunks)


GROUP = group(5, seed=7)
EXPECTED, RECEIVED = reduced(GROUP), GROUP.received()


def test_another_order_of_summation_would_show() -> None:
    parts = [(sender_weight(GROUP.works[key(i)], GROUP.plan, SMALL.average), RECEIVED[key(i)]) for i in range(5)]
    sums = {order: [summed(parts, order, c) for c in range(7)] for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1))}
    first, second = sums.values()
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first, second, strict=True))


def summed(parts: list[Any], order: tuple[int, ...], chunk: int) -> Vector:
    total = sum(a for a, _ in parts)
    values = [parts[i][1][chunk].decode() * np.float32(parts[i][0] / total) for i in order]
    result = np.zeros_like(values[0])
    for value in values:
        result = result + value
    return result


def test_bitmaps_say_which_chunks_of_whom_arrived() -> None:
    g = group()
    received = g.received()
    del received[key(2)]  # nothing of 2
    received[key(1)] = {c: data for c, data in received[key(1)].items() if c % 2 == 0}  # half of 1
    outputs = reduced(g, received)
    for spec in g.plan.slices:
        for offset, chunk in enumerate(range(spec.first_chunk, spec.last_chunk)):
            row = outputs[spec.index].record.included[offset]
            assert row == (True, chunk % 2 == 0, False, True)
            who = [0, 1, 3] if chunk % 2 == 0 else [0, 3]
            assert outputs[spec.index].chunks[offset] == literal_chunk(g, chunk, who)


def test_a_sender_of_zero_weight_is_never_included() -> None:
    vectors = deltas(2, 3, D)
    vectors[1] = np.zeros(D, np.float32)
    g = Senders(vectors, SMALL)
    for made in reduced(g).values():
        assert all(row == (True, False, True) for row in made.record.included)
        assert key(1) not in included_keys(made.record, g.plan)


def test_bytes_without_a_work_record_are_left_out() -> None:
    g = group(3)
    works = {k: w for k, w in g.works.items() if k != key(0)}
    made = reduce_slice(g.plan, g.plan.slices[0], g.received(), works, g.run)
    assert all(row == (False, True, True) for row in made.record.included)


def test_a_chunk_of_nobody_is_zero() -> None:
    g = group(2)
    made = reduce_slice(g.plan, g.plan.slices[0], {}, g.works, g.run)
    assert not any(any(row) for row in made.record.included)
    assert not any(chunk.decode().any() for chunk in made.chunks)
    nothing = np.zeros(g.plan.layout.coords(0)[1], np.float32)
    assert ChunkReducer(g.plan.layout, INT8).reduce(0, []).data == encode_chunk(nothing, g.plan.layout).data


def test_the_weight_of_a_long_vector_is_clipped() -> None:
    vectors = deltas(3, 2, D)
    vectors[1] = vectors[1] * np.float32(1e6)
    g = Senders(vectors, SMALL, carry=Carry(vector_norm(group(2, 3).made[key(0)].norms), ()))
    total = np.concatenate([c.decode() for c in all_chunks(g, reduced(g))])
    assert 0.3 < np.linalg.norm(total) / np.linalg.norm(vectors[0]) < 2.0


def all_chunks(g: Senders, outputs: dict[int, SliceOutput]) -> list[Chunk]:
    return [c for s in g.plan.slices for c in outputs[s.index].chunks]


# --- check -------------------------------------------------------------------------------------------


def check(g: Senders, made: SliceOutput, **changes: Any) -> SliceOutput:
    works = changes.pop("works", g.works)
    chunks = changes.pop("chunks", tuple(chunk.data for chunk in made.chunks))
    spec = changes.pop("spec", g.plan.slices[made.record.slice])
    return check_output(replace(made.record, **changes), chunks, works, g.plan, g.run, spec)


def test_an_honest_output_passes() -> None:
    g = group()
    for made in reduced(g).values():
        assert check(g, made).record == made.record


def flipped(rows: tuple[tuple[bool, ...], ...], at: int) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(b ^ (i == at) for i, b in enumerate(row)) for row in rows)


LIES: dict[str, dict[str, Any]] = {
    "another run": {"manifest": bytes(32)},
    "another round": {"round": ROUND.index + 1},
    "a slice that does not exist": {"slice": 200},
    "another slice": {"slice": 2},
    "another reducer": {"public_key": key(99)},
    "another root": {"output_root": bytes(32)},
    "no senders": {"senders": ()},
}


SHUFFLED = ("one row too few", "one chunk too few", "other chunks", "swapped chunks", "senders in another order")


@pytest.mark.parametrize("lie", [*LIES, *SHUFFLED])
def test_a_lie_is_refused(lie: str) -> None:
    g = group()
    made = reduced(g)[1]
    first, second = (chunk.data for chunk in made.chunks)
    other = encode_chunk(np.ones(64, np.float32), g.plan.layout).data
    special = {
        "one row too few": {"included": made.record.included[:-1]},
        "one chunk too few": {"chunks": (first,)},
        "other chunks": {"chunks": (first, other)},
        "swapped chunks": {"chunks": (second, first)},
        "senders in another order": {"senders": made.record.senders[::-1]},
    }
    with pytest.raises(WireError, match="output record"):
        check(g, made, **(special | LIES)[lie])


def test_chunks_that_do_not_decode_are_refused_even_under_their_own_root() -> None:
    g = group()
    made = reduced(g)[0]
    bad = head(INT8.id) + np.array([float("inf")], "<f4").tobytes() + made.chunks[0].data[8:]
    chunks = (bad, *(chunk.data for chunk in made.chunks[1:]))
    with pytest.raises(WireError, match="scale"):
        check(g, made, chunks=chunks, output_root=merkle_root([digest(c) for c in chunks]))


def test_including_somebody_without_record_or_weight_is_refused() -> None:
    g = group()
    made = reduced(g)[0]
    without = {k: w for k, w in g.works.items() if k != key(1)}
    with pytest.raises(WireError, match="without a work record"):
        check(g, made, works=without)
    zero = {**g.works, key(1): replace(g.works[key(1)], chunk_norms=(0.0,) * 7)}
    with pytest.raises(WireError, match="without weight"):
        check(g, made, works=zero)
    check(g, made, works=without, included=flipped(made.record.included, 1))  # not included: no record needed


# --- backups -----------------------------------------------------------------------------------------


def test_the_output_of_a_backup_is_taken_only_where_it_counts() -> None:
    g = group()
    spec = replace(g.plan.slices[1], reducer=g.plan.slices[2].reducer)
    made = reduce_slice(g.plan, spec, g.received(), g.works, g.run)
    assert check(g, made, spec=spec).chunks == reduced(g)[1].chunks
    with pytest.raises(WireError, match="another run, round, slice or reducer"):
        check(g, made)  # the slice's own reducer has its hash on chain
    with pytest.raises(WireError, match="another run, round, slice or reducer"):
        check(g, reduced(g)[1], spec=spec)
    with pytest.raises(WireError, match="names another"):
        check(g, made, spec=spec, backup=key(5, "output"))
    named = replace(reduced(g)[1].record, backup=key(5, "output"))
    assert check(g, replace(reduced(g)[1], record=named)).record == named
