"""A node's kept bytes, by round: work records, own wire bytes and log, outputs, state snapshots.

Plain files under the node's folder, written atomically, named by content where others may ask for them:

    rounds/000003/work-<hash>   signed work record        rounds/000003/wire, log   our own
    rounds/000003/output-<hash>.record, .chunks           a slice we reduced or gathered
    rounds/000003/sent-<slice>                            what senders sent us for it, as long as audits may ask
    state/                                                snapshots, see states.py
    feedback/<root>                                       what our encodings left out, see feedback.py
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distributed_training.averaging.disk import OWN_FILES, SENT, SENT_ROUNDS, enforce_budget
from distributed_training.averaging.feedback import FeedbackFiles
from distributed_training.averaging.overflow import Overflow
from distributed_training.errors import LocalFault
from distributed_training.snapshots.states import StateFiles
from distributed_training.training.outer import RunState


@dataclass(frozen=True, slots=True)
class StoredOutput:
    record: bytes  # signed output record
    chunks: tuple[bytes, ...]  # encoded chunks of the slice, in order; as they were read, all in one

    @property
    def whole(self) -> bytes:
        """The chunks, concatenated."""
        return b"".join(self.chunks)


class RoundStore:
    """Blocking; for any thread, and what is large belongs into one. Raises LocalFault.

    What the disk does not take is kept in memory, see `overflow`; a snapshot is not: whoever writes it tries again.
    """

    def __init__(self, root: Path, budget: int | None = None) -> None:
        """budget: bytes that rounds/ and state/ may take; see `disk.enforce_budget`."""
        self.root, self._budget = root, budget
        self.states = StateFiles(root / "state")
        self.overflow = Overflow()
        self.feedback = FeedbackFiles(root / "feedback", self.overflow)
        try:
            (root / "rounds").mkdir(parents=True, exist_ok=True)
            (root / "state").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalFault(f"cannot write to {root}: {error.strerror}") from None

    def put_work(self, round_index: int, record_hash: bytes, signed: bytes) -> None:
        self._write(self._round(round_index) / f"work-{record_hash.hex()}", signed)

    def work(self, round_index: int, record_hash: bytes) -> bytes | None:
        return self._read(self._round(round_index) / f"work-{record_hash.hex()}")

    def put_own(self, round_index: int, wire: Sequence[bytes], log: bytes) -> None:
        """wire: its chunks, one file together."""
        self._write(self._round(round_index) / "wire", *wire)
        self._write(self._round(round_index) / "log", log)

    def own_wire(self, round_index: int) -> bytes | None:
        return self._read(self._round(round_index) / "wire")

    def holds_own(self, round_index: int) -> bool:
        """Are our own wire bytes of a round here, on the disk or in memory?"""
        path = self._round(round_index) / "wire"
        return self.overflow.get(path) is not None or path.is_file()

    def own_log(self, round_index: int) -> bytes | None:
        return self._read(self._round(round_index) / "log")

    def put_sent(self, round_index: int, slice_index: int, chunks: Sequence[bytes]) -> None:
        """What senders sent us for a slice, one file together."""
        self._write(self._round(round_index) / f"{SENT}{slice_index}", *chunks)

    def sent_piece(self, round_index: int, slice_index: int, start: int, size: int) -> bytes:
        return self._piece(self._round(round_index) / f"{SENT}{slice_index}", start, size)

    def put_output(self, round_index: int, record_hash: bytes, output: StoredOutput) -> None:
        base = self._round(round_index) / f"output-{record_hash.hex()}"
        self._write(base.with_suffix(".chunks"), *output.chunks)
        self._write(base.with_suffix(".record"), output.record)

    def output(self, round_index: int, record_hash: bytes) -> StoredOutput | None:
        base = self._round(round_index) / f"output-{record_hash.hex()}"
        record, chunks = self._read(base.with_suffix(".record")), self._read(base.with_suffix(".chunks"))
        return None if record is None or chunks is None else StoredOutput(record, (chunks,))

    def output_record(self, round_index: int, record_hash: bytes) -> bytes | None:
        """Only the signed record of a slice."""
        return self._read(self._round(round_index) / f"output-{record_hash.hex()}.record")

    def output_piece(self, round_index: int, record_hash: bytes, start: int, size: int) -> bytes:
        """At most `size` bytes of a slice's chunks from `start` on; empty at the end, or when it is not kept."""
        return self._piece(self._round(round_index) / f"output-{record_hash.hex()}.chunks", start, size)

    def own_piece(self, round_index: int, start: int, size: int) -> bytes:
        """The same of our own wire bytes."""
        return self._piece(self._round(round_index) / "wire", start, size)

    def _piece(self, path: Path, start: int, size: int) -> bytes:
        try:
            return self.overflow.piece(path, start, size)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise LocalFault(f"cannot read {path}: {error.strerror}") from None

    def put_state(self, round_index: int, state: RunState) -> None:
        """State at the start of `round_index`; the two newest are kept."""
        self.states.put(round_index, state)

    def newest_state(self, last: int | None = None) -> tuple[int, RunState] | None:
        """The newest snapshot that can be read whole, of round `last` or before if there is one."""
        return self.states.newest(last)

    def prune(self, round_index: int, keep_rounds: int, own_rounds: int) -> None:
        """Drop everything of rounds before round_index - keep_rounds, before round_index - own_rounds what only
        ourselves can be asked for, and what senders sent us once it is audited; then write what the disk had no room
        for."""
        folders = self.overflow.folders()
        with suppress(OSError):  # what cannot be listed is dropped another time
            folders |= set((self.root / "rounds").iterdir())
        for path in folders:
            age = round_index - int(path.name) if path.name.isdigit() else 0
            if age > keep_rounds:
                self.overflow.forget(path)
                shutil.rmtree(path, ignore_errors=True)
                continue
            over = [*(OWN_FILES if age > own_rounds else ()), *([f"{SENT}*"] if age > SENT_ROUNDS else ())]
            for pattern in over:
                self.overflow.forget(path, pattern)
                with suppress(OSError):
                    for file in path.glob(pattern):
                        file.unlink(missing_ok=True)
        self.overflow.retry()
        if self._budget is not None:
            with suppress(OSError):
                enforce_budget(self.root, self.states, round_index, self._budget)

    def _round(self, round_index: int) -> Path:
        return self.root / "rounds" / f"{round_index:06d}"

    def _read(self, path: Path) -> bytes | None:
        kept = self.overflow.get(path)
        if kept is not None:
            return kept
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LocalFault(f"cannot read {path}: {error.strerror}") from None

    def _write(self, path: Path, *parts: bytes) -> None:
        try:
            self.overflow.write(path, *parts)
        except OSError as error:
            raise LocalFault(f"cannot write {path}: {error.strerror}") from None
