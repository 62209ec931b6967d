"""Score terms + roster -> the weights a validator publishes, as the chain takes them (protocol section 8)."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum, isclose

from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.observed import ScoreCard, ScoreTerms
from distributed_training.protocol.rules.scoring import terms
from distributed_training.protocol.types import Roster, SubnetParams

U16_MAX = 65535
NOTHING_SCORED = "nothing scored"
_FINE = 1 << 32  # units of the largest share


def weight_vector(scored: Mapping[str, ScoreTerms], cards: Mapping[str, ScoreCard], roster: Roster) -> dict[int, float]:
    """Share per uid, in uid order, summing to 1; empty: nothing was scored, so set no weights.

    Both mappings are keyed by hotkey. Only a uid that still belongs to the scored registration, the same hotkey
    registered at the same block, is paid; what a vanished miner had goes to the others in proportion.
    """
    earned: dict[int, float] = {}
    for neuron in sorted(roster.neurons, key=lambda n: n.uid):
        card, found = cards.get(neuron.hotkey), scored.get(neuron.hotkey)
        if card is None or found is None or card.registered_block != neuron.registered_block:
            continue
        if found.weight > 0.0:
            earned[neuron.uid] = found.weight
    total = fsum(earned.values())
    return {uid: weight / total for uid, weight in earned.items()}


def row_to_send(
    cards: Mapping[str, ScoreCard], round_index: int, roster: Roster, params: SubnetParams, manifest: RunManifest
) -> tuple[dict[int, int], str]:
    """What cards folded up to `round_index` earn: (u16 per uid as the chain will store them, ""), or (nothing, why
    nothing can be sent, in one line).

    `roster` and `params` are of the head: they name the owner's uid, which gets the burn share of the whole.
    """
    earned = weight_vector(terms(cards, round_index, manifest.scoring), cards, roster)
    outdated = outdated_key(manifest.version_key, params)
    if outdated or not earned:
        return {}, outdated or NOTHING_SCORED
    owner, burn = roster.by_hotkey(params.owner_hotkey), manifest.scoring.burn_share
    if burn > 0.0 and owner is not None:
        earned = {uid: share * (1.0 - burn) for uid, share in earned.items()}
        earned[owner.uid] = earned.get(owner.uid, 0.0) + burn
    shares = {uid: share for uid, share in earned.items() if share > 0.0}
    needed = max(params.min_allowed_weights, -(-U16_MAX // max(1, params.max_weight_limit)))
    if len(shares) < needed:
        return {}, (
            f"{len(shares)} uids have earned a weight and the subnet asks for {needed} or more (min_allowed_weights "
            f"{params.min_allowed_weights}, max_weights_limit {params.max_weight_limit}): more miners that pass their "
            "audits help, or an owner who lowers the first or raises the second"
        )
    return u16_weights(shares, params.max_weight_limit), ""


def outdated_key(version_key: int, params: SubnetParams) -> str:
    """Who is behind, in one line; empty when the subnet takes weights of this version or of older ones too."""
    if version_key >= params.version_key:
        return ""
    return (
        f"the subnet takes weights of version {params.version_key} and newer, this run's manifest has version_key "
        f"{version_key}: update this node, and join the run that the subnet's owner announces now"
    )


def u16_weights(shares: Mapping[int, float], limit: int) -> dict[int, int]:
    """Positive shares of any scale -> u16 with the largest at 65535, none above limit/65535 of their sum.

    In whole numbers, and rounded up: whoever has a share keeps one, and what is above the limit is cut to it by making
    the others larger, never smaller. There have to be enough of them: len(shares) * limit >= 65535.
    """
    best = max(shares.values())
    units = {uid: max(1, round(share / best * _FINE)) for uid, share in sorted(shares.items())}
    ordered = sorted(units.values(), reverse=True)
    rest, cut = sum(ordered), 0
    while ordered[cut] * (U16_MAX - cut * limit) > limit * rest:  # the largest that is not cut is above the cap
        rest, cut = rest - ordered[cut], cut + 1
    above, below = (U16_MAX - cut * limit, limit * rest) if cut else (1, ordered[0])  # 1/cap
    return {uid: min(U16_MAX, -(-unit * U16_MAX * above // below)) for uid, unit in units.items()}


def appears(block: int, params: SubnetParams) -> tuple[int, int]:
    """The first and the last block in which a row that was sent in `block` has to come up on chain.

    A commit of one epoch is revealed in the one `reveal_period` later, before that ends.
    """
    if not params.commit_reveal:
        return block, block
    end = params.next_epoch_block or block + params.tempo
    end += ((block - end) // max(1, params.tempo) + 1) * params.tempo  # `params` may be of an epoch later, or earlier
    return end + (params.reveal_period - 1) * params.tempo, end + params.reveal_period * params.tempo - 1


def row_differs(sent: Mapping[int, int], shown: Mapping[int, float]) -> str | None:
    """What the chain shows (shares) against the row that was sent, in one phrase; None: the same."""
    total = sum(sent.values())
    other = [
        uid
        for uid in sorted(set(sent) | set(shown))
        if not isclose(sent.get(uid, 0) / total, shown.get(uid, 0.0), rel_tol=1e-6)
    ]
    if not other:
        return None
    first = other[0]
    was, is_ = sent.get(first, 0) / total, shown.get(first, 0.0)
    return f"{len(other)} of {len(sent)} shares differ, uid {first} has {is_:.5f} instead of {was:.5f}"


def burn_price(burn_share: float) -> str:
    """What a burn share costs, in one line; empty without one. The chain scales a subnet's emission by the rest."""
    if burn_share <= 0.0:
        return ""
    return (
        f"burn_share {burn_share:g}: the whole subnet's emission is scaled to {100 * (1 - burn_share):.4g} %, for "
        "everybody in it"
    )
