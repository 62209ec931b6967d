"""A node's kept bytes, by round: work records, own wire bytes and log, outputs, state snapshots.

Plain files under the node's folder, written atomically, named by content where others may ask for them:

    rounds/000003/work-<hash>   signed work record        rounds/000003/wire, log   our own
    rounds/000003/output-<hash>.record, .chunks           a slice we reduced or gathered
    state/000004.safetensors                              state at the start of round 4
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from distributed_training.averaging.statefile import decode_state as decode_state
from distributed_training.averaging.statefile import encode_state as encode_state
from distributed_training.errors import LocalFault, WireError
from distributed_training.training.outer import RunState


@dataclass(frozen=True, slots=True)
class StoredOutput:
    record: bytes  # signed output record
    chunks: bytes  # encoded chunks of the slice, concatenated


class RoundStore:
    """Blocking, small reads and writes; safe to use from one event loop and one thread. Raises LocalFault."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            (root / "rounds").mkdir(parents=True, exist_ok=True)
            (root / "state").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalFault(f"cannot write to {root}: {error.strerror}") from None

    def put_work(self, round_index: int, record_hash: bytes, signed: bytes) -> None:
        self._write(self._round(round_index) / f"work-{record_hash.hex()}", signed)

    def work(self, round_index: int, record_hash: bytes) -> bytes | None:
        return self._read(self._round(round_index) / f"work-{record_hash.hex()}")

    def put_own(self, round_index: int, wire: bytes, log: bytes) -> None:
        self._write(self._round(round_index) / "wire", wire)
        self._write(self._round(round_index) / "log", log)

    def own_wire(self, round_index: int) -> bytes | None:
        return self._read(self._round(round_index) / "wire")

    def own_log(self, round_index: int) -> bytes | None:
        return self._read(self._round(round_index) / "log")

    def put_output(self, round_index: int, record_hash: bytes, output: StoredOutput) -> None:
        base = self._round(round_index) / f"output-{record_hash.hex()}"
        self._write(base.with_suffix(".chunks"), output.chunks)
        self._write(base.with_suffix(".record"), output.record)

    def output(self, round_index: int, record_hash: bytes) -> StoredOutput | None:
        base = self._round(round_index) / f"output-{record_hash.hex()}"
        record, chunks = self._read(base.with_suffix(".record")), self._read(base.with_suffix(".chunks"))
        return None if record is None or chunks is None else StoredOutput(record, chunks)

    def put_state(self, round_index: int, state: RunState) -> None:
        """State at the start of `round_index`; the two newest are kept."""
        self._write(self.root / "state" / f"{round_index:06d}.safetensors", encode_state(round_index, state))
        for old in sorted((self.root / "state").glob("*.safetensors"))[:-2]:
            old.unlink(missing_ok=True)

    def newest_state(self) -> tuple[int, RunState] | None:
        """The newest snapshot that can be read whole."""
        for path in sorted((self.root / "state").glob("*.safetensors"), reverse=True):
            try:
                return decode_state(path.read_bytes())
            except (OSError, WireError):
                continue
        return None

    def prune(self, round_index: int, keep_rounds: int) -> None:
        """Drop everything of rounds before round_index - keep_rounds."""
        for path in (self.root / "rounds").iterdir():
            if path.name.isdigit() and int(path.name) < round_index - keep_rounds:
                shutil.rmtree(path, ignore_errors=True)

    def _round(self, round_index: int) -> Path:
        return self.root / "rounds" / f"{round_index:06d}"

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LocalFault(f"cannot read {path}: {error.strerror}") from None

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".part")
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            raise LocalFault(f"cannot write {path}: {error.strerror}") from None
