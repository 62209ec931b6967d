"""Who reduces, and how much of the vector: by what each earned, read from the chain (protocol section 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate

from distributed_training.protocol.rules.weights import U16_MAX
from distributed_training.protocol.sections import AverageSection
from distributed_training.protocol.types import Candidate, Carry, Roster, SliceSpec

FAILED_ROUNDS = 8  # a reducer whose slice failed is given none in this many applied rounds

Weights = Sequence[tuple[Candidate, int]]  # reducers in slice order, each with its weight > 0


def earned(roster: Roster) -> dict[bytes, int]:
    """Public key -> incentive of the chain's last epoch in its own steps, 0..65535."""
    return {n.public_key: round(n.incentive * U16_MAX) for n in roster.neurons}


def reducers(
    members: Sequence[Candidate], incentive: Mapping[bytes, int], carry: Carry, beacon: bytes, average: AverageSection
) -> list[tuple[Candidate, int]]:
    """In slice order, H(A | public key): the willing of whom no slice failed lately, weighted by incentive.

    While fewer than `min_counted` of them have any, as in a new run, all of them alike; if there are no `min_counted`
    of them either, everybody willing. An identity without pay reduces nothing: a newcomer, a thrown-away one, a cheat
    that validators have found out.
    """
    willing = [c for c in members if c.reduces]
    failed = {key for entry in carry.failed for key in entry}
    sound = [c for c in willing if c.public_key not in failed]
    chosen = [(c, incentive.get(c.public_key, 0)) for c in sound if incentive.get(c.public_key, 0) > 0]
    if len(chosen) < average.min_counted:
        chosen = [(c, 1) for c in (sound if len(sound) >= average.min_counted else willing)]
    chosen.sort(key=lambda pair: blake2b(beacon + pair[0].public_key, digest_size=32).digest())
    return chosen[: average.max_reducers]


def slices(ordered: Weights, num_chunks: int, average: AverageSection) -> tuple[SliceSpec, ...]:
    """Consecutive runs of chunks that cover all, in proportion to weight; whoever's would be empty has none.

    Nobody has more than twice the weighted mean share, 2 * sum w^2 / (sum w)^2: twice an equal share among equals. (A
    cap by head count would hand the vector to whoever registers many small identities; this one moves an eighth of the
    chunks at most, whatever the weights.) Fewer than `min_counted` slices: equal
    ones, for a round of fewer does not count.
    """
    if not ordered or num_chunks <= 0:
        return ()
    found = _cut(ordered, _capped([w for _, w in ordered], num_chunks))
    if len(found) < min(average.min_counted, len(ordered), num_chunks):
        n = min(len(ordered), num_chunks)
        found = _cut(ordered[:n], _capped([1] * n, num_chunks))
    return tuple(found)


def _cut(ordered: Weights, sizes: Sequence[int]) -> list[SliceSpec]:
    ends = list(accumulate(sizes))
    filled = [(end - size, end, c.public_key) for (c, _), size, end in zip(ordered, sizes, ends, strict=True) if size]
    return [SliceSpec(j, first, last, key) for j, (first, last, key) in enumerate(filled)]


def _capped(weights: Sequence[int], num_chunks: int) -> list[int]:
    """Chunks for each, together `num_chunks`: the running sum of weights, rounded, so that the beacon's order shares
    out the rest. What the cap takes goes to the others by weight."""
    total = sum(weights)
    cap = -(-2 * num_chunks * sum(w * w for w in weights) // (total * total))
    full: set[int] = set()
    while True:
        left, rest = num_chunks - cap * len(full), total - sum(weights[j] for j in full)
        over = {j for j, w in enumerate(weights) if j not in full and w * left > cap * rest}
        if not over:
            break
        full |= over
    sums = accumulate((0 if j in full else w for j, w in enumerate(weights)), initial=0)
    marks = [(2 * s * left + rest) // (2 * rest) if rest else 0 for s in sums]
    return [cap if j in full else marks[j + 1] - marks[j] for j in range(len(weights))]
