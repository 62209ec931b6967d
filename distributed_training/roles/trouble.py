"""A node's own trouble: said in the log and as a `fault` event, waited for where it ends, never a peer's fault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from distributed_training.errors import ChainFault, ConfigError, LocalFault, said
from distributed_training.metrics.events import Fault
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment
from distributed_training.roles.parts import Parts

log = logging.getLogger(__name__)


def tell(parts: Parts, round_index: int, what: str, error: BaseException) -> None:
    """Say it once, in the log and as an event. Never raises."""
    detail = said(error)
    log.error("round %d: own trouble (%s): %s", round_index, what, detail)
    parts.metrics.emit(Fault(what=what, detail=detail), round=round_index)


def attempt(parts: Parts, round_index: int, what: str, write: Callable[[], None]) -> bool:
    """Do a write to our own disk that the round can do without. False: it failed, and that was said."""
    try:
        write()
    except LocalFault as error:
        tell(parts, round_index, what, error)
        return False
    return True


async def commit_by(parts: Parts, commitment: Commitment, round_index: int, last_block: int, what: str) -> int | None:
    """Put a commitment on chain by `last_block`. Its block; None if it is not there as far as we know (said).

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
        block = await _commit(parts, commitment, round_index, last_block, what)
        if block is not None:
            parts.clock.once_final(block, look_again)
        return block

    block: int | None = None
    parts.clock.forget_final()
    return await write()


async def _commit(parts: Parts, commitment: Commitment, round_index: int, last_block: int, what: str) -> int | None:
    fields, told = encode_commitment(commitment), False
    while True:
        try:
            head = (await parts.chain.head()).number
            me = (await parts.chain.roster(head)).by_public_key(parts.signer.public_key)
            if me is not None and me.commitment == commitment:
                return me.commitment_block
            if head >= last_block:
                tell(parts, round_index, "commit", ChainFault(f"{what}: too late in block {head}, due in {last_block}"))
                return None
            return await parts.chain.commit(fields, last_block)
        except ChainFault as error:
            if not error.passes:
                tell(parts, round_index, "commit", error)
                return None
            if not told:
                tell(parts, round_index, "chain", error)
            told = True
            await asyncio.sleep(parts.clock.block_s)
