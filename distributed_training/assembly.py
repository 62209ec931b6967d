"""From adapters to a running role: the parts of a node, its announcement, its rounds. Names no adapter.

`node.py` does this once for a process of its own; tests do it for many nodes in one process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from distributed_training import __version__
from distributed_training.averaging.budget import leisure_bytes_per_s, peer_budget
from distributed_training.averaging.butterfly import Butterfly
from distributed_training.averaging.combine import reduce_slice
from distributed_training.averaging.disk import check_disk
from distributed_training.averaging.feedback import Encode, encode_vector
from distributed_training.averaging.reducing import Reduce
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Chain, Signer, Verify
from distributed_training.chain.clock import BlockClock
from distributed_training.checkpoints.base import CheckpointStore
from distributed_training.data.loader import heldout_sequences
from distributed_training.engine import Engine, first_state, round_zero
from distributed_training.errors import ConfigError, HotkeyTaken, NotRegisteredError, first_of
from distributed_training.journal import Journal
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.events import Fault, Ready, Stopped
from distributed_training.network.base import Transport
from distributed_training.network.peers import PeerBook, VerifyPeer
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.quota import quota_problem, uids_problem
from distributed_training.protocol.rules.clock import bulk_timeout_s
from distributed_training.protocol.types import Neuron, Role
from distributed_training.roles.announcing import announce, look_after_hotkey
from distributed_training.roles.auditing.audit import Auditor
from distributed_training.roles.auditing.evaluation import Evaluator
from distributed_training.roles.auditing.examiner import Examiner
from distributed_training.roles.auditing.logs import LOGS_FOLDER
from distributed_training.roles.auditing.probe import Prober
from distributed_training.roles.exporting import Exporter, exporter_of
from distributed_training.roles.follower import Follower
from distributed_training.roles.heartbeat import heartbeat
from distributed_training.roles.joining.bootstrap import choose_start
from distributed_training.roles.joining.snapshots import serve_snapshots
from distributed_training.roles.miner import Miner
from distributed_training.roles.mining.work import Trainer, Worker
from distributed_training.roles.outside import Address, KnockService, Witnesses
from distributed_training.roles.owner import Owner
from distributed_training.roles.parts import Parts, TrainingThread
from distributed_training.roles.reach import ReachService, keep_in_touch, validators
from distributed_training.roles.rounds import Rounds
from distributed_training.roles.service import LogService, MinerService
from distributed_training.roles.sharing import SharedState, SharedStates
from distributed_training.roles.validator import Validator
from distributed_training.settings.config import NodeConfig
from distributed_training.settings.places import HubRepo
from distributed_training.shutdown import Border
from distributed_training.training.flat import num_parameters

log = logging.getLogger(__name__)

MakeWorker = Callable[[Engine, RunManifest], Worker]


def honest_worker(engine: Engine, manifest: RunManifest) -> Worker:
    return Trainer(engine.loop, engine.source, engine.tokenizer, manifest)


@dataclass(frozen=True, slots=True)
class Adapters:
    """What is outside a node, behind its seams. `transport` is not started yet."""

    chain: Chain
    transport: Transport
    checkpoints: CheckpointStore
    signer: Signer
    verify: Verify
    sign_as_peer: Callable[[bytes], bytes]  # Ed25519, with the transport's peer key
    verify_peer: VerifyPeer
    own_checkpoints: CheckpointStore | None = None  # see Parts
    open_repo: Callable[[str], CheckpointStore] | None = None
    reduce: Reduce = reduce_slice  # how it reduces slices; only adversaries replace it
    encode: Encode = encode_vector  # how its own vector becomes bytes; the same


async def make_parts(
    config: NodeConfig,
    manifest: RunManifest,
    adapters: Adapters,
    journal: Journal,
    metrics: Metrics,
    training: TrainingThread,
) -> Parts:
    """Raises ConfigError when the manifest does not fit the chain."""
    a, params = adapters, await adapters.chain.params()
    problem = quota_problem(manifest.timing.length, params.tempo) or uids_problem(manifest.max_uids, params.max_uids)
    if problem is not None:
        raise ConfigError(f"the manifest does not fit this chain: {problem}")
    if params.max_uids is None:
        log.info("this chain does not say how many uids it allows: those from %d on take no part", manifest.max_uids)
    peers = PeerBook(a.transport, manifest.netuid, a.signer.public_key, a.sign_as_peer, a.verify_peer)
    store = RoundStore(config.node_dir, config.disk.budget)
    clock = BlockClock(a.chain, params.block_s, act_on_head=config.act_on_head)
    if config.serve_snapshots:
        serve_snapshots(manifest, peers, store, a.chain, clock)
    store.overflow.on_trouble = lambda detail: metrics.emit(Fault(what="disk", detail=detail))
    return Parts(
        manifest=manifest,
        params=params,
        peer_key=a.transport.peer_key,
        signer=a.signer,
        verify=a.verify,
        chain=a.chain,
        clock=clock,
        peers=peers,
        store=store,
        butterfly=Butterfly(manifest, peers, store, a.chain, clock, a.signer, a.verify, a.reduce),
        journal=journal,
        metrics=metrics,
        checkpoints=a.checkpoints,
        training=training,
        encode=a.encode,
        own_checkpoints=a.own_checkpoints,
        open_repo=a.open_repo,
    )


async def live(
    role: Role,
    config: NodeConfig,
    parts: Parts,
    engine: Engine,
    me: Neuron,
    make_worker: MakeWorker = honest_worker,
    border: Border | None = None,
) -> None:
    """Announce the node, then run one round after the other until `config.rounds` are settled, or `border` is asked
    for."""
    reduces = role is Role.MINER and not config.axon.outbound_only
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(parts.clock.run(), name="block clock")]
            who = partial(validators, parts.peers, parts.manifest, parts.peer_key)
            witnesses = Witnesses(parts.peers.transport, who, config.is_public)
            address = await _address(role, config, parts, witnesses)
            await announce(parts, role, reduces, address)
            beside += [
                tasks.create_task(_stay_in_reach(config, parts, witnesses, address), name="reach"),
                tasks.create_task(look_after_hotkey(parts), name="hotkey"),
                tasks.create_task(heartbeat(parts), name="heartbeat"),
            ]
            await _follow(role, config, parts, engine, me, make_worker, border or Border())
            for task in beside:
                task.cancel()
    except* (HotkeyTaken, NotRegisteredError) as lost:
        parts.metrics.emit(Fault(what="hotkey", detail=str(first_of(lost))))
        raise


async def _address(role: Role, config: NodeConfig, parts: Parts, witnesses: Witnesses) -> Address | None:
    """Where peers dial this node: as it was told, else as validators see it. None for who need not be dialled. Raises
    ConfigError."""
    if config.announced is not None or config.axon.outbound_only or role is Role.OWNER:
        return config.announced
    roster = await parts.chain.roster((await parts.chain.head()).number)
    parts.peers.update(roster)
    me = roster.by_public_key(parts.signer.public_key)
    former = None if me is None or me.address is None else me.address[0]
    return await witnesses.find(config.axon.external_port or config.axon.port, former)


async def _stay_in_reach(config: NodeConfig, parts: Parts, witnesses: Witnesses, address: Address | None) -> None:
    """Without an open port: hold connections to the validators. With one: have them see whether it is open."""
    ReachService(parts.peers)
    KnockService(parts.peers, public=config.is_public or (address is not None and ip_address(address[0]).is_global))
    if config.axon.outbound_only:
        await keep_in_touch(parts.peers, parts.manifest, parts.peer_key)
    elif address is not None:
        move = None if config.announced is not None else lambda found: parts.chain.serve(*found)
        await witnesses.watch(address, partial(_unreachable, parts), move)


def _unreachable(parts: Parts, text: str) -> None:
    parts.metrics.emit(Fault(what="unreachable", detail=text))


async def _follow(
    role: Role, config: NodeConfig, parts: Parts, engine: Engine, me: Neuron, make_worker: MakeWorker, border: Border
) -> None:
    """The main loop: one round after the other."""
    num_coords = num_parameters(engine.model)
    sizes = parts.manifest, num_coords, parts.clock.block_s
    parts.peers.limit(peer_budget(*sizes), leisure_bytes_per_s(*sizes))
    check_disk(parts.manifest, num_coords, config.disk.budget_gib, config.node_dir)
    start = await choose_start(parts, lambda: first_state(engine.model, parts.manifest, config.run_dir))
    follower = Follower(parts, start.index, start.state, trusted=start.trusted)
    await follower.save()
    head = (await parts.chain.head()).number
    node = _role(role, config, parts, engine, me, follower, make_worker, head)
    again = partial(round_zero, parts.manifest, config.run_dir)
    rounds = Rounds(parts, follower, lambda stuck_at: choose_start(parts, again, stuck_at=stuck_at))
    if isinstance(node, Owner):
        await node.begin()
    if isinstance(node, Owner | Validator) and follower.index == 0:
        await node.evaluator.evaluate(follower.state, -1)
    ready = Ready(
        hotkey=parts.signer.hotkey,
        peer_key=parts.peer_key,
        state_root=follower.root,
        block=head,
        start_round=start.index,
        source=start.source,
        version=__version__,
    )
    parts.metrics.emit(ready)
    shared = _shared(config, parts, engine, follower)
    border.where = lambda: _awaited(parts, follower.index)
    try:
        while not border.asked and (config.rounds is None or follower.index < config.rounds):
            await rounds.one(node)
            if shared is not None:
                await shared.offer()
        await follower.save()  # the last round's state, whatever the manifest's interval of snapshots
        if border.asked or not isinstance(node, Miner):  # nobody audits the run's last round
            await node.finish()
    finally:
        if isinstance(node, Owner | Validator):
            await node.cancel()
        if shared is not None:
            await shared.cancel()
    if border.asked:
        log.info("left before round %d, as asked", follower.index)
    parts.metrics.emit(Stopped(reason="asked to leave" if border.asked else "rounds done"))


def _awaited(parts: Parts, index: int) -> str:
    """What a node that is to leave between two rounds waits for."""
    block = parts.manifest.round(index).map_block + parts.manifest.timing.finality
    return f"round {index}, settled in block {block}, in about {parts.clock.seconds_until(block):.0f} s"


def _shared(config: NodeConfig, parts: Parts, engine: Engine, follower: Follower) -> SharedState | None:
    """A miner that publishes the state itself."""
    if parts.own_checkpoints is None or config.hub.repo is None:
        return None
    repo_id = config.hub.repo.repo_id
    exporter = make_exporter(config, parts.manifest, engine, {}, repo_id)
    return SharedState(parts, follower, parts.own_checkpoints, exporter, repo_id)


def make_exporter(
    config: NodeConfig, manifest: RunManifest, engine: Engine, losses: Mapping[int, float], repo: str | None
) -> Exporter:
    """What writes this run's checkpoints. repo: ORG/NAME for the model card, None for a directory."""
    return exporter_of(config.run_dir, manifest, engine.model, losses, repo)


