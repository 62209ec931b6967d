"""What a loop is tried with before round 0: sequences by memory, torch.compile with a way back."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from tiny_training import GPT2, manifest

from distributed_training.errors import ConfigError
from distributed_training.training.device import chosen_precision
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop, InnerResult
from distributed_training.training.model import build_model
from distributed_training.training.prepare import fitting, prepare, sequence_bytes

GIB = 1 << 30


def made(kind: type[InnerLoop] = InnerLoop, **how: Any) -> InnerLoop:
    return kind(build_model(GPT2, 7), manifest(GPT2), **how)


def test_sequences_go_in_as_few_equal_parts_as_have_room() -> None:
    assert [fitting(room, 10, 128) for room in (0, 9, 10, 639, 640, 1279, 1280, 9999)] == [
        1,
        1,
        1,
        43,
        64,
        64,
        128,
        128,
    ]
    assert fitting(100, 0, 8) == 8


def test_the_micro_batch_follows_the_free_memory_and_what_was_asked_for_stands() -> None:
    loop = made()
    assert prepare(loop, 32, GIB) == "float32, all 8 sequences at a time"
    each = sequence_bytes(loop, 32)
    beside = loop.losses.head_bytes(8 * 32) + 10 * len(to_flat(loop.model))
    words = prepare(loop, 32, 2 * (beside + 4 * each + 100))
    assert (loop.micro_batch, words) == (4, "float32, 4 of 8 sequences at a time")
    asked = made(micro_batch=3, precision="bf16", recompute=True)
    assert prepare(asked, 32, None) == "bfloat16, 3 of 8 sequences at a time, blocks computed twice"
    assert sequence_bytes(asked, 1024) > sequence_bytes(asked, 32)


class NoCompiler(InnerLoop):
    def run(self, *given: Any, **how: Any) -> InnerResult:
        if self.compiled:
            raise RuntimeError("no C++ compiler found\nset CXX")
        return super().run(*given, **how)


def test_what_cannot_be_compiled_goes_on_without_it_and_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = made(NoCompiler, compiled=True)
    before = to_flat(loop.model)
    with caplog.at_level(logging.WARNING):
        assert "compiled" not in prepare(loop, 32, None)
    (line,) = caplog.messages
    assert line == ("--compile: torch.compile does not work here, steps go without it: no C++ compiler found set CXX")
    assert not loop.compiled and np.array_equal(to_flat(loop.model), before)


def test_a_device_without_bfloat16_is_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"--precision bf16: mps does not compute with bfloat16 .*; give fp32"
    ) as told:
        chosen_precision("mps", "bf16")
    assert "\n" not in str(told.value)
    assert [chosen_precision(device) for device in ("cpu", "mps")] == ["fp32", "fp32"]
    assert chosen_precision("cpu", "bf16") == "bf16"
