"""What a round's bitmaps say that a miner did for the others: credit, credited tokens, duty (docs/scoring.md).

Who writes a bitmap is itself a miner, so each share forgives its worst third: reducers of less than a third of the
chunks who leave somebody out, or senders of less than a third who withhold from somebody, cost it SLOPE of what they
touch and no more, and themselves more than they gain. `scripts/bench.py collusion` searches for patterns that break it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.protocol.types import Candidate, Carry

Bits = NDArray[np.bool_]
Shares = NDArray[np.float64]

NO_REDUCER_DUTY = 0.8
FORGIVEN = 1.0 / 3.0  # of the chunks, the worst ones, nothing but the slope is taken
SLOPE = 0.05  # what leaving out or withholding costs even there: less than 5 % for all that a third can do to somebody


def tolerant(share: float, plain: float | None = None) -> float:
    """A share of chunks, 0..1, without its worst third; 1 stays 1, and less is always a little less.

    plain: the share that the slope goes by, if that is another one.
    """
    return (1.0 - SLOPE) * min(1.0, share / (1.0 - FORGIVEN)) + SLOPE * (share if plain is None else plain)


def expected_senders(included: Bits) -> Bits:
    """Whom at least half of the counted chunks include. included: [chunk, sender] of all counted slices -> [sender].

    By chunks: slices differ in size, and many small ones must not outvote few large ones.
    """
    return 2 * included.sum(axis=0) >= len(included)


def credits(included: Bits, lacking: Bits) -> list[float]:
    """Credit of each sender, 0..1. included: [chunk, sender] of all counted slices; lacking: [chunk], zero for
    everybody because it lacks too many senders.

    Such a chunk credits whom it includes and says nothing about whom it lacks, but for the slope: its reducer may have
    left them out, or they have withheld. Left out of everybody's credit instead, it let five of twelve colluders empty
    the base and take 71 % from a victim instead of 26.
    """
    told = len(included) - (lacking[:, None] & ~included).sum(axis=0)
    both = zip(included.sum(axis=0), told, strict=True)
    return [tolerant(hits / base, hits / len(included)) if base else 0.0 for hits, base in both]


def reduced_share(included: Bits, expected: Bits, inflated: Bits) -> float:
    """The reducer's part of duty for one counted slice that it reduced itself, 0..1.

    included: [chunk, sender] of the slice; expected: [sender]; inflated: [chunk], zero because of its norm, which no
    honest sum can be. A chunk that lacks too many senders counts with those it has: they may have withheld.
    """
    if not expected.any():
        return 1.0
    shares = (included & expected).sum(axis=1) / int(expected.sum())
    return tolerant(float(np.where(inflated, 0.0, shares).mean()))


def credited_tokens(tokens: int, credit: float, token_cap: int) -> float:
    """Tokens that count: claimed tokens up to the cap, times the sender's credit."""
    return min(tokens, token_cap) * credit


def can_reduce(candidate: Candidate, carry: Carry) -> bool:
    """Whether the rule of who reduces could take it: it says so, and no slice of its own has failed lately.

    The second half makes an honest "I do not reduce" the better choice for a miner whose port is shut: its slices
    would fail, and without a slice in between it would have full duty most of the time.
    """
    return candidate.reduces and all(candidate.public_key not in failed for failed in carry.failed)


def duty(credit: float, reduced: float | None, can_reduce: bool) -> float:
    """One round's duty, 0..1, of a miner that committed: half as sender, half as reducer.

    reduced: `reduced_share` of its own slice; 0 for one that does not count or that the backup reduced; None: it had
    no slice. Then it is judged as sender alone, and up to NO_REDUCER_DUTY only if it could not have been given one.
    """
    if reduced is None:
        return credit if can_reduce else min(credit, NO_REDUCER_DUTY)
    return 0.5 * credit + 0.5 * reduced
