"""The checkpoint seam: published states of the run, each a set of files with a digest over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    round: int  # the state at the start of this round
    location: str  # where a person finds it
    digest: bytes  # sha256 of training_state.json, which names the sha256 of every other file


class CheckpointStore(Protocol):
    """Blocking methods; run them in a thread. A published checkpoint is whole or absent, and never changes.

    Raises LocalFault when the store cannot be reached; `read` raises WireError when a file is not the one published.
    """

    def publish(self, round_index: int, files: Mapping[str, bytes]) -> CheckpointRef:
        """Publish all files at once; publishing the same round again returns what is there."""
        ...

    def newest(self) -> CheckpointRef | None: ...

    def read(self, ref: CheckpointRef, name: str) -> bytes:
        """One file, checked against training_state.json."""
        ...
