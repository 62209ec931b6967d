"""Which files a name of a data set means: the `configs` in its card, as `datasets` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fsspec.utils import glob_translate
from huggingface_hub import DatasetCard

from distributed_training.data.build.hub import HubDataset, HubFile
from distributed_training.errors import ConfigError

_OTHER_SPLITS = re.compile(r"(^|[-._ 0-9/])(test|testing|eval|evaluation|valid|validation|val|dev)([-._ 0-9/]|$)")

_TRAIN_SPLIT = re.compile(r"(^|[-._ 0-9/])train(ing)?([-._ 0-9/]|$)")


def files_of(dataset: HubDataset, name: str | None, split: str | None) -> list[HubFile]:
    """The files of configuration `name` (None: the default, or the only one) and `split` (None: train, or the only
    one), in the order in which `datasets` reads them. Raises ConfigError that lists what there is."""
    patterns = _patterns(dataset, name, split)
    listed = [file for file in dataset.files(_folder(pattern) for pattern in patterns) if _visible(file.name)]
    found: dict[str, HubFile] = {}
    for pattern in patterns:
        matches = re.compile(glob_translate(pattern)).match
        found |= {file.name: file for file in listed if matches(file.name)}
    if not found:
        raise ConfigError(f"--dataset {dataset.repo}: no file fits {', '.join(patterns)} at {dataset.revision}")
    return list(found.values())


def _patterns(dataset: HubDataset, name: str | None, split: str | None) -> list[str]:
    configs = _configs(dataset)
    if not configs and name is not None:
        raise ConfigError(f"--name {name}: the card of {dataset.repo} names no configurations")
    config = _chosen(dataset.repo, configs, name) if configs else {}
    folder = str(config.get("data_dir") or "").strip("/")
    if not config.get("data_files"):
        return _for_training(dataset, folder, split)
    splits = _splits(config["data_files"])
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
    if split not in splits:
        raise ConfigError(f"--split {split}: not in {dataset.repo}; expected one of {', '.join(splits)}")
    return [f"{folder}/{pattern}" if folder else pattern for pattern in splits[split]]


def _configs(dataset: HubDataset) -> list[Mapping[str, Any]]:
    card = dataset.card()
    if not card.startswith("---"):
        return []
    try:
        found = DatasetCard(card, ignore_metadata_errors=True).data.to_dict().get("configs")
    except Exception as error:  # a card is foreign text, and the parser's errors are many
        raise ConfigError(f"--dataset {dataset.repo}: its card cannot be read: {str(error)[:100]!r}") from None
    return [config for config in found if isinstance(config, dict)] if isinstance(found, list) else []


def _chosen(repo: str, configs: list[Mapping[str, Any]], name: str | None) -> Mapping[str, Any]:
    named = {str(config.get("config_name")): config for config in configs}
    default = [key for key, config in named.items() if config.get("default") is True or key == "default"]
    if name is None:
        name = default[0] if default else next(iter(named)) if len(named) == 1 else None
    if name in named:
        return named[name]
    shown = ", ".join(list(named)[:40]) + (" ..." if len(named) > 40 else "")
    asked = f"--name {name}: not in {repo}; expected" if name else f"--name NAME is needed for {repo}:"
    raise ConfigError(f"{asked} one of {shown}")


def _splits(data_files: Any) -> dict[str, list[str]]:
    """Split -> patterns, for the four ways of writing `data_files`."""
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    splits: dict[str, list[str]] = {}
    for item in data_files if isinstance(data_files, list) else [data_files]:
        entry = item if isinstance(item, dict) else {"split": "train", "path": item}
        paths = entry.get("path")
        splits.setdefault(str(entry.get("split")), []).extend(
            str(path).removeprefix("./") for path in (paths if isinstance(paths, list) else [paths])
        )
    return splits


def _for_training(dataset: HubDataset, folder: str, split: str | None) -> list[str]:
    """What a card means that does not say: all parquet files of the folder, or those that are named for training if
    others are named for testing."""
    if split not in (None, "train"):
        raise ConfigError(f"--split {split}: the card of {dataset.repo} names no splits")
    parquet = [file.name for file in dataset.files([folder]) if file.name.endswith(".parquet") and _visible(file.name)]
    other = [name for name in parquet if _OTHER_SPLITS.search(name)]
    train = [name for name in parquet if _TRAIN_SPLIT.search(name)]
    if other and not train:
        raise ConfigError(f"--dataset {dataset.repo}: which files are for training? Its card does not say ({other[0]})")
    return [re.sub(r"([*?[])", r"[\1]", name) for name in (train if other else parquet)] or ["**/*.parquet"]


def _folder(pattern: str) -> str:
    """The longest folder that holds every match: only it has to be listed."""
    plain: list[str] = []
    for part in pattern.split("/")[:-1]:
        if re.search(r"[*?[{]", part):
            break
        plain.append(part)
    return "/".join(plain)


def _visible(name: str) -> bool:
    parts = name.split("/")
    return not any(part.startswith((".", "__")) for part in parts) and parts[-1] not in (
        "README.md",
        "dataset_infos.json",
    )
