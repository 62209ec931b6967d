"""What every node does in every round, whatever its role: follow the chain from one public state to the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.combine import SliceOutput, combine, discarded
from distributed_training.averaging.plan import RoundPlan, make_plan
from distributed_training.errors import LocalFault, SlicesMissing, StateDiverged, named
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.types import AverageOutcome, Roster, Round, WorkRecord
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import attempt, tell
from distributed_training.training.outer import RunState, Vector, outer_step, state_root

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundStart:
    """Known at finalised s-B."""

    round: Round
    roster: Roster
    beacon: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    outcome: AverageOutcome
    works: Mapping[bytes, WorkRecord]  # public key -> record, of every slice this node saw


class Follower:
    """Holds the state and the index of the next round; both move only in `settle`."""

    def __init__(self, parts: Parts, index: int, state: RunState, *, trusted: bool) -> None:
        """trusted: the state's root is known to be the majority's; until then the node contributes nothing.

        A former process of ours that held this very state and contributed with it would have gone on.
        """
        self._parts = parts
        self.start_from(index, state, trusted=trusted)

    def start_from(self, index: int, state: RunState, *, trusted: bool) -> None:
        """Hold another state from now on. As in the constructor."""
        self.index, self.state = index, state
        self._saved: int | None = None
        self._unsaved = False
        self._spare: Vector | None = None
        self._lost = ""  # why `state` is nobody's any more
        self.root = state_root(state, self._parts.manifest.average.chunk_coords)
        self.trusted = trusted or self._parts.journal.is_trusted(index, self.root)

    async def prepare(self) -> RoundStart:
        """Wait for the round's roster and assignment beacon. Raises StateDiverged for a state that was lost before."""
        if self._lost:
            raise StateDiverged(self._lost)
        p, round_ = self._parts, self._parts.manifest.round(self.index)
        await p.clock.final(round_.roster_block)
        roster = await p.chain.roster(round_.roster_block)
        await self._meet_peers()
        beacon = assignment_beacon(roster.block.hash, p.manifest.netuid, round_.index)
        return RoundStart(round_, roster, beacon)

    async def plan(self, start: RoundStart) -> RoundPlan:
        """Wait for finalised s+D; candidates and slices follow."""
        p = self._parts
        await p.clock.final(start.round.commit_block)
        plan = make_plan(
            p.manifest,
            start.round,
            roster=start.roster,
            at_commit=await p.chain.roster(start.round.commit_block),
            beacon=start.beacon,
            state_root=self.root,
            carry=self.state.carry,
            applied=self.state.applied,
            num_coords=len(self.state.params),
        )
        who = [c.uid for c in plan.candidates]
        log.debug("round %d: %d slices, work of uids %s", start.round.index, len(plan.slices), who)
        return plan

    async def settle(self, plan: RoundPlan, held: Mapping[int, SliceOutput], *, keep_params: bool = False) -> Settled:
        """Wait for finalised s+Y, learn what counts, take the outer step or discard the round.

        The step is taken where the state lies (`outer_step`): the former state is gone then, but for its parameters
        where somebody goes on to look at them (`keep_params`), until they are given back.
        """
        p = self._parts
        await p.clock.final(plan.round.map_block)
        at_map = await p.chain.roster(plan.round.map_block)
        self._check_root(plan, at_map)
        wanted = await p.butterfly.collector.wanted(plan, plan.round.output_block)
        maps = membership.slice_maps(plan.round, len(plan.slices), plan.voters, at_map)
        counted = membership.counted_slices(len(plan.slices), wanted, maps, plan.voters, p.manifest.average)
        if not counted.slices:
            outputs, outcome = dict(held), discarded(plan, counted.reason)
        else:
            outputs = await self._complete(plan, counted, wanted, held)
            outcome = await self._apply(plan, counted, outputs, keep_params)
        self.index += 1
        if self.trusted:
            attempt(p, self.index, "disk", lambda: p.journal.save_trusted(self.index, self.root))
        if self.index % p.manifest.keep.snapshot_every == 0 or self._unsaved:
            await self.save()
        keep = p.manifest.keep
        p.store.prune(self.index, max(keep.work_rounds, keep.output_rounds), keep.work_rounds)
        works = {key: work for output in (*held.values(), *outputs.values()) for key, work in output.works.items()}
        return Settled(outcome, works)

    async def save(self) -> None:
        """Write the state as a snapshot from which the node can start again. Idempotent.

        What does not fit on the disk is said, and tried again after the next round.
        """
        if self._saved == self.index or self._lost:
            return
        try:
            await asyncio.to_thread(self._parts.store.put_state, self.index, self.state)
        except LocalFault as error:
            self._unsaved = True
            tell(self._parts, self.index, "disk", error)
        else:
            self._saved, self._unsaved = self.index, False

    def give_back(self, params: Vector) -> None:
        """Kept parameters that nobody looks at any more: their memory is used again."""
        self._spare = params

    async def _apply(
        self, plan: RoundPlan, counted: membership.Counted, outputs: Mapping[int, SliceOutput], keep_params: bool
    ) -> AverageOutcome:
        spare, self._spare = self._spare, None

        def work() -> tuple[AverageOutcome, RunState, bytes]:
            outer = self._parts.manifest.outer
            made = combine(plan, counted, outputs, self._parts.manifest)
            into = None if not keep_params else np.empty_like(self.state.params) if spare is None else spare
            try:
                state, root = outer_step(self.state, made.averages(plan.layout), made.carry, outer, into)
            except Exception as error:
                self.trusted, self._lost = False, f"our state is lost half way through the outer step: {named(error)}"
                raise StateDiverged(self._lost) from error
            return made.outcome, state, root

        outcome, self.state, self.root = await asyncio.to_thread(work)
        return outcome

    async def _complete(
        self,
        plan: RoundPlan,
        counted: membership.Counted,
        wanted: Mapping[int, membership.Claim],
        held: Mapping[int, SliceOutput],
    ) -> dict[int, SliceOutput]:
        """Every counted slice; a node that lacks one keeps asking and sits out rounds until it has it."""
        p = self._parts
        have = {j: held[j] for j in counted.slices if j in held}
        missing = {j: wanted[j] for j in counted.slices if j not in have}
        give_up_s = p.manifest.keep.max_missing_rounds * p.manifest.timing.length * p.clock.block_s
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(
                p.butterfly.collector.fetch(plan, missing, give_up_s, counted.holders), name="complete"
            )
            while not fetching.done():  # who can be asked changes while we wait
                await self._meet_peers()
                await asyncio.wait({fetching}, timeout=2 * p.clock.block_s)
        have |= fetching.result()
        if len(have) < len(counted.slices):
            lacking, rounds = sorted(set(counted.slices) - set(have)), p.manifest.keep.max_missing_rounds
            raise SlicesMissing(
                f"round {plan.round.index}: slices {lacking} count but nobody gave them to us within {rounds} rounds"
            )
        return have

    async def _meet_peers(self) -> None:
        """Who there is now: a node that catches up is not on the roster of the round it settles.

        Only a roster that holds ourselves lets us say who we are.
        """
        p = self._parts
        p.peers.update(await p.chain.roster(p.clock.finalized))

    def _check_root(self, plan: RoundPlan, at_map: Roster) -> None:
        """A root that the majority does not share means that we cannot go on (protocol section 3, healing)."""
        majority = membership.majority_root(plan.round, plan.voters, at_map)
        self.trusted = self.trusted or majority == self.root
        if majority is not None and majority != self.root:
            raise StateDiverged(
                f"our state at the start of round {plan.round.index} has root {self.root.hex()[:16]}, the majority of "
                f"stake {majority.hex()[:16]}"
            )
