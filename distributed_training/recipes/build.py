"""Run manifests from a few choices: a recipe, a model config, a page set, and overrides by section.

Used by the demo and by `scripts/create_run.py`. Everything here is a function of files and values: the same input
gives the same manifest, byte for byte.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distributed_training import PROTOCOL_VERSION
from distributed_training.averaging.plan import layout_of
from distributed_training.data.base import PageSource
from distributed_training.data.loader import heldout_sequences
from distributed_training.data.tokens import TokenizerKind, load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest, quota_problem
from distributed_training.settings.flags import nearest
from distributed_training.training.model import build_model, num_parameters, to_flat, vocab_size
from distributed_training.training.outer import initial_state, state_root

_FOLDER = files("distributed_training.recipes")
_COMMON = "common.toml"
GPT2_VOCABULARY = 50257
# Names under which model types say how many positions they have.
POSITION_FIELDS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Constants of a run as data: `recipes/NAME.toml` laid over `recipes/common.toml`."""

    name: str
    block_s: float  # seconds a block takes where such a run lives
    tempo: int  # blocks of an epoch there
    model: dict[str, Any]  # a transformers config
    sections: dict[str, Any]  # everything else: fields of the run manifest


def recipe_names() -> list[str]:
    tables = (file.name for file in _FOLDER.iterdir() if file.name.endswith(".toml") and file.name != _COMMON)
    return sorted(name.removesuffix(".toml") for name in tables)


def read_recipe(name: str) -> Recipe:
    """Raises ConfigError for a name that is not there."""
    known = recipe_names()
    if name not in known:
        raise ConfigError(f"recipe {name!r}: expected one of {', '.join(known)}{nearest(name, known)}")
    common, own = (tomllib.loads((_FOLDER / file).read_text("utf-8")) for file in (_COMMON, f"{name}.toml"))
    chain, model = own.pop("chain"), own.pop("model")
    return Recipe(name, chain["block_s"], chain["tempo"], model, merged(common, own))


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
    recipe_name: str,
    model: Mapping[str, Any],
    pages: PageSource,
    *,
    init_seed: int,
    overrides: Mapping[str, Any] | None = None,
    expected_reducers: int = 4,
    block_s: float | None = None,
) -> RunManifest:
    """The manifest of a run over `pages`. Raises ConfigError for whatever cannot be run, in one line.

    `block_s`: seconds per block; None: the recipe's.
    """
    recipe = read_recipe(recipe_name)
    fields = merged({"protocol_version": PROTOCOL_VERSION}, recipe.sections, overrides or {})
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
        fields["scoring"]["goodput_required"] = goodput(
            draft, len(params), expected_reducers, block_s or recipe.block_s
        )
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
