"""The integrity query of protocol section 7: a timed download of the chunks that the beacon draws."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.scatter import cut_digests
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import Candidate, WorkRecord
from distributed_training.roles.service import ask_chunks, drawn_chunks, end_chunks

log = logging.getLogger(__name__)

_WARM_UP_CHUNKS = 2  # slow start is not bandwidth


@dataclass(frozen=True, slots=True)
class Probe:
    """Chunks that hashed into the wire root, and how fast they came. 0 bytes/s: not answered, or wrong bytes."""

    chunks: Mapping[int, bytes]
    goodput_bytes_per_s: float
    unreached: bool = False  # the network failed, on whichever side


class Prober:
    """One validator's probes."""

    def __init__(
        self, manifest: RunManifest, peers: PeerBook, clock: BlockClock, public_key: bytes, timeout_s: float
    ) -> None:
        """timeout_s: for one probe."""
        self._manifest, self._peers, self._clock = manifest, peers, clock
        self._public_key, self._timeout_s = public_key, timeout_s

    async def probe(self, plan: RoundPlan, candidate: Candidate, record: WorkRecord, beacon: bytes) -> Probe | None:
        """None: the chain stood still for us, so perhaps for the miner, who answers by it: nothing was observed."""
        steady, resumed_at = self._clock.steady, self._clock.resumed_at
        found = await self._ask(plan, candidate, record, beacon)
        if steady and self._clock.steady and self._clock.resumed_at == resumed_at:
            return found
        log.debug("round %d: the chain stood still, the probe of uid %d is void", plan.round.index, candidate.uid)
        return None

    async def _ask(self, plan: RoundPlan, candidate: Candidate, record: WorkRecord, beacon: bytes) -> Probe:
        """Timed download of the drawn chunks; each must hash into the committed wire root."""
        wanted = drawn_chunks(beacon, self._public_key, record, self._manifest)
        found: dict[int, bytes] = {}
        try:
            async with (
                deadline(self._timeout_s, "probe"),
                closing(ask_chunks(self._peers, candidate.peer_key, plan.round.index, self._timeout_s)) as stream,
            ):
                digests = cut_digests(
                    await stream.read(32 * plan.layout.num_chunks, self._timeout_s), plan.layout.num_chunks
                )
                if merkle_root(digests) != record.wire_root:
                    raise WireError("probe: digests do not hash into the wire root")
                timed, began = 0, asyncio.get_running_loop().time()
                for number, chunk in enumerate(wanted):
                    data = await stream.read(plan.layout.chunk_bytes(chunk), self._timeout_s)
                    if digest(data) != digests[chunk]:
                        raise WireError(f"probe: chunk {chunk} is not the committed one")
                    found[chunk] = data
                    if number < _WARM_UP_CHUNKS and len(wanted) > _WARM_UP_CHUNKS:
                        began = asyncio.get_running_loop().time()
                    else:
                        timed += len(data)
                seconds = max(asyncio.get_running_loop().time() - began, 1e-6)
                await end_chunks(stream, self._timeout_s)
        except (NetworkFault, PeerFault) as error:
            log.debug("probe of uid %d failed: %s", candidate.uid, error)
            return Probe(found, 0.0, unreached=isinstance(error, NetworkFault))
        return Probe(found, timed / seconds)
