"""What an encoding leaves out, kept for the sender's next one: error feedback, chunk by chunk, on the disk.

    v = delta + decay * start, committed = encode(v), end = v - decode(committed)       each operation rounded to fp32

`start` is the `end` of the sender's last included vector, or nothing; `decay` is the codec's `feedback`. A file holds
the numbers of one such buffer, fp32 little-endian, then the digests of its chunks, and is named by their Merkle root:
what is read is what was made, or it is damaged. So a buffer costs the disk 4 bytes a coordinate, and memory a chunk or
two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Protocol

import numpy as np

from distributed_training.averaging.codecs.base import Chunk, Codec, Encoder, Layout, Vector
from distributed_training.averaging.contribution import Contribution, contribution_of, encode_contribution
from distributed_training.averaging.overflow import Overflow
from distributed_training.errors import LocalFault
from distributed_training.protocol.merkle import DIGEST_BYTES, digest, merkle_root
from distributed_training.protocol.types import NO_ROOT, WorkRecord

_TRIES = 16  # of a chunk; ties take one or two


class BufferLost(LocalFault):
    """A buffer that our disk does not have any more, or not as it was made."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A contribution and the roots of what it began with and left out, as its record names them."""

    contribution: Contribution
    start: bytes
    end: bytes
    trouble: LocalFault | None = None  # of the buffer it was to begin with, or of the disk that does not take its own


def encode_vector(files: FeedbackFiles, delta: Vector, layout: Layout, codec: Codec, start: bytes) -> Encoded:
    """delta: fp32 [d], theta_r - theta_{r,H}; not changed. start: root of what it begins with, where the codec keeps
    anything. Raises ValueError for a non-finite number."""
    if not codec.feedback:
        return Encoded(encode_contribution(delta, layout, codec), NO_ROOT, NO_ROOT)
    return files.encode(delta, layout, codec, start)


Encode = Callable[["FeedbackFiles", Vector, Layout, Codec, bytes], Encoded]  # `encode_vector`, or an adversary's own


class FeedbackFiles:
    """The buffers of one node. Blocking; for any thread. What the disk does not take is kept in memory, if `overflow`
    has room for it."""

    def __init__(self, folder: Path, overflow: Overflow) -> None:
        self.folder, self._overflow = folder, overflow

    def encode(self, delta: Vector, layout: Layout, codec: Codec, start: bytes) -> Encoded:
        """A start that is lost or damaged is `trouble`: then the vector begins with nothing."""
        try:
            return self._encode(delta, layout, codec, start)
        except BufferLost as error:
            made = self._encode(delta, layout, codec, NO_ROOT)
            return Encoded(made.contribution, made.start, made.end, error)

    def _encode(self, delta: Vector, layout: Layout, codec: Codec, start: bytes) -> Encoded:
        source = None if start == NO_ROOT else self.open(start, layout)
        try:
            with _OnDisk(self.folder) as sink:
                made = _encode(delta, layout, codec, source, sink)
                return Encoded(made, start, sink.close())
        except OSError:  # the same again, into memory
            parts = _InMemory(self._overflow.budget)
            made = _encode(delta, layout, codec, source, parts)
        return Encoded(made, start, parts.root, self._keep(parts))

    def _keep(self, parts: _InMemory) -> LocalFault | None:
        path = self.folder / parts.root.hex()
        if not parts.whole:
            return LocalFault(f"cannot write {path}, and it is too large to be kept in memory")
        try:
            self._overflow.write(path, *parts.chunks, *parts.digests)
        except OSError as error:
            return LocalFault(f"cannot write {path}: {error.strerror}")
        return None

    def open(self, root: bytes, layout: Layout) -> Buffer:
        """Raises BufferLost for one that is not there whole, by its length and digests."""
        path, size = self.folder / root.hex(), 4 * layout.num_coords
        digests = self._piece(path, size, DIGEST_BYTES * layout.num_chunks + 1)
        cut = tuple(digests[i : i + DIGEST_BYTES] for i in range(0, len(digests), DIGEST_BYTES))
        if len(digests) != DIGEST_BYTES * layout.num_chunks or merkle_root(cut) != root:
            raise BufferLost(f"{path} is not there, or not as it was made")
        return Buffer(self, path, layout, cut)

    def _piece(self, path: Path, start: int, size: int) -> bytes:
        try:
            return self._overflow.piece(path, start, size)
        except OSError as error:
            raise BufferLost(f"cannot read {path}: {error.strerror}") from None

    def keep_only(self, roots: Collection[bytes]) -> None:
        """Drop all others, and what a former process had begun to write."""
        names = {root.hex() for root in roots}
        self._overflow.keep_only(self.folder, names)
        with suppress(OSError):  # what cannot be listed is dropped another time
            for path in self.folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Buffer:
    """One of them, to be read."""

    files: FeedbackFiles
    path: Path
    layout: Layout
    digests: tuple[bytes, ...]

    def chunk(self, index: int) -> bytes:
        """fp32 little-endian. Raises BufferLost."""
        start, stop = self.layout.coords(index)
        data = self.files._piece(self.path, 4 * start, 4 * (stop - start))
        if digest(data) != self.digests[index]:
            raise BufferLost(f"chunk {index} of {self.path} is not as it was made")
        return data


