"""A reorganised head, for simulations and tests: a branch that some clients of a `Ledger` see until it is dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace

from distributed_training.protocol.types import BlockRef, Neuron, Roster


@dataclass(frozen=True, slots=True)
class Fork:
    """It lacks some commitments, as if they had got into later blocks of it, and its blocks have other hashes."""

    first: int  # its first block
    until: int  # the head from which on they see the chain's own blocks: at most first + finality
    seen_by: frozenset[str]  # hotkeys
    lacks: frozenset[str]  # hotkeys of whom it has no commitment ...
    since: int  # ... of this block or a later one

    def instead_of(self, roster: Roster, before: Roster) -> Roster:
        """What it has in the place of a block's roster. before: as of the block before `since`."""
        block = BlockRef(roster.block.number, bytes(byte ^ 0xFF for byte in roster.block.hash))
        return Roster(block, tuple(self._neuron(n, before) if n.hotkey in self.lacks else n for n in roster.neurons))

    def _neuron(self, neuron: Neuron, before: Roster) -> Neuron:
        former = before.by_hotkey(neuron.hotkey)
        said = (None, None) if former is None else (former.commitment, former.commitment_block)
        return replace(neuron, commitment=said[0], commitment_block=said[1])
