"""What the SDK raises and returns, as our errors: nobody answered, refused, refused for now, dropped, or nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import bittensor as bt

from distributed_training.errors import (
    ChainFault,
    ChainRefused,
    ChainReplaced,
    ChainUnreachable,
    ConfigError,
    StatePruned,
    named,
    said,
)

T = TypeVar("T")

# Texts, because the SDK makes one type of them all, and a failed result where the write may well have landed.
NOBODY = (
    "rejected the WebSocket handshake",  # a proxy whose node is down answers HTTP 502
    "an extrinsic submission was in flight",
    "Connection lost while waiting",
    "ended without reaching the awaited state",
    "may not have imported it yet",  # it is in a block, which the node that we ask has not seen
    "RPC session closed",
    "Client connection is not open",  # it broke under another request
    "connection closed during connect",
)
PRUNED = ("State discarded for", "State already discarded")
# The pool may take such a write a block later: another one with its number was there, its era or runtime was over.
PASSING = {
    "AlreadyImported", "AncientBirthBlock", "BadProof", "Dropped", "ExhaustsResources", "FinalityTimeout", "Future",
    "Invalid", "PriorityTooLow", "Retracted", "Stale", "Usurped",
}  # fmt: skip
PASSING_TEXTS = ("temporarily banned", "couldn't enter the pool")


def fault_of(error: bt.ChainError) -> ChainFault:
    text = said(error)
    if any(nobody in text for nobody in NOBODY):
        return ChainUnreachable(text)
    return StatePruned(text) if any(pruned in text for pruned in PRUNED) else ChainFault(text)


def refusal_of(error: bt.ChainError | None, text: str) -> ChainFault:
    """Why a write failed: the chain's no, or that nobody can say whether it did."""
    if error is None:
        return ChainRefused(text, "unknown")
    fault, code = fault_of(error), error.code.value
    if isinstance(fault, ChainUnreachable):
        return fault
    passes = error.name in PASSING or code == "rate_limited" or any(passing in text for passing in PASSING_TEXTS)
    return ChainRefused(text, code, passes=passes)


async def guarded(work: Awaitable[T], timeout_s: float) -> T:
    """Await an SDK call and turn whatever it raises into our errors.

    The SDK lets private exceptions and plain ValueErrors through when a runtime differs from what it expects, so this
    boundary catches all of them.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except (ChainFault, ChainReplaced, ConfigError):
        raise
    except TimeoutError as error:
        raise ChainUnreachable(f"no answer within {timeout_s:.0f} s") from error
    except (bt.RpcConnectionError, OSError) as error:
        raise ChainUnreachable(named(error)) from error
    except bt.ChainError as error:
        raise fault_of(error) from error
    except Exception as error:
        raise ChainFault(named(error)) from error


async def included(submission: Awaitable[bt.ExtrinsicResult], timeout_s: float) -> int:
    """The block a write got into. The SDK raises what it finds out itself and returns what the chain says."""
    try:
        result = await guarded(submission, timeout_s)
    except ChainFault as fault:
        if not isinstance(fault, ChainUnreachable) and isinstance(cause := fault.__cause__, bt.ChainError):
            raise refusal_of(cause, str(fault)) from fault
        raise
    if not result.success:
        raise refusal_of(result.error, result.message)
    if result.extrinsic_id is None:
        raise ChainFault("the write was sent, but the chain did not say in which block it is")
    return int(result.extrinsic_id.split("-")[0])
