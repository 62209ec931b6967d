"""A flat vector as safetensors files by parameter name, named as transformers names them, and back, bit for bit.

Every byte of a file but its numbers follows from names and shapes. So a header from elsewhere is not read: it is
compared with the one that we would write, and the size of each file is known before anything is fetched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distributed_training.errors import LocalFault, WireError

Vector = NDArray[np.float32]

SHARD_BYTES = 500_000_000  # a download that breaks off starts again at a shard at worst
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter: numbers [start, stop) of the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: header, then the tensors as little-endian float32, in the order of their names."""

    name: str
    header: bytes
    tensors: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.header) + _bytes(self.tensors)


def layout_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[Tensor, ...]:
    """Where each parameter lies in the flat vector, given names and shapes in its order."""
    found: list[Tensor] = []
    start = 0
    for name, shape in shapes:
        found.append(Tensor(name, shape, start, start + math.prod(shape)))
        start = found[-1].stop
    return tuple(found)


def shards_of(stem: str, layout: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """STEM.safetensors, or STEM-00001-of-00003.safetensors and so on with at most `shard_bytes` of numbers each,
    unless one tensor alone has more."""
    groups: list[list[Tensor]] = [[]]
    for tensor in layout:
        if groups[-1] and _bytes((*groups[-1], tensor)) > shard_bytes:
            groups.append([])
        groups[-1].append(tensor)
    if len(groups) == 1:
        return (_shard(f"{stem}.safetensors", groups[0]),)
    count = len(groups)
    return tuple(_shard(f"{stem}-{i:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups, 1))


def index_files(stem: str, shards: tuple[Shard, ...]) -> dict[str, bytes]:
    """STEM.safetensors.index.json, which says where each parameter is; nothing when there is one shard."""
    if len(shards) == 1:
        return {}
    total = sum(_bytes(shard.tensors) for shard in shards)
    index = {
        "metadata": {"total_parameters": total // _FLOAT, "total_size": total},
        "weight_map": {tensor.name: shard.name for shard in shards for tensor in shard.tensors},
    }
    return {f"{stem}.safetensors.index.json": (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()}


def write_shards(folder: Path, shards: Iterable[Shard], vector: Vector) -> None:
    """Nothing is copied but into the files. Raises OSError."""
    data = np.ascontiguousarray(vector, "<f4")
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.write(shard.header)
            for tensor in shard.tensors:
                file.write(data[tensor.start : tensor.stop].data)


def read_shards(folder: Path, shards: Iterable[Shard]) -> Vector:
    """The vector that `write_shards` wrote. Raises WireError for any other file or a number that is not finite,
    LocalFault for one that cannot be read."""
    shards = tuple(shards)
    vector = np.empty(max(tensor.stop for shard in shards for tensor in shard.tensors), "<f4")
    for shard in shards:
        try:
            with (folder / shard.name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != shard.num_bytes:
                    raise WireError(f"{shard.name}: another size than {shard.num_bytes} bytes, what this model has")
                if file.read(len(shard.header)) != shard.header:
                    raise WireError(f"{shard.name}: its header has other names, shapes or types than this model")
                for tensor in shard.tensors:
                    file.readinto(vector[tensor.start : tensor.stop].view(np.uint8).data)
        except OSError as error:
            raise LocalFault(f"cannot read {folder / shard.name}: {error.strerror}") from None
        for tensor in shard.tensors:
            if not np.isfinite(vector[tensor.start : tensor.stop]).all():
                raise WireError(f"{shard.name}: {tensor.name} has a number that is not finite")
    return vector.astype(np.float32, copy=False)


def _shard(name: str, group: Iterable[Tensor]) -> Shard:
    """The header that the safetensors library writes for float32 tensors and one entry of metadata."""
    tensors = tuple(sorted(group, key=lambda tensor: tensor.name))
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + _bytes((tensor,))
        described[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return Shard(name, len(text).to_bytes(8, "little") + text, tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return _FLOAT * sum(tensor.stop - tensor.start for tensor in tensors)
