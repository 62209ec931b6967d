from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from tiny_training import GPT2, LLAMA, batches
from transformers import AutoModelForCausalLM

from distributed_training.training.export import model_files
from distributed_training.training.model import build_model, load_flat, loss_per_sequence, to_flat


@pytest.mark.parametrize("config", [GPT2, LLAMA, LLAMA | {"tie_word_embeddings": True}])
def test_transformers_reads_the_export_and_gives_the_same_loss(config: dict[str, Any], tmp_path: Path) -> None:
    trained = to_flat(build_model(config, 1))
    files = model_files(build_model(config, 2), trained)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    reference = build_model(config, 3).eval()
    load_flat(reference, trained)
    assert to_flat(loaded).tobytes() == trained.tobytes()
    tokens = torch.from_numpy(next(batches(1, size=4, length=16)))
    with torch.no_grad():
        ours, theirs = loss_per_sequence(reference, tokens), loss_per_sequence(loaded, tokens)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_the_files_hold_float32_and_every_parameter_once() -> None:
    model = build_model(GPT2, 1)
    flat = np.arange(len(to_flat(model)), dtype=np.float32)
    files = model_files(model, flat)
    tensors = load(files["model.safetensors"])
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    named = torch.cat([tensors[name].reshape(-1) for name, _ in model.named_parameters()])
    assert named.numpy().tobytes() == flat.tobytes() and len(tensors) == len(list(model.named_parameters()))
    config = json.loads(files["config.json"])
    assert (config["model_type"], config["vocab_size"], config["n_layer"]) == ("gpt2", 64, 2)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected float32"):
        model_files(build_model(GPT2, 1), np.zeros(3, np.float32))
