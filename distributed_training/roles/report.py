"""One round as events: what the live table, the summary and an operator's log see."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from distributed_training.averaging.plan import RoundPlan
from distributed_training.metrics import events
from distributed_training.protocol.types import AverageOutcome, Round, StepRecord
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import attempt


class RoundReport:
    """Counts bytes and seconds of one round and emits its events. `None` where nothing was measured."""

    def __init__(self, parts: Parts, round_: Round) -> None:
        self._p, self._round = parts, round_
        self.begin()
        self._seconds: dict[str, float | None] = {"train": None, "average": None, "settle": None}
        self._steps: int | None = None
        self._tokens: int | None = None

    def begin(self) -> None:
        """Bytes count from here on: the former round is settled."""
        traffic = self._p.peers.transport.traffic
        self._sent, self._received = traffic.sent_to.copy(), traffic.received_from.copy()
        self._began = self._mark = asyncio.get_running_loop().time()

    def phase(self, name: str) -> None:
        self._mark = asyncio.get_running_loop().time()
        self._tell(events.Phase(phase=name))

    def step(self, step: int, loss: float, tokens_per_s: float) -> None:
        self._tell(events.Step(step=step, loss=loss, tokens_per_s=tokens_per_s))

    def training_took(self, seconds: float) -> None:
        """From the first step's beginning to the last one's end, whatever else happened meanwhile."""
        self._seconds["train"] = seconds

    def trained(self, steps: Sequence[StepRecord], tokens: int, stall_s: float | None = None) -> None:
        self._steps, self._tokens = len(steps), tokens
        losses = [sum(s.losses) / len(s.losses) for s in steps]
        self._tell(
            events.Train(
                steps=len(steps),
                tokens=tokens,
                loss_first=losses[0],
                loss_last=losses[-1],
                seconds=self._seconds["train"],
                stall_s=stall_s,
            )
        )

    def averaged(self) -> None:
        self._seconds["average"] = asyncio.get_running_loop().time() - self._mark

    def settled(
        self, plan: RoundPlan, outcome: AverageOutcome, root: bytes, tokens: dict[int, int] | None = None
    ) -> None:
        self._seconds["settle"] = asyncio.get_running_loop().time() - self._mark
        uids = {c.public_key: c.uid for c in plan.candidates}
        traffic = self._p.peers.transport.traffic
        sent, received = traffic.sent_to - self._sent, traffic.received_from - self._received
        settled = events.Round(
            applied=outcome.applied,
            reason=outcome.reason,
            state_root=root.hex(),
            candidates=tuple(sorted(uids.values())),
            included=tuple(sorted(uids[key] for key in outcome.included)),
            counted=outcome.counted,
            backed_up=outcome.backed_up,
            num_slices=outcome.num_slices,
            reducers={spec.index: uids[spec.reducer] for spec in plan.slices},
            credit={uids[key]: share for key, share in outcome.credit.items()},
            missing={j: tuple(sorted(uids[key] for key in keys)) for j, keys in outcome.missing.items()},
            tokens=dict(tokens or {}),
            bytes_sent=sent.total(),
            bytes_received=received.total(),
            sent_to=dict(sent),
            received_from=dict(received),
            up_bytes_per_s=traffic.line.up.rate.bytes_per_s,
            down_bytes_per_s=traffic.line.down.rate.bytes_per_s,
            steps=self._steps,
            own_tokens=self._tokens,
            seconds=dict(self._seconds),
            pay=self._pay(),
        )
        kept = {k: v for k, v in asdict(settled).items() if k != "seconds"}
        attempt(self._p, self._round.index, "disk", lambda: self._p.journal.save_round(self._round.index, kept))
        self._tell(settled)
        self._p.metrics.words.end_troubles(self._began)

    def _pay(self) -> float | None:
        """As the newest roster that was read has it."""
        own = self._p.signer.public_key
        return next((max(n.incentive, n.dividends) for n in self._p.peers.neurons if n.public_key == own), None)

    def _tell(self, event: events.Record) -> None:
        self._p.metrics.emit(event, round=self._round.index)
