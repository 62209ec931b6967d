"""Snapshots of the state on disk: safetensors files that are written, read and served without a second copy in memory.

state/000004.safetensors      the state at the start of round 4; appears whole, or not at all
state/000004.header           its snapshot header (snapshot.py), made once
state/000004-<root>.fetch     being fetched from peers: every byte at its place, checked again before it is used
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from distributed_training.errors import LocalFault, WireError
from distributed_training.files import write_whole
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.wire import decode_carry, encode_carry
from distributed_training.snapshots.header import Header, Shape, decode_header, encode_header
from distributed_training.snapshots.statefile import Prefix, decode_prefix, encode_prefix, prefix_bytes, state_of
from distributed_training.training.outer import RunState, Vector

KEPT = 2  # the newest snapshots


def _data(vector: Vector) -> memoryview:
    return np.ascontiguousarray(vector, "<f4").view(np.uint8).data


class StateFile:
    """An open snapshot, read by range; it stays readable when the file is pruned meanwhile. Blocking."""

    def __init__(self, descriptor: int, prefix: Prefix) -> None:
        self._descriptor, self.prefix = descriptor, prefix
        self._lock = threading.Lock()  # a cancelled reader's thread must not find another file under this number

    def read(self, shape: Shape, first: int, last: int) -> bytes:
        """Chunks [first, last). Raises LocalFault."""
        at, size = self.prefix.num_bytes + shape.offset(first), shape.size(first, last)
        with self._lock, _local("cannot read a snapshot"):
            data = os.pread(self._descriptor, size, at)
        if len(data) != size:
            raise LocalFault("a snapshot on disk is shorter than it says")
        return data

    def close(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class StateFiles:
    """The snapshots of one node. Blocking; raises LocalFault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, round_index: int, state: RunState) -> None:
        """Write a snapshot; the newest two are kept."""
        path = self._path(round_index)
        partial = path.with_name(path.name + ".part")
        prefix = encode_prefix(round_index, state.applied, state.carry, len(state.params))
        with _local(f"cannot write {path}"):
            path.with_suffix(".header").unlink(missing_ok=True)
            self._drop_remains(round_index)
            try:
                with partial.open("wb") as file:
                    for part in (prefix, _data(state.params), _data(state.momentum)):
                        file.write(part)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)  # half a state would take the room that the disk lacks
            self.drop_old()

    def rounds(self) -> list[int]:
        """Rounds of which there is a snapshot, oldest first."""
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors") if path.stem.isdigit())

    def drop_old(self, keep: int = KEPT) -> None:
        for old in self.rounds()[:-keep]:
            self._path(old).unlink(missing_ok=True)
            self._path(old).with_suffix(".header").unlink(missing_ok=True)

    def drop_from(self, round_index: int) -> None:
        """Forget the states of this round and of later ones."""
        with _local(f"cannot drop the state of round {round_index}"):
            for late in self.rounds():
                if late >= round_index:
                    self._path(late).unlink(missing_ok=True)
                    self._path(late).with_suffix(".header").unlink(missing_ok=True)

    def newest(self, last: int | None = None) -> tuple[int, RunState] | None:
        """The newest snapshot that can be read whole, of round `last` or before if there is one."""
        for round_index in sorted(self.rounds(), key=lambda r: (last is None or r <= last, r), reverse=True):
            try:
                return self.load(round_index)
            except (LocalFault, WireError):
                continue
        return None

    def load(self, round_index: int) -> tuple[int, RunState]:
        """Raises WireError for a file of another form, LocalFault for one that cannot be read."""
        path = self._path(round_index)
        with self.open(round_index) as file, _local(f"cannot read {path}"):
            found, count = file.prefix, file.prefix.num_coords
            vectors = [np.fromfile(path, "<f4", count, offset=found.num_bytes + 4 * i * count) for i in range(2)]
        params, momentum = (vector.astype(np.float32, copy=False) for vector in vectors)
        if len(params) != count or len(momentum) != count:
            raise LocalFault(f"{path} became shorter while it was read")
        return found.round, state_of(found, params, momentum)

    @contextmanager
    def open(self, round_index: int) -> Iterator[StateFile]:
        """Raises LocalFault when there is no such snapshot, WireError for a file of another form."""
        path = self._path(round_index)
        with _local(f"cannot read {path}"):
            descriptor = os.open(path, os.O_RDONLY)
        try:
            with _local(f"cannot read {path}"):
                head = os.pread(descriptor, prefix_bytes(os.pread(descriptor, 8, 0)), 0)
                prefix = decode_prefix(head, os.fstat(descriptor).st_size)
        except BaseException:
            os.close(descriptor)
            raise
        file = StateFile(descriptor, prefix)
        try:
            yield file
        finally:
            file.close()

    def header(self, round_index: int, file: StateFile, shape: Shape) -> bytes:
        """The encoded header of an open snapshot: the one made before, else made now, chunk by chunk."""
        path = self._path(round_index).with_suffix(".header")
        try:
            kept = path.read_bytes()
            decode_header(kept, round_index, shape)
            return kept
        except (OSError, WireError):
            pass
        chunks = (digest(file.read(shape, chunk, chunk + 1)) for chunk in range(shape.num_chunks))
        made = Header(round_index, file.prefix.applied, encode_carry(file.prefix.carry), b"".join(chunks))
        self._write(path, encode_header(made))
        return encode_header(made)

    def fetch(self, header: Header, shape: Shape) -> Fetched:
        """The place of a snapshot that is being fetched; what a former process had fetched is still there."""
        name = f"{header.round:06d}-{header.root.hex()[:16]}.fetch"
        for other in self.folder.glob("*.fetch"):
            if other.name != name:
                other.unlink(missing_ok=True)
        return Fetched(self.folder / name, self._path(header.round), header, shape)

    def _drop_remains(self, round_index: int) -> None:
        """What killed processes of ours left: half a state, and fetches of states that we have passed."""
        for path in self.folder.glob("*.safetensors.part"):
            path.unlink(missing_ok=True)
        for path in self.folder.glob("*.fetch"):
            if path.name.split("-")[0] <= f"{round_index:06d}":
                path.unlink(missing_ok=True)

    def _path(self, round_index: int) -> Path:
        return self.folder / f"{round_index:06d}.safetensors"

    def _write(self, path: Path, data: bytes) -> None:
        with _local(f"cannot write {path}"):
            write_whole(path, data)


