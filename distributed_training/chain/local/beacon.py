"""The local beacon: opens sealed weights on the local chain, where nobody has drand's signatures.

The SDK seals weights to the key of the public beacon, which is compiled into its core, so no chain of our own can open
them. But the process that seals is the one that submits. So the sealing function is overheard: the SDK seals, chooses
the round and submits its ciphertext as ever, and the local chain keeps beside it what was sealed. A ciphertext that was
not sealed here has no opening: it stays shut and expires, as where a round of the public beacon is missing.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import Any

import bittensor_core

_openings: dict[bytes, dict[str, Any]] = {}  # sha256 of a ciphertext that is not submitted yet -> what it holds


@cache
def overhear() -> None:
    """From now on remember what this process seals. Once for all chains of a process."""
    core: Any = bittensor_core
    seal = core.get_encrypted_commit_v2

    def sealing(*, uids: list[int], weights: list[int], version_key: int, **schedule: Any) -> tuple[bytes, int]:
        commit, reveal_round = seal(uids=uids, weights=weights, version_key=version_key, **schedule)
        opening = {"dests": list(uids), "weights": list(weights), "version_key": version_key}
        _openings[sha256(commit).digest()] = opening
        return commit, reveal_round

    core.get_encrypted_commit_v2 = sealing


def opening(commit: bytes) -> dict[str, Any] | None:
    """What `commit` holds, once; None for what was not sealed in this process."""
    return _openings.pop(sha256(commit).digest(), None)
