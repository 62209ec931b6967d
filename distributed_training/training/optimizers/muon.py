"""Muon (Jordan, kellerjordan.github.io/posts/muon) for the matrices of the transformer blocks, AdamW for the rest.

It orthogonalises its momentum, so that an update's size does not depend on how long the momentum was gathered: it
hardly needs a past, which a round has not.

Legend: k matrices of one shape; m, n rows and columns of a weight as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from distributed_training.errors import ConfigError
from distributed_training.protocol.sections import InnerSection
from distributed_training.training.flat import groups, trained
from distributed_training.training.optimizers.adamw import ADAM_OPTIONS, adamw
from distributed_training.training.optimizers.base import DECAY, InnerOptimizer, Kind, Mine, Option

# Jordan's quintic: after five steps singular values from about 1/500 of the norm on lie in 0.7 .. 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_SMALLEST_NORM = 1e-7
_BATCH_NUMBERS = 1 << 24  # orthogonalised at a time: few launches, and copies of 64 MiB


@dataclass(frozen=True, slots=True)
class _Piece:
    """Matrices first .. stop of a parameter that is one matrix, or a stack of them."""

    parameter: nn.Parameter
    first: int
    stop: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Their view [stop - first, m, n] of the parameter, or of its gradient."""
        return tensor.detach().view(-1, *tensor.shape[-2:])[self.first : self.stop]

    def gradient(self) -> torch.Tensor:
        assert self.parameter.grad is not None
        return self.of(self.parameter.grad)


class _Batch:
    """Pieces of one shape and one orientation, with their momentum, float32 [k, m, n]."""

    def __init__(self, pieces: Sequence[_Piece], gain: float) -> None:
        self._pieces, self._gain = pieces, gain
        self._views = [piece.of(piece.parameter) for piece in pieces]
        first = self._views[0]
        self.momentum = first.new_zeros((sum(map(len, self._views)), *first.shape[1:]))

    def step(self, rate: float, momentum: float, weight_decay: float) -> None:
        gradients = torch.cat([piece.gradient() for piece in self._pieces])
        self.momentum.lerp_(gradients, 1.0 - momentum)
        update = orthogonal(gradients.lerp_(self.momentum, momentum))  # Nesterov's look ahead
        torch._foreach_mul_(self._views, 1.0 - rate * weight_decay)
        parts = update.split([len(view) for view in self._views])
        torch._foreach_add_(self._views, list(parts), alpha=-rate * self._gain)


class Muon:
    def __init__(self, inner: InnerSection, batches: list[_Batch], rest: list[nn.Parameter]) -> None:
        self._matrix_rate, self._momentum = inner.options["matrix_rate"], inner.options["momentum"]
        self._weight_decay = inner.weight_decay
        self._batches, self._rest = batches, adamw(inner, rest)

    def step(self, learning_rate: float) -> None:
        for batch in self._batches:
            batch.step(learning_rate * self._matrix_rate, self._momentum, self._weight_decay)
        self._rest.step(learning_rate)

    def reset(self) -> None:
        for batch in self._batches:
            batch.momentum.zero_()
        self._rest.reset()


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz: U V^T of each U S V^T of float32 [k, m, n], singular values near 1; zeros stay zeros.

    In float32, where torch.optim.Muon takes bfloat16: two honest nodes that round differently then stay together
    (docs/drift.md). The gradient's scale has no effect.
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=_SMALLEST_NORM)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if wide is not matrices else x


def _build(inner: InnerSection, model: nn.Module, mine: Mine) -> InnerOptimizer:
    gains = dict(matrix_gains(model))
    if not gains:
        raise ConfigError("inner.optimizer: muon is for matrices, and this model's blocks have none; take adamw")
    alike: dict[tuple[torch.Size, float], list[nn.Parameter]] = {}
    for parameter, gain in gains.items():
        if parameter in mine:
            alike.setdefault((parameter.shape[-2:], gain), []).append(parameter)
    batches = [_Batch(batch, gain) for (_, gain), same in alike.items() for batch in _batches(same)]
    return Muon(inner, batches, [p for _, p in trained(model) if p not in gains and p in mine])


def _batches(parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[_Piece]]:
    """Pieces of parameters whose matrices have one shape: as many matrices at a time as make _BATCH_NUMBERS."""
    most = room = max(1, _BATCH_NUMBERS // parameters[0].shape[-2:].numel())
    pieces: list[_Piece] = []
    for parameter in parameters:
        count, first = parameter.shape[:-2].numel(), 0
        while first < count:
            stop = min(count, first + room)
            pieces.append(_Piece(parameter, first, stop))
            room, first = room - (stop - first), stop
            if room == 0:
                yield pieces
                pieces, room = [], most
    if pieces:
        yield pieces


def matrix_gains(model: nn.Module) -> Iterator[tuple[nn.Parameter, float]]:
    """The matrices of the blocks in the flat vector's order: sqrt(max(1, outputs / inputs)), so that the rate means
    the same at every shape, each.

    A matrix is a `weight` [m, n] that multiplies activations (linear layers, routers), or a stack of them (experts).
    Embeddings, convolutions, and what a model names otherwise (decays of state spaces, tables of biases) are none.
    """
    owners: dict[nn.Parameter, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, (module, name))
    blocks = [group for group in groups(model) if group.name.startswith("block")]
    position = 0
    for _, parameter in trained(model):
        inside, position = blocks[0].start <= position < blocks[-1].stop, position + parameter.numel()
        module, name = owners[parameter]
        named = name == "weight" or (parameter.ndim == 3 and name.endswith(("_proj", "_weight")))
        if not (inside and named and parameter.ndim in (2, 3) and min(parameter.shape[-2:]) > 1):
            continue
        if not isinstance(module, nn.Embedding | _ConvNd):
            outputs, inputs = parameter.shape[-2:]
            if getattr(module, "nf", None) == inputs or getattr(module, "is_transposed", False):
                outputs, inputs = inputs, outputs  # GPT-2's Conv1D and the experts of some store [inputs, outputs]
            yield parameter, math.sqrt(max(1.0, outputs / inputs))


MUON = Kind(
    "muon",
    {"matrix_rate": Option(10.0, 1e-6, 1e6), "momentum": Option(0.95, *DECAY), **ADAM_OPTIONS},
    _build,
    moments=2.0,
    matrix_moments=1.0,
)
