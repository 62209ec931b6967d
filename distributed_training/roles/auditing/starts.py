"""Where the replay of a round begins: at its state or, with overlap, at the miner's own end of the round before, from
which it is shifted to the state at the step that the record names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import LocalFault, WireError
from distributed_training.protocol.types import NO_ROOT, WorkRecord
from distributed_training.roles.began import Origin
from distributed_training.roles.mining.onward import own_end, shift_from
from distributed_training.training.flat import Flat
from distributed_training.training.inner import InnerResult

START_SEQUENCES = 4  # of the first batch, by which the loss is measured where training began
# So much worse than the state's it may be, as a factor or in nats, whichever is more: far beyond an honest miner whose
# rate of learning is too high (2.7 nats were seen), far below where rounding decides (hundreds).
MOST_WORSE, MOST_WORSE_NATS = 3.0, 10.0


@dataclass(frozen=True, slots=True)
class Former:
    """The round before the audited one, as this validator followed it."""

    plan: RoundPlan
    params: Flat  # that it started from
    applied: int  # rounds before it
    works: Mapping[bytes, WorkRecord]  # public key -> record, of who is known here


def check_began(record: WorkRecord, former: Former | None, origin: Origin | None) -> None:
    """What can be said of a record's `began_at` without a replay. Raises WireError: that is the miner's fault."""
    if record.began_at == NO_ROOT or former is None:
        return
    if former.plan.candidate(record.public_key) is None:
        raise WireError("training began at a vector of a round that it committed nothing in")
    if origin is not None and origin.record is not None and origin.record.wire_root != record.began_at:
        raise WireError("training began at another vector than its own of the round before")


def is_whole(former: Former | None, origin: Origin) -> bool:
    """Is every chunk here of the vector at whose end training began? Without one nothing can be replayed."""
    return former is not None and len(origin.chunks) == former.plan.layout.num_chunks


def can_replay(record: WorkRecord, former: Former | None, origin: Origin | None) -> bool:
    """Is all here at which its training began?"""
    return record.began_at == NO_ROOT or (origin is not None and is_whole(former, origin))


def check_loss(began: float, state: float) -> None:
    """Mean losses, on the same tokens, where training began and of the state. A miner chooses where it begins by the
    vector that it commits, so it could choose a point from which no replay comes to anything: one that diverges, or
    where rounding alone decides what a step gives. Raises WireError; LocalFault where the state has no loss."""
    if not math.isfinite(state):
        raise LocalFault("the state's loss on the first batch is not finite")
    if not began <= max(MOST_WORSE * state, state + MOST_WORSE_NATS):
        raise WireError("training began at a vector that no training leads to")


class ReplayStart:
    """Of one replay. `params`, float32 [d], and `applied`, for the learning rate's clock, are where it begins."""

    def __init__(
        self, record: WorkRecord, state: tuple[Flat, int], former: Former | None, origin: Origin | None
    ) -> None:
        """state: at the start of the round. Raises WireError for chunks that are none. For who `can_replay`."""
        self._state, self._step = state[0], record.shift_step
        self._end: Flat | None = None
        self.params, self.applied = state
        if record.began_at == NO_ROOT:
            return
        assert former is not None and origin is not None, "nothing is replayed without"
        chunks = sorted(origin.chunks.items())
        self._end = own_end(former.params, chunks, former.plan.layout, former.plan.uplink)
        self.params, self.applied = self._end, former.applied + 1

    def shift(self, step: int) -> Flat | None:
        """As the inner loop asks."""
        if self._end is None or step != self._step:
            return None
        return shift_from(self._end, self._state)

    def ended(self, made: InnerResult) -> InnerResult:
        """The result as if it had begun at the state: a replay that ended before the shift is moved now."""
        if self._end is not None and made.shifted_at is None:
            np.add(made.end, shift_from(self._end, self._state), out=made.end)
        return made
