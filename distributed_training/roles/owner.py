"""The story of the owner: follow every round, evaluate, publish checkpoints. Nobody waits for it."""

from __future__ import annotations

import asyncio

from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.plan import RoundPlan
from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.protocol.commitments import encode_commitment, place_of
from distributed_training.protocol.types import Commitment, Role
from distributed_training.roles.auditing.evaluation import Evaluator
from distributed_training.roles.exchange import exchange
from distributed_training.roles.exporting import Exporter
from distributed_training.roles.follower import Follower
from distributed_training.roles.parts import Parts
from distributed_training.roles.publishing import Publisher
from distributed_training.roles.report import RoundReport

LAST_CHECKPOINT_S = 60.0  # how long the end of a run waits for it


class Owner:
    def __init__(self, parts: Parts, follower: Follower, evaluator: Evaluator, exporter: Exporter) -> None:
        self._p, self._follower, self.evaluator = parts, follower, evaluator
        self._publisher = Publisher(parts, parts.checkpoints, exporter, self._announce)

    async def begin(self) -> None:
        """Publish where the run starts, so that a newcomer never depends on rebuilding it."""
        await self._publish()

    async def run_round(self) -> None:
        """One round as an observer, and a checkpoint every few rounds."""
        start = await self._follower.prepare()
        report = RoundReport(self._p, start.round)
        await self._p.clock.reached(start.round.start_block)
        report.phase("train")

        async def gather(plan: RoundPlan, _final: asyncio.Event) -> dict[int, SliceOutput]:
            report.phase("average")
            return await self._p.butterfly.collector.gather(plan, plan.round.map_block)

        plan, held = await exchange(self._p, self._follower, start, gather)
        report.averaged()
        report.phase("settle")
        settled = await self._follower.settle(plan, held)
        report.settled(plan, settled.outcome, self._follower.root)
        await self.evaluator.evaluate(self._follower.state, plan.round.index)
        if self._follower.index % self._p.manifest.keep.checkpoint_every == 0:
            await self._publish()

    async def finish(self, patience_s: float = LAST_CHECKPOINT_S) -> None:
        """Wait for the last publication, for a while."""
        await self._publisher.finish(patience_s)

    async def cancel(self) -> None:
        await self._publisher.cancel()

    async def _publish(self) -> None:
        await self._publisher.offer(self._follower.index, self._follower.state, self._follower.root)

    async def _announce(self, ref: CheckpointRef) -> None:
        """Manifest hash and checkpoint digest on chain, unless they are there: a failed write may have happened."""
        p = self._p
        commitment = Commitment(
            role=Role.OWNER,
            reduces=False,
            peer_key=p.peer_key,
            run=p.manifest.tag,
            first_round=0,
            first=p.manifest.digest,
            second_round=ref.round,
            second=ref.digest,
            place=place_of(p.manifest.public.checkpoints),
        )
        me = (await p.chain.roster((await p.chain.head()).number)).by_public_key(p.signer.public_key)
        if me is None or me.commitment != commitment:
            await p.chain.commit(encode_commitment(commitment))
