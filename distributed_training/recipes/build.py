"""Run manifests from a few choices: constants of a base, a model config, a page set, and overrides by section.

Used by the demo and by `scripts/create_run.py`. Everything here is a function of files and values: the same input
gives the same manifest, byte for byte.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distributed_training import PROTOCOL_VERSION
from distributed_training.averaging.plan import layout_of
from distributed_training.data.loader import heldout_sequences
from distributed_training.data.local import LocalPages
from distributed_training.data.tokens import TokenizerKind, load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest, quota_problem
from distributed_training.training.model import build_model, num_parameters, to_flat, vocab_size
from distributed_training.training.outer import initial_state, state_root

GPT2_VOCABULARY = 50257
# Names under which model types say how many positions they have.
POSITION_FIELDS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")

TINY_GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 257,
    "n_positions": 256,
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
}

_COMMON: dict[str, Any] = {
    "protocol_version": PROTOCOL_VERSION,
    "version_key": 1,
    "inner": {
        "min_lr_ratio": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "epsilon": 1e-8,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    },
    "average": {
        "block_coords": 512,
        "tau_factor": 1.5,
        "gate_factor": 1.02,
        "min_counted": 2,
        "max_reducers": 256,
    },
    "audit": {
        "t0": 2.0,
        "full_share": 0.02,
        "sketch_size": 32,
        "probe_chunks": 32,
        "error_ok": 0.02,
        "error_bad": 0.10,
        "error_growth_steps": 32.0,
        "norm_ok": 0.03,
        "norm_bad": 0.15,
        "loss_ok": 0.01,
        "loss_bad": 0.05,
        "vector_cosine_bad": 0.98,
    },
    "scoring": {
        "steps_half_life": 36.0,
        "audit_half_life": 50.0,
        "integrity_half_life": 6.0,
        "integrity_floor": 0.5,
        "soft_fail_weight": 10.0,
        "penalty_rounds": 50,
        "goodput_probes": 8,
        "bandwidth_share": 0.25,
        "cutoff": 0.01,
    },
}
# One machine, blocks of a second, tiny models: measured on two cores.
LOCAL: dict[str, Any] = {
    "name": "local",
    "netuid": 1,
    "max_uids": 16,
    "data": {"sequence_length": 256, "batch_size": 8, "heldout_sequences": 128},
    "inner": {
        "nominal_steps": 5,
        "max_steps": 500,
        "learning_rate": 4e-3,
        "warmup_steps": 20,
        "decay_steps": 1000,
    },
    "outer": {"learning_rate": 0.7, "momentum": 0.5},
    "average": {"chunk_coords": 4096, "token_cap": 64 * 2048, "initial_tau": 50.0, "min_map_share": 0.0},
    "timing": {
        "first_block": 12,
        "finality": 2,
        "roster_lead": 4,
        "commit_margin": 6,
        "commit": 26,
        "reduce_margin": 4,
        "output": 36,
        "map": 44,
        "length": 54,
        "transfer": 3,
    },
    "keep": {
        "work_rounds": 64,
        "output_rounds": 64,
        "snapshot_every": 1,
        "checkpoint_every": 2,
        "max_missing_rounds": 3,
    },
}
# Strangers' GPUs, blocks of 12 seconds: a place to start from; measure before a run enforces it.
MAINNET: dict[str, Any] = {
    "name": "gpt2",
    "netuid": 0,
    "max_uids": 256,
    "data": {"sequence_length": 1024, "batch_size": 128, "heldout_sequences": 256},
    "inner": {
        "nominal_steps": 100,
        "max_steps": 500,
        "learning_rate": 4e-4,
        "warmup_steps": 500,
        "decay_steps": 50_000,
    },
    "outer": {"learning_rate": 0.7, "momentum": 0.9},
    "average": {"chunk_coords": 1 << 18, "token_cap": 500 * 131_072, "initial_tau": 50.0, "min_map_share": 0.33},
    "timing": {
        "first_block": 100,
        "finality": 3,
        "roster_lead": 10,
        "commit_margin": 5,
        "commit": 75,
        "reduce_margin": 4,
        "output": 95,
        "map": 110,
        "length": 125,
        "transfer": 6,
    },
    "keep": {
        "work_rounds": 8,
        "output_rounds": 16,
        "snapshot_every": 8,
        "checkpoint_every": 8,
        "max_missing_rounds": 8,
    },
}
BASES = {"local": LOCAL, "mainnet": MAINNET}
BLOCK_S = {"local": 1.0, "mainnet": 12.0}
# Locally an epoch ends in every round at s+42: after the weights of that round, before its nodes may stop.
TEMPO = {"local": 54, "mainnet": 360}


def read_document(path: Path, what: str) -> dict[str, Any]:
    """A JSON or TOML file (by its ending) as a dict. Raises ConfigError naming the file and the problem."""
    try:
        text = path.read_text(encoding="utf-8")
        loaded = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{what} {path}: expected {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{what} {path}: expected an object with fields, not {type(loaded).__name__}")
    return loaded


def read_model(path: Path) -> dict[str, Any]:
    """A transformers config; a config.json of the Hub works as it is. Raises ConfigError."""
    config = read_document(path, "--model")
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(f"--model {path}: expected a transformers config that names model_type, for example gpt2")
    return config


def choose_tokenizer(config: Mapping[str, Any]) -> TokenizerKind:
    """GPT-2's BPE when the model has room for it, bytes otherwise."""
    return "gpt2" if vocab_size(dict(config)) >= GPT2_VOCABULARY else "bytes"


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, sections key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = {**result[key], **value} if both else value
    return result


