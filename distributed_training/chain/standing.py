"""How safe a uid is: immunity, rank and the price of a place, in a line for its operator."""

from __future__ import annotations

from distributed_training.chain.subnet import SubnetFacts
from distributed_training.protocol.types import Neuron, Roster


def costs(facts: SubnetFacts) -> str:
    return facts.price + (", but registration is closed at present" if facts.registration_open is False else "")


def standing(facts: SubnetFacts, roster: Roster, me: Neuron) -> str:
    """As of the roster's block. A uid's emission is in proportion to incentive and dividends; who registers on a full
    subnet replaces the one with the least, of those that are no longer immune."""

    def immune_for(n: Neuron) -> int:
        return max(0, n.registered_block + (facts.immunity_blocks or 0) - roster.block.number)

    def worth(n: Neuron) -> tuple[float, int, int]:
        return n.incentive + n.dividends, n.registered_block, n.uid

    ahead, count = sum(worth(n)[0] > worth(me)[0] for n in roster.neurons), len(roster.neurons)
    free, said = facts.max_uids - facts.num_uids, [f"uid {me.uid}"]
    if left := immune_for(me):
        said.append(f"immune for another {left:,} blocks ({left * facts.block_s / 3600:.1f} h)")
    elif facts.immunity_blocks is not None:
        before = sum(not immune_for(n) and worth(n) < worth(me) for n in roster.neurons)
        said.append(f"no longer immune, {before} others would be replaced before it")
    earns = worth(me)[0] > 0
    said.append(
        f"rank {ahead + 1} of {count} by emission" if earns else f"no emission yet, {ahead} of {count} have some"
    )
    said.append(f"{free} places are free" if free > 0 else "no place is free")
    return f"{', '.join(said)}; registering now costs {costs(facts)}"
