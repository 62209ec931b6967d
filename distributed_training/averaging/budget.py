"""What an honest peer may need of one node in a round, times a margin: its budget (`network.budgets`)."""

from __future__ import annotations

from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import RECORD_BYTES, log_bytes, works_bytes
from distributed_training.network.budgets import Budget
from distributed_training.protocol.manifest import RunManifest

MARGIN = 4  # no honest round comes near it, whatever breaks off and is asked for again
_LEAST_STREAMS, _LEAST_BYTES = 256, 16 << 20  # so that a tiny run is not about its overhead


def peer_budget(manifest: RunManifest, num_coords: int, block_s: float) -> Budget:
    """Of each peer on the roster, for all streams that it opens here.

    Bytes of a round: its scattered chunks and their digests, its log, and every slice with the work records it
    includes, of this round and of all kept ones (it may roll forward through them), and one snapshot of the state.
    Streams: each slice of those rounds once, and asked for again every half block while it is missing.
    """
    layout, keep = layout_of(manifest, num_coords), manifest.keep
    slices = min(manifest.max_uids, manifest.average.max_reducers, layout.num_chunks)
    rounds = 1 + keep.output_rounds
    gathered = layout.wire_bytes + works_bytes(manifest, layout)
    scattered = layout.wire_bytes + RECORD_BYTES + 36 * layout.num_chunks
    once = scattered + log_bytes(manifest) + 8 * num_coords
    size = MARGIN * max(_LEAST_BYTES, rounds * gathered + once)
    return Budget(
        streams=MARGIN * max(_LEAST_STREAMS, rounds * slices),
        streams_per_s=MARGIN * (2 * slices + 2) / block_s,
        bytes=size,
        bytes_per_s=size / (manifest.timing.length * block_s),
    )
