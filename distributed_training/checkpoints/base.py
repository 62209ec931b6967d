"""The checkpoint seam: published states of the run, each a set of files with a digest over all of them.

Who holds the place where they lie decides nothing: a state is taken when its files hash to the digest that the owner
put on chain, and its numbers to the state root.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distributed_training.checkpoints.description import Description


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    round: int  # the state at the start of this round
    location: str  # where a person finds it
    digest: bytes  # sha256 of training_state.json, which names the sha256 of every other file


class CheckpointStore(Protocol):
    """Blocking methods; run them in a thread. A published checkpoint is whole or absent, and never changes.

    Raises LocalFault when the store cannot be reached, WireError for files that are not those published.
    """

    def check(self, *, write: bool) -> None:
        """At the start: raises ConfigError for what a person has to put right before it can be read (written)."""
        ...

    def publish(self, round_index: int, folder: Path) -> CheckpointRef:
        """Publish the files of `folder`, one of which is training_state.json, at once; `folder` stays as it is.

        Where this round's state is there already, that is returned: it may be asked again after any failure. Raises
        LocalFault when another state of this round is there.
        """
        ...

    def find(self, round_index: int, digest: bytes | None) -> CheckpointRef | None:
        """The checkpoint of this round if it has this digest; None for `digest`: whatever is there."""
        ...

    def rounds(self) -> list[int]:
        """Those that checkpoints are there of, in order. Nobody vouches for them: a hint."""
        ...

    def newest(self) -> CheckpointRef | None:
        """The latest round there is. Nobody vouches for it: a hint."""
        ...

    def describe(self, ref: CheckpointRef) -> Description:
        """Its training_state.json, which hashes to the digest."""
        ...

    def fetch(self, ref: CheckpointRef, names: Collection[str]) -> Path:
        """A folder with these files, each checked against training_state.json just now; others may lie there too.

        Refuses a checkpoint that holds anything training_state.json does not name.
        """
        ...

    def prune(self, named: Collection[int]) -> None:
        """Make room by the store's own policy; checkpoints of the rounds `named` stay."""
        ...
