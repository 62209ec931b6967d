"""The inner optimisers by name. Another one is one file beside these and one entry here."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from distributed_training.errors import ConfigError
from distributed_training.protocol.sections import InnerSection
from distributed_training.settings.words import nearest
from distributed_training.training.flat import trained
from distributed_training.training.optimizers.adamw import ADAMW
from distributed_training.training.optimizers.base import InnerOptimizer, Kind, Mine
from distributed_training.training.optimizers.muon import MUON

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (ADAMW, MUON)}


def options_of(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """All options of an optimiser: those given, and the defaults of the others.

    Raises ConfigError, in one line, for an optimiser or an option that does not exist, and for a value that cannot be.
    """
    kind = _kind(name)
    if not isinstance(given, Mapping):
        raise ConfigError(f"inner.options: expected options by name, for example momentum=0.9, not {given!r}")
    for option, value in given.items():
        if option not in kind.options:
            raise ConfigError(
                f"inner.options.{option}: {name} has no such option, it has {', '.join(kind.options)}"
                f"{nearest(option, kind.options)}"
            )
        known = kind.options[option]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not known.low <= value <= known.high:
            raise ConfigError(
                f"inner.options.{option}: expected a number from {known.low:g} to {known.high:g}, not {value!r}"
            )
    return {option: float(given.get(option, known.default)) for option, known in kind.options.items()}


def build(inner: InnerSection, model: nn.Module, mine: Mine | None = None) -> InnerOptimizer:
    """The optimiser that a run names, over the trained parameters of `model`, all or those in `mine`, whose gradients
    are there; no moments yet. Raises ConfigError where the manifest leaves an option out, or the model has nothing for
    it."""
    if options_of(inner.optimizer, inner.options) != inner.options:
        missing = sorted(_kind(inner.optimizer).options.keys() - inner.options.keys())
        raise ConfigError(f"inner.options: {', '.join(missing)} missing; a manifest names all options")
    every = frozenset(parameter for _, parameter in trained(model))
    return _kind(inner.optimizer).build(inner, model, every if mine is None else mine)


def _kind(name: str) -> Kind:
    if name not in [*KINDS]:  # a person may write anything, a list too
        raise ConfigError(
            f"inner.optimizer: expected one of {', '.join(KINDS)}, not {name!r}{nearest(str(name), KINDS)}"
        )
    return KINDS[name]
