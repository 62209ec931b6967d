"""Am I safe, and is it the run or the chain? From the chain alone: for a node's events, for the page, for people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING

from distributed_training.chain.base import Chain, Head
from distributed_training.errors import ConfigError, LocalFault, StatePruned, named
from distributed_training.metrics import events
from distributed_training.metrics.base import Metrics
from distributed_training.ongoing import Ongoing
from distributed_training.operator.standing import LAST_BLOCKS, before, standings
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Neuron, Roster, Round
from distributed_training.stillness import clocks

if TYPE_CHECKING:
    from distributed_training.chain.client import BittensorChain
    from distributed_training.chain.subnet import SubnetFacts  # both load bittensor

ROUNDS = 3  # the newest, by which a run is judged
LATE_BLOCKS = 10  # the head is that old, or
LEAST_LATE_S = 30.0
FINAL_BLOCKS = 20  # so far ahead of the newest final block: a chain in trouble
CHAIN_BLOCKS = 10  # between two `chain` events: they cost no request
LOOK_BLOCKS = 100  # between two looks at the rest: some 30 requests, and rosters that a node keeps

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundSeen:
    """What the chain shows of one round once its block s+Y is final."""

    index: int
    applied: bool
    reason: str  # "applied", or why it was discarded
    candidates: int
    map_share: float  # of the voters' stake that committed a slice map
    counted: int  # slices
    end_block: int


Rounds = tuple[RoundSeen, ...]


def round_seen(manifest: RunManifest, round_: Round, roster: Roster, at_commit: Roster, at_map: Roster) -> RoundSeen:
    """roster as of s-B, the others as of s+D and s+Y. Which miners reduce follows from the state, which is not asked
    for: as many slices as willing miners are looked at, and a slice counts that validators say they hold."""
    members, who = membership.candidates(round_, roster, at_commit, manifest), voters(manifest, roster)
    num_slices = min(sum(c.reduces for c in members), manifest.average.max_reducers)
    maps = membership.slice_maps(round_, num_slices, who, at_map)
    found = membership.counted_slices(num_slices, range(num_slices), maps, who, manifest.average)
    stake = fsum(n.stake for n in who)
    return RoundSeen(
        index=round_.index,
        applied=bool(found.slices),
        reason=found.reason if members else "no miner committed its work",
        candidates=len(members),
        map_share=fsum(n.stake for n in who if n.public_key in maps) / stake if stake else 0.0,
        counted=len(found.slices),
        end_block=round_.end_block,
    )


async def rounds_seen(chain: Chain, manifest: RunManifest, final_block: int, before: Rounds = ()) -> Rounds:
    """The newest rounds whose maps are final, oldest first; without those whose blocks the chain's node has dropped.
    before: of an earlier look, which are not asked for again."""
    t, found = manifest.timing, {seen.index: seen for seen in before}
    newest = (final_block - t.map - t.first_block) // t.length
    wanted = range(max(0, newest - ROUNDS + 1), newest + 1)
    for round_ in (manifest.round(index) for index in wanted if index not in found):
        with suppress(StatePruned):
            blocks = (round_.roster_block, round_.commit_block, round_.map_block)
            found[round_.index] = round_seen(manifest, round_, *[await chain.roster(block) for block in blocks])
    return tuple(found[index] for index in wanted if index in found)


def verdict(
    manifest: RunManifest, facts: SubnetFacts, head: Head, roster: Roster, rounds: Sequence[RoundSeen], now_s: float
) -> events.Verdict:
    """facts and roster as of the head, rounds as `rounds_seen` gives them, now_s by this machine's clock (Unix)."""
    age_s = None if facts.timestamp_s is None else now_s - facts.timestamp_s
    chain, run = _chain_troubles(facts, head, age_s), _run_troubles(manifest, roster, rounds)
    news = [facts.untested] if facts.untested else []
    if run:  # that a run stops under rules that nobody tested is no accident
        chain, news = chain + news, []
    word = "the chain" if chain else "the run" if run else "all well" if rounds else "not known"
    reasons = (*chain, *run, _progress(manifest, head, rounds, facts.block_s), *news)
    return events.Verdict(facts.block, word, reasons, age_s, facts.spec_version)


def _chain_troubles(facts: SubnetFacts, head: Head, age_s: float | None) -> list[str]:
    said = list[str]()
    if age_s is not None and age_s > max(LEAST_LATE_S, LATE_BLOCKS * facts.block_s):
        said.append(f"the newest block is {age_s:.0f} s old, one is due every {facts.block_s:g} s")
    if head.number - head.finalized > FINAL_BLOCKS:
        said.append(f"the newest {head.number - head.finalized} blocks are not final")
    return said


