"""A public state as files: plain transformers loads the folder, and the state comes back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from distributed_training.protocol.types import Carry
from distributed_training.training.model import config_files
from distributed_training.training.outer import RunState
from distributed_training.training.shards import (
    SHARD_BYTES,
    Shard,
    Tensor,
    index_files,
    read_shards,
    shards_of,
    write_shards,
)


class StateLayout:
    """How the numbers of a state lie in files: parameters as transformers names them, outer momentum likewise."""

    def __init__(self, layout: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> None:
        tensors = tuple(layout)
        self.num_coords = tensors[-1].stop
        self.shard_bytes = shard_bytes
        self._params = shards_of("model", tensors, shard_bytes)
        self._momentum = shards_of("outer_momentum", tensors, shard_bytes)

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> bytes of each file with numbers."""
        return {shard.name: shard.num_bytes for shard in self._all}

    @property
    def index_files(self) -> dict[str, bytes]:
        """Which parameter is in which file; none when each vector is one file."""
        return index_files("model", self._params) | index_files("outer_momentum", self._momentum)

    def write(self, folder: Path, state: RunState) -> None:
        """All files with numbers, and the index files. Raises OSError."""
        write_shards(folder, self._params, state.params)
        write_shards(folder, self._momentum, state.momentum)
        for name, data in self.index_files.items():
            (folder / name).write_bytes(data)

    def read(self, folder: Path, applied: int, carry: Carry) -> RunState:
        """The state; its root is the caller's check. Raises WireError for files of another form, LocalFault."""
        return RunState(read_shards(folder, self._params), read_shards(folder, self._momentum), applied, carry)

    @property
    def _all(self) -> tuple[Shard, ...]:
        return (*self._params, *self._momentum)


def model_files(model: nn.Module, tokenizer_json: bytes | None, eos: int) -> dict[str, bytes]:
    """config.json and, where the run's tokeniser is a tokenizer.json, that and what AutoTokenizer wants beside it.

    eos: the id that ends a document. The same model and tokeniser give the same bytes.
    """
    files = config_files(model)
    if tokenizer_json is None:
        return files
    token = Tokenizer.from_str(tokenizer_json.decode()).id_to_token(eos)
    # Named, because by the model's type AutoTokenizer may build another one from the vocabulary alone.
    chosen = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    named = chosen | ({} if token is None else {"eos_token": token})
    return files | {
        "tokenizer.json": tokenizer_json,
        "tokenizer_config.json": (json.dumps(named, indent=2, sort_keys=True) + "\n").encode(),
    }
