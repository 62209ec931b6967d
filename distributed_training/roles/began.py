"""Overlap: a miner's whole vector of the round before, for who replays the round whose training went on from it.

    voter of round r                          the miner
    (r, the miner's hotkey)           ->
                                      <-      its signed record of r - 1
                                      <-      the digests of that vector's chunks
                                      <-      the chunks, all of them, in order
    "ok"                              ->

Given after the audit beacon of r, to its voters, each a few times: whoever replays one step of r needs all of it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from dataclasses import dataclass

from distributed_training.averaging.butterfly import CONTROL_TIMEOUT_S
from distributed_training.averaging.contribution import check_work
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Verify
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import Candidate, WorkRecord
from distributed_training.protocol.wire import decode_signed
from distributed_training.roles.chunks import BEGAN_METHOD as METHOD
from distributed_training.roles.chunks import cut_digests, end_chunks, read_enough
from distributed_training.roles.service import MinerService

log = logging.getLogger(__name__)

_REQUEST = struct.Struct("<I32s")
_PAUSE_S = 1.0  # before it is asked once more


class BeganService:
    """The miner's end."""

    def __init__(self, service: MinerService, peers: PeerBook, bulk_s: float) -> None:
        self._service, self._peers, self._bulk_s = service, peers, bulk_s
        peers.transport.serve(METHOD, self._on_began)

    async def _on_began(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        if len(payload) != _REQUEST.size:
            raise WireError("began: malformed request")
        index, asked = _REQUEST.unpack(payload)
        work, former = self._service.held(index), self._service.held(index - 1)
        if work is None or former is None or asked != work.record.public_key:
            raise PeerFault("a vector of another miner, or of a round we do not hold")
        if work.record.began_at != former.record.wire_root:
            raise PeerFault(f"our work of round {index} began at the state")
        await self._service.admit(METHOD, index, neuron)
        async with deadline(2 * self._bulk_s, METHOD):
            await stream.write(former.own.signed, CONTROL_TIMEOUT_S)
            await stream.write(b"".join(former.own.contribution.digests), CONTROL_TIMEOUT_S)
            for number in range(len(former.own.contribution.digests)):
                data = await self._service.chunk(former, number)
                await self._peers.uplink.show(stream, data, self._bulk_s)  # our own round comes first
            await read_enough(stream, CONTROL_TIMEOUT_S)
        self._service.gave(METHOD, index, neuron.public_key)


@dataclass(frozen=True, slots=True)
class Origin:
    """What came of asking where a round's training began: the record of the round before, if it is known, and chunks
    that hash into its wire root."""

    record: WorkRecord | None
    chunks: dict[int, bytes]


class BeganReader:
    """The voter's end."""

    def __init__(self, manifest: RunManifest, peers: PeerBook, verify: Verify, timeout_s: float) -> None:
        """timeout_s: for one vector."""
        self._manifest, self._peers, self._verify, self._timeout_s = manifest, peers, verify, timeout_s

    async def ask(self, former: RoundPlan, miner: Candidate, record: WorkRecord | None) -> Origin:
        """The vector of round `former` of a miner that was a candidate in it; record: its own of it, if it is here.
        What the miner does not give is absent; no peer's fault is raised. Where the line breaks it is asked once more
        in the same time: a round's credit hangs on it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout_s
        origin, broke = await self._ask(former, miner, record, self._timeout_s)
        if broke and (left_s := until - loop.time()) > 0:
            await asyncio.sleep(min(_PAUSE_S, left_s / 2))
            again, _ = await self._ask(former, miner, origin.record, until - loop.time())
            origin = Origin(again.record, origin.chunks | again.chunks)
        return origin

    async def _ask(
        self, former: RoundPlan, miner: Candidate, record: WorkRecord | None, limit_s: float
    ) -> tuple[Origin, bool]:
        """What came, and whether the line broke before all had."""
        found, broke = dict[int, bytes](), False
        header = _REQUEST.pack(former.round.index + 1, miner.public_key)
        try:
            async with (
                deadline(limit_s, METHOD),
                closing(self._peers.open(miner.peer_key, METHOD, header, limit_s)) as stream,
            ):
                signed = await stream.read(4096 + 4 * former.layout.num_chunks, limit_s)
                candidate = former.candidate(miner.public_key)
                assert candidate is not None, "asked of candidates alone"
                record = check_work(decode_signed(signed), candidate, former, self._manifest, self._verify)
                said = await stream.read(32 * former.layout.num_chunks, limit_s)
                digests = cut_digests(said, former.layout.num_chunks)
                if merkle_root(digests) != record.wire_root:
                    raise WireError("began: digests do not hash into the wire root")
                for chunk, expected in enumerate(digests):
                    data = await stream.read(former.uplink.chunk_bytes(former.layout, chunk), limit_s)
                    if digest(data) != expected:
                        raise WireError(f"began: chunk {chunk} is not the committed one")
                    found[chunk] = data
                await end_chunks(stream, limit_s)
        except (NetworkFault, PeerFault) as error:
            log.debug("where uid %d began: %s, %d chunks came", miner.uid, error, len(found))
            broke = isinstance(error, NetworkFault) and len(found) < former.layout.num_chunks
        return Origin(record, found), broke
