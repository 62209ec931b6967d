"""The folder of a checkpoint: numbers, what transformers needs, the run manifest, a model card, training_state.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from distributed_training.checkpoints.benchmarks import FILE, read_results
from distributed_training.checkpoints.card import model_card
from distributed_training.checkpoints.checking import facts_of
from distributed_training.checkpoints.description import STATE_FILE, Description
from distributed_training.data.tokens import TOKENIZER_FILE, tokenizer_json
from distributed_training.errors import LocalFault
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.wire import encode_carry
from distributed_training.roles.joining.published import MANIFEST_FILE
from distributed_training.training.bounds import MOST_PARAMETERS
from distributed_training.training.export import StateLayout, tokenizer_files
from distributed_training.training.model import config_files, saved_constants, saved_form
from distributed_training.training.outer import RunState

CARD_FILE = "README.md"


class Exporter:
    def __init__(
        self,
        manifest: RunManifest,
        layout: StateLayout,
        model_files: Mapping[str, bytes],
        constants: Mapping[str, bytes],
        losses: Mapping[int, float],
        repo: str | None,
        benchmarks: Path | None = None,
    ) -> None:
        """model_files: config and tokeniser. constants: see training.model.saved_constants. losses: held-out, by round,
        read anew each time, as is the file `benchmarks` where there is one. repo: ORG/NAME of the Hub where it will be,
        None for a directory."""
        self._manifest, self._layout, self._files = manifest, layout, dict(model_files)
        self._constants, self._losses, self._repo = dict(constants), losses, repo
        self._benchmarks = benchmarks

    def write(self, folder: Path, index: int, state: RunState, root: bytes) -> None:
        """All files of the state at the start of round `index` into the empty `folder`. Raises LocalFault."""
        try:
            self._layout.write(folder, state, self._constants)
            for name, data in {**self._files, MANIFEST_FILE: self._manifest.canonical()}.items():
                (folder / name).write_bytes(data)
            described = Description(
                manifest_sha256=self._manifest.sha256,
                round=index,
                applied=state.applied,
                carry=encode_carry(state.carry),
                state_root=root.hex(),
                shard_bytes=self._layout.shard_bytes,
                files={},
            )
            scored = () if self._benchmarks is None else read_results(self._benchmarks)
            size = self._layout.form.num_coords
            card = model_card(self._manifest, described, size, self._losses, self._repo, scored)
            (folder / CARD_FILE).write_bytes(card)
            described = replace(described, files={path.name: facts_of(path) for path in folder.iterdir()})
            (folder / STATE_FILE).write_bytes(described.encode())
        except OSError as error:
            raise LocalFault(f"cannot write a checkpoint to {folder}: {error.strerror}") from None


def exporter_of(
    run_dir: Path, manifest: RunManifest, model: nn.Module, losses: Mapping[int, float], repo: str | None
) -> Exporter:
    """What writes this run's checkpoints. model: the run's, whatever its numbers. repo: ORG/NAME for the model card,
    None for a directory."""
    tokenizer = tokenizer_json(manifest.data.tokenizer, run_dir / TOKENIZER_FILE)
    files = config_files(model, manifest.model.config) | tokenizer_files(tokenizer, manifest.data.eos_id)
    form = saved_form(manifest.model, MOST_PARAMETERS)
    benchmarks = run_dir / "checkpoints" / FILE
    return Exporter(manifest, StateLayout(form), files, saved_constants(model), losses, repo, benchmarks)
