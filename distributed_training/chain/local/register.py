"""Registering a newcomer on a running local chain: key, money, uid and stake, the last two through the SDK."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import bittensor as bt

from distributed_training.chain.keys import LocalKey, derive_coldkey, write_wallet
from distributed_training.chain.local.genesis import chain_params, fund
from distributed_training.chain.local.state import RAO
from distributed_training.chain.local.substrate import LocalSubstrate
from distributed_training.errors import ChainRefused

SPARE_TAO = 1.0


@dataclass(frozen=True, slots=True)
class Registration:
    key: LocalKey
    uid: int | None  # None: registered in block 1, readable once the clock is started
    new: bool  # False: it had a uid before


async def register_local(chain_file: Path, wallets: Path, wallet: str, hotkey: str, stake: float = 0.0) -> Registration:
    """Make the wallet's key if it is missing, pay for a uid and add `stake` alpha; idempotent but for the stake.

    Waits until all of it is in a block. ChainRefused with the chain's code when it says no.
    """
    params = chain_params(chain_file)
    key, coldkey = write_wallet(wallets, wallet, hotkey, params.seed), derive_coldkey(params.seed, wallet)
    fund(chain_file, coldkey.ss58_address, params.burn_rao / RAO + stake + SPARE_TAO)
    async with bt.Subtensor("local", substrate=cast(bt.Substrate, LocalSubstrate(chain_file))) as client:
        new = await client.neurons.uid(hotkey_ss58=key.hotkey, netuid=params.netuid) is None
        if new:
            register = bt.calls.SubtensorModule.burned_register(netuid=params.netuid, hotkey=key.hotkey)
            try:
                await paid(client, register, coldkey)
            except ChainRefused as refusal:
                if refusal.code != "already_exists":  # in block 1, while the clock is not started
                    raise
                new = False
        if stake > 0:
            await paid(
                client,
                bt.calls.SubtensorModule.add_stake(
                    hotkey=key.hotkey, netuid=params.netuid, amount_staked=round(stake * RAO)
                ),
                coldkey,
            )
        uid = await client.neurons.uid(hotkey_ss58=key.hotkey, netuid=params.netuid)
    return Registration(key, uid, new)


async def paid(client: bt.Client, call: Any, coldkey: bt.Signer) -> None:
    """Submit a coldkey-signed call and wait until it is in a block."""
    result = await client.submit_call(call, coldkey, signer="coldkey", wait_for_finalization=False)
    if not result.success:
        raise ChainRefused(result.message, result.error.code.value if result.error else "unknown")
