"""A node's way to the chain: the hotkey, the connection, and the uid that must be registered."""

from __future__ import annotations

from contextlib import AsyncExitStack

from distributed_training.chain.base import Signer
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, load_hotkey, registration_command
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.errors import NotRegisteredError
from distributed_training.protocol.types import Neuron
from distributed_training.settings.config import NodeConfig


async def connect(config: NodeConfig, stack: AsyncExitStack) -> tuple[BittensorChain, LocalKey, Neuron]:
    """(chain, hotkey, our neuron). The stack closes it. Raises NotRegisteredError, ConfigError, ChainFault."""
    signer = _hotkey(config)
    chain = await BittensorChain.connect(
        netuid=config.netuid,
        network=config.subtensor.network,
        endpoint=config.subtensor.chain_endpoint,
        signer=signer,
        cache_dir=config.node_dir / "cache",
        substrate=None if config.local_chain is None else local_substrate(config.local_chain),
    )
    stack.push_async_callback(chain.close)
    return chain, signer, await _registered(chain, signer, config)


def _hotkey(config: NodeConfig) -> LocalKey:
    if (
        config.local_chain is not None
        and not (config.wallet.path / config.wallet.name / "hotkeys" / config.wallet.hotkey).is_file()
    ):
        raise NotRegisteredError(_not_registered(config))
    return load_hotkey(config.wallet.path, config.wallet.name, config.wallet.hotkey)


def _not_registered(config: NodeConfig) -> str:
    run_dir = config.run_dir if config.local_chain is not None else None
    command = registration_command(config.netuid, config.wallet.name, config.wallet.hotkey, run_dir)
    return f"hotkey {config.wallet.hotkey!r} is not registered on subnet {config.netuid}; register it with: {command}"


async def _registered(chain: BittensorChain, signer: Signer, config: NodeConfig) -> Neuron:
    """Our neuron; a newcomer's registration counts as soon as the head knows it."""
    neuron = (await chain.roster((await chain.head()).number)).by_hotkey(signer.hotkey)
    if neuron is None:
        raise NotRegisteredError(_not_registered(config))
    return neuron
