"""Where a node starts, and where it goes on when it fell behind: never from a state it could not check.

our own snapshot      when what came after it is still kept by others
peers' snapshot       the newest one whose root is decided
checkpoint, own, 0    the newest of what is left. Checkpoint: the one that the run key's commitment on chain names; when
                      the store lacks it, the newest there, which only the majority's root can make good
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.errors import ConfigError, LocalFault, WireError
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.rules.clock import over, round_at
from distributed_training.roles.auditing.logs import AUDIT_ROUNDS, LOGS_FOLDER, unscored
from distributed_training.roles.joining.published import load_published
from distributed_training.roles.joining.snapshots import Decided, decided_root, fetch_newest, patience_s, run_keys_word
from distributed_training.roles.parts import Parts
from distributed_training.training.outer import RunState, state_root

log = logging.getLogger(__name__)

Initial = Callable[[], RunState]  # anew each time: who goes on from a state changes it


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """`trusted` False: the majority has not committed the root of this round yet, so contribute nothing so far."""

    index: int
    state: RunState
    trusted: bool
    source: str


async def choose_start(parts: Parts, initial: Initial, *, stuck_at: int | None = None) -> Start:
    """The state to go on from. Raises ConfigError when there is none, LocalFault for our own trouble.

    initial: builds round 0 on this machine. stuck_at: a round that we cannot pass from our own state, so a later
    one is looked for first. A round 0 that this machine cannot build is waited for until round 0 is over: the owner may
    come later than we.
    """
    waiting = Ongoing(
        log,
        "this machine builds another round 0 than the manifest names: waiting for whoever has that",
        "somebody gave the state to start from",
    )
    while (start := await _look(parts, initial, stuck_at)) is None:
        if (await parts.chain.head()).number >= parts.manifest.round(1).start_block:
            raise ConfigError(
                "this machine builds another round 0 than the manifest names, and there is no state to start from: "
                "no peer and no checkpoint gave one"
            )
        waiting.begin()
        await asyncio.sleep(patience_s(parts) / 6)
    waiting.end()
    return start


async def _look(parts: Parts, initial: Initial, stuck_at: int | None) -> Start | None:
    own = await _first_good(parts, await _own(parts))
    if own is not None and stuck_at is None and await _can_roll_forward(parts, own.index):
        return own
    built = await asyncio.to_thread(initial)
    begin = await _first_good(parts, [Start(0, built, True, "round 0")])
    have = [start for start in (own, begin) if start is not None]
    newest, num_coords = max((start.index for start in have), default=-1), len(built.params)
    del built, own, begin
    decided = await fetch_newest(parts, num_coords, newest if stuck_at is None else stuck_at)
    if decided is not None:
        have.clear()  # a state takes much memory
        return await _from_peers(parts, decided)
    checkpoint = await _checkpoint(parts)
    have += [checkpoint] if checkpoint is not None else []
    return max(have, key=lambda start: start.index, default=None)


async def _first_good(parts: Parts, found: Iterable[Start]) -> Start | None:
    """The first that the majority does not contradict."""
    for start in found:
        verdict = await _verdict(parts, start)
        if verdict is not False:
            return Start(start.index, start.state, verdict is True, start.source)
        if start.index:
            log.warning("%s of round %d is not the majority's state: left aside", start.source, start.index)
    return None


async def _verdict(parts: Parts, start: Start) -> bool | None:
    """True: the root that counts. False: another one. None: not decided on chain, or not to be read there any more."""
    decided = await decided_root(parts, start.index, (await parts.chain.head()).finalized)
    if decided is None or not decided.by_majority:
        return None
    return await asyncio.to_thread(state_root, start.state, parts.manifest.average.chunk_coords) == decided.root


async def _can_roll_forward(parts: Parts, index: int) -> bool:
    """Do others still keep the outputs of every round since?"""
    now = round_at(parts.manifest.timing, (await parts.chain.head()).finalized)
    return now is None or now - index <= parts.manifest.keep.output_rounds


async def _own(parts: Parts) -> list[Start]:
    found = await asyncio.to_thread(parts.store.newest_state, await _to_audit_again(parts))
    if found is None or len(found[1].params) == 0:
        return []
    return [Start(*found, False, "own snapshot")]


async def _to_audit_again(parts: Parts) -> int | None:
    """The round of a validator's audits that a former process of ours was at: they need the state of its start."""
    index = unscored(parts.store.root / LOGS_FOLDER, parts.journal.load_cards()[0])
    timing = parts.manifest.timing
    if index is None or (await parts.chain.head()).number >= over(timing, index + AUDIT_ROUNDS - 1):
        return None
    return max(0, index - 1) if timing.overlap else index  # where its miners went on from the round before


async def _from_peers(parts: Parts, decided: Decided) -> Start:
    """Fetched, and on our disk."""
    index, state = await asyncio.to_thread(parts.store.states.load, decided.round)
    if await asyncio.to_thread(state_root, state, parts.manifest.average.chunk_coords) != decided.root:
        raise LocalFault(f"the state of round {decided.round} changed on our own disk after it was checked")
    return Start(index, state, decided.by_majority, "peers")


async def _checkpoint(parts: Parts) -> Start | None:
    """The one that the run key put on chain may be ahead of what the majority has said; any other one must not."""
    said = await run_keys_word(parts)
    named = None if said is None else await _ref(lambda: parts.checkpoints.find(*said))
    start = await _first_good(parts, await _load(parts, named))
    if start is not None:
        return start
    newest = await _ref(parts.checkpoints.newest)
    start = None if newest == named else await _first_good(parts, await _load(parts, newest))
    return start if start is not None and start.trusted else None


async def _ref(ask: Callable[[], CheckpointRef | None]) -> CheckpointRef | None:
    try:
        return await asyncio.to_thread(ask)
    except (LocalFault, WireError) as error:
        log.warning("no checkpoint can be found: %s", error)
        return None


async def _load(parts: Parts, ref: CheckpointRef | None) -> list[Start]:
    if ref is None:
        return []
    try:
        state = await asyncio.to_thread(load_published, parts.checkpoints, ref, parts.manifest)
        return [Start(ref.round, state, False, "checkpoint")]
    except (LocalFault, WireError) as error:
        log.warning("the checkpoint of round %d cannot be used: %s", ref.round, error)
        return []
