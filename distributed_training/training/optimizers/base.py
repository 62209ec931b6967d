"""The seam of inner optimisers: what a run may choose, and what the inner loop asks of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import nn

from distributed_training.protocol.sections import InnerSection

# Of a model's parameters those that the optimiser is to change; one of several processes changes some.
Mine = Container[nn.Parameter]


class InnerOptimizer(Protocol):
    """Changes a model's parameters by the gradients that stand in them. No random number, no look at a clock."""

    def step(self, learning_rate: float) -> None:
        """One update. The rate is of this step: schedule and ramp are the caller's (`rules/schedules.py`)."""
        ...

    def reset(self) -> None:
        """As new: every round starts without a past."""
        ...


class Option(NamedTuple):
    """A number that a manifest pins, and where it may lie."""

    default: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    options: Mapping[str, Option]
    build: Callable[[InnerSection, nn.Module, Mine], InnerOptimizer]
    moments: float  # numbers kept for each trained parameter,
    matrix_moments: float  # and for each of a matrix of the blocks; at most


DECAY = (0.0, 0.9999)  # 1 would never forget
