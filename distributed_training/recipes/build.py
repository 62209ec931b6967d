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
from distributed_training.data.base import PinnedPages
from distributed_training.data.loader import heldout_sequences
from distributed_training.data.pages import check_trust
from distributed_training.data.tokens import Tokenizer, TokenizerKind, load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest, quota_problem
from distributed_training.settings.flags import merge, nearest
from distributed_training.training.model import build_model, num_parameters, to_flat, vocab_size
from distributed_training.training.outer import initial_state, state_root

_FOLDER = files("distributed_training.recipes")
_COMMON = "common.toml"
GPT2_VOCABULARY = 50257
_FOLLOWS = ("tokenizer_sha256", "eos_id", "pages_sha256", "num_pages")
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
    return Recipe(name, chain["block_s"], chain["tempo"], model, merge(common, own))


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


def make_manifest(
    recipe_name: str,
    model: Mapping[str, Any],
    pages: PinnedPages,
    *,
    init_seed: int,
    tokenizer: Tokenizer | None = None,
    overrides: Mapping[str, Any] | None = None,
    expected_reducers: int = 4,
    block_s: float | None = None,
) -> RunManifest:
    """The manifest of a run over `pages`. Raises ConfigError for whatever cannot be run, in one line.

    `tokenizer` None: the one that `choose_tokenizer` takes. `block_s`: seconds per block; None: the recipe's.
    """
    recipe = read_recipe(recipe_name)
    _refuse_what_follows(overrides or {})
    fields = merge({"protocol_version": PROTOCOL_VERSION}, recipe.sections, overrides or {})
    tokenizer = tokenizer or load_tokenizer(fields["data"].get("tokenizer") or choose_tokenizer(model))
    check_model(model, tokenizer.vocab_size, fields["data"]["sequence_length"])
    fields["data"] |= {
        "tokenizer": tokenizer.kind,
        "tokenizer_sha256": tokenizer.sha256,
        "eos_id": tokenizer.eos,
        "pages_sha256": pages.sha256,
        "page_trust": fields["data"].get("page_trust") or ("commit" if pages.missing_digests else "digest"),
        "num_pages": pages.num_pages,
    }
    fields["model"] = {"config": dict(model), "init_seed": init_seed, "initial_root": "00" * 32}
    fields["scoring"].setdefault("goodput_required", 1.0)
    draft = validated(fields)
    check_trust(pages.missing_digests, draft.data.page_trust)
    params = to_flat(build_model(draft.model.config, init_seed))
    root = state_root(initial_state(params, draft.average), draft.average.chunk_coords)
    fields["model"]["initial_root"] = root.hex()
    if "goodput_required" not in (overrides or {}).get("scoring", {}):
        fields["scoring"]["goodput_required"] = goodput(
            draft, len(params), expected_reducers, block_s or recipe.block_s
        )
    heldout_sequences(pages, tokenizer, draft.data.sequence_length, draft.data.heldout_sequences)
    return validated(fields)


def _refuse_what_follows(overrides: Mapping[str, Any]) -> None:
    """Raises ConfigError for a field that cannot be chosen, because it follows from model, tokeniser and pages."""
    data = overrides.get("data", {})
    wrong = [f"data.{key}" for key in _FOLLOWS if key in data] + ["model"] * ("model" in overrides)
    if wrong:
        raise ConfigError(f"{wrong[0]} cannot be set: it follows from --model, --pages, --tokenizer and --seed")


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
