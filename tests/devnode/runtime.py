"""Real runtimes' metadata, and what a node knows from it: names of storage keys, numbers of errors, types."""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from bittensor._transport.codec import RuntimeCodec

from devnode.scale import Encoder, compact

# V15 metadata as published: 318 with turbobt 1.3.2 (BSD-3-Clause), 461 with bittensor 11.3.0 (Apache-2.0).
METADATA = Path(__file__).parent / "metadata"
SPECS = (318, 461, 462)
LATEST = 462  # 461 and the one storage item that SDK 11.3 reads and 461 has not: see `with_epoch_consensus`
PREFIX_BYTES = 32  # of a storage key: the hashes of pallet and item


@dataclass(frozen=True)
class Runtime:
    spec: int
    metadata: bytes

    @cached_property
    def codec(self) -> RuntimeCodec:
        return RuntimeCodec(self.metadata, spec_version=self.spec, transaction_version=1, spec_name="node-subtensor")

    @cached_property
    def types(self) -> dict[int, Any]:
        return {entry["id"]: entry["type"] for entry in self.codec.registry_types()}

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.types)

    @cached_property
    def items(self) -> dict[bytes, tuple[str, str]]:
        """Prefix of a storage key -> (pallet, item)."""
        names = [(pallet.name, item.name) for pallet in self.codec.metadata_ir().pallets for item in pallet.storage]
        return {self.codec.storage_key(self.codec.storage_entry(*name), [])[:PREFIX_BYTES]: name for name in names}

    @cached_property
    def errors(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(pallet, error's name) -> (pallet's number, error's number)."""
        pallets = self.codec.metadata_ir().pallets
        return {(p.name, error.name): (p.index, error.index) for p in pallets for error in p.errors}

    def version(self) -> dict[str, Any]:
        known = self.codec.constant("System", "Version")
        return {
            "specName": known["spec_name"],
            "implName": known["impl_name"],
            "authoringVersion": 1,
            "specVersion": self.spec,
            "implVersion": 1,
            "transactionVersion": 1,
            "stateVersion": 1,
            "apis": [],
        }


@lru_cache
def runtime(spec: int = LATEST, block_s: float = 12.0) -> Runtime:
    """A runtime with these seconds per block, which are a constant of its metadata."""
    data = lzma.decompress((METADATA / f"{461 if spec == LATEST else spec}.scale.xz").read_bytes())
    if spec == LATEST:
        data = with_epoch_consensus(data)
    return Runtime(spec, with_slot_duration(data, round(block_s * 1000)))


def text(name: str) -> bytes:
    return compact(len(name)) + name.encode()


def with_slot_duration(data: bytes, milliseconds: int) -> bytes:
    """Aura.SlotDuration: the name, the number of its type (a byte), then a value of eight bytes after its length."""
    (found,) = re.finditer(re.escape(text("SlotDuration")) + rb"[\x00-\xff]\x20", data, re.DOTALL)
    return data[: found.end()] + milliseconds.to_bytes(8, "little") + data[found.end() + 8 :]


def with_epoch_consensus(data: bytes) -> bytes:
    """SubtensorModule.SubnetEpochConsensus in the place of an item and a type of the same shape that nobody reads."""
    for old, new in (("LiquidAlphaConsensusMode", "SubnetEpochConsensus"), ("Current", "Yuma")):
        data = data.replace(text(old), text(new))
    return data
