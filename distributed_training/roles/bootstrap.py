"""Where a node starts: its own snapshot, the newest checkpoint, or round 0; never a state it could not check."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from distributed_training.averaging.store import decode_state
from distributed_training.errors import ConfigError, LocalFault, WireError
from distributed_training.roles.owner import STATE_FILE
from distributed_training.roles.parts import Parts
from distributed_training.rules.membership import majority_root
from distributed_training.training.outer import RunState, state_root

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """`trusted` False: the majority has not committed the root of this round yet, so contribute nothing so far."""

    index: int
    state: RunState
    trusted: bool
    source: str


async def choose_start(parts: Parts, initial: RunState) -> Start:
    """The newest state whose root is the majority's, or not decided yet. Raises ConfigError when there is none."""
    found = [Start(0, initial, True, "round 0")]
    for source, loaded in (("own snapshot", _own(parts)), ("checkpoint", await _checkpoint(parts))):
        if loaded is not None:
            found.append(Start(loaded[0], loaded[1], False, source))
    for start in sorted(found, key=lambda s: s.index, reverse=True):
        verdict = await _verdict(parts, start)
        if verdict is not False:
            return Start(start.index, start.state, verdict is True, start.source)
        log.warning("%s of round %d is not the majority's state: left aside", start.source, start.index)
    raise ConfigError(
        "this machine builds another round 0 than the manifest names, and there is no checkpoint to start from"
    )


async def _verdict(parts: Parts, start: Start) -> bool | None:
    """True: the root that counts. False: another one. None: not decided on chain yet."""
    root = state_root(start.state, parts.manifest.average.chunk_coords)
    if start.index == 0:
        return root.hex() == parts.manifest.model.initial_root
    round_ = parts.manifest.round(start.index)
    if (await parts.chain.head()).finalized < round_.map_block:
        return None
    roster = await parts.chain.roster(round_.roster_block)
    majority = majority_root(start.index, roster, await parts.chain.roster(round_.map_block))
    return None if majority is None else majority == root


def _own(parts: Parts) -> tuple[int, RunState] | None:
    found = parts.store.newest_state()
    if found is None or len(found[1].params) == 0:
        return None
    return found


async def _checkpoint(parts: Parts) -> tuple[int, RunState] | None:
    try:
        ref = await parts.training.run(parts.checkpoints.newest)
        if ref is None:
            return None
        return decode_state(await parts.training.run(lambda: parts.checkpoints.read(ref, STATE_FILE)))
    except (LocalFault, WireError) as error:
        log.warning("the newest checkpoint cannot be used: %s", error)
        return None
