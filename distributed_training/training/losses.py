"""Losses and their gradient, some tokens at a time between the model's trunk and its head.

Of a large vocabulary the logits are the largest thing in a step: 50,257 float32 numbers a token, several times over in
their loss and its gradient. So the hidden states of all tokens are computed once; the head and the loss see some of
them at a time, and give their gradient at once. torch's own `linear_cross_entropy` does so for a plain matrix; on a CPU
it took four to five times as long (508 tokens of GPT-2's shape), and it knows no softcap, scale or transform of logits.

Legend: B sequences; T tokens a sequence; V token ids; N = B * T; H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distributed_training.training.flat import blocks, loss_per_sequence, mean_losses, next_tokens, token_losses

_CPU_BYTES = 128 << 20  # of float32 logits at a time
_GPU_SHARE = 64  # the same as a part of an accelerator's memory; their loss and its gradient take four times that
_TRIED = (2, 8)  # sequences and tokens, to compare both ways of computing
_ROUNDING = 1e-4  # between them, of losses near ln V

Wrap = Callable[[Any], Any]


class _Parts(NamedTuple):
    trunk: Callable[[torch.Tensor], torch.Tensor]  # int64 [B, T] -> states [B, T, H]
    head: Callable[[torch.Tensor], torch.Tensor]  # states [N, H] -> logits [N, V]


class SequenceLosses:
    """Mean next-token cross-entropy of sequences by one model, as `loss_per_sequence` up to rounding.

    Logits are computed for at most `tokens_at_once` tokens where the model's trunk and head can be told apart, which
    is tried when it is needed first; else for all. `autocast()` is entered for every forward pass; `wrap` makes what is
    called of a module, `torch.compile` for instance. `table`: the input embeddings [V, H].
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: Callable[[], AbstractContextManager[object]],
        *,
        wrap: Wrap = lambda module: module,
        bytes_at_once: int | None = None,
    ) -> None:
        self._model, self._called, self._autocast, self._wrap = model, wrap(model), autocast, wrap
        self.table = _table(model)
        self.tokens_at_once = max(1, (bytes_at_once or _bytes_at_once(self.table.device)) // (4 * len(self.table)))

    def backward(self, tokens: torch.Tensor, factor: float) -> torch.Tensor:
        """Losses float32 [B] of int64 tokens [B, T]; adds the gradient of `factor` times their sum to every `.grad`."""
        if tokens.numel() <= self.tokens_at_once or self._parts is None:
            with self._autocast():
                losses = loss_per_sequence(self._called, tokens)
            (losses.sum() * factor).backward()
            return losses.detach()
        with self._autocast():
            states = self._parts.trunk(tokens)
        each = factor / (tokens.shape[1] - 1)
        losses, gradients = list[torch.Tensor](), list[torch.Tensor]()
        labels = next_tokens(tokens).split(self.tokens_at_once)
        for part, label in zip(states.detach().flatten(0, 1).split(self.tokens_at_once), labels, strict=True):
            part = part.detach().requires_grad_()
            with self._autocast():
                loss = token_losses(self._parts.head(part), label)
            (loss.sum() * each).backward()
            assert part.grad is not None
            losses.append(loss.detach())
            gradients.append(part.grad)
        states.backward(torch.cat(gradients).view_as(states))
        return mean_losses(torch.cat(losses), tokens)

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Losses float32 [B], without a gradient."""
        parts = self._parts if tokens.numel() > self.tokens_at_once else None
        with self._autocast():
            if parts is None:
                return loss_per_sequence(self._called, tokens)
            states = parts.trunk(tokens).flatten(0, 1).split(self.tokens_at_once)
            labels = next_tokens(tokens).split(self.tokens_at_once)
            losses = [token_losses(parts.head(part), label) for part, label in zip(states, labels, strict=True)]
        return mean_losses(torch.cat(losses), tokens)

    def head_bytes(self, tokens: int) -> int:
        """What the logits of so many tokens take at most, with their loss and its gradients."""
        return 4 * 4 * min(tokens, self.tokens_at_once) * len(self.table)

    def kept_bytes(self, length: int) -> int:
        """What a sequence of so many tokens keeps for its backward pass: by a forward pass, without the logits where
        those are computed in parts."""
        kept: dict[int, int] = {}
        own = {value.untyped_storage().data_ptr() for value in self._model.parameters()}

        def note(value: torch.Tensor) -> torch.Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        tokens = (torch.arange(length, device=self.table.device) % len(self.table)).unsqueeze(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value), self._autocast():
            _ = loss_per_sequence(self._model, tokens) if self._parts is None else self._parts.trunk(tokens)
        return sum(kept.values())

    @cached_property
    def _parts(self) -> _Parts | None:
        parts = _told_apart(self._model)
        return None if parts is None else _calls(*parts, self._wrap)


def _calls(trunk: nn.Module, head: nn.Module, wrap: Wrap) -> _Parts:
    first, second = wrap(trunk), wrap(head)
    return _Parts(
        lambda tokens: first(input_ids=tokens, use_cache=False).last_hidden_state,
        lambda states: second(inputs_embeds=states.unsqueeze(0), use_cache=False).logits.squeeze(0),
    )


def recompute_blocks(model: nn.Module) -> None:
    """From now on a forward pass keeps what enters each block; the backward pass computes the rest again.

    Not by transformers' own switch, which asks for training mode.
    """
    for block in blocks(model)[1]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _told_apart(model: Any) -> tuple[nn.Module, nn.Module] | None:
    """The trunk of a causal model, and its own way from there to the logits, whatever that is: the model itself with
    a trunk that gives what it is handed. None where that is not the same function."""
    name = model.base_model_prefix
    if name not in model._modules:
        return None
    trunk, head = model._modules[name], copy.copy(model)  # which shares all that it holds
    try:
        with torch.no_grad():
            form = type(trunk(input_ids=_tokens(model)[:, :1], use_cache=False))
        head.__dict__["_modules"] = {**model._modules, name: _Handed(form)}
        same = _same(model, _calls(trunk, head, lambda module: module))
    except Exception:  # of a family whose forward pass is of another kind: theirs have no common root
        return None
    return (trunk, head) if same else None


class _Handed(nn.Module):
    """In the place of a trunk: its output are the states that it is handed as embeddings."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self._form = form

    def forward(self, *arguments: Any, inputs_embeds: torch.Tensor, **more: Any) -> Any:
        return self._form(last_hidden_state=inputs_embeds)


@torch.no_grad()
def _same(model: nn.Module, parts: _Parts) -> bool:
    tokens = _tokens(model)
    states = parts.trunk(tokens).flatten(0, 1)
    logits = torch.cat([parts.head(part) for part in states.split(states.shape[0] // 2 + 1)])
    losses = mean_losses(token_losses(logits, next_tokens(tokens)), tokens)
    return torch.allclose(losses, loss_per_sequence(model, tokens), rtol=_ROUNDING, atol=0)


def _tokens(model: nn.Module) -> torch.Tensor:
    sequences, length = _TRIED
    table = _table(model)
    return (torch.arange(sequences * length, device=table.device) * 7919 % len(table)).view(_TRIED)


def _table(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight


def _bytes_at_once(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    return torch.cuda.get_device_properties(device).total_memory // _GPU_SHARE