def _role(
    role: Role,
    config: NodeConfig,
    parts: Parts,
    engine: Engine,
    me: Neuron,
    follower: Follower,
    make_worker: MakeWorker,
    head: int,
) -> Miner | Validator | Owner:
    manifest, last_round = parts.manifest, None if config.rounds is None else config.rounds - 1
    if role is Role.MINER:
        return Miner(
            parts,
            follower,
            make_worker(engine, manifest),
            MinerService(manifest, parts.peers, parts.chain, parts.clock, parts.store),
            uid=me.uid,
            steps_per_round=config.steps_per_round,
            exact_from=head if config.exact_steps else None,
            reduces=not config.axon.outbound_only,
            train_ahead=config.train_ahead,
            last_round=last_round,
        )
    count, length = manifest.data.heldout_sequences, manifest.data.sequence_length
    held_out = partial(heldout_sequences, engine.source, engine.tokenizer, length, count)
    evaluator = Evaluator(manifest, parts.training, engine.loop, held_out, parts.metrics)
    if role is Role.OWNER:
        repo = config.checkpoints.repo_id if isinstance(config.checkpoints, HubRepo) else None
        return Owner(parts, follower, evaluator, make_exporter(config, manifest, engine, evaluator.losses, repo))
    probe_s = bulk_timeout_s(manifest.timing, parts.clock.block_s)
    prober = Prober(manifest, parts.peers, parts.clock, parts.signer.public_key, probe_s)
    auditor = Auditor(manifest, parts.training, engine.loop, engine.source, engine.tokenizer, probe_s, parts.metrics)
    examiner = Examiner(parts, auditor, prober)
    logs = LogService(manifest, parts.peers, parts.clock, len(engine.loop.groups), config.node_dir / LOGS_FOLDER)
    shared = None if parts.open_repo is None else SharedStates(parts, parts.open_repo)
    return Validator(parts, follower, examiner, logs, evaluator, last_round=last_round, shared=shared)
