"""What a run takes of what the chain allows: bytes of commitments in an epoch, uids. Pure."""

from __future__ import annotations

QUOTA_BYTES = 3100  # the chain's default
_ROUND_BYTES = 3 * max(100, 50 + 32 + 32)  # three writes: work, output, output again as a backup


def quota_problem(length: int, tempo: int, allowed: int | None = None) -> str | None:
    """Why rounds of `length` blocks do not fit epochs of `tempo`; allowed: bytes, None: the chain's default."""
    allowed = QUOTA_BYTES if allowed is None else allowed
    needed = _ROUND_BYTES * (-(-tempo // length) + 1)
    if needed > allowed:
        return (
            f"timing.length {length} needs {needed} commitment bytes per epoch of {tempo} blocks; "
            f"the chain allows {allowed}"
        )
    return None


def uids_problem(max_uids: int, allowed: int | None) -> str | None:
    """Why a manifest for `max_uids` does not fit a chain that allows so many; None for `allowed`: it does not say."""
    if allowed is None or allowed <= max_uids:
        return None
    return f"max_uids {max_uids} is too small: the subnet has {allowed} uids, and those beyond would get no pages"


def least_length(tempo: int, allowed: int | None = None) -> int | None:
    """Blocks of the shortest round that fits; None: none does."""
    rounds = (QUOTA_BYTES if allowed is None else allowed) // _ROUND_BYTES
    return -(-tempo // (rounds - 1)) if rounds > 1 else None
