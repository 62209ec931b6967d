"""Chunks of every codec under fire: whatever is taken is finite, in bounds, and the only spelling of what it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from fuzz_engine import ACCEPTED, Target

from distributed_training.averaging.codecs.base import Codec, Layout
from distributed_training.averaging.codecs.known import CODECS
from distributed_training.errors import WireError

LENGTHS = (1, 20, 64, 131, 300, 4100)
LAYOUTS = tuple(Layout(length, length, 16) for length in LENGTHS)


def checker(kind: Codec) -> Callable[[bytes], str]:
    encoders = [kind.encoder(layout) for layout in LAYOUTS]

    def check(data: bytes) -> str:
        """The first byte chooses the length."""
        at, body = (data[0] if data else 0) % len(LAYOUTS), data[1:]
        chunk = kind.parse(body, LAYOUTS[at], 0)
        vector, norm = chunk.decode(), chunk.norm()
        assert vector.shape == (LENGTHS[at],) and np.isfinite(vector).all()
        assert not ((vector != 0) & (np.abs(vector) < 2.0**-126)).any(), "a subnormal number was accepted"
        assert math.isfinite(norm) and 0 <= chunk.rounding_norm() <= norm
        square = float(np.square(vector.astype(np.float64)).sum())
        assert abs(norm**2 - square) <= square / (1 << 21), "a norm of something else"
        total = np.zeros_like(vector)
        chunk.add_to(total, np.float32(1), np.empty_like(vector))
        assert (total == vector).all()
        assert encoders[at].encode(vector).data == body, "two encodings of one chunk were accepted"
        return ACCEPTED

    return check


def seeds(kind: Codec) -> tuple[bytes, ...]:
    rng = np.random.default_rng(1)
    made = list[bytes]()
    for at, (length, layout) in enumerate(zip(LENGTHS, LAYOUTS, strict=True)):
        vectors = (
            rng.standard_normal(length),
            10.0 ** rng.uniform(-40, 38, length),
            rng.integers(-2, 3, length),
            np.zeros(length),
            np.full(length, 3e38),
        )
        made += [bytes([at]) + kind.encoder(layout).encode(v.astype(np.float32)).data for v in vectors]
    return tuple(made)


# Numbers are 4 bytes each, whatever their code takes; sums and places of a block take several times that.
CHUNKS = tuple(Target(f"chunk_{kind.name}", seeds(kind), checker(kind), (WireError,), 100, 1 << 20) for kind in CODECS)
