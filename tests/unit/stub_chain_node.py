"""A chain node's websocket for the real SDK: heads, hashes and subscriptions of a made-up chain; it can go away.

Its runtime is all but empty: it knows how long a block takes, and has neither storage nor calls. That is enough to see
what a connection does.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_keypair

BLOCK_S = 0.2
LAG = 2
Subscription = tuple[ServerConnection, str, bool]  # connection, id, of final heads


def metadata() -> bytes:
    """SCALE, version 14: one pallet (Aura) with one constant (SlotDuration); extrinsics carry nothing but a number."""

    def text(word: str) -> bytes:
        return bytes([len(word) << 2]) + word.encode()

    def compact(*numbers: int) -> bytes:
        return bytes(number << 2 for number in numbers)

    def array(length: int) -> bytes:
        return bytes([3]) + length.to_bytes(4, "little") + compact(4)

    def signed(name: str, index: int) -> bytes:
        return text(name) + compact(1) + bytes([0]) + compact(6) + bytes([0, 0, index, 0])

    signature = bytes([1]) + compact(2) + signed("Ed25519", 0) + signed("Sr25519", 1)
    kinds = (  # numbered: u64, u32, compact u32, nothing, u8, account, 64 bytes, signature, extrinsic
        bytes([5, 6]), bytes([5, 5]), bytes([6]) + compact(1), bytes([4, 0]), bytes([5, 3]), array(32), array(64),
        signature, bytes([4, 0]),
    )  # fmt: skip
    given = b"".join(
        text(n) + bytes([1]) + compact(t) for n, t in (("Address", 5), ("Call", 3), ("Signature", 7), ("Extra", 3))
    )
    params = [compact(0)] * 8 + [compact(4) + given]
    types = b"".join(compact(n) + bytes([0]) + params[n] + kind + bytes([0]) for n, kind in enumerate(kinds))
    slot = text("SlotDuration") + bytes([0, 8 << 2]) + round(1000 * BLOCK_S).to_bytes(8, "little") + bytes([0])
    aura = text("Aura") + bytes([0, 0, 0, 1 << 2]) + slot + bytes([0, 0])
    extrinsic = compact(8) + bytes([4]) + compact(1) + text("CheckNonce") + compact(2, 3)
    return b"meta" + bytes([14]) + compact(len(kinds)) + types + compact(1) + aura + extrinsic + compact(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class StubNode:
    """`seed` makes the hashes, `nonce` is how many writes of anybody are on chain. State of blocks below
    `pruned_below` is gone, of those below `first` (but genesis) the header too.

    `mute`: nothing is pushed. `refuses`: a method that is asked for too often. `cuts`: whoever submits is cut off.
    `hangs`: nobody is answered.
    """

    def __init__(
        self, head: int = 10, *, seed: str = "a", port: int = 0, pruned_below: int = 0, first: int = 0
    ) -> None:
        self.head, self.seed, self.port = head, seed, port or free_port()
        self.pruned_below, self.first, self.mute, self.spec, self.refuses = pruned_below, first, False, 293, ""
        self.nonce, self.submitted, self.cuts, self.hangs = 5, list[str](), False, False
        self.asked = Counter[str]()
        self._server: Server | None = None
        self._subscriptions: list[Subscription] = []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def up(self) -> StubNode:
        self._server = await serve(self._answer_all, "127.0.0.1", self.port)
        return self

    async def down(self) -> None:
        self._subscriptions.clear()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def grow(self, head: int) -> None:
        self.head = head
        for subscription in () if self.mute else list(self._subscriptions):
            await self._push(subscription)

    @property
    def numbers(self) -> list[int]:
        """Of the writes that came, read off the extrinsics: the number, compact, before two bytes of call."""
        return [bytes.fromhex(written[2:])[-3] >> 2 for written in self.submitted]

    def hash_of(self, number: int) -> str:
        return "0x" + sha256(f"{self.seed}/{number}".encode()).hexdigest()

    async def _answer_all(self, connection: ServerConnection) -> None:
        async for text in connection:
            asked = json.loads(text)
            if self.hangs:
                continue
            self.asked[asked["method"]] += 1
            if "submit" in asked["method"]:
                self.submitted.append(asked["params"][0])
                if self.cuts:
                    connection.transport.abort()
                    return
            answer = self._answer(connection, asked["method"], asked["params"], str(asked["id"]))
            await connection.send(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}))
            if "_subscribe" in asked["method"] and not self.mute:
                await self._push(self._subscriptions[-1])

    def _answer(self, connection: ServerConnection, method: str, params: list[Any], id_: str) -> dict[str, Any]:
        if method == self.refuses:
            return {"error": {"code": -32005, "message": "too many requests", "data": {"retry_after": "12"}}}
        if method in ("chain_subscribeNewHeads", "chain_subscribeFinalizedHeads"):
            self._subscriptions.append((connection, id_, "Final" in method))
            return {"result": id_}
        return self._state(method, params) or {"result": self._block(method, params)}

    def _state(self, method: str, params: list[Any]) -> dict[str, Any] | None:
        if method == "state_getRuntimeVersion":
            number = self.head if params == [None] else self._number(params[0])
            if number < self.pruned_below:
                gone = f"Client error: UnknownBlock: State already discarded for {params[0]}"
                return {"error": {"code": 4003, "message": gone}}
            return {"result": {"specVersion": self.spec, "transactionVersion": 1, "specName": "stub"}}
        if method == "state_call" and "nonce" in params[0]:
            return {"result": "0x" + self.nonce.to_bytes(4, "little").hex()}
        if method == "account_nextIndex":
            return {"result": self.nonce}
        if method == "state_call":
            return {"error": {"code": 1, "message": "Exported method Metadata_metadata_at_version is not found"}}
        return {"result": "0x" + metadata().hex()} if method == "state_getMetadata" else None

    def _block(self, method: str, params: list[Any]) -> Any:
        if method == "chain_getBlockHash":
            there = params[0] == 0 or self.first <= params[0] <= self.head
            return self.hash_of(params[0]) if there else None
        if method == "chain_getFinalizedHead":
            return self.hash_of(max(0, self.head - LAG))
        if method == "chain_getHeader":
            return self._header(self.head if params in ([], [None]) else self._number(params[0]))
        if method == "chain_getBlock":
            return {"block": {"header": self._header(self._number(params[0])), "extrinsics": []}}
        return True

    def _number(self, hash_: str) -> int:
        return next((n for n in range(self.head + 1) if self.hash_of(n) == hash_), -1)

    def _header(self, number: int) -> dict[str, Any] | None:
        if number < 0:
            return None
        return {"number": hex(number), "parentHash": self.hash_of(max(0, number - 1))}

    async def _push(self, subscription: Subscription) -> None:
        connection, id_, final = subscription
        number = max(0, self.head - LAG) if final else self.head
        params = {"subscription": id_, "result": self._header(number)}
        await connection.send(json.dumps({"jsonrpc": "2.0", "method": "head", "params": params}))


def client_of(folder: Path, *endpoints: str, **options: Any) -> BittensorChain:
    """Not opened yet. `folder` holds what the SDK would otherwise ask of every chain at its first connection."""
    names = {endpoint: {"fetched_at": time.time(), "symbols": {}} for endpoint in endpoints}
    (folder / "token_symbols.json").write_text(json.dumps(names))
    return BittensorChain.over(
        netuid=7,
        network="local",
        endpoint=endpoints[0],
        fallback=endpoints[1:],
        signer=LocalKey(derive_keypair(1, "owner")),
        cache_dir=folder,
        **options,
    )


async def until(true: Any, *, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110 (the stub sends no event)
            await asyncio.sleep(0.01)
