"""How good a published state is: held-out loss as the run itself measures it, and a sample of what it writes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from distributed_training.data.base import PageSource
from distributed_training.data.loader import heldout_sequences
from distributed_training.data.tokens import Tokenizer
from distributed_training.errors import ConfigError, said
from distributed_training.protocol.manifest import RunManifest
from distributed_training.training.flat import load_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import run_model
from distributed_training.training.outer import Vector

TEMPERATURE = 0.8
TOP = 40  # only the most likely ids are drawn from


def available(device: str) -> str:
    """Raises ConfigError for a device that torch does not know, or that this machine does not have."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a torch without CUDA asserts
        raise ConfigError(
            f"--device {device}: it cannot be used here ({said(error)[:200]}); give cpu, cuda or mps"
        ) from None
    return device


def heldout_loss(params: Vector, manifest: RunManifest, source: PageSource, tokenizer: Tokenizer, device: str) -> float:
    """Nats per token, as the run's own evaluation. Raises ConfigError for pages of another run, DataUnavailable."""
    if source.sha256 != manifest.data.pages_sha256:
        raise ConfigError(
            f"pages: sha256 {source.sha256[:16]}, this checkpoint's run has {manifest.data.pages_sha256[:16]}; give "
            "--pages, or --run-dir, of that run"
        )
    data = manifest.data
    sequences = heldout_sequences(source, tokenizer, data.sequence_length, data.heldout_sequences)
    loop = InnerLoop(run_model(manifest.model), manifest, device)
    return loop.evaluate(params, sequences, data.batch_size)


def sample(params: Vector, manifest: RunManifest, tokenizer: Tokenizer, prompt: str, count: int, seed: int) -> str:
    """The prompt and up to `count` ids more, on the CPU: the same arguments give the same text."""
    model = run_model(manifest.model)
    load_flat(model, params)
    generator = torch.Generator().manual_seed(seed)
    ids = [tokenizer.eos, *tokenizer.encode(prompt)]
    start = len(ids)
    for _ in range(count):
        drawn = _draw(model.eval(), ids[-manifest.data.sequence_length :], generator)
        if drawn == tokenizer.eos:
            break
        ids.append(drawn)
    return prompt + tokenizer.decode(ids[start:])


def _draw(model: nn.Module, ids: list[int], generator: torch.Generator) -> int:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double() / TEMPERATURE
    best = torch.topk(logits, min(TOP, len(logits)))
    chosen = torch.multinomial(torch.softmax(best.values, dim=0), 1, generator=generator)
    return int(best.indices[chosen])


def perplexity(loss: float) -> float:
    return float(np.exp(loss))
