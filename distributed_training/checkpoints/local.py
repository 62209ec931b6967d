"""Checkpoints as directories on this machine: `round-000004/` holds the files of the state at the start of round 4."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.checkpoints.checking import check_files, check_listing, check_sizes, described, read_bounded
from distributed_training.checkpoints.description import MAX_STATE_BYTES, STATE_FILE, Description, parse_description
from distributed_training.errors import ConfigError, LocalFault, WireError

# What huggingface_hub and git leave in a folder that was downloaded.
BESIDE = frozenset({".cache", ".git", ".gitattributes"})


FOLDER = "checkpoints"  # in a run directory


class LocalCheckpoints:
    """See CheckpointStore. A directory appears under its name only when it is complete; all of them are kept."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, *, write: bool) -> None:
        if self._root.exists() and not self._root.is_dir():
            raise ConfigError(f"checkpoints: {self._root} is no directory; name one, or hub:ORG/NAME")

    def publish(self, round_index: int, folder: Path) -> CheckpointRef:
        mine = parse_description(read_bounded(folder / STATE_FILE, MAX_STATE_BYTES))
        target = self._root / f"round-{round_index:06d}"
        if not target.exists():
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                self._write(target, folder, mine)
            except OSError as error:
                if not target.exists():  # or somebody else has published it meanwhile
                    raise LocalFault(f"cannot publish a checkpoint in {self._root}: {error.strerror}") from None
        ref = local_ref(target)
        if not self.describe(ref).same_state(mine):
            raise LocalFault(f"{target} holds another state of round {round_index}; move it away")
        return ref

    def find(self, round_index: int, digest: bytes | None) -> CheckpointRef | None:
        path = self._root / f"round-{round_index:06d}"
        ref = local_ref(path) if path.is_dir() else None
        return ref if ref is not None and digest in (None, ref.digest) else None

    def rounds(self) -> list[int]:
        names = self._root.glob("round-" + "[0-9]" * 6) if self._root.is_dir() else ()
        return sorted(int(path.name.removeprefix("round-")) for path in names)

    def newest(self) -> CheckpointRef | None:
        return self.find(rounds[-1], None) if (rounds := self.rounds()) else None

    def describe(self, ref: CheckpointRef) -> Description:
        return described(read_bounded(Path(ref.location) / STATE_FILE, MAX_STATE_BYTES), ref)

    def fetch(self, ref: CheckpointRef, names: Collection[str]) -> Path:
        folder, description = Path(ref.location), self.describe(ref)
        try:
            there = os.listdir(folder)  # noqa: PTH208 (a Path per name is of no use)
        except OSError as error:
            raise LocalFault(f"cannot read {folder}: {error.strerror}") from None
        check_listing(str(folder), set(there) - BESIDE, description)
        check_files(folder, description, names)
        return folder

    def prune(self, named: Collection[int]) -> None:
        """Nothing: how much of a directory to keep is for the person whose disk it is."""

    def _write(self, target: Path, folder: Path, mine: Description) -> None:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._root))
        try:
            for path in folder.iterdir():
                _place(path, partial / path.name)
            check_sizes(partial, mine)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # nothing is there once renamed


def local_ref(folder: Path) -> CheckpointRef:
    """The checkpoint in `folder`, whatever the folder is called. Raises LocalFault, WireError."""
    data = read_bounded(folder / STATE_FILE, MAX_STATE_BYTES)
    named = re.fullmatch(r"round-([0-9]{6,10})", folder.name)
    round_index = int(named[1]) if named else parse_description(data).round
    return CheckpointRef(round_index, str(folder), hashlib.sha256(data).digest())


def _place(source: Path, target: Path) -> None:
    """The same file under a second name, or where the disk is another one, a copy."""
    if source.is_symlink() or not source.is_file():
        raise WireError(f"{source} is no regular file")
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