class Fetched:
    """A snapshot file that fills up piece by piece, in any order. Blocking; raises LocalFault."""

    def __init__(self, path: Path, target: Path, header: Header, shape: Shape) -> None:
        self._path, self._target, self._header, self._shape = path, target, header, shape
        prefix = encode_prefix(header.round, header.applied, decode_carry(header.carry), shape.num_coords)
        self._base = len(prefix)
        self._lock = threading.Lock()  # as in StateFile
        with _local(f"cannot write {path}"):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.pwrite(self._descriptor, prefix, 0)
            os.ftruncate(self._descriptor, self._base + shape.num_bytes)

    def missing(self) -> list[int]:
        """Indices into `shape.pieces()` of what is not there yet, by digest: no note about it is trusted."""
        found: list[int] = []
        for index, (first, last) in enumerate(self._shape.pieces()):
            at, size = self._base + self._shape.offset(first), self._shape.size(first, last)
            with self._lock, _local(f"cannot read {self._path}"):
                data = os.pread(self._descriptor, size, at)
            try:
                self._header.check(self._shape, first, last, data)
            except WireError:
                found.append(index)
        return found

    def put(self, first: int, last: int, data: bytes) -> None:
        """Check chunks [first, last) and write them at their place. Raises WireError when they are not the ones."""
        self._header.check(self._shape, first, last, data)
        with self._lock, _local(f"cannot write {self._path}"):
            written = os.pwrite(self._descriptor, data, self._base + self._shape.offset(first))
        if written != len(data):
            raise LocalFault(f"cannot write {self._path}: the disk took {written} of {len(data)} bytes")

    def finish(self) -> None:
        """All pieces are there: from now on it is a snapshot like our own."""
        with _local(f"cannot write {self._target}"):
            os.fsync(self._descriptor)
            self._path.replace(self._target)
            self._target.with_suffix(".header").unlink(missing_ok=True)

    def close(self) -> None:
        """Idempotent. What is there stays on disk."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)


@contextmanager
def _local(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalFault(f"{what}: {error.strerror}") from None
