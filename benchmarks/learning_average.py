"""What a round's averaging makes of the miners' vectors: the rules of the nodes without records, slices or sockets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distributed_training.averaging.codecs.base import Codec, Layout, Vector
from distributed_training.averaging.codecs.known import output_of, uplink_of
from distributed_training.averaging.combine import ChunkReducer
from distributed_training.averaging.contribution import Contribution, encode_contribution
from distributed_training.protocol.rules import weighting
from distributed_training.protocol.sections import AverageSection
from distributed_training.protocol.types import vector_norm


def averaged(
    deltas: Sequence[Vector], work: Sequence[int], tau: float, layout: Layout, average: AverageSection
) -> tuple[Vector, float]:
    """Average of fp32 vectors [d] by miners in the order of their public keys, and the next clip threshold.

    work: what a miner's weight goes by, tokens in the protocol.
    """
    sent = [encode_contribution(delta, layout, uplink_of(average)) for delta in deltas]
    return joined(sent, work, tau, layout, average, uplink_of(average), output_of(average))


def joined(
    sent: Sequence[Contribution],
    work: Sequence[int],
    tau: float,
    layout: Layout,
    average: AverageSection,
    uplink: Codec,
    output: Codec,
) -> tuple[Vector, float]:
    """The same of vectors that are encoded."""
    norms = [vector_norm(each.norms) for each in sent]
    raw = [weighting.raw_weight(own, norm, tau, average) for own, norm in zip(work, norms, strict=True)]
    weighed = [i for i, weight in enumerate(raw) if weight > 0]
    result, reducer = np.zeros(layout.num_coords, np.float32), ChunkReducer(layout, output)
    for chunk in range(layout.num_chunks):
        parts = [(raw[i], uplink.parse(sent[i].chunks[chunk], layout, chunk)) for i in weighed]
        made, pairs = reducer.reduce(chunk, parts), [(raw[i], sent[i].norms[chunk]) for i in weighed]
        if weighting.passes_gate(made.norm(), made.rounding_norm(), pairs, average):
            made.decode(result[slice(*layout.coords(chunk))])
    return result, weighting.next_tau([norms[i] for i in weighed], tau, average)


def decoded(sent: Contribution, layout: Layout, uplink: Codec) -> Vector:
    """fp32 [d], what the bytes say."""
    result = np.empty(layout.num_coords, np.float32)
    for chunk, data in enumerate(sent.chunks):
        uplink.parse(data, layout, chunk).decode(result[slice(*layout.coords(chunk))])
    return result
