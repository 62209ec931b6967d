"""Tiny models, a manifest for them and seeded batches, shared by the training tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from distributed_training import PROTOCOL_VERSION
from distributed_training.protocol.manifest import RunManifest
from distributed_training.training.device import Precision
from distributed_training.training.inner import InnerLoop, InnerResult, Tokens
from distributed_training.training.model import attention_of, build_model, constants_sha256, read_config
from distributed_training.training.optimizers import options_of

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 64,
    "n_positions": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
AUDIT: dict[str, Any] = {
    "mode": "enforce",
    "depth_share": 0.1,
    "newcomer_factor": 2.0,
    "full_share": 0.02,
    "sketch_size": 32,
    "probe_chunks": 4,
    "error_ok": 0.02,
    "error_bad": 0.10,
    "error_growth_steps": 32.0,
    "error_growth_max": 4.0,
    "norm_ok": 0.03,
    "norm_bad": 0.15,
    "loss_ok": 0.01,
    "loss_bad": 0.05,
    "vector_cosine_bad": 0.99,
}
INNER: dict[str, Any] = {
    "optimizer": "adamw",
    "options": {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8},
    "nominal_steps": 5,
    "max_steps": 50,
    "learning_rate": 1e-3,
    "warmup_steps": 8,
    "decay_steps": 1000,
    "min_lr_ratio": 0.1,
    "ramp_steps": 4,
    "weight_decay": 0.1,
    "clip_norm": 0.5,
}


def model_section(config: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of a model, but for the state root of round 0."""
    pinned = read_config(config).config
    model = build_model(pinned, 7)
    said = {"attention": attention_of(model), "constants_sha256": constants_sha256(model)}
    return said | {"config": pinned, "init_seed": 7, "initial_root": "00" * 32}


def stated(config: dict[str, Any]) -> dict[str, Any]:
    """As it stands, for tests that build no model."""
    said = {"attention": "sdpa", "constants_sha256": "00" * 32, "initial_root": "00" * 32}
    return said | {"config": config, "init_seed": 7}


def manifest(
    config: dict[str, Any],
    *,
    batch_size: int = 8,
    sequence_length: int = 32,
    section: Callable[[dict[str, Any]], dict[str, Any]] = model_section,
    optimizer: str = "adamw",
) -> RunManifest:
    return RunManifest.model_validate(
        {
            "protocol_version": PROTOCOL_VERSION,
            "name": "tiny",
            "netuid": 1,
            "max_uids": 4,
            "version_key": 1,
            "continues": "",
            "public": {"run_key": "", "checkpoints": "", "pages": ""},
            "access": {"hotkeys": [], "coldkeys": []},
            "model": section(config),
            "data": {
                "tokenizer": "bytes",
                "tokenizer_sha256": "00" * 32,
                "eos_id": 256,
                "pages_sha256": "00" * 32,
                "page_trust": "digest",
                "num_pages": 8,
                "sequence_length": sequence_length,
                "batch_size": batch_size,
                "heldout_sequences": 4,
            },
            "inner": INNER | {"optimizer": optimizer, "options": options_of(optimizer, {})},
            "outer": {"learning_rate": 0.7, "momentum": 0.9},
            "average": {
                "chunk_coords": 4096,
                "uplink": "int8",
                "output": "int8",
                "feedback_decay": 1.0,
                "block_coords": 512,
                "token_cap": 1 << 20,
                "initial_tau": 10.0,
                "weight_by": "tokens",
                "tau_factor": 1.5,
                "gate_factor": 1.02,
                "min_counted": 1,
                "min_map_share": 0.0,
                "min_voter_share": 0.0,
                "max_reducers": 256,
            },
            "timing": {
                "first_block": 10,
                "finality": 2,
                "roster_lead": 4,
                "commit_margin": 6,
                "commit": 26,
                "reduce_margin": 2,
                "output": 36,
                "map": 44,
                "length": 54,
                "transfer": 4,
                "overlap": False,
            },
            "audit": AUDIT,
            "scoring": {
                "vesting_rounds": 24,
                "audit_half_life": 50.0,
                "integrity_half_life": 6.0,
                "integrity_floor": 0.5,
                "soft_fail_weight": 10.0,
                "penalty_rounds": 50,
                "goodput_required": 1e6,
                "goodput_probes": 8,
                "bandwidth_share": 0.25,
                "cutoff": 0.01,
                "burn_share": 0.0,
            },
            "keep": {
                "work_rounds": 8,
                "output_rounds": 16,
                "snapshot_every": 8,
                "checkpoint_every": 4,
                "max_missing_rounds": 3,
            },
        }
    )


def loop(
    config: dict[str, Any],
    *,
    batch_size: int = 8,
    micro_batch: int | None = None,
    optimizer: str = "adamw",
    precision: Precision = "fp32",
) -> InnerLoop:
    """An inner loop over a fresh model; one thread, so that equal inputs give equal bytes."""
    torch.set_num_threads(1)
    run = manifest(config, batch_size=batch_size, optimizer=optimizer)
    return InnerLoop(build_model(config, run.model.init_seed), run, micro_batch=micro_batch, precision=precision)


def batches(seed: int, *, size: int = 8, length: int = 32, vocab: int = 64) -> Iterator[Tokens]:
    """Endless learnable batches: noisy walks over the vocabulary, different for each seed."""
    rng = np.random.default_rng(seed)
    for _ in itertools.count():
        jumps = rng.choice([1, 1, 1, 2, 5], size=(size, length))
        yield (rng.integers(vocab, size=(size, 1)) + np.cumsum(jumps, axis=1)) % vocab


def train(loop: InnerLoop, start: np.ndarray, data: Iterator[Tokens], steps: int, **more: Any) -> InnerResult:
    """`steps` steps of round 0 with the sketch seed of the tests."""
    arguments: dict[str, Any] = {"applied_rounds": 0, "sketch_seed": b"seed", "should_stop": lambda: False}
    return loop.run(start, data, max_steps=steps, **(arguments | more))
