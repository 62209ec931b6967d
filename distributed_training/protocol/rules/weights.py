"""Score terms + roster -> the weight vector a validator publishes (protocol section 8)."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum

from distributed_training.protocol.types import Roster, ScoreCard, ScoreTerms


def weight_vector(terms: Mapping[str, ScoreTerms], cards: Mapping[str, ScoreCard], roster: Roster) -> dict[int, float]:
    """Share per uid, in uid order, summing to 1; empty: nothing was scored, so set no weights.

    Both mappings are keyed by hotkey. Only a uid that still belongs to the scored registration, the same hotkey
    registered at the same block, is paid; what a vanished miner had goes to the others in proportion.
    """
    earned: dict[int, float] = {}
    for neuron in sorted(roster.neurons, key=lambda n: n.uid):
        card, scored = cards.get(neuron.hotkey), terms.get(neuron.hotkey)
        if card is None or scored is None or card.registered_block != neuron.registered_block:
            continue
        if scored.weight > 0.0:
            earned[neuron.uid] = scored.weight
    total = fsum(earned.values())
    return {uid: weight / total for uid, weight in earned.items()}
