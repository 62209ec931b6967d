"""The one place that names adapters: builds a node from its configuration and runs its role until it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distributed_training.access import connect
from distributed_training.assembly import Adapters, MakeWorker, honest_worker, live, make_parts
from distributed_training.averaging.needs import caps_too_low, needs, needs_lines
from distributed_training.chain.base import Chain
from distributed_training.chain.keys import LocalKey, verify
from distributed_training.chain.patient import PatientChain
from distributed_training.chain.sole import SoleChain
from distributed_training.checkpoints.base import CheckpointStore
from distributed_training.data.reading import TablePages
from distributed_training.data.tokens import TOKENIZER_FILE
from distributed_training.engine import Engine, load_engine, prepared
from distributed_training.errors import ConfigError, HotkeyTaken, LocalFault, said
from distributed_training.finding.find import Finder
from distributed_training.finding.serving import FileService, run_files
from distributed_training.gpus import join_team, num_processes, open_team
from distributed_training.journal import JOURNAL, Journal, claim_folder
from distributed_training.journalled import JournalledChain
from distributed_training.memory import keep_freed
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.events import Fault
from distributed_training.network.base import Transport
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.operator.dry_run import print_weights
from distributed_training.operator.safety import Watch
from distributed_training.preflight import node_lock, not_listed
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role, SubnetParams
from distributed_training.roles.miner import ExactStepsMissed
from distributed_training.roles.pages import share_pages
from distributed_training.roles.parts import TrainingThread
from distributed_training.roles.sharing import KEPT_ROUNDS
from distributed_training.settings.config import NodeConfig, require_address
from distributed_training.settings.logs import bind, end_logging, keep_in, setup_logging
from distributed_training.shutdown import Border, run_until_stopped
from distributed_training.sinks import open_sinks
from distributed_training.sources import open_checkpoints, open_pages, repo_opener
from distributed_training.stillness import say_after_a_pause
from distributed_training.supervisor import Supervised
from distributed_training.training.device import chosen_device, device_text, surprise
from distributed_training.training.model import model_size
from distributed_training.training.speed import flop_per_s

log = logging.getLogger(__name__)

WrapAdapters = Callable[[Adapters], Adapters]

EXIT_LOCAL_FAULT = 1
EXIT_STEPS_MISSED = 4
EXIT_HOTKEY_TAKEN = 5


def as_they_are(adapters: Adapters) -> Adapters:
    return adapters


def main(
    role: Role, config: NodeConfig, make_worker: MakeWorker = honest_worker, wrap: WrapAdapters = as_they_are
) -> int:
    """Run a node until its rounds are done, it is told to stop, or it cannot go on. Returns the exit code.

    `make_worker` and `wrap` replace its honest work and its doors to the outside; only adversaries use them.
    """
    keep_freed()
    setup_logging(debug=config.logging.debug, json_lines=config.logging.json_lines)
    bind(role=role.name.lower(), hotkey=config.wallet.hotkey)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.dry_run:
        return asyncio.run(print_weights(config))
    border = Border()
    try:
        _say_device(config.device)
        return _exit_code(run_until_stopped(_live(role, config, make_worker, wrap, border), border=border))
    except ConfigError as error:
        log.error("the node ends: %s", error, extra={"file_only": True})
        raise
    finally:
        end_logging()


def _say_device(asked: str) -> None:
    """Before anything is connected. Raises ConfigError, DeviceLost."""
    if warning := surprise(asked, chosen_device(asked)):
        log.warning("%s", warning)


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
    if isinstance(result, HotkeyTaken):
        log.error("%s", result)
        return EXIT_HOTKEY_TAKEN
    # Our own trouble says all in its line; anything else is a mistake of ours, and its stack is wanted.
    quiet = isinstance(result, LocalFault) and not log.isEnabledFor(logging.DEBUG)
    log.error("cannot go on: %s", said(result), exc_info=None if quiet else result)
    return EXIT_LOCAL_FAULT


async def _live(role: Role, config: NodeConfig, make_worker: MakeWorker, wrap: WrapAdapters, border: Border) -> None:
    """Everything a node opens is closed here, in reverse order."""
    async with AsyncExitStack() as stack:
        supervised = Supervised()
        stack.callback(asyncio.create_task(supervised.stay_in_touch(), name="supervisor").cancel)
        require_address(config)
        client, signer, me = await connect(config, stack)
        params = await client.params()
        config, manifest = await _find(config, PatientChain(client, params.block_s), params, signer, role, me)
        stack.enter_context(node_lock(config))
        bind(uid=me.uid)
        keep_in(config.logging.file or config.node_dir / "log" / "node.log")
        pages = await asyncio.to_thread(_pages, config, manifest)
        team = open_team(config, manifest, stack)
        engine = load_engine(config, manifest, pages, team)
        await asyncio.to_thread(join_team, team, config, manifest, engine)
        steps = "" if role is Role.OWNER else await asyncio.to_thread(prepared, config, manifest, engine.loop)
        _say_who(role, config, manifest, engine, me, signer, steps)
        claim_folder(config.node_dir, manifest.sha256)
        sinks = await asyncio.to_thread(open_sinks, config, manifest, role, me, signer)
        metrics = Metrics([*sinks, supervised], role=role.name.lower(), uid=me.uid)
        stack.callback(metrics.close)
        client.tell_news(lambda news: metrics.emit(Fault(what="runtime", detail=news)))
        keep = manifest.keep
        journal = Journal(config.node_dir / JOURNAL, needed=max(keep.work_rounds, keep.output_rounds))
        stack.callback(journal.close)
        # From here on an outage is waited for.
        chain = await JournalledChain.begin(client, params.block_s, journal, manifest.timing)
        watch = Watch(client, chain, manifest, me, metrics)
        stack.callback(asyncio.create_task(watch.run(params.block_s), name="safety").cancel)
        stores = await asyncio.to_thread(_stores, role, config, manifest)
        training = TrainingThread()
        stack.callback(training.close)  # after the transport: peers do not wait until a step is done
        adapters = wrap(await _adapters(config, manifest, chain, signer, stores, stack))
        parts = await make_parts(config, manifest, adapters, journal, metrics, training)
        share_pages(parts.peers, pages, manifest.tag, manifest.public.run_key)
        FileService(parts.peers, run_files(manifest, pages.table.path, config.run_dir / TOKENIZER_FILE))
        supervised.watch(lambda: parts.clock.finalized, (keep.max_missing_rounds + 2) * manifest.timing.length)
        await adapters.transport.start()
        stack.callback(asyncio.create_task(say_after_a_pause(), name="stillness").cancel)
        await live(role, config, parts, engine, me, make_worker, border)


async def _find(
    config: NodeConfig, chain: Chain, params: SubnetParams, signer: LocalKey, role: Role, me: Neuron
) -> tuple[NodeConfig, RunManifest]:
    """The run, in its directory. Peers are asked under a peer key of this moment: nobody knows us yet."""
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="join-")))
        stranger = Libp2pTransport(scratch / "identity.key", port=None, hints=False)
        stranger.traffic.line.limit(*config.network.bytes_per_s)
        stack.push_async_callback(stranger.stop)

        async def open_transport() -> Transport:
            await stranger.start()
            return stranger

        roster = await chain.roster((await chain.head()).number)
        show = partial(_show, config, role, me, params.block_s)
        finder = Finder(config, roster, params.owner_hotkey, signer.public_key, open_transport, show, scratch)
        return await finder.run()


def _show(config: NodeConfig, role: Role, me: Neuron, block_s: float, manifest: RunManifest) -> None:
    """What the run asks of this machine, before it is asked. Raises ConfigError for a miner that it does not want."""
    if role is Role.MINER and (why := not_listed(me, manifest)) is not None:
        raise ConfigError(why)
    num_coords = model_size(manifest.model.config)
    speed = num_processes(config) * flop_per_s(chosen_device(config.device))
    needed, line = needs(manifest, num_coords, block_s), config.network
    for text in needs_lines(manifest, needed, speed):
        log.info("%s", text)
    sends = role is Role.MINER
    reduces = sends and not config.axon.outbound_only
    if low := caps_too_low(needed, line.up_mbit, line.down_mbit, sends=sends, reduces=reduces):
        log.warning("the cap on this node's line is too low: %s", low)


def _say_who(
    role: Role, config: NodeConfig, manifest: RunManifest, engine: Engine, me: Neuron, signer: LocalKey, steps: str
) -> None:
    log.info(
        "start: %s, uid %d of subnet %d, hotkey %s %s; run %s %s, %s; %s%s; at %s",
        role.name.lower(),
        me.uid,
        manifest.netuid,
        config.wallet.hotkey,
        signer.hotkey,
        manifest.name,
        manifest.sha256[:16],
        manifest.model.config["model_type"],
        device_text(chosen_device(config.device)),
        steps and f"; a step: {steps}",
        _where(config),
    )


def _where(config: NodeConfig) -> str:
    if config.announced is not None:
        return "{}:{}".format(*config.announced)
    return "no port of its own" if config.axon.outbound_only else f"port {config.axon.port}"


def _pages(config: NodeConfig, manifest: RunManifest) -> TablePages:
    return open_pages(
        config.pages,
        config.run_dir,
        mirrors=config.data.mirrors,
        cache_gib=config.data.cache_gib,
        public=manifest.public.pages if config.by_default("pages") else "",
        peers_give=True,
    )


@dataclass(frozen=True, slots=True)
class _Stores:
    run: CheckpointStore
    own: CheckpointStore | None  # a miner's
    open_repo: Callable[[str], CheckpointStore] | None  # a validator's that looks


def _stores(role: Role, config: NodeConfig, manifest: RunManifest) -> _Stores:
    """Each role has what it uses: an option of another role has no effect."""
    owner, hub, folder = role is Role.OWNER, config.hub, config.node_dir
    keep = hub.keep if owner else KEPT_ROUNDS
    run = open_checkpoints(config.checkpoints, folder, manifest, keep=keep, write=owner)
    own = None
    if role is Role.MINER and hub.repo is not None:
        own = open_checkpoints(hub.repo, folder, manifest, keep=keep, write=True)
    looks = role is Role.VALIDATOR and hub.look
    return _Stores(run, own, repo_opener(folder, manifest) if looks else None)


async def _adapters(
    config: NodeConfig,
    manifest: RunManifest,
    chain: Chain,
    signer: LocalKey,
    stores: _Stores,
    stack: AsyncExitStack,
) -> Adapters:
    identity_path = config.node_dir / "identity.key"
    identity = PeerIdentity.load_or_create(identity_path)
    port = None if config.axon.outbound_only else config.axon.port
    transport = Libp2pTransport(identity_path, config.axon.ip, port, config.announced)
    transport.traffic.line.limit(*config.network.bytes_per_s)
    stack.push_async_callback(transport.stop)
    return Adapters(
        chain=await SoleChain.begin(chain, signer, identity.public_key, manifest.timing.length),
        transport=transport,
        checkpoints=stores.run,
        own_checkpoints=stores.own,
        open_repo=stores.open_repo,
        signer=signer,
        verify=verify,
        sign_as_peer=identity.sign,
        verify_peer=verify_peer,
    )
