"""A node's way to the chain: the hotkey, the connection, and the uid that must be registered."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.chain.patient import PatientChain
from distributed_training.chain.subnet import SubnetFacts, subnet_facts
from distributed_training.errors import ChainFault, NotRegisteredError
from distributed_training.operator.standing import costs, standings, told
from distributed_training.preflight import not_registered, own_hotkey
from distributed_training.protocol.types import Neuron
from distributed_training.settings.config import NodeConfig

log = logging.getLogger(__name__)

START_PAUSE_S = 6.0  # between two tries, until the chain has said how long a block takes


async def connect(config: NodeConfig, stack: AsyncExitStack) -> tuple[BittensorChain, LocalKey, Neuron]:
    """(chain, hotkey, our neuron). The stack closes it. A chain that nobody serves is waited for, after one line.

    Raises NotRegisteredError, ConfigError, ChainFault.
    """
    signer, chain_of = own_hotkey(config), config.subtensor
    chain = BittensorChain.over(
        netuid=config.netuid,
        network=chain_of.network,
        endpoint=chain_of.chain_endpoint,
        signer=signer,
        cache_dir=config.chain_cache,
        substrate=None if config.local_chain is None else local_substrate(config.local_chain),
        fallback=() if config.local_chain else chain_of.fallback,
        archive=None if config.local_chain else chain_of.archive_endpoint,
    )
    stack.push_async_callback(chain.close)
    patient = PatientChain(chain, START_PAUSE_S)
    # A newcomer's registration counts as soon as the head knows it.
    roster = await patient.roster((await patient.head()).number)
    me, facts = roster.by_hotkey(signer.hotkey), await _facts(config, chain)
    if me is None:
        raise NotRegisteredError(not_registered(config, None if facts is None else costs(facts)))
    if facts is not None:
        log.info("%s", told(me.uid, standings(facts, roster)[me.uid], facts))
    return chain, signer, me


async def _facts(config: NodeConfig, chain: BittensorChain) -> SubnetFacts | None:
    """What only its operator wants to know; of a local chain nothing, the money there is play."""
    if config.local_chain is not None:
        return None
    try:
        return await chain.ask(lambda client: subnet_facts(client, config.netuid))
    except ChainFault as fault:
        log.debug("no facts about the subnet: %s", fault)
        return None
