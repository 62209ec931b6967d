"""What goes wrong in a simulation: a list of incidents drawn from the seed before the run starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distributed_training.protocol.manifest import RunManifest
from distributed_training.simulation.options import FaultKind, SimOptions

QUIET_ROUNDS = 2  # at the end: whatever was broken must be whole again


@dataclass(frozen=True, slots=True)
class Incident:
    """`kind` happens to `nodes` at `begin_s` and is over at `end_s`, in virtual seconds since block 0.

    kill: dead, then started again. add: a newcomer registers and starts. freeze: nothing moves. cut: the nodes see each
    other and nobody else. outage: nobody reaches the chain. fork: as long as it is not final the nodes see another
    block, without some miners' commitments. lag: every word from the chain takes them seconds. unfinal: no block
    becomes final.
    """

    kind: str
    begin_s: float
    end_s: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Times:
    """Where the rounds of a run lie."""

    manifest: RunManifest
    block_s: float

    def within(self, round_index: int, draw: random.Random) -> float:
        """Any moment of a round."""
        round_ = self.manifest.round(round_index)
        return draw.uniform(round_.start_block, round_.end_block) * self.block_s

    def averaging(self, round_index: int, draw: random.Random) -> float:
        """A moment between s+D and s+Y: the middle of the exchange."""
        round_ = self.manifest.round(round_index)
        return draw.uniform(round_.commit_block, round_.map_block) * self.block_s


def incidents(options: SimOptions, manifest: RunManifest, block_s: float) -> tuple[Incident, ...]:
    """In the order of their beginning; a node has one trouble at a time."""
    draw = random.Random(f"faults/{options.seed}/{options.faults}")
    times, drawn = _Times(manifest, block_s), list[Incident]()
    kinds: Sequence[FaultKind] = (
        ("churn", "partition", "crash", "freeze", "chain") if options.faults == "all" else (options.faults,)
    )
    for round_index in range(options.rounds - QUIET_ROUNDS):
        kind = draw.choice(list(kinds))
        maker = _MAKERS.get(kind)
        if maker is not None:
            drawn += maker(options, times, round_index, draw)
    return _apart(sorted(drawn, key=lambda i: i.begin_s), block_s)


Maker = Callable[[SimOptions, _Times, int, random.Random], list[Incident]]


def _churn(options: SimOptions, times: _Times, round_index: int, draw: random.Random) -> list[Incident]:
    """A node in twenty is killed somewhere in the round and started again within a round; now and then one joins."""
    found = []
    for name in _victims(options, draw, share=0.05):
        begin = times.within(round_index, draw)
        found.append(Incident("kill", begin, begin + draw.uniform(2, 60), (name,)))
    joined = 3 * options.spare // 4
    if draw.random() < joined / max(1, options.rounds):
        begin = times.within(round_index, draw)
        found.append(Incident("add", begin, begin, (f"miner-{options.miners + round_index}",)))
    return found


def _crash(options: SimOptions, times: _Times, round_index: int, draw: random.Random) -> list[Incident]:
    """A tenth of the nodes dies at one moment of the exchange and is back ten seconds later."""
    begin = times.averaging(round_index, draw)
    return [Incident("kill", begin, begin + 10.0, (name,)) for name in _victims(options, draw, share=0.1)]


def _freeze(options: SimOptions, times: _Times, round_index: int, draw: random.Random) -> list[Incident]:
    """A tenth of the nodes stands still for a while, each at its own time."""
    found = []
    for name in _victims(options, draw, share=0.1):
        begin = times.within(round_index, draw)
        found.append(Incident("freeze", begin, begin + draw.uniform(3, 40), (name,)))
    return found


def _partition(options: SimOptions, times: _Times, round_index: int, draw: random.Random) -> list[Incident]:
    """In every second round a tenth to four tenths of the nodes are cut off from the others; once the chain is out."""
    if round_index % 2:
        return []
    begin, share = times.within(round_index, draw), draw.uniform(0.1, 0.4)
    found = [Incident("cut", begin, begin + draw.uniform(5, 40), tuple(_victims(options, draw, share)))]
    if round_index and round_index % 6 == 0:
        begin = times.within(round_index, draw)
        found.append(Incident("outage", begin, begin + draw.uniform(2, 12), ()))
    return found


def _chain(options: SimOptions, times: _Times, round_index: int, draw: random.Random) -> list[Incident]:
    """Most rounds have a fork at s+D or s+X that half of the nodes see; else some lag, or finality stands still."""
    manifest, kind = times.manifest, draw.choice(["fork", "fork", "lag", "unfinal"])
    if kind == "fork":
        round_ = manifest.round(round_index)
        begin = draw.choice([round_.commit_block, round_.output_block]) * times.block_s
        end = begin + manifest.timing.finality * times.block_s
        return [Incident("fork", begin, end, tuple(_victims(options, draw, share=0.5)))]
    if kind == "lag":
        begin = times.within(round_index, draw)
        return [Incident("lag", begin, begin + draw.uniform(5, 40), tuple(_victims(options, draw, share=0.2)))]
    begin = times.averaging(round_index, draw)
    return [Incident("unfinal", begin, begin + draw.uniform(2, 20), ())]


_MAKERS: dict[str, Maker] = {
    "churn": _churn,
    "crash": _crash,
    "freeze": _freeze,
    "partition": _partition,
    "chain": _chain,
}


def _victims(options: SimOptions, draw: random.Random, share: float) -> list[str]:
    """About this share of all nodes, at least one; in uid order."""
    names = options.genesis_names()
    chosen = draw.sample(range(len(names)), max(1, round(share * len(names))))
    return [names[i] for i in sorted(chosen)]


def _apart(drawn: Sequence[Incident], block_s: float) -> tuple[Incident, ...]:
    """Without those that would begin before the former trouble of one of their nodes is over."""
    free_at: dict[str, float] = {}
    kept = []
    for incident in drawn:
        who = incident.nodes or ("chain",)
        if incident.kind == "cut":
            who = (*who, "cut")  # one partition at a time
        if all(free_at.get(name, 0.0) <= incident.begin_s for name in who):
            kept.append(incident)
            free_at |= dict.fromkeys(who, incident.end_s + block_s)
    return tuple(kept)
