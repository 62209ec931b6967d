"""A new model tried once before a manifest pins it: what is refused, in one line, and what is only said."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import GPT2, LLAMA
from torch import nn

from distributed_training.errors import ConfigError
from distributed_training.training.model import build_model, read_config, vocab_size
from distributed_training.training.trial import try_out

BERT = {"model_type": "bert", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = 8


def tried(config: dict[str, Any], length: int = 32) -> tuple[str, ...]:
    return try_out(build_model(config, 1), vocab_size(config), length)


class Toy(nn.Module):
    """A causal model of one block, and a place to do something wrong."""

    seen: torch.Tensor

    def __init__(self, wrong: Callable[[Toy, torch.Tensor], torch.Tensor] = lambda toy, x: x) -> None:
        super().__init__()
        self.config = SimpleNamespace(n_positions=64)
        self.embedding = nn.Embedding(64, WIDE)
        self.blocks = nn.ModuleList([nn.Linear(WIDE, WIDE)])
        self.register_buffer("seen", torch.zeros(()))
        self.wrong = wrong

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        hidden = self.blocks[0](self.embedding(input_ids))
        mean = hidden.cumsum(1) / torch.arange(1, hidden.shape[1] + 1).view(1, -1, 1)
        return SimpleNamespace(logits=0.02 * self.wrong(self, hidden + mean) @ self.embedding.weight.T)


def count(toy: Toy, x: torch.Tensor) -> torch.Tensor:
    toy.get_buffer("seen").add_(1)
    return x


def shift(by: int) -> Callable[[Toy, torch.Tensor], torch.Tensor]:
    return lambda toy, x: x + 1e-3 * torch.roll(x, -by, dims=1)


def capacity(toy: Toy, x: torch.Tensor) -> torch.Tensor:
    """As in a router whose experts have room for so many tokens of a sequence: no gradient tells of it."""
    chosen = (x[..., 0] > x[..., 0].median(dim=1, keepdim=True).values).to(x.dtype)
    return x * chosen.detach().unsqueeze(-1)


WRONG: dict[str, tuple[Callable[[Toy, torch.Tensor], torch.Tensor], str]] = {
    "one token ahead": (shift(1), "looks ahead"),
    "twenty tokens ahead": (shift(20), "looks ahead"),
    "the last token": (lambda toy, x: x + 1e-4 * x[:, -1:], "looks ahead"),
    "room for so many tokens": (capacity, "looks ahead"),
    "the other sequence": (lambda toy, x: x - x.mean(0, keepdim=True), "other sequences of its batch"),
    "noise": (lambda toy, x: toy.blocks[0](x) + 1e-3 * torch.rand_like(x), "other logits each time"),
    "no number": (lambda toy, x: x * torch.nan, "first logits are not finite"),
    "far from a guess": (lambda toy, x: x * 1e5, r"the first loss is \d+\.\d\d, about ln 64 = 4\.16 expected"),
    "a counter": (count, "seen changes by being used"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_model_that_could_not_be_trained_is_refused(what: str) -> None:
    torch.manual_seed(1)
    assert try_out(Toy(), 64, 32) == ()
    wrong, why = WRONG[what]
    with pytest.raises(ConfigError, match=why) as caught:
        try_out(Toy(wrong), 64, 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_causal_model_is_taken_without_a_word(config: dict[str, Any]) -> None:
    model = build_model(config, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert try_out(model, 64, 32) == ()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "length", "why"),
    [
        (BERT, 32, "looks ahead"),
        (GPT2, 33, r"a sequence of 33 tokens cannot be computed: IndexError: .* \(n_positions is 32\)"),
        (GPT2 | {"n_layer": 0}, 32, "no transformer blocks"),
        (LLAMA | {"num_hidden_layers": 0}, 32, "no transformer blocks"),
        (LLAMA | {"rms_norm_eps": -1e6}, 32, "first logits are not finite"),
    ],
)
def test_what_a_real_model_is_refused_for(config: dict[str, Any], length: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        tried(config, length)
    assert "\n" not in str(caught.value)


def test_a_limit_that_a_model_does_not_have_is_not_asked_for() -> None:
    """Positions that are turned, not looked up, go on beyond what the config says."""
    assert LLAMA["max_position_embeddings"] == 32
    assert tried(LLAMA, 64) == ()


def test_routers_that_draw_lots_in_training_are_still() -> None:
    """Of phimoe: jitter and a sampled choice of experts, unless its function is that of evaluation. There its jitter is
    also how far apart experts may be, so it stays as the file has it."""
    config = LLAMA | {"model_type": "phimoe", "num_key_value_heads": 2, "num_local_experts": 4}
    tried(config | {"router_jitter_noise": 0.02})
    assert read_config(config | {"router_jitter_noise": 0.02}).config["router_jitter_noise"] == 0.02


def test_what_gets_no_gradient_or_is_left_out_is_said() -> None:
    bart = {"model_type": "bart", "vocab_size": 64, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32, "max_position_embeddings": 32}  # fmt: skip
    (note,) = tried(bart)
    assert note.startswith("warning: no gradient reached model.decoder.layers.0.encoder_attn.k_proj.weight, ")
    mixtral = LLAMA | {"model_type": "mixtral", "num_key_value_heads": 1, "num_local_experts": 4}
    assert tried(mixtral) == ()
    (note,) = tried(mixtral | {"output_router_logits": True})
    assert note.startswith("warning: left out of the loss: what its routers add to it")


def test_a_model_that_nothing_can_be_taught_is_refused() -> None:
    with pytest.raises(ConfigError, match="no gradient reaches any parameter"):
        tried(LLAMA | {"rms_norm_eps": float("inf")})