def make_manifest(
    base: str,
    model: Mapping[str, Any],
    pages: LocalPages,
    *,
    init_seed: int,
    overrides: Mapping[str, Any] | None = None,
    expected_reducers: int = 4,
    block_s: float | None = None,
) -> RunManifest:
    """The manifest of a run over `pages`. Raises ConfigError for whatever cannot be run, in one line.

    `block_s`: seconds per block; None: the base's.
    """
    fields = merged(_COMMON, BASES[base], overrides or {})
    kind = fields["data"].get("tokenizer") or choose_tokenizer(model)
    tokenizer = load_tokenizer(kind)
    check_model(model, tokenizer.vocab_size, fields["data"]["sequence_length"])
    fields["data"] |= {
        "tokenizer": kind,
        "tokenizer_sha256": tokenizer.sha256,
        "pages_sha256": pages.sha256,
        "num_pages": pages.num_pages,
    }
    fields["model"] = {"config": dict(model), "init_seed": init_seed, "initial_root": "00" * 32}
    fields["scoring"].setdefault("goodput_required", 1.0)
    draft = validated(fields)
    params = to_flat(build_model(draft.model.config, init_seed))
    root = state_root(initial_state(params, draft.average), draft.average.chunk_coords)
    fields["model"]["initial_root"] = root.hex()
    if "goodput_required" not in (overrides or {}).get("scoring", {}):
        fields["scoring"]["goodput_required"] = goodput(draft, len(params), expected_reducers, block_s or BLOCK_S[base])
    heldout_sequences(pages, tokenizer, draft.data.sequence_length, draft.data.heldout_sequences)
    return validated(fields)


def validated(fields: Mapping[str, Any]) -> RunManifest:
    """Raises ConfigError naming the first wrong field, or the constraint between fields that does not hold."""
    try:
        return RunManifest.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"run manifest: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None


def check_model(config: Mapping[str, Any], vocabulary: int, sequence_length: int) -> None:
    """Does the model fit tokenizer and sequences? Raises ConfigError with both numbers."""
    if vocab_size(dict(config)) < vocabulary:
        raise ConfigError(
            f"model.config: vocab_size {vocab_size(dict(config))} is too small, expected at least {vocabulary} "
            "for the run's tokenizer"
        )
    for name in POSITION_FIELDS:
        if name in config and config[name] < sequence_length:
            raise ConfigError(f"model.config: {name} {config[name]} is too small, expected at least {sequence_length}")


def check_timing(manifest: RunManifest, tempo: int) -> None:
    """Refuse a round length whose commitments exceed the chain's quota. Raises ConfigError."""
    problem = quota_problem(manifest, tempo)
    if problem is not None:
        raise ConfigError(f"run manifest: {problem}")


def goodput(manifest: RunManifest, num_coords: int, reducers: int, block_s: float) -> float:
    """Bytes/s a miner needs: both ways of its share of the wire bytes in half of the averaging time
    (docs/scoring.md)."""
    wire = layout_of(manifest, num_coords).wire_bytes
    seconds = (manifest.timing.output - manifest.timing.commit) * block_s
    return round(2 * wire * (reducers - 1) / reducers / (0.5 * seconds), 1)


def model_size(config: Mapping[str, Any]) -> int:
    """Number of parameters."""
    return num_parameters(build_model(dict(config), 0))
