"""A config file taken the way that `--model` takes it, trained and published as a run does it: what the model benchmark
measures of the product, and the only part of it that names the product's functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distributed_training.data.base import Page, PageFacts
from distributed_training.data.tokens import ByteTokenizer
from distributed_training.protocol.manifest import RunManifest, parse_manifest
from distributed_training.protocol.observed import AuditResult
from distributed_training.protocol.rules.fidelity import judge
from distributed_training.protocol.types import StepRecord
from distributed_training.recipes.build import make_manifest
from distributed_training.recipes.reading import read_model
from distributed_training.training.bounds import MOST_PARAMETERS
from distributed_training.training.export import StateLayout
from distributed_training.training.flat import load_flat, loss_per_sequence, to_flat
from distributed_training.training.inner import InnerLoop, InnerResult, Tokens
from distributed_training.training.model import build_model, config_files, run_model, saved_constants, saved_form
from distributed_training.training.outer import RunState, initial_state, outer_step, state_root

SEED, STEPS, BATCH, LENGTH = 7, 4, 4, 32
_OVERRIDES = {
    "data": {"sequence_length": LENGTH, "batch_size": BATCH, "heldout_sequences": 2},
    "inner": {"warmup_steps": 1, "learning_rate": 1e-3},
}


class MadeUpPages:
    """Pages that nobody reads: a manifest names their digest and takes the held-out text."""

    num_pages, sha256, missing_digests = 1024, "00" * 32, 0

    def fetch(self, index: int) -> Page:
        raise AssertionError("no page is read here")

    def facts(self, index: int) -> PageFacts:
        return PageFacts(None, 0, 0)

    def heldout(self) -> tuple[str, ...]:
        return ("held out " * 100,)


@dataclass(frozen=True, slots=True)
class Taken:
    """A config file that a run accepts, and what was said of it."""

    manifest: RunManifest
    notes: tuple[str, ...]

    @property
    def doubts(self) -> bool:
        """Something is not trained as plain transformers would train it, or not at all."""
        return any("warning: " in note for note in self.notes)


def load_libraries() -> None:
    """Everything that most models need, before processes are forked. Computes no gradient: after that none may."""
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"vocab_size": 8, "intermediate_size": 8}
    build_model(config, SEED)


def take(file: Path) -> Taken:
    """The manifest as each node reads it. Raises ConfigError."""
    notes: list[str] = []
    manifest = make_manifest(
        "local",
        read_model(file),
        MadeUpPages(),
        init_seed=SEED,
        tokenizer=ByteTokenizer(),
        overrides=_OVERRIDES,
        say=notes.append,
    )
    return Taken(parse_manifest(manifest.canonical()), tuple(notes))


def model_of(manifest: RunManifest) -> nn.Module:
    """As a node builds it."""
    return run_model(manifest.model)


def rooted(manifest: RunManifest, model: nn.Module) -> RunState:
    """The state of round 0. Raises AssertionError when it is not the one that the manifest pins."""
    state = initial_state(to_flat(model), manifest.average)
    assert state_root(state, manifest.average.chunk_coords).hex() == manifest.model.initial_root, "another initial root"
    return state


def batches() -> Iterator[Tokens]:
    """The same ones each time: byte ids that a model can learn something from."""
    draw = np.random.default_rng(1)
    for _ in range(STEPS):
        yield (draw.integers(257, size=(BATCH, 1)) + np.cumsum(draw.integers(3, size=(BATCH, LENGTH)), axis=1)) % 257


def trained(manifest: RunManifest, model: nn.Module, state: RunState, micro_batch: int | None = None) -> InnerResult:
    """The first inner steps of round 0, with the log that an auditor compares."""
    loop = InnerLoop(model, manifest, micro_batch=micro_batch)
    return loop.run(
        state.params, batches(), applied_rounds=0, sketch_seed=b"seed", max_steps=STEPS, should_stop=lambda: False
    )


def digest_of(result: InnerResult) -> str:
    """Of every bit of the parameters and the log."""
    return hashlib.sha256(result.end.tobytes() + repr(result.steps).encode()).hexdigest()


def audited(logged: tuple[StepRecord, ...], replayed: tuple[StepRecord, ...], manifest: RunManifest) -> AuditResult:
    return judge(logged, replayed, depth=STEPS, audit=manifest.audit)


def next_state(manifest: RunManifest, state: RunState, result: InnerResult) -> RunState:
    """After a round whose only miner this was."""
    mine = RunState(state.params.copy(), state.momentum.copy(), state.applied, state.carry)
    return outer_step(mine, [state.params - result.end], state.carry, manifest.outer)[0]


def load(model: nn.Module, state: RunState) -> None:
    load_flat(model, state.params)


def export(folder: Path, manifest: RunManifest, model: nn.Module, state: RunState) -> RunState:
    """Write what a checkpoint of the run has for transformers; returns the state that a joining node reads there."""
    layout = StateLayout(saved_form(manifest.model, MOST_PARAMETERS))
    layout.write(folder, state, saved_constants(model))
    for name, data in config_files(model, manifest.model.config).items():
        (folder / name).write_bytes(data)
    return layout.read(folder, state.applied, state.carry)


def losses(model: Any, tokens: Any) -> Any:
    return loss_per_sequence(model, tokens)
