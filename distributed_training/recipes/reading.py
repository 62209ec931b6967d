"""Presets, and documents that a person gives, as they are read: whoever only reads them loads nothing heavy."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from distributed_training.errors import ConfigError, expected
from distributed_training.recipes.timing import Expect, Table
from distributed_training.settings.flags import merge
from distributed_training.settings.words import nearest

FOLDER = files("distributed_training.recipes")
COMMON = "common"
SHARED = (COMMON, "mainnet")  # no presets by themselves
PRESET_PARTS = (
    "chain",
    "expect",
    "model",
    "optimizers",
    "overlap",
    "uplinks",
)  # what is in a preset and in no manifest, or not like that
T = TypeVar("T", bound=Table)


@dataclass(frozen=True, slots=True)
class Preset:
    """Constants of a run as data: a table laid over those that it names as `like`, and all over `common.toml`."""

    name: str
    block_s: float  # seconds a block takes where such a run lives; a machine of its own may differ, a manifest may not
    tempo: int  # blocks of an epoch there
    finality: int  # blocks from the newest to the newest final one, at most
    expect: Expect
    model: dict[str, Any]  # a transformers config
    optimizers: dict[str, dict[str, Any]]  # by name: fields of the manifest that go with that inner optimiser
    overlap: dict[str, Any]  # fields of the manifest that go with `timing.overlap`
    uplinks: dict[str, dict[str, Any]]  # by name: those that go with that codec of what miners send
    sections: dict[str, Any]  # everything else: fields of the run manifest; `timing` may be left to timing.py


class _Chain(Table):
    block_s: float = Field(gt=0)
    tempo: int = Field(ge=1)
    finality: int = Field(ge=0)


def preset_names() -> list[str]:
    tables = (file.name.removesuffix(".toml") for file in FOLDER.iterdir() if file.name.endswith(".toml"))
    return sorted(name for name in tables if name not in SHARED)


def read_preset(preset: str | Path) -> Preset:
    """A preset that is shipped, by its name, or a file. Raises ConfigError, in one line that names it."""
    layers = [tomllib.loads(text) for text in _texts(preset)]
    fields = merge(*reversed(layers))
    fields.pop("like", None)
    taken = {"overlap": {}, "uplinks": {}} | {part: fields.pop(part) for part in PRESET_PARTS if part in fields}
    wrong = [part for part in PRESET_PARTS if not isinstance(taken.get(part), dict)]
    if wrong or not isinstance(fields.get("name"), str):
        raise ConfigError(f"--preset {preset}: expected a section [{wrong[0]}]" if wrong else _unnamed(preset))
    chain, expect = _table(preset, "chain", _Chain, taken["chain"]), _table(preset, "expect", Expect, taken["expect"])
    return Preset(
        name=fields["name"],
        block_s=chain.block_s,
        tempo=chain.tempo,
        finality=chain.finality,
        expect=expect,
        model=taken["model"],
        optimizers=taken["optimizers"],
        overlap=taken["overlap"],
        uplinks=taken["uplinks"],
        sections=fields,
    )


def shown(preset: str | Path) -> str:
    """A preset as one file: all that it is laid over in their places, with the comments, for a person to copy."""
    sections: dict[str, dict[str, str]] = {"": {}}
    for text in _texts(preset):
        name = ""
        for line in text.splitlines():
            heading, key = re.match(r"\[([^]]+)\]", line), re.match(r"([\w.]+) *=", line)
            if heading is not None:
                name = heading[1]
                sections.setdefault(name, {"": line})
            elif key is not None:
                sections[name].setdefault(key[1], line)
            elif line.startswith("#") and not sections[name]:
                sections[name]["#"] = line
    return "\n\n".join("\n".join(lines.values()) for lines in sections.values()) + "\n"


def _texts(preset: str | Path) -> list[str]:
    """Of a preset and of what it is laid over, the first one first."""
    if isinstance(preset, str) and preset not in (known := preset_names()):
        raise ConfigError(f"--preset {preset}: expected a file, or one of {', '.join(known)}{nearest(preset, known)}")
    texts, name = [], preset
    while True:
        try:
            text = (FOLDER / f"{name}.toml" if isinstance(name, str) else name).read_text("utf-8")
            like = tomllib.loads(text).get("like", COMMON)
        except OSError as error:
            raise ConfigError(f"--preset {preset}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"--preset {preset}: expected TOML: {error}") from None
        texts.append(text)
        if name == COMMON:
            return texts
        if like not in (allowed := [*preset_names(), *SHARED]) or like == name:
            raise ConfigError(f"--preset {preset}: like: expected one of {', '.join(allowed)}, not {like!r}")
        name = like


def _table(preset: str | Path, name: str, kind: type[T], fields: dict[str, Any]) -> T:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise ConfigError(f"--preset {preset}: {where}: {expected(first)}") from None


def _unnamed(preset: str | Path) -> str:
    return f'--preset {preset}: expected a name, for example name = "mine"'


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
