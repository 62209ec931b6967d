"""The numbers of a model trained before, as a run's round 0: safetensors only, every tensor accounted for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distributed_training.errors import ConfigError
from distributed_training.training.flat import trained
from distributed_training.training.model import constants_sha256
from distributed_training.training.wording import in_one_line

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_NAMED = 3


def load_pretrained(model: nn.Module, folder: Path) -> tuple[str, ...]:
    """Replace all trained parameters of `model` by those of a folder as `save_pretrained` writes it, in float32. Gives
    what to know of it, a line each.

    Names and types are read as transformers reads them for this class. Raises ConfigError, in one line, for a folder
    that holds another model: a tensor missing, of another shape or not finite, other constants than the config gives;
    and for one without safetensors: other files are programs.
    """
    where = f"--start {folder}"
    _check_files(folder, where)
    known: Any = model
    with torch.random.fork_rng(devices=[]), in_one_line("cannot be loaded", known.config, where=where):
        # The class is ours already: no code of the folder is looked for, and a size that differs is not made to fit.
        found, told = type(known).from_pretrained(
            str(folder),
            config=copy.deepcopy(known.config),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
    differing = sorted(f"{name} {tuple(there)} for {tuple(here)}" for name, there, here in told["mismatched_keys"])
    for what, names in (("of another shape", differing), ("missing", sorted(told["missing_keys"]))):
        if names:
            listed = ", ".join(names[:_NAMED])
            raise ConfigError(f"{where}: {len(names)} tensors {what}, {listed}; expected the run's whole model")
    theirs = dict(trained(found))
    with torch.no_grad():
        for name, parameter in trained(model):
            if not torch.isfinite(theirs[name]).all():
                raise ConfigError(f"{where}: {name} has a number that is not finite")
            parameter.copy_(theirs[name])
    if constants_sha256(found) != constants_sha256(model):
        raise ConfigError(
            f"{where}: what no step trains (frozen parameters, buffers) has other numbers than its config gives, and "
            "a run pins those"
        )
    unread = sorted(told["unexpected_keys"])
    listed = ", ".join(unread[:_NAMED])
    return (f"left out, no parameters of this model: {len(unread)} tensors, {listed}",) if unread else ()


def _check_files(folder: Path, where: str) -> None:
    if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    raise ConfigError(
        f"{where}: expected config.json and model.safetensors as save_pretrained writes them"
        + (f"; {pickles[0]} is a pickle, which runs code when it is opened" if pickles else "")
    )
