"""Is the new version well? Pure: from what the former one had reached and what is seen now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from auto_update.node import Seen
from auto_update.state import Before

TRIAL_ROUNDS = 3
START_S = 900.0  # to load, and to fetch what it missed
UNKNOWN_ROUND_S = 1200.0  # where the former version settled none that would tell
MAX_STARTS = 3

Verdict = Literal["wait", "settled", "chain moved", "failed"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a version may take. Tests are less patient."""

    rounds: int = TRIAL_ROUNDS
    start_s: float = START_S
    starts: int = MAX_STARTS

    def limit_s(self, before: Before) -> float:
        return self.start_s + self.rounds * (before.round_s or UNKNOWN_ROUND_S)


def judge(before: Before, seen: Seen, began: float, now: float, starts: int, gone: bool, patience: Patience) -> Verdict:
    """began, now: Unix seconds of this trial; starts: how often it was started; gone: it is not running.

    The chain moved where its runtime is another than the former version worked with, or where the newest verdict of
    this trial says that the chain or the run stands still: there the former version could not settle a round either."""
    if seen.last_round is not None and (before.last_round is None or seen.last_round > before.last_round):
        return "settled"
    if not (gone and starts >= patience.starts) and now - began <= patience.limit_s(before):
        return "wait"
    return "chain moved" if moved(before, seen, began) else "failed"


def moved(before: Before, seen: Seen, began: float) -> str | None:
    """In words, what no version of ours could mend; None: nothing that is known."""
    if before.spec_version is not None and seen.spec_version not in (None, before.spec_version):
        return f"the chain's runtime is {seen.spec_version} now and was {before.spec_version}"
    if seen.word in ("the chain", "the run") and seen.word_time >= began:
        return f"{seen.word} stands still"
    return None
