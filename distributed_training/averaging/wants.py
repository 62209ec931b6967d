"""What both ends of the slice stream know: its method, its request, what an asker may want, and how long to wait."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.codecs.known import output_of
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest

METHOD = "slice"
MAX_WANTS = 3  # of one stream
REQUEST = struct.Struct("<I32s")  # round, hash of the output record
ABSENT = b""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for one small message, for any progress at all, for a whole slice."""

    control_s: float
    stall_s: float
    bulk_s: float


@dataclass(frozen=True, slots=True)
class Wants:
    """One byte: 1 = the slice's bytes, 0 = not; then a bit per sender of the record, lowest first: its work record."""

    chunks: bool
    works: tuple[bool, ...]

    def encode(self) -> bytes:
        bits = sum(1 << i for i, bit in enumerate(self.works) if bit)
        return bytes([self.chunks]) + bits.to_bytes((len(self.works) + 7) // 8, "little")

    @staticmethod
    def decode(data: bytes, count: int) -> Wants:
        """Raises WireError."""
        bits = int.from_bytes(data[1:], "little")
        if len(data) != 1 + (count + 7) // 8 or data[0] > 1 or bits >> count:
            raise WireError("slice: malformed wants")
        return Wants(bool(data[0]), tuple(bool(bits >> i & 1) for i in range(count)))


def frame_bytes(manifest: RunManifest) -> int:
    """Of a slice in one frame: a whole chunk. What must move within the stall time, and what a reader holds here."""
    average = manifest.average
    whole = Layout(average.chunk_coords, average.chunk_coords, average.block_coords)
    return output_of(average).chunk_bytes(whole, 0)
