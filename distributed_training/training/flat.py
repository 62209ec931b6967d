"""The flat view of a model: one float32 vector of all that is trained.

Legend: d trained parameters; B sequences; T tokens a sequence. "Flat" is float32 [d] in `named_parameters()` order; a
tied weight appears once, at its first name. Parameters that the model itself freezes, and persistent buffers, are the
model's constants: every node makes them from config and seed, nothing trains or decays them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from distributed_training.errors import ConfigError
from distributed_training.protocol.rules.sketch import ParameterGroup

Flat = npt.NDArray[np.float32]
_IGNORED_LABEL = -100


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that the flat vector holds, in its order."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def raw(value: torch.Tensor) -> bytes:
    """Its numbers, little-endian, whatever the type."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def named_shapes(model: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the flat vector's parameters, in its order."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in trained(model))


def num_parameters(model: nn.Module) -> int:
    """Length d of the flat vector; tied weights count once."""
    return sum(parameter.numel() for _, parameter in trained(model))


def to_flat(model: nn.Module) -> Flat:
    """A copy of all trained parameters, float32 [d]."""
    flat = np.empty(num_parameters(model), np.float32)
    for parameter, start, stop in _ranges(model):  # one at a time leaves the device: no second copy here
        flat[start:stop] = parameter.detach().cpu().numpy().reshape(-1)
    return flat


def load_flat(model: nn.Module, flat: Flat) -> None:
    """Overwrite all trained parameters with `flat`, float32 [d]. Raises ValueError for another length or dtype."""
    source = _source(model, flat)
    with torch.no_grad():
        for parameter, start, stop in _ranges(model):
            parameter.copy_(source[start:stop].view_as(parameter))


def add_flat(model: nn.Module, flat: Flat) -> None:
    """Add `flat` to all trained parameters, with the bits of numpy's float32 sum. Raises as `load_flat`."""
    source = _source(model, flat)
    with torch.no_grad():
        for parameter, start, stop in _ranges(model):
            parameter.add_(source[start:stop].view_as(parameter).to(parameter.device))


def _source(model: nn.Module, flat: Flat) -> torch.Tensor:
    if flat.shape != (num_parameters(model),) or flat.dtype != np.float32:
        raise ValueError(f"expected float32 [{num_parameters(model)}], got {flat.dtype} {list(flat.shape)}")
    return torch.from_numpy(np.require(flat, requirements=["C", "W"]))


def bind_flat_gradient(model: nn.Module) -> torch.Tensor:
    """Make every gradient a view of one float32 tensor [d] on the model's device, zero at first, and return it.

    Backward passes add into it; call `zero_()` on it, never `zero_grad(set_to_none=True)`. Call after `model.to`.
    """
    first = next(model.parameters())
    gradient = torch.zeros(num_parameters(model), dtype=torch.float32, device=first.device)
    for parameter, start, stop in _ranges(model):
        parameter.grad = gradient[start:stop].view_as(parameter)
    return gradient


def groups(model: nn.Module) -> tuple[ParameterGroup, ...]:
    """Contiguous ranges that cover [0, d): embeddings, each transformer block, final norm and untied head.

    GPT-2 with 12 layers gives 14. Raises ConfigError when the model has no blocks, or they do not lie one after the
    other.
    """
    prefix = blocks(model)[0] + "."
    found: list[ParameterGroup] = []
    position = 0
    for name, parameter in trained(model):
        label = _label(name, prefix, after_blocks=any(g.name.startswith("block") for g in found))
        start, position = position, position + parameter.numel()
        if found and found[-1].name == label:
            found[-1] = ParameterGroup(label, found[-1].start, position)
        else:
            found.append(ParameterGroup(label, start, position))
    if len({group.name for group in found}) != len(found):
        raise ConfigError("model.config: parameters of one transformer block do not lie together")
    return tuple(found)


def loss_per_sequence(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of each sequence, nats, float32 [B], for int64 tokens [B, T].

    Position t predicts token t + 1, so a sequence holds T - 1 predictions. Tokens come unshifted.
    """
    return losses_of(model(input_ids=tokens, use_cache=False).logits, tokens)


def losses_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The same of logits [B, T, V] that are there."""
    return mean_losses(token_losses(logits.flatten(0, 1), next_tokens(tokens)), tokens)


def next_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """The label of each token of int64 [B, T], int64 [B * T]: the one after it, none for the last of a sequence."""
    return functional.pad(tokens[:, 1:], (0, 1), value=_IGNORED_LABEL).flatten()


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """float32 [N] of logits [N, V] and labels [N]; 0 where there is no label."""
    return functional.cross_entropy(logits.float(), labels, ignore_index=_IGNORED_LABEL, reduction="none")


def mean_losses(losses: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of each sequence of tokens [B, T]: float32 [B] of those of its tokens, float32 [B * T]."""
    return losses.view_as(tokens).sum(dim=1) / (tokens.shape[1] - 1)


def _ranges(model: nn.Module) -> Iterator[tuple[nn.Parameter, int, int]]:
    position = 0
    for _, parameter in trained(model):
        yield parameter, position, position + parameter.numel()
        position += parameter.numel()


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The module list that holds most parameters, the transformer's blocks, and its name. Raises ConfigError."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    name, found = max(lists, key=lambda item: num_parameters(item[1]), default=("", nn.ModuleList()))
    if num_parameters(found) == 0:
        raise ConfigError("model.config: the model has no transformer blocks, at least one layer expected")
    return name, found


def _label(name: str, prefix: str, *, after_blocks: bool) -> str:
    if name.startswith(prefix):
        return f"block {name[len(prefix) :].split('.', 1)[0]}"
    return "final" if after_blocks else "embeddings"
