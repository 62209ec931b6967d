"""The scatter stream: senders stream their chunks to reducers, which check every chunk while it arrives.

    sender                                    reducer
    (round, slice)                    ->
    signed work record, all digests   ->
    the slice, chunk by chunk         ->
                                      <-      BEAT now and then: alive
                                      <-      ACK: every chunk is in
                                      <-      BEAT now and then, until
                                      <-      DONE: the output's hash is on chain

A sender that hears nothing for the stall time, or cannot write for as long, gives the reducer up for lost. A backup
says ACK and ends: nobody can replace it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distributed_training.averaging.codecs.int8 import parse_chunk
from distributed_training.averaging.contribution import Contribution
from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.works import WorkBook
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import Candidate, SliceSpec

METHOD = "scatter"
_HEADER = struct.Struct("<IH")
_BEAT, _ACK, _DONE = b"", b"ok", b"done"
_LONGEST = 4
BEATS_PER_STALL = 4


@dataclass(frozen=True, slots=True)
class OwnWork:
    """What we contribute to a round."""

    contribution: Contribution
    signed: bytes  # signed work record


async def send_slice(
    peers: PeerBook, target: Candidate, spec: SliceSpec, plan: RoundPlan, own: OwnWork, stall_s: float, left_s: float
) -> Stream:
    """Stream one slice of our contribution to who reduces it; returns the open stream once every chunk was taken.

    Raises NetworkFault, DeadlineMissed, WireError; then the stream is closed.
    """
    header = _HEADER.pack(plan.round.index, spec.index)
    async with deadline(left_s, f"slice {spec.index}"):
        stream = await peers.open(target.peer_key, METHOD, header, stall_s)
        try:
            with peers.uplink.ours():
                await stream.write(own.signed, stall_s)
                await stream.write(b"".join(own.contribution.digests), stall_s)
                for chunk in range(spec.first_chunk, spec.last_chunk):
                    await stream.write(own.contribution.chunks[chunk], stall_s)
            beats = _Beats(stall_s)
            while (said := await stream.read(_LONGEST, stall_s)) != _ACK:
                if said != _BEAT:
                    raise WireError("scatter: neither a beat nor the acknowledgement")
                beats.heard()
        except BaseException:
            await stream.close()
            raise
    return stream


async def until_done(stream: Stream, stall_s: float, left_s: Callable[[], float]) -> bool:
    """True: the output's hash is on chain. False: the cut-off is reached.

    Raises NetworkFault (the reducer is lost), PeerFault (it says more than there is to say).
    """
    beats = _Beats(stall_s)
    try:
        while (left := left_s()) > 0:
            try:
                said = await stream.read(_LONGEST, min(stall_s, left))
            except NetworkFault:
                if left_s() <= 0:
                    return False
                raise
            if said == _DONE:
                return True
            if said != _BEAT:
                raise NetworkFault("scatter: neither a beat nor the end")
            beats.heard()
        return False
    finally:
        await stream.close()


class _Beats:
    """Twice as many as an honest reducer sends in the time, and some. A flood of empty frames would cost us CPU."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s, self._count = stall_s, 0
        self._began = asyncio.get_running_loop().time()

    def heard(self) -> None:
        """Raises PeerFault for one too many."""
        self._count += 1
        elapsed = asyncio.get_running_loop().time() - self._began
        if self._count > 16 + 2 * BEATS_PER_STALL * elapsed / self._stall_s:
            raise PeerFault("scatter: beats without end")


def parse_header(payload: bytes) -> tuple[int, int]:
    """(round, slice). Raises WireError."""
    if len(payload) != _HEADER.size:
        raise WireError("scatter: malformed header")
    return _HEADER.unpack(payload)


async def receive_slice(stream: Stream, candidate: Candidate, inbox: Inbox, works: WorkBook, left_s: float) -> None:
    """The reducer's side, up to ACK. Chunks already in stay in when the stream breaks; each is checked on its own.

    A sender that is slow holds up only its own stream, until the cut-off.
    """
    plan, spec, layout = inbox.plan, inbox.spec, inbox.plan.layout
    async with deadline(left_s, f"slice {spec.index} from uid {candidate.uid}"):
        work = works.take(plan, candidate, await stream.read(4096 + 4 * layout.num_chunks, left_s))
        inbox.hear(candidate.public_key)
        digests = cut_digests(await stream.read(32 * layout.num_chunks, left_s), layout.num_chunks)
        if merkle_root(digests) != work.wire_root:
            raise WireError("scatter: digests do not hash into the wire root")
        inbox.works[candidate.public_key], inbox.digests[candidate.public_key] = work, digests
        inbox.hear(candidate.public_key)
        for chunk in range(spec.first_chunk, spec.last_chunk):
            data = await stream.read(layout.chunk_bytes(chunk), left_s)
            if inbox.has(candidate.public_key, chunk, data):
                inbox.hear(candidate.public_key)
                continue  # it is in since an earlier stream: checking it again would cost us, not who sends it
            if digest(data) != digests[chunk]:
                raise WireError(f"scatter: chunk {chunk} is not the committed one")
            parsed = parse_chunk(data, layout, chunk)
            if parsed.norm() != work.chunk_norms[chunk]:
                raise WireError(f"scatter: chunk {chunk} has another norm than declared")
            if inbox.closed:
                raise PeerFault("scatter: too late")
            inbox.put(candidate.public_key, work, {chunk: parsed})
            inbox.need()
        await stream.write(_ACK, left_s)


async def report_until_done(stream: Stream, inbox: Inbox, stall_s: float, left_s: Callable[[], float]) -> None:
    """After ACK: a beat now and then until the output's hash is on chain or the cut-off is reached."""
    try:
        while not inbox.settled.is_set() and left_s() > 0:
            try:
                async with asyncio.timeout(stall_s / BEATS_PER_STALL):
                    await inbox.settled.wait()
            except TimeoutError:
                await beat(stream, stall_s)
        if inbox.published:
            await stream.write(_DONE, stall_s)
    except NetworkFault:  # a sender may hang up: it has given all it had to give
        return


async def beat(stream: Stream, stall_s: float) -> None:
    """Say that we are alive."""
    await stream.write(_BEAT, stall_s)


def cut_digests(data: bytes, count: int) -> Sequence[bytes]:
    if len(data) != 32 * count:
        raise WireError(f"digests: {len(data)} bytes, {32 * count} expected")
    return [data[i : i + 32] for i in range(0, len(data), 32)]
