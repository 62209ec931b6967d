"""Muon against plain formulas: what it orthogonalises, which parameters are matrices, which way they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_optimizers import run_with
from tiny_training import GPT2, LLAMA
from torch import nn
from transformers.pytorch_utils import Conv1D

from distributed_training.errors import ConfigError
from distributed_training.protocol.sections import InnerSection
from distributed_training.training.flat import trained
from distributed_training.training.model import build_model
from distributed_training.training.optimizers import build
from distributed_training.training.optimizers.muon import matrix_gains, orthogonal

INNER: InnerSection = run_with("muon").inner
MIXTRAL: dict[str, Any] = LLAMA | {"model_type": "mixtral", "num_local_experts": 3, "num_key_value_heads": 2}
MAMBA: dict[str, Any] = {
    "model_type": "mamba",
    "vocab_size": 64,
    "hidden_size": 32,
    "state_size": 4,
    "num_hidden_layers": 1,
}


@pytest.mark.parametrize("shape", [(2, 6, 6), (3, 4, 12), (1, 12, 4)])
def test_singular_values_become_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for given, made in zip(matrices, orthogonal(matrices * 1e-3), strict=True):
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        values = torch.diag(u.T @ made @ v.T)
        assert ((values > 0.5) & (values < 1.3)).all()
        assert torch.allclose(u @ torch.diag(values) @ v, made, atol=1e-4)
    assert not orthogonal(torch.zeros(shape)).any()


class Blocks(nn.Module):
    """One block of the given layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([layer])


def stepped(layer: nn.Module, weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """The layer's weight after a step with each gradient."""
    model = Blocks(layer)
    parameter = next(model.parameters())
    parameter.data = weight.clone()
    optimizer = build(INNER, model)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step(1e-3)
    return parameter.detach()


def test_steps_are_torchs_up_to_its_bfloat16() -> None:
    torch.manual_seed(0)
    weight, gradients = torch.randn(12, 4), [torch.randn(12, 4) for _ in range(3)]
    reference = nn.Parameter(weight.clone())
    rate, momentum = 1e-3 * INNER.options["matrix_rate"], INNER.options["momentum"]
    theirs = torch.optim.Muon([reference], lr=rate, momentum=momentum, weight_decay=INNER.weight_decay)
    for gradient in gradients:
        reference.grad = gradient.clone()
        theirs.step()
    ours = stepped(nn.Linear(4, 12, bias=False), weight, gradients)
    moved = (reference.detach() - weight).norm()
    assert (ours - reference.detach()).norm() < 0.02 * moved
    assert moved > 0.01


def test_a_weight_stored_the_other_way_moves_the_same_way() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(12, 4), torch.randn(12, 4)
    linear = stepped(nn.Linear(4, 12, bias=False), weight, [gradient])
    other = stepped(Conv1D(12, 4), weight.T.contiguous(), [gradient.T.contiguous()])
    assert torch.allclose(linear.T, other, atol=1e-6)


class Experts(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.zeros(shape))


def test_each_expert_of_a_stack_is_a_matrix_of_its_own() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(3, 12, 4), torch.randn(3, 12, 4)
    gradient[1] *= 1e3
    stack = stepped(Experts((3, 12, 4)), weight, [gradient])
    for expert, w, g in zip(stack, weight, gradient, strict=True):
        assert torch.allclose(expert, stepped(nn.Linear(4, 12, bias=False), w, [g]), atol=1e-6)


def gains(config: dict[str, Any]) -> dict[str, float]:
    model = build_model(config, 0)
    found = dict(matrix_gains(model))
    return {name: round(found[p], 3) for name, p in trained(model) if p in found}


def test_matrices_are_those_of_the_blocks() -> None:
    assert {name.split(".", 3)[3]: gain for name, gain in gains(GPT2).items()} == {
        "attn.c_attn.weight": 1.732,
        "attn.c_proj.weight": 1.0,
        "mlp.c_fc.weight": 2.0,
        "mlp.c_proj.weight": 1.0,
    }  # and so neither positions nor the table of tokens, to which the head is tied
    mixtral = {name.split(".", 3)[3] for name in gains(MIXTRAL)}
    assert {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"} < mixtral
    mamba = {name.split(".", 3)[3] for name in gains(MAMBA)}
    assert mamba == {f"mixer.{part}_proj.weight" for part in ("in", "x", "dt", "out")}  # no A_log, no convolution


def test_tied_weights_are_one_parameter_of_adamw() -> None:
    model = build_model(GPT2 | {"tie_word_embeddings": True}, 0)
    optimizer = build(INNER, model)
    for _, parameter in trained(model):
        parameter.grad = torch.ones_like(parameter)
    known: Any = model
    before = known.transformer.wte.weight.detach().clone()
    optimizer.step(1e-3)
    assert known.lm_head.weight is known.transformer.wte.weight
    decayed = before * (1 - 1e-3 * INNER.weight_decay)
    assert torch.allclose(known.lm_head.weight, decayed - 1e-3, atol=1e-6)  # one step of AdamW, not two


def test_a_model_without_matrices_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"inner.optimizer: muon .* take adamw") as raised:
        build(INNER, Blocks(nn.LayerNorm(8)))
    assert "\n" not in str(raised.value)
