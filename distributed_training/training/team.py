"""The processes of one node that train together, one for each GPU: the seam that the inner loop has with them.

Rank 0 is the node. The others hold a copy of the model and do with each batch what rank 0 does with it: the same share
of sequences forward and backward, gradients summed, the same clipping; each updates some of the parameters for all. No
torch here: entry points ask which process they are before they load it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from distributed_training.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` processes of this machine. meet: where they find each other, a URL of torch.distributed."""

    number: int
    size: int
    meet: str


@dataclass(frozen=True, slots=True)
class Head:
    """What the ranks have to know of a round beside the parameters."""

    applied_rounds: int
    fresh_moments: bool
    micro_batch: int
    compiled: bool
    bf16: bool


def torchrun_rank(environment: Mapping[str, str]) -> Rank | None:
    """Which of torchrun's processes this is; None where it started no more than one. Raises ConfigError."""
    size = environment.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in environment or size == "1":
        return None
    if environment["LOCAL_WORLD_SIZE"] != size:
        raise ConfigError("torchrun --nnodes: the processes of a node run on one machine; give --nproc-per-node alone")
    return Rank(int(environment["RANK"]), int(size), "env://")


class Team(Protocol):
    size: int  # processes, each with an equal share of a batch

    def divide(self, parameters: Sequence[nn.Parameter]) -> Container[nn.Parameter]:
        """Those whose moments this rank keeps, and which it updates: whole tensors, the same at each call."""
        ...

    def round(
        self, head: Head, parameters: Sequence[nn.Parameter], batches: Iterator[Tokens]
    ) -> AbstractContextManager[Iterator[Tokens]]:
        """Gives all the parameters of rank 0, in place; then its own share of each of rank 0's batches, in lockstep."""
        ...

    def shifted(self, parameters: Sequence[nn.Parameter]) -> None:
        """Between two steps: rank 0 has moved its parameters, and gives them to all."""
        ...

    def attempt(self) -> AbstractContextManager[None]:
        """Leaves without an error if the others' attempts succeeded too; else raises this rank's error, or what the
        first other one said of its own as MemoryError, DeviceLost or LocalFault."""
        ...

    def sum(self, gradient: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Adds up the gradients of all ranks in place, to the same bytes on each. The losses of the whole batch, in its
        order, from those of this share, float32 on the same device."""
        ...

    def give(self, parameters: Sequence[nn.Parameter]) -> None:
        """All ranks get the parameters that each has updated, in place."""
        ...


class Alone:
    """One process is a team too."""

    size = 1

    def divide(self, parameters: Sequence[nn.Parameter]) -> Container[nn.Parameter]:
        return frozenset(parameters)

    def round(
        self, head: Head, parameters: Sequence[nn.Parameter], batches: Iterator[Tokens]
    ) -> AbstractContextManager[Iterator[Tokens]]:
        return nullcontext(batches)

    def shifted(self, parameters: Sequence[nn.Parameter]) -> None:
        """They are here."""

    def attempt(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sum(self, gradient: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return losses

    def give(self, parameters: Sequence[nn.Parameter]) -> None:
        """They are here."""
