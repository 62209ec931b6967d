"""A node's own trouble: said in the log and as a `fault` event, waited for where it ends, never a peer's fault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from distributed_training.errors import ChainFault, ChainUnreachable, ConfigError, LocalFault, said
from distributed_training.metrics.events import Fault
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment
from distributed_training.roles.parts import Parts

log = logging.getLogger(__name__)

SEND_S = 3.0  # for a write to the chain when the node is told to stop: blocks may be longer, but it is on its way then
T = TypeVar("T")


def tell(parts: Parts, round_index: int, what: str, error: BaseException) -> None:
    """As an event, and in the log when it begins; its end is said after a round without it. Never raises."""
    detail = said(error)
    parts.metrics.words.trouble(what, f"round {round_index}: {detail}")
    parts.metrics.emit(Fault(what=what, detail=detail), round=round_index)


def attempt(parts: Parts, round_index: int, what: str, write: Callable[[], None]) -> bool:
    """Do a write to our own disk that the round can do without. False: it failed, and that was said."""
    try:
        write()
    except LocalFault as error:
        tell(parts, round_index, what, error)
        return False
    return True


async def commit_by(
    parts: Parts, commitment: Commitment, round_index: int, last_block: int, what: str, *, since: int = 0
) -> int | None:
    """Put a commitment on chain by `last_block`. Its block; None if it is not there as far as we know (said).
    since: one that stands there from before this block is written again.

    The chain is asked first: a write that nobody answered, or one before a restart, may have happened. Reads wait for
    the end of an outage, so after a long one the answer is that it is too late. What may be taken a block later is
    tried again, until then; so is what a reorganisation takes back, unless something else was to be committed since.
    """

    async def look_again() -> None:
        try:
            me = (await parts.chain.roster(block or 0)).by_public_key(parts.signer.public_key)
            if me is None or me.commitment != commitment:
                lost = ChainFault(f"{what}: a reorganisation took it out of block {block}")
                tell(parts, round_index, "commit", lost)
                await write()
        except (LocalFault, ConfigError) as error:
            log.warning("round %d: no second look at %s: %s", round_index, what, error)

    async def write() -> int | None:
        nonlocal block
        block = await _commit(parts, commitment, round_index, last_block, what, since)
        if block is not None:
            parts.clock.once_final(block, look_again)
        return block

    block: int | None = None
    parts.clock.forget_final()
    return await write()


async def _commit(
    parts: Parts, commitment: Commitment, round_index: int, last_block: int, what: str, since: int
) -> int | None:
    fields, told = encode_commitment(commitment), False
    while True:
        try:
            head = (await parts.chain.head()).number
            me = (await parts.chain.roster(head)).by_public_key(parts.signer.public_key)
            if me is not None and me.commitment == commitment and (me.commitment_block or 0) >= since:
                return me.commitment_block
            if head >= last_block:
                tell(parts, round_index, "commit", ChainFault(f"{what}: too late in block {head}, due in {last_block}"))
                return None
            block = await finished(parts.chain.commit(fields, last_block), SEND_S)
            log.debug("round %d: %s is on chain in block %d, due by %d", round_index, what, block, last_block)
            return block
        except ChainFault as error:
            if not error.passes:
                tell(parts, round_index, "commit", error)
                return None
            if isinstance(error, ChainUnreachable):  # the log has the outage from who waits for its end
                log.debug("round %d: %s: %s", round_index, what, error)
                if not told:
                    parts.metrics.emit(Fault(what="chain", detail=said(error)), round=round_index)
            elif not told:
                tell(parts, round_index, "chain", error)
            told = True
            await asyncio.sleep(parts.clock.block_s)


async def finished(work: Coroutine[Any, Any, T], grace_s: float) -> T:
    """`work`; who is cancelled meanwhile gives it `grace_s` to end."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=grace_s)
        task.cancel()
        raise
