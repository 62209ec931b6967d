"""The project's inner optimisers over many workers at once, and where their parameters lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from distributed_training.protocol.sections import InnerSection

Flats = npt.NDArray[np.float32]  # [n, d]
Shape = tuple[int, ...]
# Of kellerjordan.github.io/posts/muon
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, SMALLEST_NORM = (3.4445, -4.7750, 2.0315), 5, 1e-7


class _Place(NamedTuple):
    name: str  # without the model's prefix
    shape: Shape
    part: int  # 0: matrices of the blocks; 1: other matrices; 2: the rest
    flat: int  # where it begins in the flat vector
    start: int  # and in its part

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Parameters:
    """n workers' parameters in three tensors [n, k]: matrices of the blocks by shape, other matrices, the rest."""

    def __init__(self, shapes: Sequence[tuple[str, Shape]], first: int, last: int, workers: int) -> None:
        """`first`, `last`: where the blocks lie in the flat vector."""
        found: list[tuple[int, Shape, int, str]] = []
        position = 0
        for name, shape in shapes:
            part = 2 if len(shape) != 2 else 0 if first <= position < last else 1
            found.append((part, shape, position, name.removeprefix("transformer.")))
            position += math.prod(shape)
        self.places: list[_Place] = []
        ends = [0, 0, 0]
        for part, shape, at, name in sorted(found):
            self.places.append(_Place(name, shape, part, at, ends[part]))
            ends[part] += math.prod(shape)
        self.parts = [torch.zeros(workers, end) for end in ends]
        self._leaves: dict[int, dict[str, torch.Tensor]] = {}
        self._num = position

    def load(self, flats: Flats) -> None:
        """Of the first workers, as many as there are."""
        source = torch.from_numpy(flats)
        for place in self.places:
            part = self.parts[place.part][: len(flats)]
            part[:, place.start : place.start + place.size] = source[:, place.flat : place.flat + place.size]

    def flats(self) -> Flats:
        made = torch.empty(len(self.parts[0]), self._num)
        for place in self.places:
            part = self.parts[place.part][:, place.start : place.start + place.size]
            made[:, place.flat : place.flat + place.size] = part
        return made.numpy()

    def leaves(self, workers: int) -> dict[str, torch.Tensor]:
        """Views [workers, ...] by name, which gradients can be taken of."""
        if workers not in self._leaves:
            self._leaves[workers] = {
                p.name: self.parts[p.part][:workers, p.start : p.start + p.size]
                .view(workers, *p.shape)
                .detach()
                .requires_grad_()
                for p in self.places
            }
        return self._leaves[workers]

    def gathered(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of `leaves`, in its order, as the parts lie."""
        by_part: list[list[torch.Tensor]] = [[], [], []]
        for place, gradient in zip(self.places, gradients, strict=True):
            by_part[place.part].append(gradient.flatten(1))
        return [torch.cat(part, dim=1) for part in by_part]

    def matrices(self) -> list[tuple[Shape, int, int]]:
        """(shape, how many, where they begin) of those that lie together in part 0."""
        runs = groupby((place for place in self.places if place.part == 0), key=lambda place: place.shape)
        return [(shape, len(found), found[0].start) for shape, each in runs if (found := list(each))]


class StackedStep(Protocol):
    def step(self, gradients: list[torch.Tensor], rate: float, active: int) -> None: ...


class AdamWStep:
    """optimizers/adamw.py, for the parts named."""

    def __init__(self, inner: InnerSection, parameters: Parameters, parts: Sequence[int] = (0, 1, 2)) -> None:
        self._inner, self._parts = inner, parts
        self._values = parameters.parts
        self._first = [torch.zeros_like(part) for part in parameters.parts]
        self._second = [torch.zeros_like(part) for part in parameters.parts]
        self._steps = torch.zeros(())

    def step(self, gradients: list[torch.Tensor], rate: float, active: int) -> None:
        options = self._inner.options
        self._steps += 1
        for part in self._parts:
            torch._fused_adamw_(
                [self._values[part][:active]],
                [gradients[part]],
                [self._first[part][:active]],
                [self._second[part][:active]],
                [],
                [self._steps],
                lr=rate,
                beta1=options["beta1"],
                beta2=options["beta2"],
                weight_decay=self._inner.weight_decay if part < 2 else 0.0,
                eps=options["epsilon"],
                amsgrad=False,
                maximize=False,
            )


class MuonStep:
    """optimizers/muon.py: Muon for the matrices of the blocks, AdamW for the rest."""

    def __init__(self, inner: InnerSection, parameters: Parameters, products: torch.dtype) -> None:
        """`products`: the type that matrices are multiplied in."""
        self._inner, self._type = inner, products
        self._rest = AdamWStep(inner, parameters, (1, 2))
        self._values = parameters.parts[0]
        self._momentum = torch.zeros_like(self._values)
        self._matrices = parameters.matrices()

    def step(self, gradients: list[torch.Tensor], rate: float, active: int) -> None:
        self._rest.step(gradients, rate, active)
        options, gradient = self._inner.options, gradients[0]
        rate *= options["matrix_rate"]
        momentum, values = self._momentum[:active], self._values[:active]
        momentum.lerp_(gradient, 1 - options["momentum"])
        update = gradient.lerp_(momentum, options["momentum"])
        values.mul_(1 - rate * self._inner.weight_decay)
        for (rows, columns), count, start in self._matrices:
            here = slice(start, start + count * rows * columns)
            stacked = update[:, here].reshape(active * count, rows, columns)
            gain = math.sqrt(max(1.0, columns / rows))  # GPT-2 stores [inputs, outputs]
            values[:, here].sub_(_orthogonal(stacked.to(self._type)).float().reshape(active, -1), alpha=rate * gain)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About U V^T of each [k, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=SMALLEST_NORM)[:, None, None]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x
