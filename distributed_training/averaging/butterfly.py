"""One node's part in the all-reduce: it answers its peers all the time and runs a round when told.

scatter (our chunks to each reducer) -> reduce (our slice, in fixed order) -> gather (every slice whose output hash
is on chain). Who is in, what counts and when it ends follow from the chain; a peer that dies costs its own part.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distributed_training.averaging import gather, scatter
from distributed_training.averaging.combine import SliceOutput, reduce_slice
from distributed_training.averaging.contribution import Contribution, check_work
from distributed_training.averaging.peers import PeerBook
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.chain.base import Chain, Signer, Verify
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.manifest import RunManifest
from distributed_training.network.base import Stream
from distributed_training.rules import membership
from distributed_training.rules.clock import bulk_timeout_s
from distributed_training.types import Signed, SliceSpec
from distributed_training.wire import decode_signed, encode_output, encode_signed, record_hash, signing_message

log = logging.getLogger(__name__)

CONTROL_TIMEOUT_S = 10.0
MAX_SLICES_SERVED = 16  # at a time: each holds a slice in memory until its reader has taken it


@dataclass(frozen=True, slots=True)
class OwnWork:
    """What we contribute to a round."""

    contribution: Contribution
    signed: bytes  # signed work record


class Butterfly:
    def __init__(
        self,
        manifest: RunManifest,
        peers: PeerBook,
        store: RoundStore,
        chain: Chain,
        clock: BlockClock,
        signer: Signer,
        verify: Verify,
    ) -> None:
        self._manifest, self._peers, self._store = manifest, peers, store
        self._chain, self._clock, self._signer, self._verify = chain, clock, signer, verify
        self._bulk_s = bulk_timeout_s(manifest.timing, clock.block_s)
        self._serving = asyncio.Semaphore(MAX_SLICES_SERVED)
        self._inbox: scatter.Inbox | None = None
        self._opened = asyncio.Condition()
        peers.transport.serve(scatter.METHOD, self._on_scatter)
        peers.transport.serve(gather.METHOD, self._on_slice)

    # --- what we answer -----------------------------------------------------------------------------

    async def _on_scatter(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        round_index, slice_index = scatter.parse_header(payload)
        inbox = await self._inbox_of(round_index)
        candidate = inbox.plan.candidate(neuron.public_key)
        if candidate is None or inbox.spec.index != slice_index:
            raise PeerFault(f"uid {neuron.uid} may not send slice {slice_index} of round {round_index} here")
        left_s = self._clock.seconds_until(self._cutoff(inbox.plan))
        await scatter.receive_slice(stream, candidate, inbox, self._manifest, self._verify, max(1.0, left_s))

    async def _inbox_of(self, round_index: int) -> scatter.Inbox:
        """The open inbox of a round; a sender may be a block ahead of us, so wait a little."""

        def ready() -> bool:
            return self._inbox is not None and self._inbox.plan.round.index >= round_index

        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S), self._opened:
                await self._opened.wait_for(ready)
        except TimeoutError:
            raise PeerFault(f"round {round_index} is not open here") from None
        inbox = self._inbox
        if inbox is None or inbox.plan.round.index != round_index:
            raise PeerFault(f"round {round_index} is over here")
        return inbox

    async def _on_slice(self, stream: Stream) -> None:
        _, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        async with self._serving:
            await gather.serve_slice(stream, payload, self._store, self._bulk_s)

    # --- scatter and reduce ---------------------------------------------------------------------------

    def _cutoff(self, plan: RoundPlan) -> int:
        return plan.round.output_block - self._manifest.timing.reduce_margin

    async def contribute(self, plan: RoundPlan, own: OwnWork) -> tuple[SliceSpec, bytes] | None:
        """Send our chunks to every reducer and reduce our own slice. Returns (slice, output hash) if we reduced.

        Ends by the reducers' cut-off; the caller puts the hash on chain.
        """
        spec = plan.slice_of(self._signer.public_key)
        if spec is not None:
            await self._open_inbox(plan, spec, own)
        async with asyncio.TaskGroup() as tasks:
            for target in plan.slices:
                if target.reducer != self._signer.public_key:
                    tasks.create_task(self._send(plan, target, own), name=f"send slice {target.index}")
            reduced = tasks.create_task(self._reduce(plan), name="reduce") if spec is not None else None
        return (spec, reduced.result()) if spec is not None and reduced is not None else None

    async def _open_inbox(self, plan: RoundPlan, spec: SliceSpec, own: OwnWork) -> None:
        inbox = scatter.Inbox(plan, spec)
        ourselves = plan.candidate(self._signer.public_key)
        if ourselves is not None:
            record = check_work(decode_signed(own.signed), ourselves, plan, self._manifest, self._verify)
            mine = {c: own.contribution.chunks[c] for c in range(spec.first_chunk, spec.last_chunk)}
            inbox.put(self._signer.public_key, own.signed, record, mine)
        async with self._opened:
            self._inbox = inbox
            self._opened.notify_all()

    async def _send(self, plan: RoundPlan, spec: SliceSpec, own: OwnWork) -> None:
        """Until the reducer has our slice or the cut-off is reached."""
        reducer = plan.candidate(spec.reducer)
        while reducer is not None and (left_s := self._clock.seconds_until(self._cutoff(plan))) > 0:
            try:
                await scatter.send_slice(self._peers, reducer, spec, plan, own.signed, own.contribution, left_s)
                return
            except (NetworkFault, PeerFault) as error:
                log.info("sending slice %d to uid %d failed: %s", spec.index, reducer.uid, error)
                await asyncio.sleep(min(left_s, self._clock.block_s / 2))

    async def _reduce(self, plan: RoundPlan) -> bytes:
        inbox = self._inbox
        assert inbox is not None and inbox.plan is plan
        await inbox.wait(self._clock.seconds_until(self._cutoff(plan)))
        if missing := inbox.missing():
            log.warning("slice %d: %d sender(s) incomplete at the cut-off", inbox.spec.index, len(missing))
        output = await asyncio.to_thread(
            reduce_slice, plan, inbox.spec, inbox.chunks, dict(inbox.works), self._manifest
        )
        body = encode_output(output.record)
        signed = encode_signed(Signed(body, self._signer.sign(signing_message(body))))
        output_hash = record_hash(body)
        stored = StoredOutput(signed, b"".join(output.chunks))
        gather.keep_output(self._store, plan, output_hash, stored, inbox.signed)
        return output_hash

    # --- gather -----------------------------------------------------------------------------------

    async def gather(self, plan: RoundPlan, until_block: int) -> dict[int, SliceOutput]:
        """Fetch slices as their hashes appear on the finalised chain, until all of s+X are held or `until_block`."""
        tasks: dict[tuple[int, bytes], asyncio.Task[SliceOutput]] = {}
        wanted: dict[int, bytes] = {}
        try:
            for block in range(plan.round.commit_block + 1, plan.round.output_block + 1):
                if block < plan.round.output_block and self._clock.finalized > block:
                    continue  # behind: look only at the newest finalised block
                await self._clock.final(block)
                wanted = await self.wanted(plan, block)
                for key in wanted.items():
                    if key not in tasks:
                        tasks[key] = asyncio.create_task(self._fetch_one(plan, *key, ()), name=f"gather {key[0]}")
            final = [tasks[key] for key in wanted.items()]
            if final:
                await asyncio.wait(final, timeout=max(0.05, self._clock.seconds_until(until_block)))
            return {j: tasks[j, h].result() for j, h in wanted.items() if tasks[j, h].done()}
        finally:
            await _cancel(tasks.values())

    async def wanted(self, plan: RoundPlan, block: int) -> dict[int, bytes]:
        """Output hashes on chain as of a finalised block."""
        roster = await self._chain.roster(block)
        return membership.output_hashes(plan.round.index, plan.slices, plan.roster, roster)

    async def fetch(
        self,
        plan: RoundPlan,
        wanted: Mapping[int, bytes],
        timeout_s: float,
        holders: Mapping[int, tuple[bytes, ...]] | None = None,
    ) -> dict[int, SliceOutput]:
        """Slices by hash from our own store, else from holders, the reducer, then anybody. What came in time."""
        tasks = {
            j: asyncio.create_task(self._fetch_one(plan, j, h, (holders or {}).get(j, ())), name=f"gather {j}")
            for j, h in wanted.items()
        }
        if not tasks:
            return {}
        try:
            await asyncio.wait(tasks.values(), timeout=max(0.05, timeout_s))
            return {j: task.result() for j, task in tasks.items() if task.done()}
        finally:
            await _cancel(tasks.values())

    async def _fetch_one(self, plan: RoundPlan, j: int, output_hash: bytes, holders: tuple[bytes, ...]) -> SliceOutput:
        try:
            kept = gather.load_slice(plan, j, output_hash, self._manifest, self._verify, self._store)
            if kept is not None:
                return kept
        except WireError as error:
            log.warning("slice %d is damaged on our own disk, fetching it again: %s", j, error)
        while True:
            for peer_key in self._sources(plan, j, holders):
                try:
                    return await gather.fetch_slice(
                        self._peers, peer_key, plan, j, output_hash,
                        self._manifest, self._verify, self._store, self._bulk_s,
                    )  # fmt: skip
                except (NetworkFault, PeerFault) as error:
                    log.info("slice %d from %s: %s", j, peer_key.hex()[:12], error)
            await asyncio.sleep(self._clock.block_s / 2)

    def _sources(self, plan: RoundPlan, j: int, holders: tuple[bytes, ...]) -> list[bytes]:
        """Peer keys to ask, best first, ourselves left out."""
        reducer = plan.slices[j].reducer
        ranked = sorted(
            (n for n in self._peers.neurons if n.commitment is not None and n.address is not None),
            key=lambda n: (n.public_key not in holders, n.public_key != reducer, -n.stake, n.uid),
        )
        own = self._signer.public_key
        return [n.commitment.peer_key for n in ranked if n.commitment is not None and n.public_key != own]


async def _cancel(tasks: Iterable[asyncio.Task[SliceOutput]]) -> None:
    """End what is still under way and wait until it has."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
