"""Miner: its work stays in its feedback, noise is on the wire.

In a run whose uplink codec keeps feedback. Chunk and buffer together are exactly the work that was done, so it points
where it should. It should not pay: a chunk has to be, byte for byte, what encoding makes of it and its buffer, and
noise is not.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import cast

import numpy as np
from attack import Attack
from stage import run

from distributed_training.averaging.codecs.base import Chunk, Codec, Encoder, Layout, Vector
from distributed_training.averaging.feedback import Encoded, FeedbackFiles, encode_vector

CLASS = "a"
EVIDENCE = "audit"
RUN = "average.uplink=sparse"


class _Noise:
    """An encoder of noise as large as what it was given."""

    def __init__(self, inner: Encoder) -> None:
        self._inner, self._random = inner, np.random.default_rng(1)

    def encode(self, values: Vector) -> Chunk:
        noise = self._random.permutation(values) * self._random.choice((-1.0, 1.0), len(values))
        return self._inner.encode(noise.astype(np.float32))


class _NoiseCodec:
    def __init__(self, inner: Codec) -> None:
        self._inner = inner
        self.feedback = inner.feedback

    def encoder(self, layout: Layout) -> Encoder:
        return _Noise(self._inner.encoder(layout))


@dataclass(kw_only=True, eq=False)
class Hoarder(Attack):
    def encode(self, files: FeedbackFiles, delta: Vector, layout: Layout, codec: Codec, start: bytes) -> Encoded:
        return encode_vector(files, delta, layout, cast(Codec, _NoiseCodec(codec)), start)


if __name__ == "__main__":
    sys.exit(run(Hoarder))
