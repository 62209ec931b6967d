"""Each inner optimiser behind its seam: the same for all, and one test row for a new one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_training import GPT2, INNER, batches, manifest

from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model
from distributed_training.training.optimizers import KINDS, options_of

START = to_flat(build_model(GPT2, 7))


def run_with(name: str, **options: float) -> RunManifest:
    fields = manifest(GPT2).model_dump()
    fields["inner"] = INNER | {"optimizer": name, "options": options_of(name, options)}
    return RunManifest.model_validate(fields)


def trained(name: str, seed: int = 1, steps: int = 6) -> np.ndarray:
    loop = InnerLoop(build_model(GPT2, 7), run_with(name))
    arguments: dict[str, Any] = {"applied_rounds": 2, "sketch_seed": None, "should_stop": lambda: False}
    loop.run(START, batches(9), max_steps=2, **arguments)  # what ran before leaves nothing behind
    return loop.run(START, batches(seed), max_steps=steps, **arguments).end


@pytest.mark.parametrize("name", KINDS)
def test_every_round_starts_without_a_past_and_ends_on_the_same_bytes(name: str) -> None:
    assert trained(name).tobytes() == trained(name).tobytes()
    assert trained(name).tobytes() != trained(name, seed=2).tobytes()


def test_they_are_different() -> None:
    assert len({trained(name).tobytes() for name in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("muom", {}, "inner.optimizer: expected one of adamw, muon, not 'muom'; did you mean muon"),
        ("adamw", {"matrix_rate": 2.0}, "inner.options.matrix_rate: adamw has no such option, it has beta1"),
        ("muon", {"momentun": 0.9}, "did you mean momentum"),
        ("muon", {"momentum": 1.0}, "inner.options.momentum: expected a number from 0 to 0.9999, not 1.0"),
        ("muon", {"momentum": "high"}, "inner.options.momentum: expected a number"),
        (["muon"], {}, "inner.optimizer: expected one of adamw, muon"),
        ("muon", 3, "inner.options: expected options by name"),
        ("muon", {"momentum": float("nan")}, "inner.options.momentum: expected a number"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(name: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        options_of(name, options)
    assert "\n" not in str(raised.value)


def test_a_manifest_pins_every_option() -> None:
    run = run_with("muon")
    inner = run.inner.model_copy(update={"options": {"momentum": 0.9}})
    with pytest.raises(ConfigError, match=r"inner.options: beta1, beta2, epsilon, matrix_rate missing"):
        InnerLoop(build_model(GPT2, 7), run.model_copy(update={"inner": inner}))
