"""Upper bounds on what a round's records take, from the manifest: for budgets of disk and of peers, and for timing."""

from __future__ import annotations

from distributed_training.averaging.codecs.base import Layout, wire_bytes
from distributed_training.averaging.codecs.known import output_of, uplink_of
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.audit_plan import FULL_SAMPLE

RECORD_BYTES = 4096  # of a work record without its norms, and of everything small around it
_MAX_GROUPS = 255  # of a sketch


def uplink_bytes(manifest: RunManifest, layout: Layout) -> int:
    """Of one sender's encoded vector."""
    return wire_bytes(uplink_of(manifest.average), layout)


def shown_feedback_bytes(manifest: RunManifest, layout: Layout) -> int:
    """Of one sender's buffers, what a full audit is shown."""
    each = 4 * layout.chunk_coords + 32 * (1 + layout.num_chunks.bit_length())  # with its digest's way to the root
    return 2 * min(FULL_SAMPLE, layout.num_chunks) * each if uplink_of(manifest.average).feedback else 0


def output_bytes(manifest: RunManifest, layout: Layout) -> int:
    """Of all reduced slices together."""
    return wire_bytes(output_of(manifest.average), layout)


def works_bytes(manifest: RunManifest, layout: Layout) -> int:
    """Of a work record of every uid, norms included."""
    return manifest.max_uids * (RECORD_BYTES + 4 * layout.num_chunks)


def step_bytes(manifest: RunManifest) -> int:
    """Of one step in a log."""
    return 16 + 2 * manifest.data.batch_size + 2 * _MAX_GROUPS * manifest.audit.sketch_size


def most_pages(manifest: RunManifest) -> int:
    """Pages that a uid can have used in a round: as many as it is given, each of a token at least."""
    given = -(-manifest.data.num_pages // manifest.max_uids)
    return min(given, manifest.inner.max_steps * manifest.tokens_per_step)


def log_bytes(manifest: RunManifest) -> int:
    """Of the longest log of a round: digests of pages, and steps."""
    return 8 + 32 * most_pages(manifest) + manifest.inner.max_steps * step_bytes(manifest)
