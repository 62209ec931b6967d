"""Losses of some tokens at a time: the same function, whatever a model's head does, and never more logits than said."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_training import GPT2, LLAMA, batches, loop, train

from distributed_training.training.flat import bind_flat_gradient, loss_per_sequence, to_flat
from distributed_training.training.losses import SequenceLosses, recompute_blocks
from distributed_training.training.model import build_model

V, AT_ONCE = 64, 7
SOFTCAP = LLAMA | {"model_type": "gemma2", "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 1.0}
SCALED = LLAMA | {"model_type": "cohere", "logit_scale": 0.25, "num_key_value_heads": 1}
DIVIDED = LLAMA | {"model_type": "granite", "logits_scaling": 3.0, "num_key_value_heads": 1}
BIASED = {"model_type": "phi", **{key: value for key, value in LLAMA.items() if key != "model_type"}}
OPT = {"model_type": "opt", "vocab_size": V, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2}
OPT |= {"num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
FAMILIES = {"tied": GPT2, "plain": LLAMA, "softcap": SOFTCAP, "scaled": SCALED, "divided": DIVIDED, "biased": BIASED}


def tokens() -> torch.Tensor:
    return torch.from_numpy(next(batches(3, size=4, length=12)))


def measured(losses: SequenceLosses, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradient.zero_()
    found = losses.backward(tokens(), 0.25)
    return found, gradient.clone()


def head_rows(model: Any) -> list[int]:
    """Filled with the number of tokens of each call of the head."""
    rows: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].numel() // inputs[0].shape[-1]))
    return rows


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_some_tokens_at_a_time_give_the_losses_and_gradient_of_the_models_own_forward(name: str) -> None:
    model = build_model(FAMILIES[name], 7)
    gradient = bind_flat_gradient(model)
    whole = measured(SequenceLosses(model, nullcontext), gradient)
    some = SequenceLosses(model, nullcontext, bytes_at_once=AT_ONCE * 4 * V)
    measured(some, gradient)  # tells trunk and head apart
    rows = head_rows(model)
    parts = measured(some, gradient)
    assert rows and max(rows) == AT_ONCE and sum(rows) == tokens().numel()
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=0)
    assert torch.linalg.vector_norm(parts[1] - whole[1]) < 1e-5 * torch.linalg.vector_norm(whole[1])
    torch.testing.assert_close(some.forward(tokens()), loss_per_sequence(model, tokens()).detach(), rtol=1e-5, atol=0)
    assert max(rows[len(rows) - 7 :]) == tokens().numel() and rows[-2] <= AT_ONCE


def test_a_model_whose_trunk_and_head_cannot_be_told_apart_is_computed_whole() -> None:
    model = build_model(OPT, 7)
    gradient = bind_flat_gradient(model)
    rows = head_rows(model)
    whole = measured(SequenceLosses(model, nullcontext), gradient)
    parts = measured(SequenceLosses(model, nullcontext, bytes_at_once=AT_ONCE * 4 * V), gradient)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])
    assert rows[-1] == tokens().numel()


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_blocks_computed_twice_give_the_same_bytes_and_keep_less(config: dict[str, Any]) -> None:
    plain, twice = build_model(config, 7), build_model(config, 7)
    recompute_blocks(twice)
    kept = [SequenceLosses(model, nullcontext).kept_bytes(32) for model in (plain, twice)]
    assert kept[1] < kept[0] / 2
    gradients = [bind_flat_gradient(model) for model in (plain, twice)]
    losses = [SequenceLosses(model, nullcontext).backward(tokens(), 1.0) for model in (plain, twice)]
    assert torch.equal(*losses) and torch.equal(*gradients)


def test_bfloat16_trains_alike_and_rounds_otherwise() -> None:
    start = to_flat(build_model(GPT2, 7))
    full, half = (train(loop(GPT2, precision=p), start, batches(1), 4) for p in ("fp32", "bf16"))
    assert half.steps != full.steps
    for one, other in zip(full.steps, half.steps, strict=True):
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.02)
