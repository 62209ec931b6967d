"""A node's way to the chain: the hotkey, the connection, and the uid that must be registered."""

from __future__ import annotations

from contextlib import AsyncExitStack

from distributed_training.chain.base import Signer
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.errors import NotRegisteredError
from distributed_training.preflight import not_registered, own_hotkey
from distributed_training.protocol.types import Neuron
from distributed_training.settings.config import NodeConfig


async def connect(config: NodeConfig, stack: AsyncExitStack) -> tuple[BittensorChain, LocalKey, Neuron]:
    """(chain, hotkey, our neuron). The stack closes it. Raises NotRegisteredError, ConfigError, ChainFault."""
    signer = own_hotkey(config)
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


async def _registered(chain: BittensorChain, signer: Signer, config: NodeConfig) -> Neuron:
    """Our neuron; a newcomer's registration counts as soon as the head knows it."""
    neuron = (await chain.roster((await chain.head()).number)).by_hotkey(signer.hotkey)
    if neuron is None:
        raise NotRegisteredError(not_registered(config))
    return neuron
