"""The integrity query of protocol section 7: a timed download of the chunks that the beacon draws.

All probes of a round together have half a round's time, a few at once: so many that a full subnet is through in it, so
few that what they measure is the miner's link and not ours. Who answers slowly takes its own share of that time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_training.averaging.implied import Kept
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import DeadlineMissed, NetworkFault, PeerFault, WireError
from distributed_training.network.base import closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, read_shown, shown_bytes
from distributed_training.protocol.rules.audit_plan import SAMPLE, Depth, voter_share
from distributed_training.protocol.types import Candidate, WorkRecord
from distributed_training.roles.auditing.buffers import NO_FEEDBACK, Feedback, ask_feedback, check_feedback
from distributed_training.roles.chunks import (
    KEPT_ROUNDS,
    ask_chunks,
    drawn_chunks,
    drawn_feedback,
    end_chunks,
)

log = logging.getLogger(__name__)

AT_ONCE = 3  # probes that share our downlink: each still gets what a miner is asked for of the line that a run expects
_SHARE = 0.5  # of a round, for all probes of it
_WARM_UP_CHUNKS = 2  # slow start is not bandwidth


@dataclass(frozen=True, slots=True)
class Probe:
    """Chunks that hashed into the wire root, all or SAMPLE of them, and how fast they came. 0 bytes/s: not answered, or
    wrong bytes; what came before the time was over counts as it came."""

    chunks: Mapping[int, bytes]
    goodput_bytes_per_s: float
    unreached: bool = False  # the network failed, on whichever side
    feedback: Feedback = NO_FEEDBACK  # where the uplink codec keeps any


class Timed:
    """Bytes and seconds of one download, its slow start left out."""

    def __init__(self, warm_up: int) -> None:
        self._left, self.bytes, self._began = warm_up, 0, asyncio.get_running_loop().time()

    def took(self, size: int) -> None:
        if self._left > 0:
            self._left, self._began = self._left - 1, asyncio.get_running_loop().time()
        else:
            self.bytes += size

    def rate(self) -> float:
        return self.bytes / max(asyncio.get_running_loop().time() - self._began, 1e-6)


class Prober:
    """One validator's probes."""

    def __init__(
        self, manifest: RunManifest, peers: PeerBook, clock: BlockClock, public_key: bytes, timeout_s: float
    ) -> None:
        """timeout_s: the most for one probe."""
        self._manifest, self._peers, self._clock = manifest, peers, clock
        self._public_key, self._timeout_s = public_key, timeout_s

    def begin(
        self, plan: RoundPlan, works: Sequence[tuple[WorkRecord, Depth]], beacon: bytes
    ) -> dict[bytes, asyncio.Task[Probe | None]]:
        """A probe of each of these miners, beside whatever else goes on; by public key. The caller awaits or cancels
        them. Who is looked at in full has the most time: all its chunks are asked for."""
        places = asyncio.Semaphore(AT_ONCE)
        all_s = _SHARE * self._manifest.timing.length * self._clock.block_s
        share_s = min(self._timeout_s, all_s * AT_ONCE / max(1, len(works)))

        async def one(record: WorkRecord, depth: Depth) -> Probe | None:
            async with places:
                candidate, limit_s = plan.candidate(record.public_key), self._timeout_s if depth.full else share_s
                looked = depth.length > 0
                if candidate is None:
                    return None
                return await self.probe(plan, candidate, record, beacon, limit_s, looked=looked)

        return {record.public_key: asyncio.create_task(one(record, depth), name="probe") for record, depth in works}

    async def probe(
        self,
        plan: RoundPlan,
        candidate: Candidate,
        record: WorkRecord,
        beacon: bytes,
        limit_s: float | None = None,
        *,
        looked: bool = False,
    ) -> Probe | None:
        """limit_s: None: what one may take at most. looked: its vector is compared with a replay, so more of its
        feedback is asked for, and checked there.

        None: the chain stood still for us, so perhaps for the miner, who answers by it; or it no longer has to keep
        the bytes. Nothing was observed then."""
        steady, resumed_at = self._clock.steady, self._clock.resumed_at
        found = await self._ask_again(plan, candidate, record, beacon, limit_s or self._timeout_s, looked)
        kept = self._clock.head < self._manifest.round(plan.round.index + KEPT_ROUNDS).start_block
        if kept and steady and self._clock.steady and self._clock.resumed_at == resumed_at:
            return found
        why = "the chain stood still" if kept else "its bytes need not be kept any more"
        log.debug("round %d: %s, the probe of uid %d is void", plan.round.index, why, candidate.uid)
        return None

    async def _ask_again(
        self, plan: RoundPlan, candidate: Candidate, record: WorkRecord, beacon: bytes, limit_s: float, looked: bool
    ) -> Probe:
        """`_ask`; where a round's credit hangs on the answer, once more in its time: a line that breaks costs none."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        found = await self._ask(plan, candidate, record, beacon, limit_s, looked)
        if not (plan.uplink.feedback and found.unreached and (left_s := until - loop.time()) > 0):
            return found
        await asyncio.sleep(min(self._clock.block_s, left_s / 2))
        return await self._ask(plan, candidate, record, beacon, until - loop.time(), looked)

    async def _ask(
        self, plan: RoundPlan, candidate: Candidate, record: WorkRecord, beacon: bytes, limit_s: float, looked: bool
    ) -> Probe:
        """Timed download of the drawn chunks; each must hash into the committed wire root."""
        share = voter_share(plan.voters, self._public_key)
        wanted = drawn_chunks(beacon, self._public_key, record, self._manifest, share)
        found, buffers, rate = dict[int, bytes](), dict[int, Kept](), None
        shown = drawn_feedback(beacon, self._public_key, record, self._manifest, share)
        shown = () if not plan.uplink.feedback else shown if looked else shown[:1]
        timed = Timed(_WARM_UP_CHUNKS if len(wanted) > _WARM_UP_CHUNKS else 0)

        def probe(rate: float, *, unreached: bool = False) -> Probe:
            """With a whole vector, or a few chunks of it: those of all probes together would fill the memory."""
            kept = found if len(wanted) == plan.layout.num_chunks else dict(list(found.items())[:SAMPLE])
            return Probe(kept, rate, unreached, Feedback(len(shown), buffers))

        try:
            if self._peers.is_anothers(candidate.peer_key, candidate.public_key):
                raise PeerFault("names another miner's peer key, who would answer for it")
            async with (
                deadline(limit_s, "probe"),
                closing(
                    ask_chunks(self._peers, candidate.peer_key, plan.round.index, candidate.public_key, limit_s)
                ) as stream,
            ):
                count = plan.layout.num_chunks
                said = await stream.read(shown_bytes(count, wanted), limit_s)
                digests = read_shown(said, count, wanted, record.wire_root)
                timed = Timed(_WARM_UP_CHUNKS if len(wanted) > _WARM_UP_CHUNKS else 0)
                for chunk in wanted:
                    data = await stream.read(plan.uplink.chunk_bytes(plan.layout, chunk), limit_s)
                    if digest(data) != digests[chunk]:
                        raise WireError(f"probe: chunk {chunk} is not the committed one")
                    found[chunk] = data
                    timed.took(len(data))
                rate = timed.rate()
                if shown:
                    await ask_feedback(stream, plan, record, shown, buffers, limit_s)
                    if not looked:
                        check_feedback(plan, found, buffers)
                await end_chunks(stream, limit_s)
        except DeadlineMissed as error:
            log.debug("probe of uid %d: %s, %d of %d chunks came", candidate.uid, error, len(found), len(wanted))
            return probe(timed.rate() if rate is None else rate, unreached=not found)
        except (NetworkFault, PeerFault) as error:
            log.debug("probe of uid %d failed: %s", candidate.uid, error)
            buffers.clear()
            return probe(0.0, unreached=isinstance(error, NetworkFault))
        return probe(rate)
