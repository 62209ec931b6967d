"""The one place that names adapters: builds a node from its configuration and runs its role until it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import torch

from distributed_training.access import connect
from distributed_training.averaging.butterfly import Butterfly
from distributed_training.averaging.peers import PeerBook
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Signer
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.keys import verify
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.config import NodeConfig
from distributed_training.data.loader import heldout_sequences
from distributed_training.dry_run import print_weights
from distributed_training.engine import Engine, load_engine
from distributed_training.errors import ConfigError
from distributed_training.journal import Journal, NodeLock
from distributed_training.logs import bind, setup_logging
from distributed_training.manifest import RunManifest, load_manifest, quota_problem
from distributed_training.metrics.base import JsonlSink, Metrics
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.roles.audit import Auditor
from distributed_training.roles.bootstrap import choose_start
from distributed_training.roles.evaluation import Evaluator
from distributed_training.roles.follower import Follower
from distributed_training.roles.miner import ExactStepsMissed, Miner
from distributed_training.roles.owner import Owner
from distributed_training.roles.parts import Parts, TrainingThread
from distributed_training.roles.service import LogService, MinerService
from distributed_training.roles.validator import Validator
from distributed_training.roles.work import Trainer, Worker
from distributed_training.training.export import model_files
from distributed_training.training.model import to_flat
from distributed_training.training.outer import initial_state
from distributed_training.types import Commitment, Neuron, Role
from distributed_training.wire import encode_commitment

log = logging.getLogger(__name__)

SHUTDOWN_S = 8.0
EXIT_LOCAL_FAULT = 1
EXIT_STEPS_MISSED = 4


MakeWorker = Callable[[Engine, RunManifest], Worker]


def honest_worker(engine: Engine, manifest: RunManifest) -> Worker:
    return Trainer(engine.loop, engine.source, engine.tokenizer, manifest)


def main(role: Role, config: NodeConfig, make_worker: MakeWorker = honest_worker) -> int:
    """Run a node until its rounds are done, it is told to stop, or it cannot go on. Returns the exit code."""
    setup_logging(debug=config.logging.debug, json_lines=config.logging.json_lines)
    bind(role=role.name.lower(), hotkey=config.wallet.hotkey)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.dry_run:
        return asyncio.run(print_weights(config))
    with NodeLock(config.node_dir / "lock"):
        return asyncio.run(_run(role, config, make_worker))


async def _run(role: Role, config: NodeConfig, make_worker: MakeWorker) -> int:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    node = asyncio.create_task(_live(role, config, make_worker), name="node")
    stop = asyncio.create_task(stopping.wait(), name="signals")
    await asyncio.wait({node, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not node.done():
        log.info("stopping on request")
        node.cancel()
        loop.call_later(SHUTDOWN_S, os._exit, EXIT_LOCAL_FAULT)  # whatever hangs, hangs no longer than this
    return _exit_code((await asyncio.gather(node, return_exceptions=True))[0])


def _exit_code(result: BaseException | None) -> int:
    """ConfigError goes up to be printed in one line; other causes are logged with their stack."""
    while isinstance(result, BaseExceptionGroup):
        result = result.exceptions[0]
    if result is None or isinstance(result, asyncio.CancelledError):
        return 0
    if isinstance(result, ConfigError):
        raise result
    if isinstance(result, ExactStepsMissed):
        log.error("%s", result)
        return EXIT_STEPS_MISSED
    log.error("cannot go on: %s", result, exc_info=result)
    return EXIT_LOCAL_FAULT


async def _live(role: Role, config: NodeConfig, make_worker: MakeWorker) -> None:
    """Everything a node opens is closed here, in reverse order."""
    async with AsyncExitStack() as stack:
        manifest = load_manifest(config.manifest)
        if manifest.netuid != config.netuid:
            raise ConfigError(f"the manifest is for netuid {manifest.netuid}, --netuid says {config.netuid}")
        chain, signer, me = await connect(config, stack)
        engine = load_engine(config, manifest)
        metrics = Metrics([JsonlSink(config.node_dir / "events.jsonl")], role=role.name.lower(), uid=me.uid)
        stack.callback(metrics.close)
        journal = Journal(config.node_dir / "journal.sqlite")
        stack.callback(journal.close)
        parts = await _parts(config, manifest, chain, signer, journal, metrics, stack)
        await _announce(parts, role, config)
        async with asyncio.TaskGroup() as tasks:
            poll = tasks.create_task(parts.clock.run(), name="block clock")
            await _follow(role, config, parts, engine, me, make_worker)
            poll.cancel()


async def _parts(
    config: NodeConfig,
    manifest: RunManifest,
    chain: BittensorChain,
    signer: Signer,
    journal: Journal,
    metrics: Metrics,
    stack: AsyncExitStack,
) -> Parts:
    params = await chain.params()
    problem = quota_problem(manifest, params.tempo)
    if problem is not None:
        raise ConfigError(f"the manifest does not fit this chain: {problem}")
    identity_path = config.node_dir / "identity.key"
    identity = PeerIdentity.load_or_create(identity_path)
    transport = Libp2pTransport(identity_path, config.axon.ip, config.axon.port, config.announced)
    peers = PeerBook(transport, manifest.netuid, signer.public_key, identity.sign, verify_peer)
    store, clock = RoundStore(config.node_dir), BlockClock(chain, params.block_s)
    butterfly = Butterfly(manifest, peers, store, chain, clock, signer, verify)
    await transport.start()
    stack.push_async_callback(transport.stop)
    training = TrainingThread()
    stack.callback(training.close)
    return Parts(
        manifest=manifest,
        params=params,
        peer_key=identity.public_key,
        signer=signer,
        verify=verify,
        chain=chain,
        clock=clock,
        peers=peers,
        store=store,
        butterfly=butterfly,
        journal=journal,
        metrics=metrics,
        checkpoints=LocalCheckpoints(config.checkpoints),
        training=training,
    )


async def _announce(parts: Parts, role: Role, config: NodeConfig) -> None:
    """Address and peer key on chain; nothing is written that is there already."""
    if config.announced is not None:
        await parts.chain.serve(*config.announced)
    roster = await parts.chain.roster((await parts.chain.head()).number)
    me = roster.by_public_key(parts.signer.public_key)
    present = me.commitment if me is not None else None
    if present is None or present.peer_key != parts.peer_key or present.role is not role:
        empty = Commitment(role, role is Role.MINER, parts.peer_key, None, None, None, None)
        await parts.chain.commit(encode_commitment(empty))


async def _follow(
    role: Role, config: NodeConfig, parts: Parts, engine: Engine, me: Neuron, make_worker: MakeWorker
) -> None:
    """The main loop: one round after the other."""
    initial = initial_state(to_flat(engine.model), parts.manifest.average)
    start = await choose_start(parts, initial)
    log.info("starting at round %d from %s", start.index, start.source)
    follower = Follower(parts, start.index, start.state, trusted=start.trusted)
    parts.store.put_state(follower.index, follower.state)
    node = _role(role, config, parts, engine, me, follower, make_worker)
    if isinstance(node, Owner):
        await node.begin()
    if isinstance(node, Owner | Validator) and follower.index == 0:
        await node.evaluator.evaluate(follower.state, -1)
    head = (await parts.chain.head()).number
    parts.metrics.emit(
        "ready", hotkey=parts.signer.hotkey, peer_key=parts.peer_key, state_root=follower.root, block=head
    )
    while config.rounds is None or follower.index < config.rounds:
        await node.run_round()
    if isinstance(node, Validator):
        await node.finish_audits()
    parts.metrics.emit("stopped", reason="rounds done")


def _role(
    role: Role,
    config: NodeConfig,
    parts: Parts,
    engine: Engine,
    me: Neuron,
    follower: Follower,
    make_worker: MakeWorker,
) -> Miner | Validator | Owner:
    manifest = parts.manifest
    if role is Role.MINER:
        return Miner(
            parts,
            follower,
            make_worker(engine, manifest),
            MinerService(manifest, parts.peers, parts.chain, parts.clock),
            uid=me.uid,
            steps_per_round=config.steps_per_round,
            exact_steps=config.exact_steps,
        )
    count, length = manifest.data.heldout_sequences, manifest.data.sequence_length
    sequences = heldout_sequences(engine.source, engine.tokenizer, length, count)
    evaluator = Evaluator(manifest, parts.training, engine.loop, sequences, parts.metrics)
    if role is Role.OWNER:
        return Owner(parts, follower, evaluator, lambda flat: model_files(engine.model, flat))
    auditor = Auditor(
        manifest, parts.peers, parts.training, engine.loop, engine.source, engine.tokenizer, parts.signer.public_key
    )
    logs = LogService(manifest, parts.peers, parts.clock, len(engine.loop.groups))
    last_round = None if config.rounds is None else config.rounds - 1
    return Validator(parts, follower, auditor, logs, evaluator, last_round=last_round)
