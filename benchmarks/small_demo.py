"""A demo run for benchmarks: a smaller model than the demo's own, in a folder that goes away unless it is asked for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed_training.localnet.options import Options, parse_options
from distributed_training.paths import typed, usable_folder

MODEL = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4}


@contextmanager
def run_folder(wanted: Path | None) -> Iterator[Path]:
    """`wanted`, made if it is not there and kept; or a temporary folder, removed at the end. Absolute."""
    if wanted is not None:
        folder = usable_folder(typed(wanted))
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dt-bench-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def demo_options(folder: Path, *flags: str) -> Options:
    """The demo's options for the small model and a run directory below `folder`. Raises ConfigError."""
    model = folder / "model.json"
    model.write_text(json.dumps(MODEL))
    return parse_options([*flags, "--model", str(model), "--run-dir", str(folder / "run"), "--plain"])
