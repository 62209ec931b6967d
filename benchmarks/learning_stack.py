"""Many workers of one GPT-2 in one pass: the same steps as InnerLoop's within rounding, at a fraction of the time.

A tiny model's step is mostly dispatch; here each operation serves all workers, and products are bfloat16 where asked,
as on a GPU. Legend: n workers, B sequences a step, T tokens a sequence, d parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from benchmarks.learning_steps import AdamWStep, MuonStep, Parameters, StackedStep
from distributed_training.protocol.manifest import RunManifest
from distributed_training.training.flat import groups, named_shapes
from distributed_training.training.model import build_model

Flats = npt.NDArray[np.float32]  # [n, d]
EVALUATED_AT_ONCE = 64  # sequences


class Stack:
    """`workers` models of the manifest's config, an optimiser's moments for each."""

    def __init__(self, manifest: RunManifest, workers: int, *, bf16: bool) -> None:
        model: Any = build_model(manifest.model.config, 0)
        config = model.config
        if config.model_type != "gpt2" or config.activation_function != "gelu_new":
            raise ValueError("the stack knows GPT-2 alone")
        self._layers, self._heads = config.n_layer, config.n_head
        self._inner, self._type = manifest.inner, torch.bfloat16 if bf16 else torch.float32
        blocks = [group for group in groups(model) if group.name.startswith("block")]
        self._parameters = Parameters(named_shapes(model), blocks[0].start, blocks[-1].stop, workers)
        self._moments = self._fresh()

    def load(self, flats: Flats) -> None:
        self._parameters.load(flats)

    def flats(self) -> Flats:
        return self._parameters.flats()

    def reset(self) -> None:
        self._moments = self._fresh()

    def train(self, batches: Sequence[npt.NDArray[np.int64]], rates: Sequence[float]) -> None:
        """batches: of each worker [steps, B, T], those with most steps first; rates: of each step."""
        steps = [len(own) for own in batches]
        if steps != sorted(steps, reverse=True):
            raise ValueError("expected workers in the order of their steps")
        for step in range(steps[0]):
            active = sum(own > step for own in steps)
            tokens = torch.from_numpy(np.stack([own[step] for own in batches[:active]]))
            leaves = self._parameters.leaves(active)
            loss = self._losses(leaves, tokens).mean(dim=1).sum()
            gradients = self._parameters.gathered(torch.autograd.grad(loss, list(leaves.values())))
            self._clip(gradients)
            self._moments.step(gradients, rates[step], active)

    def evaluate(self, flats: Flats, sequences: npt.NDArray[np.int64]) -> list[float]:
        """Mean loss of each, nats per token; n is at most that of the workers. Overwrites parameters."""
        n = len(flats)
        self._parameters.load(flats)
        total = torch.zeros(n, dtype=torch.float64)
        with torch.no_grad():
            for first in range(0, len(sequences), EVALUATED_AT_ONCE):
                tokens = torch.from_numpy(sequences[first : first + EVALUATED_AT_ONCE])
                leaves = self._parameters.leaves(n)
                total += self._losses(leaves, tokens.expand(n, *tokens.shape)).double().sum(dim=1)
        return (total / len(sequences)).tolist()

    def _fresh(self) -> StackedStep:
        if self._inner.optimizer == "muon":
            return MuonStep(self._inner, self._parameters, self._type)
        return AdamWStep(self._inner, self._parameters)

    def _clip(self, gradients: list[torch.Tensor]) -> None:
        norms = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]), dim=0)
        if not bool(torch.isfinite(norms).all()):
            raise ValueError("training diverged")
        scale = (self._inner.clip_norm / norms).clamp(max=1.0)[:, None]
        for part in gradients:
            part.mul_(scale)

    def _losses(self, p: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Of each sequence [n, B], for int64 tokens [n, B, T]."""
        n, batch, length = tokens.shape
        vocabulary, width = p["wte.weight"].shape[1:]
        rows = (tokens + vocabulary * torch.arange(n)[:, None, None]).flatten()
        x = functional.embedding(rows, p["wte.weight"].reshape(n * vocabulary, width)).view(n, batch, length, width)
        x = (x + p["wpe.weight"][:, None, :length]).view(n, batch * length, width)
        for layer in range(self._layers):
            x = self._block(p, f"h.{layer}.", x, batch)
        x = _norm(x, p, "ln_f").to(self._type)
        logits = torch.bmm(x, p["wte.weight"].to(self._type).transpose(1, 2)).view(n, batch, length, vocabulary)
        losses = functional.cross_entropy(
            logits[:, :, :-1].float().reshape(-1, vocabulary), tokens[:, :, 1:].reshape(-1), reduction="none"
        )
        return losses.view(n, batch, length - 1).mean(dim=2)

    def _block(self, p: dict[str, torch.Tensor], at: str, x: torch.Tensor, batch: int) -> torch.Tensor:
        n, positions, width = x.shape
        qkv = self._linear(_norm(x, p, at + "ln_1"), p, at + "attn.c_attn").float()
        q, k, v = qkv.view(n * batch, -1, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # its bf16 backward is slow on CPUs
        x = x + self._linear(mixed.transpose(1, 2).reshape(n, positions, width), p, at + "attn.c_proj")
        hidden = functional.gelu(self._linear(_norm(x, p, at + "ln_2"), p, at + "mlp.c_fc"), approximate="tanh")
        return x + self._linear(hidden, p, at + "mlp.c_proj")

    def _linear(self, x: torch.Tensor, p: dict[str, torch.Tensor], at: str) -> torch.Tensor:
        product = torch.bmm(x.to(self._type), p[at + ".weight"].to(self._type))
        return product + p[at + ".bias"][:, None].to(self._type)


def _norm(x: torch.Tensor, p: dict[str, torch.Tensor], at: str) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:]) * p[at + ".weight"][:, None] + p[at + ".bias"][:, None]
