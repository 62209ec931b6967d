"""Tensors as safetensors files, named and shaped as transformers saves them, and back, bit for bit.

Every byte of a file but its numbers follows from names, shapes and types. So a header from elsewhere is not read: it is
compared with the one that we would write, and the size of each file is known before anything is fetched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distributed_training.errors import LocalFault, WireError

SHARD_BYTES = 500_000_000  # a download that breaks off starts again at a shard at worst
# Types that a model's state may have, and their bytes, in the order in which the safetensors library sorts them.
_TYPES = {"I64": 8, "F64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _TYPES[self.dtype]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: header, then the tensors, little-endian, in the library's order."""

    name: str
    header: bytes
    tensors: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.header) + _bytes(self.tensors)


def shards_of(stem: str, tensors: Iterable[Tensor], shard_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """STEM.safetensors, or STEM-00001-of-00003.safetensors and so on with at most `shard_bytes` of numbers each,
    unless one tensor alone has more."""
    groups: list[list[Tensor]] = [[]]
    for tensor in tensors:
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
    count = sum(math.prod(tensor.shape) for shard in shards for tensor in shard.tensors)
    index = {
        "metadata": {"total_parameters": count, "total_size": total},
        "weight_map": {tensor.name: shard.name for shard in shards for tensor in shard.tensors},
    }
    return {f"{stem}.safetensors.index.json": (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()}


def write_shards(folder: Path, shards: Iterable[Shard], data_of: Callable[[Tensor], bytes | memoryview]) -> None:
    """`data_of` a tensor: its bytes. Raises OSError."""
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.write(shard.header)
            for tensor in shard.tensors:
                file.write(data_of(tensor))


def read_shards(folder: Path, shards: Iterable[Shard]) -> Iterator[tuple[Tensor, bytearray]]:
    """Each tensor that `write_shards` wrote, and its bytes. Raises WireError for any other file, LocalFault for one
    that cannot be read."""
    for shard in shards:
        try:
            with (folder / shard.name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != shard.num_bytes:
                    raise WireError(f"{shard.name}: another size than {shard.num_bytes} bytes, what this model has")
                if file.read(len(shard.header)) != shard.header:
                    raise WireError(f"{shard.name}: its header has other names, shapes or types than this model")
                for tensor in shard.tensors:
                    data = bytearray(tensor.num_bytes)
                    file.readinto(data)
                    yield tensor, data
        except OSError as error:
            raise LocalFault(f"cannot read {folder / shard.name}: {error.strerror}") from None


def _shard(name: str, group: Iterable[Tensor]) -> Shard:
    """The header that the safetensors library writes for these tensors and one entry of metadata."""
    order = list(_TYPES)
    tensors = tuple(sorted(group, key=lambda tensor: (order.index(tensor.dtype), tensor.name)))
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.num_bytes
        described[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return Shard(name, len(text).to_bytes(8, "little") + text, tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors)
