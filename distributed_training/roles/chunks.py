"""The integrity query's stream: which chunks a validator may ask a miner for, and how it asks (protocol section 7).

    voter                                     miner
    (round, whose)                    ->
                                      <-      digests of the drawn chunks, with their way to the root; those chunks
    "ok", or "f1", "fb": feedback     ->
                                      <-      the same of the start, of the end; each drawn chunk of both
    "ok"                              ->

"f1" is a glance, at the first of the chunks whose feedback is drawn, "fb" a look, at all of them. What a start should
fill is empty frames where the vector began with nothing.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.feedback import BufferLost, FeedbackFiles, open_buffers
from distributed_training.errors import PeerFault, WireError
from distributed_training.network.base import Stream
from distributed_training.network.peers import PeerBook
from distributed_training.network.uplink import Uplink
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import Tree
from distributed_training.protocol.rules.audit_plan import audit_depth, feedback_chunks, probe_chunks
from distributed_training.protocol.types import NO_ROOT, WorkRecord

METHOD, BEGAN_METHOD = "chunks", "began"
REQUEST = struct.Struct("<I32s")  # round, and whose chunks: public key of its hotkey
ENOUGH, GLANCE, LOOK = b"ok", b"f1", b"fb"
KEPT_ROUNDS = 3  # whose bytes a miner has to give: its own newest among them


def drawn_chunks(
    beacon: bytes, validator: bytes, record: WorkRecord, manifest: RunManifest, share: float
) -> tuple[int, ...]:
    """The chunks this validator, with `share` of the voters' stake, may ask this miner for: the probe, or all of them
    for a full audit."""
    count = len(record.chunk_norms)
    if audit_depth(beacon, validator, record.public_key, record.steps, manifest.audit, share).full:
        return tuple(range(count))
    return probe_chunks(beacon, validator, record.public_key, count, manifest.audit.probe_chunks)


def drawn_feedback(
    beacon: bytes, validator: bytes, record: WorkRecord, manifest: RunManifest, share: float
) -> tuple[int, ...]:
    """Of those the ones whose buffers it may ask for too; at a glance the first."""
    count = len(record.chunk_norms)
    full = audit_depth(beacon, validator, record.public_key, record.steps, manifest.audit, share).full
    drawn = probe_chunks(beacon, validator, record.public_key, count, manifest.audit.probe_chunks)
    return feedback_chunks(beacon, validator, record.public_key, count, drawn, full=full)


def asked(beacon: bytes, validator: bytes, record: WorkRecord, manifest: RunManifest, share: float) -> tuple[str, ...]:
    """By which methods this validator asks for the miner's bytes: for where its training began when it replays, as far
    as a miner can know; who is a newcomer to it is its own affair."""
    turn = audit_depth(beacon, validator, record.public_key, record.steps, manifest.audit, share).length > 0
    return (METHOD, BEGAN_METHOD) if turn and record.began_at != NO_ROOT else (METHOD,)


async def give_feedback(
    stream: Stream,
    uplink: Uplink,
    whose: tuple[FeedbackFiles, WorkRecord, Layout],
    drawn: Sequence[int],
    timeout_s: float,
) -> None:
    """Buffers of a round that is over lie on our disk alone. Raises PeerFault where it has lost them."""
    try:
        start, end = await asyncio.to_thread(open_buffers, *whose)
        for buffer in (start, end):
            await stream.write(b"" if buffer is None else Tree(buffer.digests).show(drawn), timeout_s)
        for chunk in drawn:
            for buffer in (start, end):
                data = b"" if buffer is None else await asyncio.to_thread(buffer.chunk, chunk)
                await uplink.show(stream, data, timeout_s)  # our own round comes first
    except BufferLost as error:
        raise PeerFault(f"feedback that our disk has lost: {error}") from None


def cut_digests(said: bytes, count: int) -> list[bytes]:
    """Of so many chunks, as they came in one frame. Raises WireError for another number."""
    if len(said) != 32 * count:
        raise WireError(f"digests: {len(said)} bytes, {32 * count} expected")
    return [said[at : at + 32] for at in range(0, len(said), 32)]


async def ask_chunks(peers: PeerBook, peer_key: bytes, round_index: int, public_key: bytes, timeout_s: float) -> Stream:
    """Open a probe of the miner with this hotkey; the caller reads digests, then the drawn chunks, then calls
    `end_chunks`."""
    return await peers.open(peer_key, METHOD, REQUEST.pack(round_index, public_key), timeout_s)


async def end_chunks(stream: Stream, timeout_s: float) -> None:
    await stream.write(ENOUGH, timeout_s)


async def read_enough(stream: Stream, timeout_s: float) -> None:
    """The other end's: it has all. Raises WireError for anything else."""
    if await stream.read(len(ENOUGH), timeout_s) != ENOUGH:
        raise WireError("chunks: not the word that ends it")
