"""Who is who in the chain tests, on every chain."""

from __future__ import annotations

from distributed_training.chain.keys import LocalKey, derive_coldkey, derive_keypair

NETUID = 7
SEED = 11
VERSION_KEY = 3
NAMES = ("owner", "validator-0", "validator-1", "miner-0", "miner-1")
STAKES = {"validator-0": 300.0, "validator-1": 100.0}
COLDKEY = derive_coldkey(SEED, "local")


def key(name: str) -> LocalKey:
    return LocalKey(derive_keypair(SEED, name))
