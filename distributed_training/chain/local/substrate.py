"""The local chain as the SDK's substrate: one SQLite file, shared by all processes, under the real bittensor client.

Inject it: `bt.Subtensor("local", substrate=LocalSubstrate(path))`. Blocks come by the clock, hashes from (seed, number)
only, so they are predictable: right for development, worthless as randomness between strangers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import bittensor as bt

from distributed_training.chain.keys import hotkey_address, verify
from distributed_training.chain.local.beacon import opening, overhear
from distributed_training.chain.local.calls import CALLS, compose_fields
from distributed_training.chain.local.epoch import run_due_epochs
from distributed_training.chain.local.items import ITEMS, MAPS, SUBNET_MAPS
from distributed_training.chain.local.records import RUNTIME_CALLS
from distributed_training.chain.local.state import RefusedError
from distributed_training.chain.local.store import (
    FINALITY_BLOCKS,
    NO_SUCH_BLOCK,
    ChainParams,
    LocalStore,
    Rows,
    in_force,
)

POLL_S = 0.02  # shortest pause of a wait for the clock
UNSTARTED_POLL_S = 0.1  # pause while the clock is not started


def local_substrate(path: Path) -> bt.Substrate:
    """The local chain in this file, for `BittensorChain.connect`."""
    # The SDK calls only the methods LocalSubstrate has; its protocol names more (signing devices, multisig).
    return cast(bt.Substrate, LocalSubstrate(path))


class LocalSubstrate:
    """The part of the SDK's `Substrate` protocol that a neuron uses; the rest is absent and says so."""

    def __init__(self, path: Path) -> None:
        self._store = LocalStore(path, run_due_epochs)
        self._params = self._store.params  # as created: only what never changes is read from them
        overhear()
        self.token_symbols: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is not available on the local chain")

    async def connect(self) -> None:
        pass

    async def close(self) -> None:
        # In the thread that reads: a connection that is closed under a read takes the whole process with it.
        await asyncio.to_thread(self._store.writing.acquire)
        try:
            self._store.close()
        finally:
            self._store.writing.release()

    def balance(self, rao: int, netuid: int = 0) -> bt.Balance:
        return bt.Balance.from_rao(rao, netuid, self.token_symbols.get(netuid))

    async def block_number(self) -> int:
        return self._store.head()

    async def finalized_block_number(self) -> int:
        return max(0, self._store.head() - FINALITY_BLOCKS)

    async def block_time(self) -> float:
        return self._params.block_s

    async def spec_version(self) -> int:
        return in_force(*await self._state(None)).spec_version

    async def block_hash(self, block: int | None = None) -> str:
        """0x hash; ChainError for a block that does not exist yet, never a silent read of the head."""
        head = self._store.head()
        number = head if block is None else int(block)
        if not 0 <= number <= head:
            raise bt.ChainError(f"no block at height {number}; the head is {head}")
        return "0x" + self._store.block_hash(number).hex()

    async def _state(self, at: str | None) -> tuple[Rows, ChainParams]:
        """The rows and the parameters as of the block with this hash (None: the head)."""
        rows = await self._rows(at)
        return rows, in_force(rows, self._params)

    async def _rows(self, at: str | None) -> Rows:
        """State as of the block with this hash (None: the head), closed first, off the event loop if that may wait."""
        head = self._store.head()
        number = head if at is None else self._store.block_of_hash(at)
        if number == NO_SUCH_BLOCK or number > head:
            raise bt.ChainError(f"no block with hash {at}")
        if not self._store.is_closed(number):
            await asyncio.to_thread(self._store.close_blocks)
        return self._store.rows(number)

    async def query(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> Any:
        key = list(params or [])
        rows, params_now = await self._state(block_hash)
        if (module, storage_function) == ("Timestamp", "Now"):
            return int(1000 * ((self._store.genesis_time() or 0.0) + rows.block * self._params.block_s))
        if (module, storage_function) == ("System", "BlockHash"):
            known = 0 <= key[0] <= rows.block
            return "0x" + (self._store.block_hash(key[0]).hex() if known else "00" * 32)
        item = ITEMS.get((module, storage_function))
        if item is None:
            raise bt.ChainError(f"the local chain has no storage item {module}.{storage_function}")
        return item(rows, params_now, key)

    async def query_map(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        name, key = (module, storage_function), list(params or [])
        rows, params_now = await self._state(block_hash)
        if name in SUBNET_MAPS and key:
            return SUBNET_MAPS[name](rows, params_now, key) if key[0] == self._params.netuid else []
        if name in MAPS:
            return MAPS[name](rows, params_now, key)
        raise bt.ChainError(f"the local chain has no storage map {module}.{storage_function}")

    async def query_batch(
        self, module: str, storage_function: str, param_sets: list[list[Any]], block_hash: str | None = None
    ) -> list[Any]:
        return [await self.query(module, storage_function, params, block_hash) for params in param_sets]

    async def runtime_call(self, api: str, method: str, params: Any, block_hash: str | None = None) -> Any:
        if (api, method) not in RUNTIME_CALLS:
            raise bt.ChainError(f"the local chain has no runtime call {api}.{method}")
        netuid = next(iter(params.values() if isinstance(params, dict) else params))
        rows, params_now = await self._state(block_hash)
        return RUNTIME_CALLS[api, method](rows, params_now) if netuid == self._params.netuid else None

    async def get_block(self, block_number: int | None = None, block_hash: str | None = None) -> dict[str, Any] | None:
        number = self._store.head() if block_number is None else block_number
        if block_hash is not None:
            number = self._store.block_of_hash(block_hash)
        if not 0 <= number <= self._store.head():
            return None
        await self._rows(await self.block_hash(number))
        return {"header": self._header(number), "extrinsics": self._store.extrinsics(number)}

    def _header(self, number: int) -> dict[str, Any]:
        parent = self._store.block_hash(number - 1).hex() if number > 0 else "00" * 32
        return {"number": number, "hash": "0x" + self._store.block_hash(number).hex(), "parentHash": "0x" + parent}

    async def blocks(self, *, finalized: bool = False) -> AsyncIterator[dict[str, Any]]:
        """The current (finalized) header, then each new one; after a rewind the stream goes on at the new head."""
        lag = FINALITY_BLOCKS if finalized else 0
        number = max(0, self._store.head() - lag)
        while True:
            yield {"header": self._header(number)}
            while (head := max(0, self._store.head() - lag)) == number:
                await self._pause(number + lag + 1)
            number = min(head, number + 1)

    async def _wait_for(self, block: int) -> None:
        while self._store.head() < block:
            await self._pause(block)

    async def _pause(self, block: int) -> None:
        """A wait for `block`, cut short so that a rewind is seen within a block or so."""
        started = self._store.genesis_time() is not None
        left_s = min(self._store.seconds_until(block), self._params.block_s)
        await asyncio.sleep(max(POLL_S, left_s) if started else UNSTARTED_POLL_S)

    async def compose(self, call: Any) -> Any:
        """The call itself, checked as the real codec checks it; ValueError when it cannot be encoded."""
        if (call.module, call.function) not in CALLS:
            raise bt.ChainError(f"the local chain has no call {call.module}.{call.function}")
        if call.function == "set_commitment":
            info = {"fields": compose_fields(call.params["info"]["fields"])}
            return call._replace(params={**call.params, "info": info})
        if call.function == "commit_timelocked_mechanism_weights":
            commit = bytes(call.params["commit"])
            return call._replace(params={**call.params, "commit": "0x" + commit.hex(), "opening": opening(commit)})
        return call

    async def estimate_fee(self, call: Any, keypair: Any) -> bt.Balance:
        return self.balance(0)

    async def submit(
        self,
        call: Any,
        keypair: Any,
        *,
        nonce: int | None = None,
        period: int | None = None,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = True,
    ) -> bt.ExtrinsicResult:
        """Sign, verify, check and write into the next block. A refusal is a returned result, never an exception.

        While the clock is not started the call counts as included in block 1 at once, and nothing waits.
        """
        if not await signed_by(keypair, call):
            return failure("BadProof", "the signature does not belong to the signing address")
        block, result = await asyncio.to_thread(self._apply, call, keypair.ss58_address)
        waits = block > 0 and (wait_for_inclusion or wait_for_finalization)
        if waits and self._store.genesis_time() is not None:
            await self._wait_for(block + (FINALITY_BLOCKS if wait_for_finalization else 0))
        return result

    def _apply(self, call: Any, signer: str) -> tuple[int, bt.ExtrinsicResult]:
        """Blocking: one transaction. Returns the block the call went to (0: it got into none) and its result."""
        refused: RefusedError | None = None
        with self._store.transaction() as rows:
            try:
                CALLS[call.module, call.function](rows, in_force(rows, self._params), signer, call.params)
            except RefusedError as refusal:  # raised before anything is written
                if refusal.in_pool:
                    return 0, failure(refusal.name, str(refusal))
                refused = refusal
            args = {name: value for name, value in call.params.items() if name != "opening"}
            extrinsic = {"call_module": call.module, "call_function": call.function, "params": args}
            place = {
                "block_hash": "0x" + self._store.block_hash(rows.block).hex(),
                "extrinsic_id": self._store.record_extrinsic(rows, signer, extrinsic),
                "fee": self.balance(0),
            }
        if refused is not None:
            return rows.block, failure(refused.name, str(refused), **place)
        return rows.block, bt.ExtrinsicResult(success=True, message="Included.", **place)


def failure(name: str, text: str, **place: Any) -> bt.ExtrinsicResult:
    """A refusal; `place` says in which block, unless the pool made it."""
    error = bt.ChainError(f"{name}: {text}", name)
    return bt.ExtrinsicResult(success=False, message=error.message, error=error, **place)


async def signed_by(keypair: Any, call: Any) -> bool:
    """Sign a digest of the call with `keypair` and verify it against the address it claims."""
    body = json.dumps([call.module, call.function, call.params], sort_keys=True, default=str)
    digest = blake2b(body.encode(), digest_size=32, person=b"dt-local-call").digest()
    signature = keypair.sign(digest)
    if inspect.isawaitable(signature):
        signature = await signature
    public_key = bytes(keypair.public_key)
    return hotkey_address(public_key) == keypair.ss58_address and verify(public_key, digest, bytes(signature))
