"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) over all parameters; only matrices decay, norms and biases do not."""

from __future__ import annotations

import torch
from torch import nn

from distributed_training.protocol.sections import InnerSection
from distributed_training.training.flat import trained
from distributed_training.training.optimizers.base import DECAY, InnerOptimizer, Kind, Mine, Option

ADAM_OPTIONS = {
    "beta1": Option(0.9, *DECAY),
    "beta2": Option(0.95, *DECAY),
    "epsilon": Option(1e-8, 1e-300, 1e300),
}


class TorchOptimizer:
    """One of torch's, whose rate is set at every step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def step(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    def reset(self) -> None:
        self._optimizer.state.clear()


class Idle:
    """There are fewer tensors than processes."""

    def step(self, learning_rate: float) -> None: ...

    def reset(self) -> None: ...


def adamw(inner: InnerSection, parameters: list[nn.Parameter]) -> InnerOptimizer:
    """Of these parameters alone."""
    if not parameters:
        return Idle()
    options = inner.options
    decays = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": inner.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (options["beta1"], options["beta2"])
    return TorchOptimizer(
        torch.optim.AdamW(decays, lr=inner.learning_rate, betas=betas, eps=options["epsilon"], fused=True)
    )


def _build(inner: InnerSection, model: nn.Module, mine: Mine) -> InnerOptimizer:
    return adamw(inner, [parameter for _, parameter in trained(model) if parameter in mine])


ADAMW = Kind("adamw", ADAM_OPTIONS, _build, moments=2.0, matrix_moments=2.0)
