"""Error feedback: what an encoding leaves out is in the next one, and nobody can say anything else of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.averaging import feedback
from distributed_training.averaging.codecs.base import Codec, Layout, Vector
from distributed_training.averaging.codecs.known import CODECS
from distributed_training.averaging.codecs.sparse import SPARSE
from distributed_training.averaging.feedback import BufferLost, Encoded, FeedbackFiles, carried, is_encoding, numbers
from distributed_training.averaging.implied import Kept, implied
from distributed_training.averaging.overflow import Overflow
from distributed_training.averaging.store import RoundStore
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import NO_ROOT

LAYOUT = Layout(3 * 4096 + 100, 4096, 512)
DECAYED = replace(SPARSE, feedback=0.95)
KINDS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy": lambda rng, n: rng.standard_cauchy(n),
    "giant": lambda rng, n: np.where(np.arange(n) % 999 == 7, 1e20, 1e-3) * rng.standard_normal(n),
    "few sizes": lambda rng, n: rng.integers(-2, 3, n) / 3,
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-42,
    "zeros": lambda rng, n: np.zeros(n),
    "mostly zeros": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.004),
}


def vector(seed: int, kind: str = "normal", layout: Layout = LAYOUT) -> Vector:
    return KINDS[kind](np.random.default_rng(seed), layout.num_coords).astype(np.float32)


def files(folder: Path) -> FeedbackFiles:
    return RoundStore(folder).feedback


def shown(kept: FeedbackFiles, made: Encoded, layout: Layout = LAYOUT, codec: Codec = SPARSE) -> list[Kept]:
    """What its sender shows of it, chunk by chunk."""
    end = kept.open(made.end, layout)
    start = None if made.start == NO_ROOT else kept.open(made.start, layout)
    return [
        Kept(None if start is None else carried(numbers(start.chunk(c)), codec), numbers(end.chunk(c)))
        for c in range(layout.num_chunks)
    ]


@pytest.mark.parametrize("codec", (*CODECS, DECAYED), ids=lambda c: f"{c.name} {c.feedback}")
@pytest.mark.parametrize("kind", KINDS)
def test_every_chunk_is_exactly_the_encoding_of_itself_and_what_it_leaves_out(
    tmp_path: Path, codec: Codec, kind: str
) -> None:
    kept, start = files(tmp_path), NO_ROOT
    for seed in range(4):
        delta = vector(seed, kind)
        made = kept.encode(delta, LAYOUT, codec, start)
        assert (made.start, made.trouble) == (start, None)
        for c, (data, each) in enumerate(zip(made.contribution.chunks, shown(kept, made, LAYOUT, codec), strict=True)):
            chunk = codec.parse(data, LAYOUT, c)
            assert is_encoding(chunk, each.end, LAYOUT, codec)
            part = delta[slice(*LAYOUT.coords(c))]
            sizes = np.abs([chunk.decode(), each.end, part]).max(axis=0)
            assert (np.abs(implied(chunk, each) - part) <= 2.0**-20 * sizes + 2.0**-31 * sizes.max() + 1e-44).all()
        start = made.end


def test_ties_of_a_restored_vector_are_encoded_anew_until_it_is_the_same(tmp_path: Path) -> None:
    """Numbers next to a mean, and others so far from their size that what is left of them is rounded."""
    rng, layout, anew = np.random.default_rng(5), Layout(4096, 4096, 512), 0
    for _ in range(300):
        values = np.zeros(4096, np.float32)
        values[:64] = np.concatenate([rng.random(8) * 1000, rng.random(55), [0]])
        units = np.rint(values[:63] / values.max() * 2**20).sum()
        values[63] = (units / 63) * values.max() / 2**20  # all but the mean of all
        values *= np.where(rng.random(4096) < 0.5, -1, 1).astype(np.float32)
        encoder = feedback._Encoder(SPARSE.encoder(layout), 4096)
        made, left = encoder.encode(values, None)
        anew += SPARSE.encoder(layout).encode(values).data != made.data
        assert is_encoding(made, left, layout, SPARSE)
    assert anew > 0, "no tie was met: the test says nothing"


@pytest.mark.parametrize("many", [1, 40, 63])
def test_a_block_whose_sizes_swallow_thousands_of_numbers_is_its_encoding_too(many: int) -> None:
    """Each new encoding loses a few of them: it would go on for as long as there are any."""
    rng, layout = np.random.default_rng(7), Layout(4096, 4096, 512)
    start: Vector | None = None
    for _ in range(4):
        delta = (rng.standard_normal(4096) * np.where(np.arange(4096) < many, 1, 1e-9)).astype(np.float32)
        made, left = feedback._Encoder(SPARSE.encoder(layout), 4096).encode(delta, start)
        assert is_encoding(made, left, layout, SPARSE)
        moved = implied(made, Kept(start, left)).astype(np.float64)
        assert left.any() and moved @ delta > 0.98 * np.linalg.norm(moved) * np.linalg.norm(delta)
        start = left.copy()


def test_a_root_is_over_the_digests_of_the_fp32_chunks(tmp_path: Path) -> None:
    kept = files(tmp_path)
    made = kept.encode(vector(1), LAYOUT, SPARSE, NO_ROOT)
    whole = np.concatenate([each.end for each in shown(kept, made)]).astype("<f4")
    cut = [whole[slice(*LAYOUT.coords(c))].tobytes() for c in range(LAYOUT.num_chunks)]
    assert merkle_root([digest(c) for c in cut]) == made.end
    assert (tmp_path / "feedback" / made.end.hex()).stat().st_size == 4 * LAYOUT.num_coords + 32 * LAYOUT.num_chunks


def test_what_is_left_out_comes_in_later_rounds(tmp_path: Path) -> None:
    kept, start, delta = files(tmp_path), NO_ROOT, vector(3)
    sent, near = np.zeros(LAYOUT.num_coords), list[float]()
    for _ in range(40):
        made = kept.encode(delta, LAYOUT, SPARSE, start)
        start = made.end
        sent += np.concatenate(
            [SPARSE.parse(data, LAYOUT, c).decode() for c, data in enumerate(made.contribution.chunks)]
        )
        near.append(float(sent @ delta / np.linalg.norm(sent) / np.linalg.norm(delta)))
    left = np.concatenate([each.end for each in shown(kept, made)])
    assert np.allclose(sent + left, 40 * delta, atol=1e-3), "nothing is lost"
    assert near[0] < 0.4 < 0.85 < near[-1]


@pytest.mark.parametrize("decay", [1.0, 0.95, 0.3])
def test_a_start_is_multiplied_then_added_each_rounded(tmp_path: Path, decay: float) -> None:
    """Of a decay of 1 the bytes are those of a plain sum."""
    kept, codec = files(tmp_path), replace(SPARSE, feedback=decay)
    first = kept.encode(vector(1), LAYOUT, codec, NO_ROOT)
    left = np.concatenate([numbers(kept.open(first.end, LAYOUT).chunk(c)) for c in range(LAYOUT.num_chunks)])
    product = [np.float32(float(np.float32(decay)) * float(number)) for number in left]  # float64 holds it exactly
    if decay == 1.0:
        assert np.array_equal(np.array(product), left)
    made, literal = kept.encode(vector(2), LAYOUT, codec, first.end), vector(2) + np.array(product, np.float32)
    again = kept.encode(literal, LAYOUT, codec, NO_ROOT)
    assert (made.contribution, made.end) == (again.contribution, again.end) and made.start == first.end


def test_what_is_never_sent_is_forgotten_where_it_decays(tmp_path: Path) -> None:
    kept, start = files(tmp_path), files(tmp_path).encode(vector(1), LAYOUT, DECAYED, NO_ROOT).end
    norms = list[float]()
    for _ in range(3):
        left = np.concatenate([numbers(kept.open(start, LAYOUT).chunk(c)) for c in range(LAYOUT.num_chunks)])
        norms.append(float(np.linalg.norm(left)))
        start = kept.encode(np.zeros(LAYOUT.num_coords, np.float32), LAYOUT, DECAYED, start).end
    assert norms[1] < 0.95 * norms[0] and norms[2] < 0.95 * norms[1], "by the decay, and by what was sent"


@pytest.mark.parametrize("damage", ["gone", "short", "a bit", "a digest", "empty"])
def test_a_buffer_that_is_lost_is_trouble_and_the_vector_begins_with_nothing(tmp_path: Path, damage: str) -> None:
    kept = files(tmp_path)
    former = kept.encode(vector(1), LAYOUT, SPARSE, NO_ROOT)
    path = tmp_path / "feedback" / former.end.hex()
    data = bytearray(path.read_bytes())
    data[5000 if damage == "a bit" else -1] ^= 1
    cut = {"short": data[:-1], "empty": b""}.get(damage, data)
    path.unlink() if damage == "gone" else path.write_bytes(cut)
    delta = vector(2)
    made = files(tmp_path).encode(delta, LAYOUT, SPARSE, former.end)
    alone = kept.encode(delta, LAYOUT, SPARSE, NO_ROOT)
    assert isinstance(made.trouble, BufferLost) and made.start == NO_ROOT
    assert (made.end, made.contribution) == (alone.end, alone.contribution), "delta was not touched"


def test_a_full_disk_costs_memory_and_no_buffer(tmp_path: Path) -> None:
    full = True

    def write(path: Path, *parts: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(parts))

    (tmp_path / "feedback").write_bytes(b"no folder")
    overflow = Overflow(1 << 20, write)
    kept = FeedbackFiles(tmp_path / "feedback", overflow)
    first = kept.encode(vector(1), LAYOUT, SPARSE, NO_ROOT)
    second = kept.encode(vector(2), LAYOUT, SPARSE, first.end)
    assert first.trouble is second.trouble is None and second.start == first.end
    kept.keep_only({second.end})
    assert len(overflow) == 1
    (tmp_path / "feedback").unlink()
    full = False
    overflow.retry()
    assert [p.name for p in (tmp_path / "feedback").iterdir()] == [second.end.hex()] and len(overflow) == 0
    assert files(tmp_path).encode(vector(3), LAYOUT, SPARSE, second.end).start == second.end
    full = True
    (tmp_path / "none").write_bytes(b"")
    nowhere = FeedbackFiles(tmp_path / "none", Overflow(100, write)).encode(vector(1), LAYOUT, SPARSE, NO_ROOT)
    assert nowhere.trouble is not None and nowhere.end == first.end, "it is said, and its record can be made"


def test_a_full_disk_costs_no_more_memory_than_may_be_kept_there(tmp_path: Path) -> None:
    layout = Layout(1 << 20, 1 << 14, 512)
    delta = np.random.default_rng(1).standard_normal(layout.num_coords).astype(np.float32)

    def write(path: Path, *parts: bytes) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "none").write_bytes(b"")
    tracemalloc.start()
    made = FeedbackFiles(tmp_path / "none", Overflow(1 << 17, write)).encode(delta, layout, SPARSE, NO_ROOT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.trouble is not None and made.end != NO_ROOT
    assert peak < delta.nbytes, "a buffer that is kept nowhere is not held either"


def test_only_what_is_named_is_kept_and_nothing_half_written(tmp_path: Path) -> None:
    kept = files(tmp_path)
    made = [kept.encode(vector(i), LAYOUT, SPARSE, NO_ROOT) for i in range(3)]
    (tmp_path / "feedback" / "17-4.part").write_bytes(b"half")
    kept.keep_only({made[1].end})
    assert [p.name for p in (tmp_path / "feedback").iterdir()] == [made[1].end.hex()]
    with pytest.raises(ValueError, match="non-finite"):
        kept.encode(np.full(LAYOUT.num_coords, np.nan, np.float32), LAYOUT, SPARSE, NO_ROOT)
    assert len(list((tmp_path / "feedback").iterdir())) == 1


def test_a_buffer_cannot_hide_what_the_wire_should_show() -> None:
    """The work in the buffer and something else on the wire: no buffer makes that an encoding."""
    delta = vector(1)[:4096]
    for name, wire in {"noise": vector(2)[:4096], "nothing": np.zeros(4096, np.float32), "louder": 2 * delta}.items():
        chunk = SPARSE.encoder(LAYOUT).encode(wire)
        assert not is_encoding(chunk, delta - chunk.decode(), LAYOUT, SPARSE), name
    chunk = SPARSE.encoder(LAYOUT).encode(delta)
    left = delta - chunk.decode()
    assert is_encoding(chunk, left, LAYOUT, SPARSE)
    for bad in (np.nan, np.inf, 3e38):
        assert not is_encoding(chunk, np.full(4096, bad, np.float32), LAYOUT, SPARSE)


def test_who_adds_nothing_to_its_buffer_has_nothing(tmp_path: Path) -> None:
    kept = files(tmp_path)
    former = kept.encode(vector(1, "heavy"), LAYOUT, SPARSE, NO_ROOT)
    made = kept.encode(np.zeros(LAYOUT.num_coords, np.float32), LAYOUT, SPARSE, former.end)
    for c, (data, each) in enumerate(zip(made.contribution.chunks, shown(kept, made), strict=True)):
        chunk = SPARSE.parse(data, LAYOUT, c)
        assert chunk.decode().any() and not implied(chunk, each).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(-30, 30), st.floats(-30, 30))
def test_what_is_implied_is_what_was_added_whatever_the_buffer_holds(seed: int, small: float, large: float) -> None:
    rng, layout = np.random.default_rng(seed), Layout(4096, 4096, 512)
    start = (rng.standard_normal(4096) * 2.0**large).astype(np.float32)
    delta = (rng.standard_normal(4096) * 2.0**small).astype(np.float32)
    made, left = feedback._Encoder(SPARSE.encoder(layout), 4096).encode(delta, start)
    found = implied(made, Kept(start, left.copy()))
    sizes = np.maximum(np.abs(start), np.abs(delta))
    assert (np.abs(found - delta) <= 2.0**-20 * sizes).all() and is_encoding(made, left, layout, SPARSE)