class _Sink(Protocol):
    def put(self, data: bytes) -> None: ...


def _encode(delta: Vector, layout: Layout, codec: Codec, source: Buffer | None, sink: _Sink) -> Contribution:
    encoder = _Encoder(codec.encoder(layout), min(layout.chunk_coords, layout.num_coords))

    def encode(index: int) -> Chunk:
        part = delta[slice(*layout.coords(index))]
        made, left = encoder.encode(part, None if source is None else carried(numbers(source.chunk(index)), codec))
        sink.put(left.astype("<f4", copy=False).tobytes())
        return made

    return contribution_of(encode(c) for c in range(layout.num_chunks))


class _Encoder:
    """In memory of its own."""

    def __init__(self, encoder: Encoder, size: int) -> None:
        self._encoder = encoder
        self._values, self._decoded, self._left, self._restored = np.empty((4, size), np.float32)

    def encode(self, delta: Vector, start: Vector | None) -> tuple[Chunk, Vector]:
        """The chunk and what it leaves out, such that `restored` of both encodes to the same bytes: whoever sees both
        can ask for exactly that. Of numbers far from their code the difference is rounded; where an encoder then
        chooses otherwise, which it does for ties alone, what is restored is encoded in place of what was."""
        count = len(delta)
        values, decoded, left, again = (
            memory[:count] for memory in (self._values, self._decoded, self._left, self._restored)
        )
        if start is None:
            np.copyto(values, delta)
        else:
            np.add(delta, start, out=values)
        made = self._encoder.encode(values)
        for _ in range(_TRIES):
            np.subtract(values, made.decode(decoded), out=left)
            np.add(decoded, left, out=again)
            if np.array_equal(again.view(np.uint32), values.view(np.uint32)):
                return made, left
            short = np.abs(again) < np.abs(values)  # rounded down, far from its code: up, or it may be kept no more
            np.nextafter(left, np.copysign(np.float32(np.inf), values), out=left, where=short)
            np.add(decoded, left, out=again)
            other = self._encoder.encode(again)
            if other.data == made.data:
                return made, left
            made = other
            np.copyto(values, again)
        left.fill(0)  # what a chunk decodes to is encoded to the chunk
        return made, left


def is_encoding(chunk: Chunk, left: Vector, layout: Layout, codec: Codec) -> bool:
    """Is this chunk, byte for byte, what `codec` makes of the vector that it leaves `left` of? So a sender's word for
    its buffer cannot say anything else than what its chunk leaves out."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.add(chunk.decode(), left)
    try:
        return codec.encoder(layout).encode(values).data == chunk.data
    except ValueError:  # not finite
        return False


class _InMemory:
    def __init__(self, room: int) -> None:
        """room: bytes; what there is no room for has digests alone, for nobody keeps it."""
        self.chunks, self.digests, self._room = list[bytes](), list[bytes](), room

    def put(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room >= 0:
            self.chunks.append(data)
        self.digests.append(digest(data))

    @property
    def whole(self) -> bool:
        return len(self.chunks) == len(self.digests)

    @property
    def root(self) -> bytes:
        return merkle_root(self.digests)


class _OnDisk:
    """Whole or not at all. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._part = folder / f"{os.getpid()}-{get_ident()}.part"
        self._file, self._digests = self._part.open("wb"), list[bytes]()

    def __enter__(self) -> _OnDisk:
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def put(self, data: bytes) -> None:
        self._digests.append(digest(data))
        self._file.write(data)

    def close(self) -> bytes:
        """The root; the file has its name then."""
        root = merkle_root(self._digests)
        self._file.write(b"".join(self._digests))
        self._file.close()
        self._part.replace(self._part.with_name(root.hex()))
        return root


def open_buffers(files: FeedbackFiles, record: WorkRecord, layout: Layout) -> tuple[Buffer | None, Buffer]:
    """What a record's vector began with, None: nothing, and what it left out. Raises BufferLost."""
    start = None if record.feedback_start == NO_ROOT else files.open(record.feedback_start, layout)
    return start, files.open(record.feedback_end, layout)


def numbers(data: bytes) -> Vector:
    """Of a chunk of a buffer."""
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def carried(left: Vector, codec: Codec) -> Vector:
    """What a sender's next vector has of what its last included one left out, fp32 [n]; a new array."""
    return left * np.float32(codec.feedback)
