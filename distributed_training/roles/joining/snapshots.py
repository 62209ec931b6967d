"""The state of a round from peers: the chain decides which round and root; who gives the bytes does not matter."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from hashlib import blake2b

from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Chain
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import ChainFault, LocalFault, NetworkFault, WireError
from distributed_training.metrics.events import Sync
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.clock import round_at
from distributed_training.protocol.rules.membership import majority_root
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Role, Roster
from distributed_training.roles.parts import Parts
from distributed_training.snapshots.fetching import Progress, Wanted, fetch_snapshot
from distributed_training.snapshots.header import Shape
from distributed_training.snapshots.serving import SnapshotService

log = logging.getLogger(__name__)

PATIENCE_ROUNDS = 0.25  # without a single byte that fits, as a part of a round
MIN_PATIENCE_S = 3.0
MAX_TARGETS = 3  # rounds that are tried, newer and newer


@dataclass(frozen=True, slots=True)
class Decided:
    """A state that the run stands on. `by_majority` False: stake is split, and the run key's checkpoint names it."""

    round: int
    root: bytes
    by_majority: bool


def serve_snapshots(
    manifest: RunManifest, peers: PeerBook, store: RoundStore, chain: Chain, clock: BlockClock
) -> SnapshotService:
    """Give our snapshots to whoever is on the roster of the newest finalised block."""
    known = 0

    async def refresh() -> None:
        nonlocal known
        if clock.finalized > known:  # once a block, whoever asks how often
            known = clock.finalized
            peers.update(await chain.roster(known))

    return SnapshotService(peers, store.states, manifest.average.chunk_coords, refresh)


async def fetch_newest(parts: Parts, num_coords: int, after: int) -> Decided | None:
    """Fetch the newest decided state that peers keep, if it is of a round later than `after`, into our store.

    None: there is none, or nobody gave it in time (said in the log). Raises LocalFault for trouble of our own.
    """
    tried = after
    for _ in range(MAX_TARGETS):
        decided = await newest_decided(parts, tried)
        if decided is None:
            return None
        try:
            await _fetch(parts, num_coords, decided)
            return decided
        except NetworkFault as fault:
            log.warning("the state of round %d did not come from peers: %s", decided.round, fault)
        tried = decided.round  # it took so long that peers have let it go, perhaps: then there is a newer one
    return None


async def _fetch(parts: Parts, num_coords: int, decided: Decided) -> None:
    donors = await _donors(parts)
    shape = Shape(num_coords, parts.manifest.average.chunk_coords)
    log.info("asking %d peers for the state of round %d", len(donors), decided.round)
    progress = await fetch_snapshot(
        parts.peers.open,
        donors,
        Wanted(decided.round, decided.root, shape, shape.max_header_bytes(parts.manifest.max_uids)),
        parts.store.states,
        patience_s=patience_s(parts),
        retry_s=parts.clock.block_s,
        on_progress=lambda progress: _tell(parts, decided.round, progress),
    )
    _tell(parts, decided.round, progress)
    gave = {n.commitment.peer_key: n.uid for n in parts.peers.neurons if n.commitment is not None}
    for key, count in progress.by_donor.items():
        log.debug("uid %s gave %.2f MB of the state of round %d", gave.get(key), count / 1e6, decided.round)


def patience_s(parts: Parts) -> float:
    """How long we wait for peers that give us nothing."""
    round_s = parts.manifest.timing.length * parts.clock.block_s
    return max(MIN_PATIENCE_S, PATIENCE_ROUNDS * round_s)


async def newest_decided(parts: Parts, after: int) -> Decided | None:
    """The newest round later than `after` whose state peers keep as a snapshot and whose root is decided."""
    finalized = (await parts.chain.head()).finalized
    every, current = parts.manifest.keep.snapshot_every, round_at(parts.manifest.timing, finalized)
    newest = 0 if current is None else current - current % every
    for index in (newest, newest - every):  # of a round that is not over yet, maybe nobody has said the root
        if index > after and (decided := await decided_root(parts, index, finalized)) is not None:
            return decided
    return None


async def decided_root(parts: Parts, index: int, finalized: int) -> Decided | None:
    """Whose root the majority of voters committed; on a tie the one in the run key's checkpoint. None: nobody's."""
    if index == 0:  # by the manifest: a machine that builds another round 0, or cannot build it, may fetch it
        return Decided(0, bytes.fromhex(parts.manifest.model.initial_root), True)
    round_ = parts.manifest.round(index)
    if finalized < round_.map_block:
        return None
    try:
        roster, at_map = await parts.chain.roster(round_.roster_block), await parts.chain.roster(round_.map_block)
        majority = majority_root(round_, voters(parts.manifest, roster), at_map)
        if majority is not None:
            return Decided(index, majority, True)
        root = await _published_root(parts, index, await parts.chain.roster(finalized))
    except ChainFault as fault:
        log.warning("what was decided about round %d cannot be read from the chain: %s", index, fault)
        return None
    return None if root is None else Decided(index, root, False)


async def run_keys_word(parts: Parts) -> tuple[int, bytes] | None:
    """(round, sha256 of training_state.json) of the checkpoint that the run key's commitment names."""
    try:
        roster = await parts.chain.roster((await parts.chain.head()).finalized)
    except ChainFault as fault:
        log.warning("what the run key published cannot be read from the chain: %s", fault)
        return None
    return _named_checkpoint(parts, roster)


def _named_checkpoint(parts: Parts, roster: Roster) -> tuple[int, bytes] | None:
    """By the hotkey that the manifest names, whoever owns the subnet by now and whatever that one says."""
    speaker = roster.by_public_key(bytes.fromhex(parts.manifest.public.run_key))
    said = None if speaker is None else speaker.commitment
    if said is None or said.role is not Role.OWNER or said.first != parts.manifest.digest:
        return None
    return None if said.second_round is None or said.second is None else (said.second_round, said.second)


async def _published_root(parts: Parts, index: int, roster: Roster) -> bytes | None:
    """The root in the checkpoint that the run key put on chain, if it is of this round."""
    said = _named_checkpoint(parts, roster)
    if said is None or said[0] != index:
        return None
    try:
        ref = await asyncio.to_thread(parts.checkpoints.find, *said)
        if ref is None:
            return None
        return bytes.fromhex((await asyncio.to_thread(parts.checkpoints.describe, ref)).state_root)
    except (LocalFault, WireError) as error:
        log.warning("the run key's checkpoint of round %d says no root: %s", index, error)
        return None


async def _donors(parts: Parts) -> list[bytes]:
    """Peer keys of everybody who can be dialled, in an order of our own: joiners spread over the donors."""
    own = parts.signer.public_key
    parts.peers.update(await parts.chain.roster((await parts.chain.head()).finalized))
    found = [
        neuron.commitment.peer_key
        for neuron in parts.peers.neurons
        if neuron.commitment is not None and neuron.reachable_at is not None and neuron.public_key != own
    ]
    return sorted(set(found), key=lambda peer_key: blake2b(own + peer_key, digest_size=16).digest())


def _tell(parts: Parts, index: int, progress: Progress) -> None:
    share = progress.done_bytes / progress.total_bytes
    told = Sync(
        share=share,
        bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        resumed_bytes=progress.resumed_bytes,
        bytes_per_s=progress.bytes_per_s,
        seconds=progress.seconds,
        by_donor={peer_key.hex(): count for peer_key, count in progress.by_donor.items()},
    )
    parts.metrics.emit(told, round=index)
