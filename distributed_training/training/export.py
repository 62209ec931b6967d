"""A public state as files: plain transformers loads the folder, and the state comes back bit for bit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from distributed_training.errors import WireError
from distributed_training.protocol.types import Carry
from distributed_training.training.outer import RunState
from distributed_training.training.shards import (
    SHARD_BYTES,
    Tensor,
    index_files,
    read_shards,
    shards_of,
    write_shards,
)

Place = slice | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SavedForm:
    """What `save_pretrained` writes of a model of the run: how its numbers are named, shaped and ordered there."""

    config: bytes  # config.json
    trained: tuple[Tensor, ...]  # of the flat vector
    constants: tuple[Tensor, ...]
    constants_sha256: str  # hex; see digest_of
    places: Callable[[], Mapping[str, Place]]  # where the numbers of each trained tensor lie in the flat vector

    @property
    def num_coords(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.trained)


class StateLayout:
    """How the numbers of a state lie in files: the model as transformers saves it, and outer momentum by the names of
    the parameters it is of."""

    def __init__(self, form: SavedForm, shard_bytes: int = SHARD_BYTES) -> None:
        self.form = form
        self.shard_bytes = shard_bytes
        self._params = shards_of("model", (*form.trained, *form.constants), shard_bytes)
        self._momentum = shards_of("outer_momentum", form.trained, shard_bytes)

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> bytes of each file with numbers."""
        return {shard.name: shard.num_bytes for shard in (*self._params, *self._momentum)}

    @property
    def index_files(self) -> dict[str, bytes]:
        """Which parameter is in which file; none when each vector is one file."""
        return index_files("model", self._params) | index_files("outer_momentum", self._momentum)

    def write(self, folder: Path, state: RunState, constants: Mapping[str, bytes]) -> None:
        """All files with numbers, and the index files. Raises OSError."""
        places = self.form.places()
        for shards, vector in ((self._params, state.params), (self._momentum, state.momentum)):
            data = np.ascontiguousarray(vector, "<f4")
            write_shards(
                folder, shards, lambda t, d=data: d[places[t.name]].data if t.name in places else constants[t.name]
            )
        for name, content in self.index_files.items():
            (folder / name).write_bytes(content)

    def read(self, folder: Path, applied: int, carry: Carry) -> RunState:
        """The state; its root is the caller's check. Raises WireError for files of another form or other constants than
        the run's, LocalFault."""
        places = self.form.places()
        params, momentum = (np.empty(self.form.num_coords, np.float32) for _ in range(2))
        constants: dict[str, bytes] = {}
        for shards, vector in ((self._params, params), (self._momentum, momentum)):
            for tensor, data in read_shards(folder, shards):
                if tensor.name not in places:
                    constants[tensor.name] = bytes(data)
                    continue
                numbers = np.frombuffer(data, "<f4")
                if not np.isfinite(numbers).all():
                    raise WireError(f"{folder.name}: {tensor.name} has a number that is not finite")
                vector[places[tensor.name]] = numbers
        if digest_of((t, constants[t.name]) for t in self.form.constants) != self.form.constants_sha256:
            raise WireError(f"{folder.name}: what no step trains has other numbers than the run's")
        return RunState(params, momentum, applied, carry)


def digest_of(constants: Iterable[tuple[Tensor, bytes]]) -> str:
    """Hex digest of a model's constants: names, types, shapes and bytes."""
    told, data = [], hashlib.sha256()
    for tensor, content in sorted(constants, key=lambda item: item[0].name):
        told.append([tensor.name, tensor.dtype, list(tensor.shape)])
        data.update(content)
    return hashlib.sha256(json.dumps(told).encode() + data.digest()).hexdigest()


def tokenizer_files(tokenizer_json: bytes | None, eos: int) -> dict[str, bytes]:
    """Where the run's tokeniser is a tokenizer.json, that and what AutoTokenizer wants beside it.

    eos: the id that ends a document. The same tokeniser gives the same bytes.
    """
    if tokenizer_json is None:
        return {}
    token = Tokenizer.from_str(tokenizer_json.decode()).id_to_token(eos)
    # Named, because by the model's type AutoTokenizer may build another one from the vocabulary alone.
    chosen = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    named = chosen | ({} if token is None else {"eos_token": token})
    return {
        "tokenizer.json": tokenizer_json,
        "tokenizer_config.json": (json.dumps(named, indent=2, sort_keys=True) + "\n").encode(),
    }
