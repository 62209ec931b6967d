"""Collecting the slices of a round: which output counts, whom to ask, until when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.gather import Slices
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Chain
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import ChainFault, NetworkFault, PeerFault, WireError
from distributed_training.network.peers import PeerBook
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules.membership import Claim
from distributed_training.protocol.types import NO_BACKUP, Neuron

log = logging.getLogger(__name__)

T = TypeVar("T")

Holders = Mapping[int, tuple[bytes, ...]]  # slice -> public keys of validators that said they hold it
Show = Callable[[Mapping[int, SliceOutput]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Early:
    """Who looks at what is there before the end: once all that s+X has at the head is there, or else at `block`."""

    block: int
    show: Show


Fetched = asyncio.Task[SliceOutput | None]


class Collector:
    """Gathers slices for one node. A slice that nobody gives costs its own task, never another's."""

    def __init__(self, slices: Slices, peers: PeerBook, chain: Chain, clock: BlockClock, public_key: bytes) -> None:
        self._slices, self._peers, self._public_key = slices, peers, public_key
        self._chain, self._clock = chain, clock

    async def wanted(self, plan: RoundPlan, block: int) -> dict[int, Claim]:
        """What the chain says of each slice's output as of a finalised block."""
        roster = await self._chain.roster(block)
        return membership.output_claims(plan.round, plan.slices, plan.roster, roster)

    async def gather(self, plan: RoundPlan, until_block: int, early: Early | None = None) -> dict[int, SliceOutput]:
        """Fetch slices as their hashes are seen, until all that final s+X has are held or `until_block`. What was
        fetched under a claim that is not there then is dropped.

        What a backup has reduced is asked for when s+X is seen: until then the reducer itself may still come.
        early: is shown what is there; once more if finality decides on other claims than the head had.
        """
        tasks: dict[tuple[int, Claim], Fetched] = {}
        try:
            seen = await self._fetch_seen(plan, tasks)
            shown = False
            if early is not None and seen:
                shown = await self._show_seen(plan, {j: tasks[j, c] for j, c in seen.items()}, early)
            await self._clock.final(plan.round.output_block)
            wanted = await self.wanted(plan, plan.round.output_block)
            self._begin(plan, wanted, tasks)
            last_ones = {j: tasks[j, c] for j, c in wanted.items()}
            if early is not None and not (shown and wanted == seen):
                found = await _results(last_ones, self._clock.seconds_until(early.block))
                if len(found) < len(last_ones) or shown:
                    await early.show(found)
            return await _results(last_ones, self._clock.seconds_until(until_block))
        finally:
            await _cancel(tasks.values())

    async def _fetch_seen(self, plan: RoundPlan, tasks: dict[tuple[int, Claim], Fetched]) -> dict[int, Claim]:
        """Begin what each block says, as it is seen; the claims of s+X by then, which need not be final. None if the
        head gives no answer then."""
        wanted: dict[int, Claim] = {}
        for block in range(plan.round.commit_block + 1, plan.round.output_block + 1):
            last = block == plan.round.output_block
            if not last and self._clock.acting > block:
                continue  # behind: look only at the newest block
            await self._clock.seen(block)
            try:
                wanted = await self.wanted(plan, block)
            except ChainFault as error:  # a head that was taken back, or a chain node behind ours: finality decides
                if self._clock.finalized >= block:
                    raise
                log.debug("round %d: no early look at block %d: %s", plan.round.index, block, error)
                wanted = {}  # what a former block said is not what s+X says
                continue
            self._begin(plan, {j: claim for j, claim in wanted.items() if last or not claim.by_backup}, tasks)
        return wanted

    def _begin(self, plan: RoundPlan, wanted: Mapping[int, Claim], tasks: dict[tuple[int, Claim], Fetched]) -> None:
        for j, claim in wanted.items():
            if (j, claim) not in tasks:
                tasks[j, claim] = self._start(plan, j, claim, ())

    async def _show_seen(self, plan: RoundPlan, seen: Mapping[int, Fetched], early: Early) -> bool:
        """Before s+X is final, if all of it is there. True: it was shown."""
        final = asyncio.create_task(self._clock.final(plan.round.output_block), name="final s+X")
        every = asyncio.create_task(asyncio.wait(seen.values()), name="all of s+X")
        try:
            await asyncio.wait({final, every}, return_when=asyncio.FIRST_COMPLETED)
            if not every.done():
                return False
        finally:
            final.cancel()
            every.cancel()
        await early.show({j: output for j, task in seen.items() if (output := task.result()) is not None})
        return True

    async def fetch(
        self, plan: RoundPlan, wanted: Mapping[int, Claim], holders: Holders, into: dict[int, SliceOutput]
    ) -> None:
        """Slices from our own store, else from holders, the reducer, then anybody, `into` as they come. Ends when all
        are there; one of which the backup's record names none never is.
        """

        async def one(j: int, claim: Claim) -> None:
            output = await self._fetch_one(plan, j, claim, holders.get(j, ()))
            if output is None:
                await asyncio.Event().wait()
            else:
                into[j] = output

        async with asyncio.TaskGroup() as tasks:
            for j, claim in wanted.items():
                tasks.create_task(one(j, claim), name=f"gather {j}")

    def _start(self, plan: RoundPlan, j: int, claim: Claim, holders: tuple[bytes, ...]) -> Fetched:
        return asyncio.create_task(self._fetch_one(plan, j, claim, holders), name=f"gather {j}")

    async def _fetch_one(self, plan: RoundPlan, j: int, claim: Claim, holders: tuple[bytes, ...]) -> SliceOutput | None:
        """Asks until somebody gives the slice. None: the backup's record says that there is none."""
        output_hash = claim.record_hash
        if claim.by_backup:
            output_hash = await self._named_by_backup(plan, j, claim, holders)
            if output_hash == NO_BACKUP:
                return None
        try:
            kept = await self._slices.load(plan, j, claim.reducer, output_hash)
            if kept is not None:
                return kept
        except WireError as error:
            log.warning("slice %d is damaged on our own disk, fetching it again: %s", j, error)
        return await self._ask(
            f"slice {j}",
            claim,
            holders,
            lambda peer_key: self._slices.fetch(peer_key, plan, j, claim.reducer, output_hash),
        )

    async def _named_by_backup(self, plan: RoundPlan, j: int, claim: Claim, holders: tuple[bytes, ...]) -> bytes:
        """The hash of the output that the backup's own record names."""
        backup = membership.backup_of(plan.slices, j)
        assert backup is not None, "a claim by a backup comes from a group of two or more"
        asked = (plan, backup.index, claim.reducer, claim.record_hash)
        try:
            kept = self._slices.load_record(*asked)
            if kept is not None:
                return kept.backup
        except WireError as error:
            log.warning("the record of slice %d is damaged on our own disk: %s", backup.index, error)
        what = f"record of slice {backup.index}"
        record = await self._ask(what, claim, holders, lambda key: self._slices.fetch_record(key, *asked))
        return record.backup

    async def _ask(
        self, what: str, claim: Claim, holders: tuple[bytes, ...], ask: Callable[[bytes], Awaitable[T]]
    ) -> T:
        """Ask one peer after the other, and all of them again, until one gives it. Ends otherwise only cancelled."""
        tries = Ongoing(log, what, f"{what}: here", logging.DEBUG)
        while True:
            for peer_key in self._sources(claim, holders):
                try:
                    found = await ask(peer_key)
                except (NetworkFault, PeerFault) as error:
                    tries.begin(f"{peer_key.hex()[:12]}: {error}")
                else:
                    log.debug("%s is here, from %s", what, peer_key.hex()[:12])
                    return found
            await asyncio.sleep(self._clock.block_s / 2)

    def _sources(self, claim: Claim, holders: tuple[bytes, ...]) -> Iterator[bytes]:
        """Peer keys to ask, best first, ourselves left out. The first is nearly always enough: it is found without a
        look at everybody."""
        likely = {*holders, claim.reducer}
        first = sorted(
            filter(None, map(self._peers.by_public_key, likely)),
            key=lambda n: (n.public_key not in holders, n.public_key != claim.reducer, -n.stake, n.uid),
        )
        yield from self._keys(first)
        others = [n for n in self._peers.neurons if n.public_key not in likely]
        yield from self._keys(sorted(others, key=lambda n: (-n.stake, n.uid)))

    def _keys(self, neurons: Iterable[Neuron]) -> Iterator[bytes]:
        for n in neurons:
            if n.commitment is not None and n.reachable_at is not None and n.public_key != self._public_key:
                yield n.commitment.peer_key


async def _results(tasks: Mapping[int, Fetched], timeout_s: float) -> dict[int, SliceOutput]:
    """What is there in time."""
    if not tasks:
        return {}
    await asyncio.wait(tasks.values(), timeout=max(0.05, timeout_s))
    done = {j: task.result() for j, task in tasks.items() if task.done()}
    return {j: output for j, output in done.items() if output is not None}


async def _cancel(tasks: Iterable[Fetched]) -> None:
    """End what is still under way and wait until it has."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
