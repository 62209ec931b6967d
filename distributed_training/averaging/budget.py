"""What an honest peer may need of one node: its budget (`network.budgets`), once and not several times over."""

from __future__ import annotations

from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import (
    RECORD_BYTES,
    log_bytes,
    output_bytes,
    shown_feedback_bytes,
    uplink_bytes,
    works_bytes,
)
from distributed_training.network.budgets import Budget
from distributed_training.network.uplink import LEAST_BYTES_PER_S
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.clock import stall_timeout_s

LEISURE = 4  # of the rate at which this node's own vector has to leave it in a round: what its line can do
_LEAST_STREAMS, _LEAST_BYTES = 256, 16 << 20  # so that a tiny run is not about its overhead


def peer_budget(manifest: RunManifest, num_coords: int, block_s: float) -> Budget:
    """Of each peer on the roster, for all streams that it opens here.

    At once: all that a peer needs which heals from this node alone, a snapshot of the state and every slice with the
    work records it includes, of this round and of all kept ones; and asked again what breaks off. For ever: what one
    round needs, its slices, the chunks that it scatters or audits, their feedback, its log and, where rounds overlap,
    the vector of the round before that replays begin at. Who heals again has other donors. Streams: each slice of those
    rounds once, and asked for again every half block while it is missing; some for all the rest.
    """
    layout, keep = layout_of(manifest, num_coords), manifest.keep
    slices = min(manifest.max_uids, manifest.average.max_reducers, layout.num_chunks)
    rounds = 1 + keep.output_rounds
    gathered = output_bytes(manifest, layout) + works_bytes(manifest, layout)
    scattered = uplink_bytes(manifest, layout) + RECORD_BYTES + 36 * layout.num_chunks
    audited = log_bytes(manifest) + shown_feedback_bytes(manifest, layout)
    onward = scattered if manifest.timing.overlap else 0
    round_bytes = max(_LEAST_BYTES, gathered + scattered + audited + onward)
    return Budget(
        streams=max(_LEAST_STREAMS, rounds * slices),
        streams_per_s=(2 * slices + 8) / block_s,
        bytes=max(_LEAST_BYTES, rounds * gathered) + round_bytes + 8 * num_coords,
        bytes_per_s=round_bytes / (manifest.timing.length * block_s),
    )


def leisure_bytes_per_s(manifest: RunManifest, num_coords: int, block_s: float) -> float:
    """For all peers together, of what no round waits for (`network.uplink`)."""
    scatter_s = 3 * stall_timeout_s(manifest.timing, block_s)
    return max(LEAST_BYTES_PER_S, LEISURE * uplink_bytes(manifest, layout_of(manifest, num_coords)) / scatter_s)
