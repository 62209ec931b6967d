"""The local chain's state as a node gives it out: raw storage keys and values, and runtime calls, at a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bittensor as bt

from devnode.chain import DevChain
from devnode.runtime import PREFIX_BYTES, Runtime
from devnode.scale import compact
from distributed_training.chain.keys import hotkey_address

Entry = Any  # of the SDK's codec: one storage item


class State:
    """`nonce`: of an account, as of the block of a height."""

    def __init__(self, chain: DevChain, runtime: Runtime, nonce: Callable[[str, int], int]) -> None:
        self._chain, self._runtime, self._netuid, self._nonce = chain, runtime, chain.netuid, nonce

    async def value(self, key: bytes, at: str | None) -> bytes | None:
        """What is stored under a whole key; None when nothing is, and the runtime's default holds."""
        name = self._runtime.items.get(key[:PREFIX_BYTES])
        if name is None:
            return None
        entry = self._runtime.codec.storage_entry(*name)
        params = self._runtime.codec.decode_storage_key_params(entry, key, fixed=0) if entry.param_types else []
        try:
            value = await self._chain.query(*name, params, at)
        except bt.ChainError:
            return None  # an item the local chain does not keep
        if name == ("System", "Account"):
            value["nonce"] = await self._used(params[0], at)
        return None if value is None else self._runtime.encoder.encode(entry.value_type, value)

    async def _used(self, account: str, at: str | None) -> int:
        """The local chain counts no writes, a pool does."""
        found = await self._chain.get_block(block_hash=at)
        return self._nonce(account, found["header"]["number"] if found else 0)

    async def keys(self, prefix: bytes, at: str | None) -> list[bytes]:
        """Every key below a prefix, in order. Known are maps of the whole chain and those of our subnet."""
        name = self._runtime.items.get(prefix[:PREFIX_BYTES])
        if name is None:
            return []
        entry = self._runtime.codec.storage_entry(*name)
        free = len(entry.param_types)
        for params in ([], [self._netuid]):
            if len(params) < free and self._runtime.codec.storage_key(entry, params) == prefix:
                return await self._map(entry, name, params, at)
        return []

    async def _map(self, entry: Entry, name: tuple[str, str], params: list[Any], at: str | None) -> list[bytes]:
        try:
            pairs = await self._chain.query_map(*name, params, at)
        except bt.ChainError:
            return []  # a map the local chain does not keep
        return sorted(
            self._runtime.codec.storage_key(entry, [*params, *(key if isinstance(key, tuple) else (key,))])
            for key, _ in pairs
        )

    async def call(self, name: str, data: bytes, at: str | None) -> bytes | None:
        """A runtime call, like SubnetInfoRuntimeApi_get_metagraph; None for one the runtime does not have."""
        if name == "Metadata_metadata_at_version":
            blob = self._runtime.metadata
            return b"\x01" + compact(len(blob)) + blob
        if name == "AccountNonceApi_account_nonce":
            return (await self._used(hotkey_address(data), at)).to_bytes(4, "little")
        api, _, method = name.partition("_")
        known = self._runtime.codec.runtime_api_map.get(api, {}).get(method)
        if known is None:
            return None
        if name == "TransactionPaymentApi_query_info":
            return self._runtime.encoder.encode(known["output"], None)
        params = []
        for _, kind in known["inputs"]:
            params.append(self._runtime.codec.decode(kind, data, strict=False))
            data = data[len(self._runtime.encoder.encode(kind, params[-1])) :]
        return self._runtime.encoder.encode(known["output"], await self._chain.runtime_call(api, method, params, at))
