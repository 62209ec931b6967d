"""Is what lies on the Hub the model that the run made? Loaded as a stranger would, by plain transformers.

    HF_ENDPOINT=... python -m distributed_training.localnet.judge.published RUN_DIR REPOSITORY REVISION

Nothing of this project reads the model. Held-out loss by transformers' own logits, in RUN_DIR/published.json:
{"repository", "revision", "heldout_loss"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from distributed_training.data.loader import heldout_sequences
from distributed_training.data.tokens import TOKENIZER_FILE, load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import RunPaths
from distributed_training.protocol.manifest import load_manifest
from distributed_training.settings.entry import run_main
from distributed_training.sources import open_pages

RESULT = "published.json"
BATCH = 8


def heldout_loss(paths: RunPaths, repository: str, revision: str) -> float:
    """Nats per token on the run's held-out sequences."""
    model = AutoModelForCausalLM.from_pretrained(repository, revision=revision, dtype=torch.float32).eval()
    data = load_manifest(paths.manifest).data
    tokenizer = load_tokenizer(data.tokenizer, paths.root / TOKENIZER_FILE, data.eos_id)
    tokens = torch.from_numpy(
        heldout_sequences(open_pages(paths.pages, paths.root), tokenizer, data.sequence_length, data.heldout_sequences)
    )
    total = 0.0
    with torch.no_grad():
        for part in tokens.split(BATCH):
            logits = model(input_ids=part).logits[:, :-1].double()
            total += float(functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def main(argv: Sequence[str]) -> int:
    if len(argv) != 3:
        raise ConfigError("expected RUN_DIR REPOSITORY REVISION")
    paths, repository, revision = RunPaths(Path(argv[0]).absolute()), argv[1], argv[2]
    torch.set_num_threads(1)
    found = {
        "repository": repository,
        "revision": revision,
        "heldout_loss": heldout_loss(paths, repository, revision),
    }
    (paths.root / RESULT).write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
