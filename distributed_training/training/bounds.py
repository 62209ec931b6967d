"""What a model may be before it is built: a config may come from a stranger, and building it takes time and memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from distributed_training.errors import ConfigError

MAX_INTEGER = 1 << 24  # larger than any vocabulary or context
MAX_LAYERS = 4096
MAX_TENSORS = 1 << 14
MOST_PARAMETERS = 1 << 40  # of a config that is the own run's


def check_integers(config: dict[str, Any]) -> None:
    """Raises ConfigError for a number that no model has: some make lists of that length, or models without an end."""
    for name, number in _integers("", config):
        most = MAX_LAYERS if "layer" in name else MAX_INTEGER
        if abs(number) > most:
            raise ConfigError(f"model.config: {name[:40]} {str(number)[:20]}, at most {most} expected")


@contextmanager
def bounded(most: int) -> Iterator[None]:
    """While a model is built in this thread: raises ConfigError at the tensor with which it has more than `most`
    parameters, or more than MAX_TENSORS tensors. Tied ones count each time: they are made first and tied later."""
    mine, tensors, numbers = threading.get_ident(), 0, 0

    def count(_module: nn.Module, _name: str, parameter: torch.Tensor | None) -> None:
        nonlocal tensors, numbers
        if parameter is None or threading.get_ident() != mine:
            return
        tensors, numbers = tensors + 1, numbers + math.prod(parameter.shape)
        if tensors > MAX_TENSORS or numbers > most:
            raise ConfigError(
                f"model.config: more than {MAX_TENSORS} tensors, or than the {most:,} parameters expected"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _integers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """With the innermost name of each."""
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _integers(inner, item)
    elif isinstance(value, list):
        for item in value:
            yield from _integers(name, item)
    elif isinstance(value, int):
        yield name, value
