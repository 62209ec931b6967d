"""What a miner trains, for which round and from where: one training at a time, of the round or, with overlap, of the
next one while the round is averaged."""

from __future__ import annotations

import asyncio
import logging

from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.contribution import Contribution
from distributed_training.averaging.plan import layout_of
from distributed_training.errors import DeviceLost, LocalFault, OutOfMemory, named
from distributed_training.metrics.events import Ahead
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.types import Round, StepRecord
from distributed_training.roles.follower import Follower, RoundStart
from distributed_training.roles.mining.ahead import Training, guessed_beacon
from distributed_training.roles.mining.onward import Onward, own_end
from distributed_training.roles.mining.work import Worker, WorkResult
from distributed_training.roles.parts import Parts
from distributed_training.roles.report import RoundReport
from distributed_training.roles.trouble import tell
from distributed_training.training.outer import RunState

log = logging.getLogger(__name__)

MAX_FAILURES = 3


class GaveUp(LocalFault):
    """This node's own trouble does not end: the message says which."""


class Trainings:
    """Begins, drops and ends trainings; what is done with their results is the miner's story."""

    def __init__(
        self, parts: Parts, follower: Follower, worker: Worker, *, uid: int, max_steps: int, train_ahead: bool
    ) -> None:
        self._p, self._follower, self._worker = parts, follower, worker
        self._uid, self._max_steps, self._train_ahead = uid, max_steps, train_ahead
        self._failures = 0  # rounds in a row in which the worker failed
        self._training: Training | None = None
        self._going: asyncio.Task[None] | None = None  # overlap: begins the next round's training, where that is due
        self._end: asyncio.Task[Onward] | None = None  # what it begins at
        self._next: RoundReport | None = None  # of the round that `_going` trains for
        self._next_index = -1

    @property
    def under_way(self) -> bool:
        return self._training is not None

    @property
    def began_at(self) -> bytes | None:
        """Wire root of the vector at whose end the present training began; None: it began at the state."""
        onward = None if self._training is None else self._training.onward
        return None if onward is None else onward.began_at

    def report(self, round_: Round) -> RoundReport:
        """That of a round whose training is under way, else a new one."""
        report = self._next if self._next is not None and self._next_index == round_.index else None
        self._next = None
        if report is None:
            return RoundReport(self._p, round_)
        report.begin()
        if self.under_way:
            report.phase("train")  # said before, while the former round was averaged
        return report

    # --- the round's own ----------------------------------------------------------------------------

    async def begin_early(self, round_: Round, report: RoundReport) -> None:
        """Start before s-B is final, on the guess that it will be what the head says."""
        if self.under_way or self._going is not None:
            return
        beacon = await guessed_beacon(self._p, round_)
        if beacon is not None and self._follower.trusted:
            self.begin(round_, beacon, report)

    def begin(self, round_: Round, beacon: bytes, report: RoundReport, onward: Onward | None = None) -> None:
        """From the follower's state, or where `onward` says."""
        tokens = self._p.manifest.tokens_per_step
        report.phase("train")

        def on_step(step: StepRecord, seconds: float) -> None:
            report.step(step.step, sum(step.losses) / len(step.losses), tokens / max(seconds, 1e-9))

        self._training = Training(
            self._p,
            self._worker,
            round_,
            beacon,
            self._follower.state,
            uid=self._uid,
            max_steps=self._max_steps,
            on_step=on_step,
            onward=onward,
        )

    async def keep_only(self, start: RoundStart, *, registered: bool) -> None:
        """Whether what is under way is this round's work, now that s-B is final; else it is dropped, and said."""
        training = self._training
        if training is None or (registered and (training.round, training.beacon) == (start.round, start.beacon)):
            return
        await self._drop(training)

    async def result(self, start: RoundStart, report: RoundReport) -> WorkResult | None:
        """The training's result. None: the worker failed, which was said; several rounds in a row end the node."""
        p, index = self._p, start.round.index
        while (training := self._training) is not None:
            try:
                result = await training.result()
            except OutOfMemory as error:
                tell(p, index, "memory", error)
                if error.retry and p.clock.head < start.round.train_end_block:
                    self.begin(start.round, start.beacon, report, _again(training.onward))
                    continue
                return self._failed(index, error)
            except DeviceLost as error:
                tell(p, index, "device", error)
                raise
            except Exception as error:  # whatever a worker raises: it is ours, and a round can be sat out
                tell(p, index, "worker", error)
                return self._failed(index, error)
            self._failures = 0
            report.training_took(training.ended_s - training.began_s)
            if result.fault is not None:
                tell(p, index, "data", result.fault)
            return result
        return None

    def _failed(self, index: int, error: Exception) -> None:
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise GaveUp(
                f"the worker failed in {self._failures} rounds in a row, last in round {index}: {named(error)}"
            ) from error
        log.info("sitting out round %d", index)

    def end(self) -> None:
        """Of the round's own training nobody wants the result any more. Idempotent."""
        if self._training is not None:
            self._training.close()
            self._training = None

    # --- overlap: the next round's --------------------------------------------------------------------

    def go_on(self, index: int, contribution: Contribution) -> None:
        """The work of round `index` is encoded: train the next round from our own end of it."""
        self.end()
        self.stop_going()
        round_ = self._p.manifest.round(index + 1)
        self._next, self._next_index = RoundReport(self._p, round_), round_.index
        self._end = asyncio.create_task(self._own_end(contribution), name="own end")
        self._going = asyncio.create_task(self._go_on(round_, self._end, self._next), name="train on")

    async def _own_end(self, contribution: Contribution) -> Onward:
        state, manifest = self._follower.state, self._p.manifest
        layout, uplink = layout_of(manifest, len(state.params)), uplink_of(manifest.average)
        chunks = enumerate(contribution.chunks)
        end = await asyncio.to_thread(lambda: own_end(state.params, chunks, layout, uplink))
        return Onward(end, contribution.wire_root, state.applied)

    async def _go_on(self, round_: Round, end: asyncio.Task[Onward], report: RoundReport) -> None:
        """Begin at once on the beacon as of the head; if another one becomes final, begin again."""
        p, onward = self._p, await end
        guess = await guessed_beacon(p, round_) if self._train_ahead else None
        if guess is not None:
            self.begin(round_, guess, report, onward)
        await p.clock.final(round_.roster_block)
        if not self._train_ahead:
            await p.clock.reached(round_.start_block)
        beacon = assignment_beacon(await p.chain.block_hash(round_.roster_block), p.manifest.netuid, round_.index)
        if beacon == guess:
            return
        if self._training is not None:
            await self._drop(self._training)
        if not onward.shifted:  # else the state is there to begin at
            self.begin(round_, beacon, report, onward)

    async def ready_to_settle(self) -> None:
        """The outer step is taken where the state lies: what we need of the former one has to be taken before."""
        if self._end is not None:
            await asyncio.wait({self._end})

    def settled(self, state: RunState) -> None:
        """The former round is settled: what goes on from our own end is shifted to this."""
        if self._end is not None and not self._end.cancelled() and self._end.exception() is None:
            self._end.result().settle(state)

    async def going(self) -> None:
        """Until a training that was to go on has begun, or will not."""
        if self._going is None:
            return
        try:
            await self._going
        except (LocalFault, MemoryError) as error:
            log.info("training does not go on from our own end: %s", error)
        self._going = self._end = None

    async def forsake(self) -> None:
        """Our vector is not on chain: nothing can go on from it."""
        self.stop_going()
        if self._training is not None:
            await self._drop(self._training)

    def stop_going(self) -> None:
        for task in (self._going, self._end):
            if task is not None:
                task.cancel()
        self._going = self._end = None

    def close(self) -> None:
        """Nothing is trained any more, for whichever round. Idempotent."""
        self.stop_going()
        self.end()
        self._next = None

    async def _drop(self, training: Training) -> None:
        lost = await training.drop()
        self._p.metrics.emit(Ahead(steps_lost=lost), round=training.round.index)
        self._training = None


def _again(onward: Onward | None) -> Onward | None:
    """To begin with once more; one that was shifted is used up, and the state is there to begin at."""
    return None if onward is None or onward.shifted else onward
