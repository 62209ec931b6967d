"""What a round's averaging makes of the miners' vectors: the rules of the nodes without records, slices or sockets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distributed_training.averaging.codecs.base import Layout, Vector
from distributed_training.averaging.codecs.int8 import parse_chunk
from distributed_training.averaging.combine import ChunkReducer
from distributed_training.averaging.contribution import encode_contribution
from distributed_training.protocol.rules import weighting
from distributed_training.protocol.sections import AverageSection


def averaged(
    deltas: Sequence[Vector], work: Sequence[int], tau: float, layout: Layout, average: AverageSection
) -> tuple[Vector, float]:
    """Average of fp32 vectors [d] by miners in the order of their public keys, and the next clip threshold.

    work: what a miner's weight goes by, tokens in the protocol.
    """
    sent = [encode_contribution(delta, layout) for delta in deltas]
    norms = [weighting.vector_norm(each.norms) for each in sent]
    raw = [weighting.raw_weight(own, norm, tau, average) for own, norm in zip(work, norms, strict=True)]
    weighed = [i for i, weight in enumerate(raw) if weight > 0]
    result, reducer = np.zeros(layout.num_coords, np.float32), ChunkReducer(layout)
    for chunk in range(layout.num_chunks):
        parts = [(raw[i], parse_chunk(sent[i].chunks[chunk], layout, chunk)) for i in weighed]
        made, pairs = reducer.reduce(chunk, parts), [(raw[i], sent[i].norms[chunk]) for i in weighed]
        if weighting.passes_gate(made.norm(), made.rounding_norm(), pairs, average):
            made.decode(result[slice(*layout.coords(chunk))])
    return result, weighting.next_tau([norms[i] for i in weighed], tau, average)
