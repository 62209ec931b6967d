"""Our own work of a round as a restarted process finds it: kept before it was committed, checked when read again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.codecs.base import Codec, Layout
from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.contribution import from_chunks, split_wire
from distributed_training.averaging.plan import RoundPlan, layout_of
from distributed_training.averaging.store import RoundStore
from distributed_training.errors import LocalFault, WireError
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.wire import decode_output, decode_signed, decode_work, record_hash
from distributed_training.roles.chunks import KEPT_ROUNDS
from distributed_training.roles.follower import Follower
from distributed_training.roles.parts import Parts
from distributed_training.roles.service import HeldWork, MinerService
from distributed_training.roles.trouble import attempt, tell

log = logging.getLogger(__name__)


async def keep_work(parts: Parts, held: HeldWork) -> None:
    """Bytes first, then the journal's line that names them: without the line a restart finds nothing."""
    index, signed = held.record.round, held.own.signed
    work = record_hash(decode_signed(signed).body)
    try:
        parts.store.put_work(index, work, signed)
        await asyncio.to_thread(parts.store.put_own, index, held.own.contribution.chunks, held.log)
        parts.journal.save_own(index, {"work": work.hex(), "log": digest(held.log).hex(), "output": None})
    except LocalFault as error:
        tell(parts, index, "disk", error)


async def find_work(parts: Parts, follower: Follower, held: HeldWork | None = None) -> HeldWork | None:
    """What this process (`held`) or a former one made for the round that begins now, if it fits this state: who joined
    again may hold another one now. Never raises."""
    now = follower.index, follower.root
    if held is not None and (held.record.round, held.record.state_root) == now and held.own.contribution.chunks:
        return held  # without its chunks it was put away: our disk has them
    found = await find_former(parts, follower.index, len(follower.state.params))
    return found if found is not None and found.record.state_root == follower.root else None


async def find_former(parts: Parts, index: int, num_coords: int) -> HeldWork | None:
    """What a process of ours made for a round, whatever became of it since. Never raises."""
    layout, uplink = layout_of(parts.manifest, num_coords), uplink_of(parts.manifest.average)
    try:
        line = parts.journal.load_own(index)
        return None if line is None else await asyncio.to_thread(_read, parts.store, index, line, layout, uplink)
    except (LocalFault, WireError) as error:
        log.warning("round %d: the work we kept cannot be used: %s", index, error)
        return None


async def recall(parts: Parts, follower: Follower, service: MinerService) -> None:
    """Hold what a former process made in the last rounds: validators ask for it still. Never raises."""
    size = len(follower.state.params)
    for index in range(max(0, follower.index + 1 - KEPT_ROUNDS), follower.index):
        found = None if service.held(index) is not None else await find_former(parts, index, size)
        if found is None:
            continue
        try:
            roster = await parts.chain.roster(parts.manifest.round(index).roster_block)
        except LocalFault as error:
            log.debug("round %d: what we made is not given any more: %s", index, error)
            continue
        service.hold(found)
        service.recall(index, voters(parts.manifest, roster), layout_of(parts.manifest, size))
        service.put_away()


def _read(store: RoundStore, index: int, line: Mapping[str, str], layout: Layout, uplink: Codec) -> HeldWork | None:
    """None: not all of what the line names is there. Raises LocalFault, WireError."""
    signed = store.work(index, bytes.fromhex(line["work"]))
    wire, steps_log = store.own_wire(index), store.own_log(index)
    if signed is None or wire is None or steps_log is None:
        return None
    body = decode_signed(signed).body
    record = decode_work(body)
    contribution = from_chunks(split_wire(wire, layout, uplink), layout, uplink)
    fits = (
        record_hash(body).hex() == line["work"]
        and record.round == index
        and (contribution.wire_root, contribution.norms) == (record.wire_root, record.chunk_norms)
        and digest(steps_log).hex() == line["log"]
    )
    return HeldWork(record, OwnWork(contribution, signed), steps_log) if fits else None


def promise_output(parts: Parts, round_index: int, output: bytes, amends: bytes | None) -> bytes:
    """The output hash to commit: the first one this hotkey ever wanted to commit in the round, restarts included,
    unless `output` replaces that one: the same slice again, naming what we reduced as a backup."""
    try:
        line = parts.journal.load_own(round_index)
    except LocalFault:
        line = None
    amended = amends is not None and line is not None and line["output"] == amends.hex()
    if line is not None and line["output"] is not None and not amended:
        return bytes.fromhex(line["output"])
    if line is not None:
        said = line | {"output": output.hex()}
        attempt(parts, round_index, "disk", lambda: parts.journal.save_own(round_index, said))
    return output


def worth_committing(parts: Parts, plan: RoundPlan, output: bytes) -> bool:
    """False for a slice that lacks what a former process of ours had received: nobody sends it again, the gate would
    zero it, and senders would lose credit by our restart."""
    stored = parts.store.output(plan.round.index, output)
    if stored is None:
        return False
    rows = decode_output(decode_signed(stored.record).body).included
    lacking = sum(2 * sum(row[i] for row in rows) < len(rows) for i in range(len(plan.candidates)))
    return not (lacking > 1 and 3 * lacking > len(plan.candidates))
