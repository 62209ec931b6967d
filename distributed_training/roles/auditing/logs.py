"""Logs that miners pushed, on a validator's disk until the round after theirs: they would not all fit into memory, and
who is restarted in mid-audit repeats it."""

from __future__ import annotations

import shutil
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distributed_training.errors import LocalFault
from distributed_training.files import write_whole
from distributed_training.protocol.wire import decode_signed, record_hash

LOGS_FOLDER = "audits"  # in a node's folder
KEPT_ROUNDS = 2  # the open one, and the one that is audited
AUDIT_ROUNDS = 2  # until so many rounds, itself among them, are over, a round may be looked at
_HEAD = struct.Struct("<II")  # our head when it had arrived, bytes of the signed record


@dataclass(frozen=True, slots=True)
class PushedLog:
    """What a candidate gave us of its round."""

    signed_record: bytes
    block: int  # our head when it had arrived
    log: bytes | Path  # here, or after the record in this file

    @property
    def work_hash(self) -> bytes:
        """Of the work record that it came with."""
        return record_hash(decode_signed(self.signed_record).body)

    def read(self) -> bytes:
        """The log; blocks. Raises LocalFault."""
        if isinstance(self.log, bytes):
            return self.log
        try:
            return self.log.read_bytes()[_HEAD.size + len(self.signed_record) :]
        except OSError as error:
            raise LocalFault(f"cannot read {self.log}: {error.strerror}") from None


class KeptLogs:
    """One file a log, in a folder a round. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, round_index: int, public_key: bytes, pushed: PushedLog) -> PushedLog:
        """The same log, on the disk from now on; in memory where the disk does not take it."""
        path, signed = self._round(round_index) / public_key.hex(), pushed.signed_record
        try:
            write_whole(path, _HEAD.pack(pushed.block, len(signed)), signed, pushed.read())
        except OSError:
            return pushed
        return PushedLog(signed, pushed.block, path)

    def load(self, round_index: int) -> dict[bytes, PushedLog]:
        """Public key -> what a former process of ours was given; files that cannot be read are none."""
        found: dict[bytes, PushedLog] = {}
        with suppress(OSError):
            for path in sorted(self._round(round_index).iterdir()):
                with suppress(OSError, ValueError, struct.error), path.open("rb") as file:
                    block, size = _HEAD.unpack(file.read(_HEAD.size))
                    found[bytes.fromhex(path.name)] = PushedLog(file.read(size), block, path)
        return found

    def drop(self, round_index: int) -> None:
        """What is not of the last KEPT_ROUNDS before and with `round_index`, or after it."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.name.isdigit() and int(path.name) <= round_index - KEPT_ROUNDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _round(self, round_index: int) -> Path:
        return self._folder / f"{round_index:06d}"


def unscored(folder: Path, last_scored: int | None) -> int | None:
    """The oldest round of which logs are kept in `folder` and that is not folded into score cards."""
    with suppress(OSError):
        rounds = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        return min((r for r in rounds if last_scored is None or r > last_scored), default=None)
    return None
