from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from tiny_training import GPT2, LLAMA

from distributed_training.errors import LocalFault
from distributed_training.training.generate import Sampling, generate
from distributed_training.training.model import build_model

GREEDY = Sampling(temperature=0)
CONTEXT = 16


def ids(model: torch.nn.Module, sampling: Sampling = GREEDY, count: int = 40, **options: Any) -> list[int]:
    options = {"vocab_size": 64, "context": CONTEXT} | options
    return list(islice(generate(model, [1, 2, 3], sampling, **options), count))


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_what_is_kept_of_the_past_changes_no_token_also_beyond_the_context(config: dict[str, Any]) -> None:
    model = build_model(config, 3)
    kept = ids(model)
    assert kept == ids(model, cached=False)
    assert len(set(kept)) > 1


def test_a_seed_gives_the_same_ids_and_another_seed_others() -> None:
    model, seven = build_model(GPT2, 3), Sampling(seed=7)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert ids(model, seven) == ids(model, seven) != ids(model, Sampling(seed=8))
    assert torch.equal(torch.rand(3), expected), "the global random state is left alone"


def test_from_one_id_or_from_the_least_probability_only_the_most_likely_is_drawn() -> None:
    model = build_model(GPT2, 3)
    assert ids(model, Sampling(top_k=1)) == ids(model, Sampling(top_k=0, top_p=1e-6)) == ids(model)
    bold = ids(model, Sampling(temperature=5, top_k=3), count=200)
    assert len(set(bold)) > 3, "each id has three others after it"


def test_ids_that_no_tokeniser_has_are_never_drawn() -> None:
    drawn = ids(build_model(GPT2, 3), Sampling(temperature=10, top_k=0), count=100, vocab_size=5)
    assert set(drawn) <= set(range(5))


def test_a_long_start_is_cut_from_the_left() -> None:
    model, long = build_model(GPT2, 3), [5] * 30 + list(range(CONTEXT))
    options: dict[str, Any] = {"vocab_size": 64, "context": CONTEXT}
    whole, cut = (list(islice(generate(model, start, GREEDY, **options), 5)) for start in (long, long[-CONTEXT:]))
    assert whole == cut


def test_numbers_that_overflow_are_said() -> None:
    model = build_model(GPT2, 3)
    with torch.no_grad():
        next(model.parameters()).fill_(1e38)
    with pytest.raises(LocalFault, match="overflow"):
        ids(model)
