"""One learning run: who trains how, and its held-out loss round by round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.learning_average import averaged
from benchmarks.learning_stack import Flats, Stack
from benchmarks.learning_text import Text
from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.plan import layout_of
from distributed_training.data.tokens import load_tokenizer
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.schedules import inner_learning_rate
from distributed_training.protocol.types import Carry
from distributed_training.recipes.build import draft_manifest
from distributed_training.settings.flags import merge
from distributed_training.training.flat import to_flat
from distributed_training.training.model import build_model
from distributed_training.training.outer import RunState, initial_state, outer_step

TOGETHER, ALONE, SYNCHRONOUS = "together", "alone", "synchronous"
FIRST_ROUNDS, EVERY = 10, 5  # the loss is measured after each of the first rounds, then after every fifth


@dataclass(frozen=True, slots=True)
class Model:
    """What everybody trains: GPT-2 over bytes."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    length: int = 64  # tokens a sequence
    batch: int = 8  # sequences a step

    @property
    def config(self) -> dict[str, Any]:
        return {
            "model_type": "gpt2",
            "vocab_size": 257,
            "n_positions": self.length,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
        }


@dataclass(frozen=True, slots=True)
class Setting:
    """together: miners that average after every round, from fresh moments each. alone: one of them that never
    averages. synchronous: one model, every step on the batches that all miners together get through in its time."""

    who: str
    optimizer: str
    speeds: tuple[int, ...]  # of each miner; of one alone, its own
    steps: int  # a round at speed 1
    rounds: int
    outer: tuple[float, float] | None = None  # learning rate and momentum of the outer step
    fresh: bool = True  # moments are forgotten at every round's start
    weights: str = "tokens"  # or "root": what a miner's vector weighs
    inner: Mapping[str, Any] = field(default_factory=dict)  # other fields of the manifest's section
    model: Model = Model()

    @property
    def identity(self) -> str:
        """The same for the same setting."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def own_steps(self) -> tuple[int, ...]:
        """Inner steps a round of each worker that is trained; most first."""
        if self.who == SYNCHRONOUS:
            return (max(self.speeds) * self.steps,)
        return tuple(sorted((speed * self.steps for speed in self.speeds), reverse=True))

    @property
    def batch(self) -> int:
        """Sequences a step of a worker that is trained."""
        shared = sum(self.speeds) / max(self.speeds) if self.who == SYNCHRONOUS else 1
        return round(shared * self.model.batch)

    @property
    def tokens_a_round(self) -> int:
        return sum(self.own_steps) * self.batch * self.model.length

    def manifest(self) -> RunManifest:
        inner = {"optimizer": self.optimizer, "nominal_steps": self.steps, "max_steps": max(self.own_steps)}
        outer = {} if self.outer is None else {"learning_rate": self.outer[0], "momentum": self.outer[1]}
        data = {"sequence_length": self.model.length, "batch_size": self.model.batch}
        average = {"weight_by": "root_tokens" if self.weights == "root" else "tokens"}
        overrides = merge(
            {"inner": inner, "outer": outer, "data": data, "average": average}, {"inner": dict(self.inner)}
        )
        return draft_manifest("local", self.model.config, load_tokenizer("bytes"), overrides)


def play(
    setting: Setting, seeds: Sequence[int], text: Text, *, bf16: bool = True, told: Callable[[int], None] | None = None
) -> list[dict[int, float]]:
    """Held-out loss after so many rounds, for each seed; they train side by side. `told` gets the rounds done."""
    manifest = setting.manifest()
    course = _Course(setting, manifest, text, seeds, bf16)
    curves: list[dict[int, float]] = [{} for _ in seeds]
    for done in range(setting.rounds + 1):
        if done:
            course.round(done - 1)
        if done <= FIRST_ROUNDS or done % EVERY == 0 or done == setting.rounds:
            for curve, loss in zip(curves, course.losses(), strict=True):
                curve[done] = loss
        if told is not None:
            told(done)
    return curves


class _Course:
    """Workers of all seeds, those with most steps first, and what each seed has come to."""

    def __init__(self, setting: Setting, manifest: RunManifest, text: Text, seeds: Sequence[int], bf16: bool) -> None:
        self._setting, self._manifest, self._text, self._seeds = setting, manifest, text, seeds
        miners = len(setting.own_steps)
        # (seed's index, miner) of each worker: for every miner all seeds
        self._workers = [(s, m) for m in range(miners) for s in range(len(seeds))]
        self._stack = Stack(manifest, len(self._workers), bf16=bf16)
        starts = [build_model(manifest.model.config, seed) for seed in seeds]
        self._states = [initial_state(to_flat(model), manifest.average) for model in starts]
        self._layout: Layout = layout_of(manifest, len(self._states[0].params))

    def round(self, index: int) -> None:
        setting = self._setting
        starts = np.stack([self._states[s].params for s, _ in self._workers])
        self._stack.load(starts)
        if setting.fresh:
            self._stack.reset()
        rates = [
            inner_learning_rate(self._manifest.inner, index, step, fresh_moments=setting.fresh)
            for step in range(setting.own_steps[0])
        ]
        self._stack.train([self._batches(index, s, m) for s, m in self._workers], rates)
        ends = self._stack.flats()
        for s in range(len(self._seeds)):
            rows = [row for row, (seed, _) in enumerate(self._workers) if seed == s]
            self._states[s] = self._after(self._states[s], starts[rows] - ends[rows], ends[rows])

    def losses(self) -> list[float]:
        return self._stack.evaluate(np.stack([state.params for state in self._states]), self._text.heldout)

    def _after(self, state: RunState, deltas: Flats, ends: Flats) -> RunState:
        if self._setting.who != TOGETHER:
            return replace(state, params=ends[0])
        work = [steps * self._manifest.tokens_per_step for steps in self._setting.own_steps]
        average, tau = averaged(list(deltas), work, state.carry.tau, self._layout, self._manifest.average)
        return outer_step(state, [average], Carry(tau, ()), self._manifest.outer)[0]

    def _batches(self, index: int, s: int, miner: int) -> Any:
        """Each miner's own part of the seed's text; a synchronous worker gets the same sequences as all of them."""
        setting, seed = self._setting, self._seeds[s]
        counts = [steps * setting.batch for steps in setting.own_steps]
        first = index * sum(counts) + sum(counts[:miner])
        steps = setting.own_steps[miner]
        return self._text.sequences(seed, first, counts[miner]).reshape(steps, setting.batch, -1)
