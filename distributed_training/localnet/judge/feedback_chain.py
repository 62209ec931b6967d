"""The chain of feedback buffers in a run, followed once more from the records alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from distributed_training.averaging.plan import RoundPlan
from distributed_training.protocol.types import NO_ROOT, WorkRecord

ROUNDS = 8  # applied rounds, after which a vector that was not included since is forgotten


class FeedbackChain:
    """Each sender's last included end, and the applied round of it."""

    def __init__(self) -> None:
        self._applied = 0
        self._ends = dict[bytes, tuple[bytes, int]]()

    def follow(self, plan: RoundPlan, included: Collection[bytes], works: Mapping[bytes, WorkRecord]) -> list[str]:
        """An applied round; what is wrong with its records, in words. Everybody's, not only of who is included."""
        problems = list[str]()
        for key, work in works.items():
            candidate = plan.candidate(key)
            who = "somebody" if candidate is None else f"uid {candidate.uid}"
            end, at = self._ends.get(key, (NO_ROOT, 0))
            if work.feedback_start != NO_ROOT and (work.feedback_start != end or self._applied + 1 - at > ROUNDS):
                problems.append(f"{who} starts from feedback that its last included vector did not leave")
            if (work.feedback_end != NO_ROOT) is not bool(plan.uplink.feedback):
                problems.append(f"{who} names an end that its codec does not leave, or none")
        self._applied += 1
        self._ends |= {key: (works[key].feedback_end, self._applied) for key in included}
        return problems
