"""The train query's verdict: a miner's log, and its vector, against one or two replays of the auditor's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.fidelity import failing, judge, judge_vector
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import StepRecord
from distributed_training.training.flat import Flat
from distributed_training.training.inner import InnerResult

Enough = Callable[[StepRecord], bool]
Parts = Callable[[], Iterator[tuple[slice, Flat]]]  # of a vector [d], in order, as often as it is called


@dataclass(frozen=True, slots=True)
class Claim:
    logged: Sequence[StepRecord]
    vector: Parts | None  # the committed pseudo-gradient, if it is to be compared
    start: Flat  # the public state
    noise: float = 0.0  # n0 of this auditor


class Replays(Protocol):
    def __call__(self, otherwise: bool, enough: Enough) -> InnerResult:
        """The miner's steps done again, to the depth of the audit or until `enough`; `otherwise`: rounded as this
        device's other precision rounds."""
        ...


def train_query(claim: Claim, replayed: Replays, depth: int, audit: AuditSection) -> AuditResult:
    """The verdict on the first `depth` steps.

    Whoever does not pass is replayed again, rounded otherwise: what our own two replays differ by is held against
    nobody, and the one that is nearer to the miner counts. A replay that ended at a step which is then excused has seen
    nothing of what follows: it is done again to the end. What `replayed` raises goes through.
    """

    def fails(record: StepRecord) -> bool:
        return record.step >= len(claim.logged) or failing(claim.logged[record.step], record, audit, claim.noise)

    def verdict(mine: InnerResult, other: InnerResult | None) -> AuditResult:
        """As deep as `mine` went before it ended early."""
        steps, again = mine.steps, () if other is None else other.steps
        early = ended_early(mine)
        deep = len(steps) if early else depth
        result = judge(claim.logged, steps, depth=deep, audit=audit, again=again, noise=claim.noise)
        if result.verdict is not Verdict.FAIL and claim.vector is not None and not early:
            own = mine if other is None or len(again) < depth else other
            parts = (
                (claim.start[c] - mine.end[c], theirs, claim.start[c] - own.end[c]) for c, theirs in claim.vector()
            )
            result = judge_vector(parts, audit, depth=depth) or result
        return replace(result, depth=depth, noise=claim.noise)

    def ended_early(mine: InnerResult) -> bool:
        """Because of a step that fails by itself; on an accelerator some steps later."""
        return not whole and len(mine.steps) < depth and any(map(fails, mine.steps))

    def best() -> tuple[AuditResult, bool]:
        """The better verdict, and whether it is that of a replay that ended early."""
        both = ((verdict(first, second), ended_early(first)), (verdict(second, first), ended_early(second)))
        return max(both, key=lambda one: (one[0].quality, not one[1]))

    whole = False
    first = replayed(otherwise=False, enough=fails)
    result = verdict(first, None)
    if result.verdict is Verdict.PASS:
        return result
    second = replayed(otherwise=True, enough=lambda r: r.step + 1 >= len(first.steps) and fails(r))
    result, early = best()
    if early and result.verdict is not Verdict.FAIL:
        early_ones, whole = (ended_early(first), ended_early(second)), True
        first, second = (
            replayed(otherwise=otherwise, enough=lambda record: False) if again else done
            for done, otherwise, again in zip((first, second), (False, True), early_ones, strict=True)
        )
        result, _ = best()
    return result
