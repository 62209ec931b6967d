"""The scatter stream: senders stream their chunks to reducers, which check every chunk while it arrives.

    sender                                    reducer
    (round, slice, tag of the plan)   ->
    signed work record                ->
    the slice's digests, and what
      leads to the record's root      ->
    the slice, chunk by chunk         ->
                                      <-      BEAT now and then: alive, and chunks come
                                      <-      ACK: every chunk is in
                                      <-      BEAT now and then, until
                                      <-      DONE: the output's hash is on chain

A sender that hears nothing for the stall time, or cannot write for as long, gives the reducer up for lost. What it
wrote may lie in buffers for longer than that while all lines are busy, so the reducer beats while chunks come; but the
last stall time before the cut-off is the backup's. A backup says ACK and ends: nobody can replace it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from distributed_training.averaging.contribution import Contribution
from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.plan import TAG_BYTES, RoundPlan
from distributed_training.averaging.works import WorkBook
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.merkle import digest, read_shown, shown_bytes
from distributed_training.protocol.types import Candidate, SliceSpec

METHOD = "scatter"
_HEADER = struct.Struct(f"<IH{TAG_BYTES}s")
_BEAT, _ACK, _DONE = b"", b"ok", b"done"
_LONGEST = 4
BEATS_PER_STALL = 4


@dataclass(frozen=True, slots=True)
class OwnWork:
    """What we contribute to a round."""

    contribution: Contribution
    signed: bytes  # signed work record


class NotSent(NetworkFault):
    """No connection, or one that takes no whole frame for as long as one may take: perhaps it is our line."""


async def send_slice(
    peers: PeerBook,
    target: Candidate,
    spec: SliceSpec,
    plan: RoundPlan,
    own: OwnWork,
    stall_s: float,
    left_s: float,
    sent: Callable[[], None] | None = None,
) -> Stream:
    """Stream one slice of our contribution to who reduces it; returns the open stream once every chunk was taken.
    sent: is told when all of it has left us.

    Raises NotSent, NetworkFault, DeadlineMissed, WireError; then the stream is closed.
    """
    header = _HEADER.pack(plan.round.index, spec.index, plan.tag)
    clock = asyncio.get_running_loop().time
    beats, taken_by = _Beats(stall_s), clock() + left_s - stall_s
    async with deadline(left_s, f"slice {spec.index}"):
        with _sending():
            stream = await peers.open(target.peer_key, METHOD, header, stall_s)
        try:
            with peers.uplink.ours(), _sending():
                await stream.write(own.signed, stall_s)
                places = range(spec.first_chunk, spec.last_chunk)
                await stream.write(own.contribution.show(places), stall_s)
                for chunk in places:
                    await stream.write(own.contribution.chunks[chunk], stall_s)
            if sent is not None:
                sent()
            async with deadline(max(stall_s, taken_by - clock()), "acknowledgement"):
                while (said := await stream.read(_LONGEST, stall_s)) != _ACK:
                    if said != _BEAT:
                        raise WireError("scatter: neither a beat nor the acknowledgement")
                    beats.heard()
        except BaseException:
            await stream.close()
            raise
    return stream


@contextmanager
def _sending() -> Iterator[None]:
    try:
        yield
    except NetworkFault as fault:
        raise NotSent(str(fault)) from fault


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


def parse_header(payload: bytes) -> tuple[int, int, bytes]:
    """(round, slice, tag of the sender's plan). Raises WireError."""
    if len(payload) != _HEADER.size:
        raise WireError("scatter: malformed header")
    return _HEADER.unpack(payload)


async def receive_slice(
    stream: Stream, candidate: Candidate, inbox: Inbox, works: WorkBook, stall_s: float, left_s: float
) -> None:
    """The reducer's side, up to ACK. Chunks already in stay in when the stream breaks; each is checked on its own.

    A sender that is slow holds up only its own stream, until the cut-off.
    """
    plan, spec, layout, key = inbox.plan, inbox.spec, inbox.plan.layout, candidate.public_key
    places = range(spec.first_chunk, spec.last_chunk)
    async with deadline(left_s, f"slice {spec.index} from uid {candidate.uid}"):
        work = works.take(plan, candidate, await stream.read(4096 + 4 * layout.num_chunks, left_s))
        inbox.hear(key)
        shown = await stream.read(shown_bytes(layout.num_chunks, places), left_s)
        digests = read_shown(shown, layout.num_chunks, places, work.wire_root)
        inbox.works[key], inbox.shown[key] = work, shown
        inbox.hear(key)

        clock = asyncio.get_running_loop().time
        beat_at = clock() + stall_s / BEATS_PER_STALL
        for chunk in places:
            data = await stream.read(plan.uplink.chunk_bytes(layout, chunk), left_s)
            inbox.hear(key)
            if clock() >= beat_at:
                await beat(stream, stall_s)
                beat_at = clock() + stall_s / BEATS_PER_STALL
            if inbox.has(key, chunk, data):  # since an earlier stream: no need to check it again
                continue
            if digest(data) != digests[chunk]:
                raise WireError(f"scatter: chunk {chunk} is not the committed one")
            parsed = plan.uplink.parse(inbox.place(key, chunk, data), layout, chunk)
            if parsed.norm() != work.chunk_norms[chunk]:
                raise WireError(f"scatter: chunk {chunk} has another norm than declared")
            if inbox.closed:
                raise PeerFault("scatter: too late")
            inbox.put(key, work, {chunk: parsed})
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
