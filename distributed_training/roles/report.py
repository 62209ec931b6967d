"""One round as events: what the live table, the summary and an operator's log see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from distributed_training.averaging.plan import RoundPlan
from distributed_training.protocol.types import AverageOutcome, Round, StepRecord
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import attempt

log = logging.getLogger(__name__)


class RoundReport:
    """Counts bytes and seconds of one round and emits its events. `None` where nothing was measured."""

    def __init__(self, parts: Parts, round_: Round) -> None:
        self._p, self._round = parts, round_
        traffic = parts.peers.transport.traffic
        self._sent, self._received = traffic.sent, traffic.received
        self._mark = asyncio.get_running_loop().time()
        self._seconds: dict[str, float | None] = {"train": None, "average": None, "settle": None}
        self._steps: int | None = None
        self._tokens: int | None = None

    def phase(self, name: str) -> None:
        self._mark = asyncio.get_running_loop().time()
        self._p.metrics.emit("phase", round=self._round.index, phase=name)

    def step(self, step: int, loss: float, tokens_per_s: float) -> None:
        self._p.metrics.emit("step", round=self._round.index, step=step, loss=loss, tokens_per_s=tokens_per_s)

    def trained(self, steps: Sequence[StepRecord], tokens: int, stall_s: float | None = None) -> None:
        self._steps, self._tokens = len(steps), tokens
        self._seconds["train"] = asyncio.get_running_loop().time() - self._mark
        losses = [sum(s.losses) / len(s.losses) for s in steps]
        self._p.metrics.emit(
            "train",
            round=self._round.index,
            steps=len(steps),
            tokens=tokens,
            loss_first=losses[0],
            loss_last=losses[-1],
            seconds=self._seconds["train"],
            stall_s=stall_s,
        )

    def averaged(self) -> None:
        self._seconds["average"] = asyncio.get_running_loop().time() - self._mark

    def settled(
        self, plan: RoundPlan, outcome: AverageOutcome, root: bytes, tokens: dict[int, int] | None = None
    ) -> None:
        self._seconds["settle"] = asyncio.get_running_loop().time() - self._mark
        uids = {c.public_key: c.uid for c in plan.candidates}
        traffic = self._p.peers.transport.traffic
        fields = {
            "applied": outcome.applied,
            "reason": outcome.reason,
            "state_root": root.hex(),
            "included": sorted(uids[key] for key in outcome.included),
            "counted": list(outcome.counted),
            "backed_up": list(outcome.backed_up),
            "num_slices": outcome.num_slices,
            "reducers": {spec.index: uids[spec.reducer] for spec in plan.slices},
            "credit": {uids[key]: share for key, share in outcome.credit.items()},
            "tokens": tokens or {},
            "bytes_sent": traffic.sent - self._sent,
            "bytes_received": traffic.received - self._received,
            "steps": self._steps,
            "own_tokens": self._tokens,
            "seconds": self._seconds,
        }
        kept = {k: v for k, v in fields.items() if k != "seconds"}
        attempt(self._p, self._round.index, "disk", lambda: self._p.journal.save_round(self._round.index, kept))
        self._p.metrics.emit("round", round=self._round.index, **fields)
        whose = ", with ours" if self._p.signer.public_key in outcome.included else ""
        how = f"work of {len(outcome.included)} miners{whose}" if outcome.applied else f"discarded, {outcome.reason}"
        log.info("round %d: %s; state %s", self._round.index, how, root.hex()[:16])
