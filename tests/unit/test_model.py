from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import GPT2, LLAMA
from torch import nn
from torch.nn import functional

from distributed_training.errors import ConfigError
from distributed_training.training.flat import (
    bind_flat_gradient,
    groups,
    load_flat,
    loss_per_sequence,
    num_parameters,
    to_flat,
)
from distributed_training.training.model import build_model, vocab_size

WIDE_GPT2 = GPT2 | {"n_embd": 48, "n_head": 3}
TIED_LLAMA = LLAMA | {"tie_word_embeddings": True}
CONFIGS = [GPT2, WIDE_GPT2, LLAMA, TIED_LLAMA]


@pytest.fixture(params=CONFIGS, ids=["gpt2", "wider gpt2", "llama", "tied llama"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def tokens(count: int = 3, length: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(64, size=(count, length)))


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(config: dict[str, Any]) -> None:
    first, again, other = (to_flat(build_model(config, seed)) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_building_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    build_model(GPT2, 5)
    assert torch.equal(torch.rand(3), expected)


def test_model_is_float32_without_dropout_or_cache(config: dict[str, Any]) -> None:
    model = build_model(config | ({"resid_pdrop": 0.5} if config["model_type"] == "gpt2" else {}), 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert all(module.p == 0.0 for module in model.modules() if isinstance(module, nn.Dropout))
    batch = tokens()
    assert torch.equal(loss_per_sequence(model, batch), loss_per_sequence(model, batch))
    assert model(input_ids=batch).past_key_values is None


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"vocab_size": 64}, "model_type"),
        (GPT2 | {"model_type": "no-such-model"}, "no-such-model"),
        (GPT2 | {"n_layers": 3}, "n_layers"),
        (GPT2 | {"n_embd": "wide"}, "n_embd"),
        (GPT2 | {"n_head": 5}, "cannot be built"),
        (GPT2 | {"n_embd": -5}, "cannot be built"),
        (GPT2 | {"activation_function": "nope"}, "cannot be built"),
        (GPT2 | {"n_layer": 10_000_000}, "n_layer 10000000, at most 4096"),
        ({"model_type": "t5"}, "not a causal"),
    ],
)
def test_what_cannot_be_built_is_a_config_error_that_names_the_field(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(bad, 0)


def test_vocab_size(config: dict[str, Any]) -> None:
    assert vocab_size(config) == 64


def test_flat_round_trip(config: dict[str, Any]) -> None:
    model = build_model(config, 0)
    flat = to_flat(model)
    assert flat.dtype == np.float32
    assert flat.shape == (num_parameters(model),)
    changed = np.random.default_rng(0).normal(size=flat.shape).astype(np.float32)
    load_flat(model, changed)
    assert to_flat(model).tobytes() == changed.tobytes()


def test_loading_does_not_alias_and_refuses_other_shapes() -> None:
    model = build_model(GPT2, 0)
    flat = to_flat(model)
    load_flat(model, flat)
    flat += 1.0
    assert not np.array_equal(to_flat(model), flat)
    wrongs: list[Any] = [flat[:-1], flat.astype(np.float64)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="expected float32"):
            load_flat(model, wrong)


def test_tied_weights_count_once() -> None:
    tied, untied = build_model(TIED_LLAMA, 0), build_model(LLAMA, 0)
    assert num_parameters(untied) - num_parameters(tied) == 64 * LLAMA["hidden_size"]
    # 64 + 32 embeddings, then 2 blocks of 12 w^2 + 13 w, then the final norm; the head is the embedding.
    width = GPT2["n_embd"]
    assert num_parameters(build_model(GPT2, 0)) == 96 * width + 2 * (12 * width**2 + 13 * width) + 2 * width


def test_groups_cover_the_flat_vector_block_by_block(config: dict[str, Any]) -> None:
    model = build_model(config, 0)
    found = groups(model)
    layers: int = config["n_layer"] if config["model_type"] == "gpt2" else config["num_hidden_layers"]
    assert [g.name for g in found] == ["embeddings", *(f"block {i}" for i in range(layers)), "final"]
    assert found[0].start == 0
    assert found[-1].stop == num_parameters(model)
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))


def test_gpt2_with_twelve_layers_has_fourteen_groups() -> None:
    assert len(groups(build_model(GPT2 | {"n_layer": 12, "n_embd": 8}, 0))) == 14


def test_a_group_holds_exactly_its_blocks_parameters() -> None:
    model = build_model(GPT2, 0)
    block = groups(model)[2]
    for name, parameter in model.named_parameters():
        if ".h.1." in name:
            parameter.data.fill_(9.0)
    flat = to_flat(model)
    assert (flat[block.start : block.stop] == 9.0).all()
    assert not (np.delete(flat, np.s_[block.start : block.stop]) == 9.0).any()


def test_labels_are_shifted_exactly_once(config: dict[str, Any]) -> None:
    """The loss is that of predicting the next token: neither the token itself nor the one after the next."""
    model = build_model(config, 0)
    batch = tokens()
    with torch.no_grad():
        log_probabilities = functional.log_softmax(model(input_ids=batch).logits, dim=-1)
        losses = loss_per_sequence(model, batch)
    by_shift = [
        -torch.stack(
            [log_probabilities[:, t, :].gather(1, batch[:, t + shift : t + shift + 1])[:, 0] for t in range(16 - shift)]
        ).mean(dim=0)
        for shift in (0, 1, 2)
    ]
    assert torch.allclose(losses, by_shift[1], atol=1e-5)
    assert not torch.allclose(losses, by_shift[0], atol=1e-3)
    assert not torch.allclose(losses, by_shift[2], atol=1e-3)


def test_bound_gradient_is_the_gradient_in_flat_order(config: dict[str, Any]) -> None:
    model = build_model(config, 0)
    loss_per_sequence(model, tokens()).mean().backward()
    expected = np.concatenate([p.grad.numpy().reshape(-1) for p in model.parameters() if p.grad is not None])
    gradient = bind_flat_gradient(model)
    assert not gradient.any()
    loss_per_sequence(model, tokens()).mean().backward()
    assert np.allclose(gradient.numpy(), expected, atol=1e-7)
    assert np.abs(expected).max() > 1e-3