def _run_troubles(manifest: RunManifest, roster: Roster, rounds: Sequence[RoundSeen]) -> list[str]:
    average, said = manifest.average, list[str]()
    if rounds and not rounds[-1].applied:
        last = rounds[-1]
        maps = f"{last.map_share:.0%} of its validators' stake sent slice maps, {average.min_map_share:.0%} needed"
        said.append(f"round {last.index} was discarded: {last.reason} (miners in it: {last.candidates}; {maps})")
    if rounds and not voters(manifest, roster):
        said.append(
            f"no round can count at present: its validators hold less than {average.min_voter_share:.0%} of the stake "
            "that may validate"
        )
    return said


def _progress(manifest: RunManifest, head: Head, rounds: Sequence[RoundSeen], block_s: float) -> str:
    if not rounds:
        first = manifest.round(0).map_block - head.finalized
        return (
            f"the run begins: its first round is decided in {first} blocks" if first > 0 else "no round could be read"
        )
    applied = [r for r in rounds if r.applied]
    discarded = "".join(f"; round {r.index} was discarded: {r.reason}" for r in rounds[:-1] if not r.applied)
    if not applied:
        return f"none of the last {len(rounds)} rounds was applied"
    last = applied[-1]
    ago = max(0, head.number - last.end_block)
    return (
        f"round {last.index} was applied, {ago} blocks ({ago * block_s / 60:.0f} min) ago; "
        f"miners in it: {last.candidates}; maps of {last.map_share:.0%} of its validators' stake{discarded}"
    )


@dataclass(frozen=True, slots=True)
class Look:
    facts: SubnetFacts
    head: Head
    roster: Roster  # of the head
    rounds: Rounds
    verdict: events.Verdict


async def look(client: BittensorChain, chain: Chain, manifest: RunManifest, before: Rounds = ()) -> Look:
    """client: who is asked about the subnet; chain: the same, or what keeps its rosters; before: the rounds of the last
    look. Raises ChainFault."""
    from distributed_training.chain.subnet import subnet_facts

    facts = await client.ask(lambda asked: subnet_facts(asked, manifest.netuid))
    head, roster = await chain.head(), await chain.roster(facts.block)
    rounds = await rounds_seen(chain, manifest, head.finalized, before)
    return Look(facts, head, roster, rounds, verdict(manifest, facts, head, roster, rounds, clocks()[0]))


class Watch:
    """What a node's events say of its uid, the run and the chain, for as long as it lives."""

    def __init__(
        self, client: BittensorChain, chain: Chain, manifest: RunManifest, me: Neuron, metrics: Metrics
    ) -> None:
        self._client, self._chain, self._manifest, self._me, self._metrics = client, chain, manifest, me, metrics
        self._next_look, self._warned = 0, False
        self._blind = Ongoing(log, "no look at the subnet", "the subnet can be looked at again")

    async def run(self, block_s: float) -> None:
        """Until cancelled. What cannot be asked is asked the next time: nothing here is worth a node's end."""
        while True:
            try:
                head = await self._chain.head()
                self._metrics.emit(events.Chain(block=head.number, finalized=head.finalized))
                if head.number >= self._next_look:
                    await self._look()
                    self._next_look = head.number + LOOK_BLOCKS
            except (LocalFault, ConfigError) as error:
                log.debug("no look at the subnet: %s", error)
            await asyncio.sleep(CHAIN_BLOCKS * block_s)

    async def _look(self) -> None:
        try:
            self._tell(await look(self._client, self._chain, self._manifest))
            self._blind.end()
        except (LocalFault, ConfigError):
            raise
        except Exception as error:  # the edge: a runtime of tomorrow may say it in other types
            self._blind.begin(named(error))

    def _tell(self, seen: Look) -> None:
        self._metrics.emit(seen.verdict)
        mine = standings(seen.facts, seen.roster).get(self._me.uid)
        if mine is None:
            return  # the node ends for that elsewhere
        self._metrics.emit(mine)
        if mine.immune_blocks is not None and 0 < mine.immune_blocks <= LAST_BLOCKS and not self._warned:
            self._warned, hours = True, mine.immune_blocks * seen.facts.block_s / 3600
            log.warning(
                "the immunity of uid %d ends in %d blocks (%.1f h); by what is earned now, %s",
                self._me.uid, mine.immune_blocks, hours, before(mine),
            )  # fmt: skip
