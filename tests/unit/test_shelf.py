"""A shelf keeps each chunk's bytes in their place, apart from all others, and gives its memory back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from distributed_training.averaging.codecs.base import Codec, Layout
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.codecs.known import CODECS
from distributed_training.averaging.shelf import Shelf
from distributed_training.protocol.types import SliceSpec

LARGE = Layout(40 << 20, 1 << 18, 512)


def spec_of(first: int, last: int) -> SliceSpec:
    return SliceSpec(0, first, last, bytes(32))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("layout", [Layout(101, 40, 16), Layout(20 * 4096 + 3, 4096, 512)])
def test_chunks_come_back_as_they_came_in_any_order(codec: Codec, layout: Layout) -> None:
    first, last = layout.num_chunks // 3, layout.num_chunks
    values = np.random.default_rng(0).standard_normal(layout.num_coords, np.float32)
    made = {c: codec.encoder(layout).encode(values[slice(*layout.coords(c))]) for c in range(first, last)}
    shelf, order = Shelf(layout, codec, spec_of(first, last)), list(made)
    random.Random(1).shuffle(order)
    kept = {c: shelf.put(c, made[c].data) for c in (*order, order[0])}
    for chunk, data in kept.items():
        assert data == made[chunk].data and len(data) == len(made[chunk].data)
        parsed = codec.parse(data, layout, chunk)
        assert parsed.norm() == made[chunk].norm()
        assert parsed.decode().tobytes() == made[chunk].decode().tobytes()


def test_what_lies_there_cannot_be_written_through_what_was_given() -> None:
    layout = Layout(4096, 4096, 512)
    data = Shelf(layout, INT8, spec_of(0, 1)).put(0, bytes(INT8.chunk_bytes(layout, 0)))
    with pytest.raises(TypeError):
        data[0] = 1  # type: ignore[index]


def _resident_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def test_a_large_one_takes_memory_as_it_fills_and_gives_it_back_with_the_last_chunk() -> None:
    size, before = INT8.chunk_bytes(LARGE, 0), _resident_mb()
    shelf = Shelf(LARGE, INT8, spec_of(0, 160))
    assert _resident_mb() - before < 20
    kept = [shelf.put(c, bytes(size)) for c in range(160)]
    assert _resident_mb() - before > 30
    del shelf, kept[1:]
    assert kept[0] == bytes(size)
    kept.clear()
    assert _resident_mb() - before < 20
