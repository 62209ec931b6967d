"""Checkpoints as directories on this machine: `round-000004/` holds the files of the state at the start of round 4."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.errors import LocalFault, WireError

STATE_FILE = "training_state.json"


class LocalCheckpoints:
    """See CheckpointStore. A directory appears under its name only when it is complete."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def publish(self, round_index: int, files: Mapping[str, bytes]) -> CheckpointRef:
        if STATE_FILE not in files:
            raise ValueError(f"a checkpoint needs a {STATE_FILE}")
        target = self._root / f"round-{round_index:06d}"
        if not target.exists():
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                self._write(target, files)
            except OSError as error:
                if not target.exists():  # or somebody else has published it meanwhile
                    raise LocalFault(f"cannot publish a checkpoint in {self._root}: {error.strerror}") from None
        return self._ref(target)

    def newest(self) -> CheckpointRef | None:
        names = sorted(self._root.glob("round-" + "[0-9]" * 6)) if self._root.is_dir() else []
        return self._ref(names[-1]) if names else None

    def read(self, ref: CheckpointRef, name: str) -> bytes:
        state = self._bytes(Path(ref.location) / STATE_FILE)
        if hashlib.sha256(state).digest() != ref.digest:
            raise WireError(f"checkpoint {ref.location}: {STATE_FILE} has changed")
        if name == STATE_FILE:
            return state
        data = self._bytes(Path(ref.location) / name)
        try:
            expected = json.loads(state)["files"][name]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise WireError(f"checkpoint {ref.location}: {STATE_FILE} does not name {name}") from None
        if hashlib.sha256(data).hexdigest() != expected:
            raise WireError(f"checkpoint {ref.location}: {name} does not have the sha256 of {STATE_FILE}")
        return data

    def _write(self, target: Path, files: Mapping[str, bytes]) -> None:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._root))
        try:
            for name, data in files.items():
                (partial / name).write_bytes(data)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # nothing is there once renamed

    def _ref(self, path: Path) -> CheckpointRef:
        digest = hashlib.sha256(self._bytes(path / STATE_FILE)).digest()
        return CheckpointRef(int(path.name.removeprefix("round-")), str(path), digest)

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise LocalFault(f"cannot read {path}: {error.strerror}") from None
