"""Recipes, and documents that a person gives, as they are read: whoever only reads them loads nothing heavy."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError
from distributed_training.settings.flags import merge
from distributed_training.settings.words import nearest

FOLDER = files("distributed_training.recipes")
COMMON = "common.toml"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Constants of a run as data: `recipes/NAME.toml` laid over `recipes/common.toml`."""

    name: str
    block_s: float  # seconds a block takes where such a run lives; a machine of its own may differ, a manifest may not
    tempo: int  # blocks of an epoch there
    model: dict[str, Any]  # a transformers config
    sections: dict[str, Any]  # everything else: fields of the run manifest


def recipe_names() -> list[str]:
    tables = (file.name for file in FOLDER.iterdir() if file.name.endswith(".toml") and file.name != COMMON)
    return sorted(name.removesuffix(".toml") for name in tables)


def read_recipe(name: str) -> Recipe:
    """Raises ConfigError for a name that is not there."""
    known = recipe_names()
    if name not in known:
        raise ConfigError(f"recipe {name!r}: expected one of {', '.join(known)}{nearest(name, known)}")
    common, own = (tomllib.loads((FOLDER / file).read_text("utf-8")) for file in (COMMON, f"{name}.toml"))
    chain, model = own.pop("chain"), own.pop("model")
    return Recipe(name, chain["block_s"], chain["tempo"], model, merge(common, own))


def read_document(path: Path, what: str) -> dict[str, Any]:
    """A JSON or TOML file (by its ending) as a dict. Raises ConfigError naming the file and the problem."""
    try:
        data = path.read_bytes()  # of JSON the library tells UTF-8, marked or not, from UTF-16 and UTF-32
        loaded = tomllib.loads(data.decode("utf-8-sig")) if path.suffix == ".toml" else json.loads(data)
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} {path}: expected {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{what} {path}: expected an object with fields, not {type(loaded).__name__}")
    return loaded


def read_model(path: Path) -> dict[str, Any]:
    """A transformers config: a config.json as it is published, or the folder of a model. Raises ConfigError."""
    if path.is_dir():
        path /= "config.json"
    config = read_document(path, "--model")
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(f"--model {path}: expected a transformers config that names model_type, for example gpt2")
    return config
