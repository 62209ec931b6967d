"""How safe a uid is: what decides whether it keeps its place on the subnet. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distributed_training.metrics.events import Standing
from distributed_training.protocol.types import Neuron, Roster

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts  # alone: it loads bittensor

LAST_BLOCKS = 1800  # of immunity, 6 h of 12 s: what comes then is said
NEXT_ONES = 5  # uids that may be replaced before anybody has looked


def standings(facts: SubnetFacts, roster: Roster) -> dict[int, Standing]:
    """Of every uid, as of the roster's block. Emission is in proportion to incentive and dividends; who registers on a
    full subnet replaces the uid with the least, of those that are no longer immune, or of all where all are immune; of
    equals the older one, then the lower uid. Never the subnet owner's."""

    def immune_for(n: Neuron) -> int:
        return max(0, n.registered_block + (facts.immunity_blocks or 0) - roster.block.number)

    def worth(n: Neuron) -> tuple[float, int, int]:
        return n.incentive + n.dividends, n.registered_block, n.uid

    worths = sorted((worth(n)[0] for n in roster.neurons), reverse=True)
    others = [n for n in roster.neurons if n.hotkey != facts.owner_hotkey]
    prunable = sorted(worth(n) for n in [n for n in others if not immune_for(n)] or others)
    return {
        n.uid: Standing(
            block=roster.block.number,
            immune_blocks=None if facts.immunity_blocks is None else immune_for(n),
            rank=1 + worths.index(worth(n)[0]),
            of=len(worths),
            earns=worth(n)[0] > 0,
            prunable_rank=None if n.hotkey == facts.owner_hotkey else 1 + sum(w < worth(n) for w in prunable),
            prunable=len(prunable),
            free_places=max(0, facts.max_uids - facts.num_uids),
            price_tao=facts.price_tao,
            collateral=None if facts.collateral is None else facts.collateral.get(n.uid, 0.0),
        )
        for n in roster.neurons
    }


def costs(facts: SubnetFacts) -> str:
    return facts.price + (", but registration is closed at present" if facts.registration_open is False else "")


def before(s: Standing) -> str:
    """What stands between it and being replaced, once it is not immune."""
    rank = s.prunable_rank
    return "never replaced: it is the owner's" if rank is None else f"{rank - 1} others would be replaced before it"


def told(uid: int, s: Standing, facts: SubnetFacts) -> str:
    """In a line, for its operator."""
    said = [f"uid {uid}"]
    if s.immune_blocks:
        said.append(f"immune for another {s.immune_blocks:,} blocks ({s.immune_blocks * facts.block_s / 3600:.1f} h)")
    elif s.immune_blocks is not None:
        said.append(f"no longer immune, {before(s)}")
    said.append(
        f"rank {s.rank} of {s.of} by emission" if s.earns else f"no emission yet, {s.rank - 1} of {s.of} have some"
    )
    said.append(f"{s.free_places} places are free" if s.free_places else "no place is free")
    return f"{', '.join(said)}; registering now costs {costs(facts)}"


def word(s: Standing) -> str:
    """safe, watch, or danger: among the next ones to be replaced when somebody registers."""
    if s.prunable_rank is None or s.free_places:
        return "safe"
    if s.immune_blocks and s.prunable < s.of - 1:  # where all are immune, but for the owner's, nobody is
        return "watch" if s.immune_blocks <= LAST_BLOCKS and s.prunable_rank <= NEXT_ONES else "safe"
    return "danger" if s.prunable_rank <= NEXT_ONES else "watch" if s.prunable_rank <= 3 * NEXT_ONES else "safe"
