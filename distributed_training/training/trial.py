"""A new model tried once, at the run's own sequence length, before a manifest pins it: by whoever creates the run.

What is shown: it takes sequences of this length, its logits are finite, its first loss is near that of guessing, no
logit depends on a later token or on another sequence, the same input gives the same bits, nothing in the model changes
by being used, and a gradient comes back.

Legend: T tokens a sequence; V token ids. Costs about five forward passes of one sequence of T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from distributed_training.errors import ConfigError
from distributed_training.training.flat import groups, losses_of, trained
from distributed_training.training.wording import in_one_line

# Rounding may differ with the values in a batch, by which experts are chosen for instance: relative to the logits.
_ROUNDING = 1e-5
_SHORT = 16  # tokens; enough to see one sequence in the logits of another
# A first loss beyond these shares of ln V is no guess. Of 176 tiny families 175 lie between 0.99 and 1.3.
_LOWEST, _HIGHEST = 0.8, 4.0
_NAMED = 3


def try_out(model: nn.Module, vocabulary: int, length: int) -> tuple[str, ...]:
    """Raises ConfigError with the first thing that does not hold, in one line. Else what whoever creates the run should
    know of the model, a line each, doubts as warnings. The model's parameters stay, its gradients do not."""
    groups(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, length), generator=generator)
    versions = {name: value._version for name, value in _values(model)}
    model.zero_grad(set_to_none=True)
    known: Any = model
    with in_one_line(f"a sequence of {length} tokens cannot be computed", known.config, length):
        output, embedded = _forward(model, tokens)
    logits = output.logits
    _check_first_loss(logits, tokens, vocabulary)
    with in_one_line("a backward pass cannot be computed", known.config):
        losses_of(logits[:, : length // 2 + 1], tokens[:, : length // 2 + 1]).sum().backward()
    changed = [name for name, value in _values(model) if value._version != versions.get(name)]
    if changed:
        raise ConfigError(f"model.config: {changed[0]} changes by being used, so no step could be done again")
    wrong = [name for name, p in trained(model) if p.grad is not None and not torch.isfinite(p.grad).all()]
    if wrong:
        raise ConfigError(f"model.config: the gradient of {wrong[0]} is not finite")
    learns = any(p.grad is not None and p.grad.any() for _, p in trained(model))
    notes = _notes(model, output)
    first = logits.detach()
    del output, logits
    _check_gradient(embedded, length // 2 + 1)
    model.zero_grad(set_to_none=True)
    _check_same(model, tokens, first)
    with torch.no_grad():
        other = tokens.clone()
        other[:, length // 2 :] = torch.randint(vocabulary, other[:, length // 2 :].shape, generator=generator)
        _check_past(model, first, other)
        _check_batch(model, vocabulary, min(length, _SHORT), generator)
    if not learns:
        raise ConfigError("model.config: no gradient reaches any parameter, so nothing would be learnt")
    return notes


def _forward(model: nn.Module, tokens: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """Its output, and what its input embeddings gave, whose gradient will be kept."""
    embedded: list[torch.Tensor] = []

    def keep(_module: nn.Module, _input: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad and output.shape[:2] == tokens.shape:
            output.retain_grad()
            embedded.append(output)

    known: Any = model
    hook = known.get_input_embeddings().register_forward_hook(keep)
    try:
        return model(input_ids=tokens, use_cache=False), embedded
    finally:
        hook.remove()


def _check_first_loss(logits: torch.Tensor, tokens: torch.Tensor, vocabulary: int) -> None:
    if logits.shape != (*tokens.shape, vocabulary):
        raise ConfigError(
            f"model.config: logits {list(logits.shape)} for tokens {list(tokens.shape)}, expected one for each of "
            f"{vocabulary} ids at each token"
        )
    if not torch.isfinite(logits).all():
        raise ConfigError("model.config: the first logits are not finite")
    loss, guess = float(losses_of(logits.detach(), tokens)), math.log(vocabulary)
    if not _LOWEST * guess <= loss <= _HIGHEST * guess:
        raise ConfigError(f"model.config: the first loss is {loss:.2f}, about ln {vocabulary} = {guess:.2f} expected")


def _check_gradient(embedded: list[torch.Tensor], known: int) -> None:
    """The losses were those of `known` tokens: no later embedding may have had a part in them."""
    for value in embedded:
        if value.grad is not None and value.grad[:, known:].abs().sum() > 0:
            raise ConfigError(_AHEAD)


def _check_same(model: nn.Module, tokens: torch.Tensor, first: torch.Tensor) -> None:
    again = model(input_ids=tokens, use_cache=False).logits
    if not torch.equal(again, first):
        where = _first_random(model, tokens)
        raise ConfigError(
            f"model.config: the same tokens give other logits each time, from {where} on; what a miner did could not "
            "be done again"
        )


def _check_past(model: nn.Module, first: torch.Tensor, other: torch.Tensor) -> None:
    known = other.shape[1] // 2
    changed = model(input_ids=other, use_cache=False).logits
    if _apart(changed[:, :known], first[:, :known]) > _ROUNDING:
        raise ConfigError(_AHEAD)


def _check_batch(model: nn.Module, vocabulary: int, length: int, generator: torch.Generator) -> None:
    one, two, three = torch.randint(vocabulary, (3, 1, length), generator=generator)
    beside = [model(input_ids=torch.cat([one, other]), use_cache=False).logits[:1] for other in (two, three)]
    if _apart(beside[0], beside[1]) > _ROUNDING:
        raise ConfigError("model.config: the logits of a sequence depend on the other sequences of its batch")


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.std().clamp_min(1e-30)) if one.numel() else 0.0


def _first_random(model: nn.Module, tokens: torch.Tensor) -> str:
    """Name of the first module that gives something else the second time."""
    seen: list[tuple[str, list[torch.Tensor]]] = []

    def noted(name: str) -> Any:
        return lambda _module, _input, output: seen.append((name, list(_tensors(output))))

    hooks = [module.register_forward_hook(noted(name)) for name, module in model.named_modules() if name]
    try:
        for _ in range(2):
            model(input_ids=tokens[:, :_SHORT], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    half = len(seen) // 2
    pairs = zip(seen[:half], seen[half:], strict=False)
    return next((one[0] for one, other in pairs if any(map(_differ, one[1], other[1]))), "somewhere")


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.equal(one, other)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output.detach().clone()
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _tensors(item)


def _notes(model: nn.Module, output: Any) -> tuple[str, ...]:
    notes = []
    idle = [name for name, p in trained(model) if p.grad is None or not p.grad.any()]
    if idle:
        several = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
        notes.append(
            f"warning: no gradient reached {', '.join(idle[:_NAMED])}{several}; weight decay shrinks what stays so"
        )
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        notes.append(f"not trained, as the model itself has it: {', '.join(frozen[:_NAMED])}")
    left = [name for name in ("aux_loss", "router_logits") if getattr(output, name, None) is not None]
    if left:
        notes.append(f"warning: left out of the loss: what its routers add to it ({', '.join(left)})")
    return tuple(notes)


def _values(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What is or goes into a state: parameters and persistent buffers."""
    return iter(model.state_dict(keep_vars=True).items())


_AHEAD = "model.config: the model looks ahead; a causal language model is needed"
