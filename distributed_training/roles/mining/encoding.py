"""A miner's vector on its way into bytes: with what its last included one left out, where the codec keeps that."""

from __future__ import annotations

import asyncio

from distributed_training.averaging.codecs.base import Vector
from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.feedback import Encoded
from distributed_training.averaging.plan import layout_of
from distributed_training.errors import LocalFault, WireError
from distributed_training.protocol.types import NO_ROOT, Carry
from distributed_training.protocol.wire import decode_signed, decode_work
from distributed_training.roles.chunks import KEPT_ROUNDS
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import tell


async def encoded(parts: Parts, round_index: int, carry: Carry, delta: Vector) -> Encoded:
    """carry: of the state that the round starts from. A buffer that is lost is told, and costs what was in it. Raises
    ValueError for a number that is not finite."""
    layout, codec = layout_of(parts.manifest, len(delta)), uplink_of(parts.manifest.average)
    start = carry.left_by(parts.signer.public_key)
    made = await asyncio.to_thread(parts.encode, parts.store.feedback, delta, layout, codec, start)
    if made.trouble is not None:
        tell(parts, round_index, "feedback", made.trouble)
    return made


async def forget_feedback(parts: Parts, round_index: int, carry: Carry) -> None:
    """Keep the buffers that somebody may still ask for, after the round's own work was kept: those of our last rounds,
    and the one that we go on from where this round's vector is not included."""
    if not uplink_of(parts.manifest.average).feedback:
        return
    roots = {carry.left_by(parts.signer.public_key)}
    try:
        for index in range(max(0, round_index + 1 - KEPT_ROUNDS), round_index + 1):
            line = parts.journal.load_own(index)
            signed = None if line is None else parts.store.work(index, bytes.fromhex(line["work"]))
            if signed is not None:
                record = decode_work(decode_signed(signed).body)
                roots |= {record.feedback_start, record.feedback_end}
    except (LocalFault, WireError):
        return
    await asyncio.to_thread(parts.store.feedback.keep_only, roots - {NO_ROOT})
