"""What every node does in every round, whatever its role: follow the chain from one public state to the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.combine import SliceOutput, combine, discarded
from distributed_training.averaging.plan import RoundPlan, make_plan
from distributed_training.errors import LocalFault, SlicesMissing, StateDiverged, named
from distributed_training.protocol.rules import lost as lost_rule
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.rules.clock import averaged_at
from distributed_training.protocol.rules.lost import Later, Settling
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import AverageOutcome, Roster, Round, WorkRecord
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import attempt, tell
from distributed_training.training.outer import RunState, Vector, outer_step, state_root

log = logging.getLogger(__name__)

Lacking = Callable[[Mapping[int, SliceOutput], Round], Awaitable[None]]  # what we have; the round that is under way


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
        self._unsure: tuple[Settling, ...] = ()  # rounds that we have settled and that may lose slices still
        self._void_to = -1  # rounds up to this one are discarded: a slice of the one before them was lost
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
        await self._parts.clock.final(start.round.commit_block)
        return self.plan_as_of(start, await self._parts.chain.roster(start.round.commit_block))

    def plan_as_of(self, start: RoundStart, at_commit: Roster) -> RoundPlan:
        p = self._parts
        plan = make_plan(
            p.manifest,
            start.round,
            roster=start.roster,
            at_commit=at_commit,
            beacon=start.beacon,
            state_root=self.root,
            carry=self.state.carry,
            num_coords=len(self.state.params),
        )
        who = [c.uid for c in plan.candidates]
        log.debug("round %d: %d slices, work of uids %s", start.round.index, len(plan.slices), who)
        return plan

    async def settle(
        self,
        plan: RoundPlan,
        held: Mapping[int, SliceOutput],
        *,
        keep_params: bool = False,
        lacking: Lacking | None = None,
    ) -> Settled:
        """Wait for finalised s+Y, learn what counts, take the outer step or discard the round.

        The step is taken where the state lies (`outer_step`): the former state is gone then, but for its parameters
        where somebody goes on to look at them (`keep_params`), until they are given back. lacking: says on chain, once
        in each later round, what we have of this one while we cannot complete it.
        """
        p = self._parts
        await p.clock.final(plan.round.map_block)
        at_map = await p.chain.roster(plan.round.map_block)
        self._check_root(plan, at_map)
        await self._check_former(Later(plan.round, plan.voters, at_map))
        wanted = await p.butterfly.collector.wanted(plan, plan.round.output_block)
        maps = membership.slice_maps(plan.round, len(plan.slices), plan.voters, at_map)
        counted = membership.counted_slices(len(plan.slices), wanted, maps, plan.voters, p.manifest.average)
        if plan.round.index <= self._void_to:
            counted = membership.Counted((), lost_rule.VOID, {})
        outputs = dict(held)
        if counted.slices:
            counted, outputs = await self._complete(plan, counted, wanted, held, lacking)
        if counted.slices:
            outcome = await self._apply(plan, counted, outputs, keep_params)
        else:
            outcome = discarded(plan, counted.reason)
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

        What does not fit on the disk is said, and tried again after the next round. While discarded rounds follow,
        the last of them is waited for: who started from the state before would not know that they are.
        """
        if self._saved == self.index or self._lost:
            return
        if self.index <= self._void_to:
            self._unsaved = True
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
        lacking: Lacking | None,
    ) -> tuple[membership.Counted, dict[int, SliceOutput]]:
        """What counts in the end, and all of it; a node that lacks a slice keeps asking and sits out rounds until it
        has it, or the chain says that it is lost."""
        settling = Settling(plan.round, len(plan.slices), counted)
        lost, have = await self._lost_of(settling), dict(held)
        while True:
            counted = lost_rule.without(counted, lost, self._parts.manifest.average) if lost else counted
            missing = {j: wanted[j] for j in counted.slices if j not in have}
            if not missing:
                break
            lost = await self._fetch(settling, plan, missing, have, lost, lacking)
        if lost is None:
            self._unsure = (*self._unsure, settling)
        return counted, {j: have[j] for j in counted.slices} if counted.slices else have

    async def _fetch(
        self,
        settling: Settling,
        plan: RoundPlan,
        missing: Mapping[int, membership.Claim],
        have: dict[int, SliceOutput],
        lost: tuple[int, ...] | None,
        lacking: Lacking | None,
    ) -> tuple[int, ...] | None:
        """Until all that is missing is there, or slices are lost and `lost` did not say so; what `_lost_of` said last.

        Raises SlicesMissing where others have gone on and nobody gives them to us.
        """
        p, told, loop = self._parts, plan.round.index, asyncio.get_running_loop()
        give_up = loop.time() + p.manifest.keep.max_missing_rounds * p.manifest.timing.length * p.clock.block_s
        fetch = p.butterfly.collector.fetch(plan, missing, settling.counted.holders, have)
        fetching = asyncio.create_task(fetch, name="complete")
        try:
            while not fetching.done():  # who can be asked changes while we wait
                await self._meet_peers()
                if lost is None and (lost := await self._lost_of(settling)):
                    return lost
                if lost is not None and loop.time() >= give_up:
                    lacks, rounds = sorted(missing.keys() - have.keys()), p.manifest.keep.max_missing_rounds
                    text = f"slices {lacks} count but nobody gave them to us within {rounds} rounds"
                    raise SlicesMissing(f"round {plan.round.index}: {text}")
                now = p.manifest.round(averaged_at(p.manifest.timing, p.clock.head) or 0)
                await asyncio.wait({fetching}, timeout=2 * p.clock.block_s)
                open_ = now.index > told and now.output_block <= p.clock.head < now.map_block
                if lacking is not None and lost is None and open_ and not fetching.done():
                    told = now.index
                    await lacking(have, now)
            fetching.result()
            return lost
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    async def _lost_of(self, settling: Settling) -> tuple[int, ...] | None:
        """`lost_slices` as of the first later round in which that is decided; None: in none that is final. The rounds
        up to that one are discarded."""
        p, index = self._parts, settling.round.index
        while p.manifest.round(index := index + 1).map_block <= p.clock.finalized:
            round_ = p.manifest.round(index)
            who = voters(p.manifest, await p.chain.roster(round_.roster_block))
            later = Later(round_, who, await p.chain.roster(round_.map_block))
            lost = lost_rule.lost_slices(settling, later, p.manifest.average)
            if lost is not None:
                self._void_to = index if lost else self._void_to
                return lost
        return None

    async def _check_former(self, later: Later) -> None:
        """Of rounds that we have settled: what is lost by now is in our state, so it is not the one to go on from."""
        left = list[Settling]()
        for settling in self._unsure:
            lost = lost_rule.lost_slices(settling, later, self._parts.manifest.average)
            if lost:
                index = settling.round.index
                await asyncio.to_thread(self._parts.store.states.drop_from, index + 1)
                raise StateDiverged(f"round {index}: slices {list(lost)}, which we hold, are lost for everybody else")
            left += [settling] if lost is None else []
        self._unsure = tuple(left)

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
