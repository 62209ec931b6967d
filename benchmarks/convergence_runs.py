"""One run of the convergence benchmark: four miners, one exchange after every round, and the loss at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.fp32 import FP32
from benchmarks.learning_average import decoded, joined
from benchmarks.learning_runs import Setting
from benchmarks.learning_stack import Flats, Stack
from benchmarks.learning_text import Text, Tokens
from distributed_training.averaging.codecs.base import Codec, Layout, wire_bytes
from distributed_training.averaging.codecs.known import codec
from distributed_training.averaging.contribution import encode_contribution
from distributed_training.protocol.rules.schedules import inner_learning_rate
from distributed_training.protocol.types import Carry
from distributed_training.training.flat import to_flat
from distributed_training.training.model import build_model
from distributed_training.training.outer import RunState, initial_state, outer_step

CHUNK_COORDS, BLOCK_COORDS = 32_768, 512


@dataclass(frozen=True, slots=True)
class Exchange:
    """What miners send and get, and when it counts."""

    uplink: str = FP32.name
    output: str = FP32.name
    feedback: float | None = None  # of what encoding left out, this share is added to the next vector
    overlap: float = 0.0  # of a round's steps, this share is done before the average of the former one is there
    begin: str = "decoded"  # where a round begins that does not wait: at what was sent, or "own": where training ended
    outer: tuple[float, float] = (0.8, 0.8)  # learning rate and momentum of the outer step

    @property
    def codecs(self) -> tuple[Codec, Codec]:
        return tuple(FP32 if name == FP32.name else codec(name) for name in (self.uplink, self.output))  # type: ignore[return-value]


class Course:
    """Miners of all seeds side by side, and what each seed has come to."""

    def __init__(self, setting: Setting, exchange: Exchange, text: Text, seeds: Sequence[int]) -> None:
        self._setting, self._exchange = replace(setting, outer=exchange.outer), exchange
        self._text, self._seeds = text, seeds
        self._manifest = self._setting.manifest()
        self._uplink, self._output = exchange.codecs
        miners = len(setting.speeds)
        self._workers = [(s, m) for m in range(miners) for s in range(len(seeds))]
        self._stack = Stack(self._manifest, len(self._workers), bf16=True)
        starts = [to_flat(build_model(self._manifest.model.config, seed)) for seed in seeds]
        self._states = [initial_state(start, self._manifest.average) for start in starts]
        self.layout = Layout(len(starts[0]), CHUNK_COORDS, BLOCK_COORDS)
        self._left = np.zeros((len(self._workers), self.layout.num_coords), np.float32)
        self._ends: Flats | None = None  # of the former round, as others know them
        self._next: list[RunState] = self._states

    def round(self, index: int) -> None:
        """Train, and average what was trained. With overlap the first steps come before the former round's average."""
        steps, early = self._setting.steps, 0
        batches = [self._batches(index, s, m) for s, m in self._workers]
        rates = [inner_learning_rate(self._manifest.inner, index, step) for step in range(steps)]
        self._stack.reset()
        if self._ends is not None and self._exchange.overlap:
            early = max(1, round(self._exchange.overlap * steps))
            self._stack.load(self._ends)
            self._stack.train([own[:early] for own in batches], rates[:early])
            here = self._stack.flats()
            here += self._of_workers(self._next) - self._ends
            self._stack.load(here)
        else:
            self._stack.load(self._of_workers(self._next))
        self._states = self._next
        self._stack.train([own[early:] for own in batches], rates[early:])
        self._exchange_all(self._of_workers(self._states), self._stack.flats())

    def losses(self) -> list[float]:
        return self._stack.evaluate(np.stack([state.params for state in self._next]), self._text.heldout)

    @property
    def bytes_a_round(self) -> int:
        """What a miner sends: its vector to the reducers, and its reduced slice to all others."""
        miners = len(self._setting.speeds)
        both = wire_bytes(self._uplink, self.layout) + wire_bytes(self._output, self.layout)
        return round((miners - 1) / miners * both)

    def _exchange_all(self, starts: Flats, ends: Flats) -> None:
        deltas = starts - ends
        if self._exchange.feedback is not None:
            self._left *= np.float32(self._exchange.feedback)
            deltas += self._left
        sent = [encode_contribution(delta, self.layout, self._uplink) for delta in deltas]
        told = np.stack([decoded(each, self.layout, self._uplink) for each in sent])
        if self._exchange.feedback is not None:
            np.subtract(deltas, told, out=self._left)
        self._ends = ends.copy() if self._exchange.begin == "own" else starts - told
        work = [self._setting.steps * self._manifest.tokens_per_step] * len(self._setting.speeds)
        made = list[RunState]()
        for s, state in enumerate(self._states):
            own = [each for (seed, _), each in zip(self._workers, sent, strict=True) if seed == s]
            average, tau = joined(
                own, work, state.carry.tau, self.layout, self._manifest.average, self._uplink, self._output
            )
            copy = replace(state, momentum=state.momentum.copy())
            made.append(outer_step(copy, [average], Carry(tau, ()), self._manifest.outer, np.empty_like(average))[0])
        self._next = made

    def _of_workers(self, states: Sequence[RunState]) -> Flats:
        return np.stack([states[s].params for s, _ in self._workers])

    def _batches(self, index: int, s: int, miner: int) -> Tokens:
        steps, batch, miners = self._setting.steps, self._setting.batch, len(self._setting.speeds)
        first = (index * miners + miner) * steps * batch
        return self._text.sequences(self._seeds[s], first, steps * batch).reshape(steps, batch, -1)
