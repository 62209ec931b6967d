"""The shape and the header of a state in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CARRY

from distributed_training.errors import WireError
from distributed_training.snapshots.header import (
    PIECE_BYTES,
    Shape,
    decode_header,
    encode_header,
    header_of,
)
from distributed_training.snapshots.states import StateFiles
from distributed_training.training.outer import RunState, state_root

SHAPES = st.builds(Shape, st.integers(1, 3_000_000), st.integers(1, 1 << 20))


def make_state(num_coords: int) -> RunState:
    source = np.random.default_rng(num_coords)
    params, momentum = (source.standard_normal(num_coords, np.float32) for _ in range(2))
    return RunState(params, momentum, 3, CARRY)


STATE, SHAPE = make_state(1000), Shape(1000, 64)
GOOD = encode_header(header_of(7, STATE, 64))


@settings(max_examples=100, deadline=None)
@given(SHAPES.filter(lambda shape: shape.num_chunks < 20_000))
def test_pieces_cover_every_byte_once_and_may_be_asked_for(shape: Shape) -> None:
    pieces = shape.pieces()
    assert [first for first, _ in pieces] == [0, *(last for _, last in pieces[:-1])]
    assert pieces[-1][1] == shape.num_chunks
    assert sum(shape.size(*piece) for piece in pieces) == shape.num_bytes
    for piece in pieces:
        shape.check_range(*piece)
        assert 0 < shape.size(*piece) <= max(PIECE_BYTES, 4 * shape.chunk_coords)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 100))
def test_the_header_hashes_into_the_state_root_and_proves_every_chunk(num_coords: int, chunk_coords: int) -> None:
    state, shape = make_state(num_coords), Shape(num_coords, chunk_coords)
    header = decode_header(encode_header(header_of(7, state, chunk_coords)), 7, shape)
    assert header.root == state_root(state, chunk_coords)
    data = state.params.tobytes() + state.momentum.tobytes()
    for first, last in [*shape.pieces(), (shape.num_chunks - 1, shape.num_chunks)]:
        part = data[shape.offset(first) : shape.offset(last)]
        header.check(shape, first, last, part)
        for wrong in (part[:-1], part + b"\0", bytes([part[0] ^ 1]) + part[1:]):
            with pytest.raises(WireError):
                header.check(shape, first, last, wrong)


def test_no_header_is_longer_than_its_bound() -> None:
    assert len(GOOD) < SHAPE.max_header_bytes(4)


@pytest.mark.parametrize(
    ("data", "round_index", "shape"),
    [
        (b"", 7, SHAPE),
        (GOOD, 8, SHAPE),
        (GOOD, 7, Shape(1000, 32)),
        (GOOD[:-1], 7, SHAPE),
        (GOOD + b"\0", 7, SHAPE),
        (b"X" + GOOD[1:], 7, SHAPE),
    ],
)
def test_another_header_is_refused(data: bytes, round_index: int, shape: Shape) -> None:
    with pytest.raises(WireError, match="snapshot header"):
        decode_header(data, round_index, shape)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_mutated_header_is_refused_or_has_another_root(at: int, patch: bytes, insert: bool) -> None:
    data = GOOD[:at] + patch + GOOD[at + (0 if insert else len(patch)) :]
    try:
        header = decode_header(data, 7, SHAPE)
    except WireError:
        return
    assert (header.root == state_root(STATE, 64)) == (data == GOOD)


def test_the_header_of_a_snapshot_is_made_once_and_again_when_the_file_is_another(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    files.put(7, STATE)
    with files.open(7) as file:
        assert files.header(7, file, SHAPE) == GOOD
        (files.folder / "000007.safetensors").unlink()
        assert files.header(7, file, SHAPE) == GOOD, "an open snapshot stays readable, its header is kept"
        assert file.read(SHAPE, 0, 1) == STATE.params[:64].tobytes()
    other = make_state(1000 + 64)
    files.put(7, other)
    with files.open(7) as file:
        assert files.header(7, file, Shape(1064, 64)) == encode_header(header_of(7, other, 64))
