"""Memory that runs out in the first and in the hundredth step: an error in one line, then the round again by halves."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import GPT2, manifest

from distributed_training.data.base import Page, PageFacts
from distributed_training.data.tokens import ByteTokenizer
from distributed_training.errors import OutOfMemory
from distributed_training.roles.mining.work import Trainer, WorkTask
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model
from distributed_training.training.outer import initial_state

CONFIG = GPT2 | {"vocab_size": 257, "n_layer": 1, "n_embd": 8}


class Pages:
    num_pages, sha256 = 8, "00"

    def fetch(self, index: int) -> Page:
        return Page(index, (f"page {index} " * 3000,), bytes(32))

    def facts(self, index: int) -> PageFacts:
        return PageFacts(None, 0, 0)

    def heldout(self) -> tuple[str, ...]:
        return ()


@pytest.mark.parametrize("failing", [0, 99])
def test_a_round_that_ran_out_of_memory_is_done_again_with_half_as_many_sequences(failing: int) -> None:
    run, model, told = manifest(CONFIG, batch_size=2), build_model(CONFIG, 7), list[int]()
    kept: list[torch.Tensor] = []

    def full(_module: Any, _input: Any, output: Any) -> None:
        kept.append(torch.zeros(4))
        if len(told) == failing and len(kept) == failing + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nsee documentation")

    model.register_forward_hook(full)
    loop, start = InnerLoop(model, run), to_flat(build_model(CONFIG, 7))
    state = initial_state(start.copy(), run.average)
    worker = Trainer(loop, Pages(), ByteTokenizer(), run)

    def task() -> WorkTask:
        return WorkTask(
            0, 1, bytes(32), state, failing + 1, lambda: False, lambda record, seconds: told.append(record.step)
        )

    with pytest.raises(OutOfMemory) as caught:
        worker.work(task())
    text = "CUDA out of memory. Tried to allocate 20.00 MiB. see documentation (from now on with --micro-batch 1)"
    assert (str(caught.value), caught.value.retry) == (text, True)
    assert told == list(range(failing)) and np.array_equal(state.params, start), "nothing was lost but time"
    gc.collect()
    result = worker.work(task())
    assert len(result.steps) == failing + 1 and loop.micro_batch == 1 and np.isfinite(result.delta).all()
