"""A node says on chain who it is and where, at a moment at which that costs nobody a round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from distributed_training.errors import ChainFault
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.commitments import encode_commitment, place_of
from distributed_training.protocol.rules.clock import quiet_from
from distributed_training.protocol.types import Commitment, Neuron, Role
from distributed_training.roles.auditing.permit import permit_lacks
from distributed_training.roles.parts import Parts

log = logging.getLogger(__name__)

LOOK_BLOCKS = 5  # between two looks at our own hotkey


async def announce(parts: Parts, role: Role, reduces: bool, address: tuple[str, int] | None) -> None:
    """Address and peer key on chain; nothing is written that is there already. Needs a running clock."""
    head = (await parts.chain.head()).number
    roster = await parts.chain.roster(head)
    me = roster.by_public_key(parts.signer.public_key)
    present = None if me is None else me.commitment
    if me is not None and present is not None and present.peer_key != parts.peer_key:
        await _take_over(parts, me, present, head)
    if me is not None and present is not None and present.role is not role:
        was, block = present.role.name.lower(), me.commitment_block
        log.warning("this hotkey was a %s until block %s, from now on it is a %s", was, block, role.name.lower())
    if role is Role.OWNER and parts.signer.public_key.hex() != (speaker := parts.manifest.public.run_key):
        who = f"the hotkey with the public key {speaker} does" if speaker else "its manifest names no run_key"
        log.warning("this hotkey does not speak for the run (%s): nobody looks for what it publishes", who)
    if me is not None and role is Role.VALIDATOR and (lacks := permit_lacks(roster, me)) is not None:
        log.warning("%s; it goes on as soon as it has one", lacks)
    if address is not None:
        await _heard(parts, lambda: parts.chain.serve(*address))
    manifest = parts.manifest
    said = None if present is None else (present.peer_key, present.role, present.reduces, present.run)
    if said != (parts.peer_key, role, reduces, manifest.tag):
        words = Commitment(role, reduces, parts.peer_key, manifest.tag, None, None, None, None)
        if role is Role.OWNER:  # who joins looks for the run before there is a checkpoint
            place = place_of(manifest.public.checkpoints)
            words = replace(words, first_round=0, first=manifest.digest, place=place)

        async def say() -> None:
            seen = await parts.chain.roster((await parts.chain.head()).number)
            me = seen.by_public_key(parts.signer.public_key)
            if me is None or me.commitment != words:  # a try that nobody answered may have been heard
                await parts.chain.commit(encode_commitment(words))

        await _heard(parts, say)


async def _take_over(parts: Parts, me: Neuron, present: Commitment, head: int) -> None:
    """Another peer key stands there. If it was in use of late, what it did in the round under way should still count,
    and we could not take part in that round anyway."""
    timing, written = parts.manifest.timing, me.commitment_block or 0
    other, block = present.peer_key.hex()[:12], quiet_from(timing, head)
    if written + timing.length < head:
        log.info("this hotkey had another peer key (%s), last used in block %d", other, written)
        return
    log.warning(
        "this hotkey was used with another peer key (%s) in block %d: announcing ours in block %d, when the round is "
        "over; a process that still runs with that key will stop then",
        other,
        written,
        block,
    )
    await parts.clock.reached(block)


async def _heard(parts: Parts, write: Callable[[], Awaitable[object]]) -> None:
    """A write that may be made twice, until the chain answers: nobody could find a node without it."""
    unheard = Ongoing(log, "not announced on chain yet", "announced on chain")
    while True:
        try:
            await write()
            unheard.end()
            return
        except ChainFault as error:
            if not error.passes:
                raise
            unheard.begin(error)
            await asyncio.sleep(parts.clock.block_s)


async def look_after_hotkey(parts: Parts) -> None:
    """Every roster that is read shows whether the hotkey is still this process's (`SoleChain`); here one is read while
    nobody else does. Runs until cancelled."""
    while True:
        await asyncio.sleep(LOOK_BLOCKS * parts.clock.block_s)
        try:
            await parts.chain.roster((await parts.chain.head()).number)
        except ChainFault as error:
            log.debug("no look at our hotkey: %s", error)
