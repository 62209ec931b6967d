"""The node: JSON-RPC methods over the pool and the state, and the websocket they are asked through."""

from __future__ import annotations

import asyncio
import itertools
import json
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from devnode.chain import DevChain
from devnode.pool import Extrinsic, Pool, RpcError
from devnode.root import Root
from devnode.runtime import LATEST, Runtime, runtime
from devnode.state import State
from distributed_training.chain.local.genesis import rewind
from distributed_training.chain.local.store import FINALITY_BLOCKS

NO_HASH = "0x" + "00" * 32
Method = Callable[..., Awaitable[Any]]
Push = Callable[[str, str, Any], Awaitable[None]]


class DevNode:
    """A node of a local chain. Its attributes are its faults: set them while it runs.

    `keep_blocks`: state older than that many blocks is discarded. `mute`: subscriptions go silent, requests do not.
    `behind`: blocks that its head lies behind the chain's. `pool.lose`, `pool.withhold`: see there.
    """

    def __init__(self, path: Path, *, spec: int = LATEST, port: int = 0, host: str = "127.0.0.1") -> None:
        self.path, self.host, self.port, self.spec = path, host, port, spec
        self.keep_blocks: int | None = None
        self.mute = False
        self.behind = 0
        self.asked: dict[str, int] = {}  # method -> requests
        self._server: Server | None = None
        self._numbers = itertools.count(1)

    @property
    def endpoint(self) -> str:
        return f"ws://{self.host}:{self.port}"

    async def __aenter__(self) -> DevNode:
        await self.open_chain(self.path)
        self._server = await serve(self._connection, self.host, self.port, max_size=None, compression=None)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close(close_connections=True)
        await self._server.wait_closed()
        await self.chain.close()

    async def open_chain(self, path: Path) -> None:
        """Serve this chain from now on: at the start, and when a development chain begins again at its genesis."""
        self.chain = DevChain(path)
        self.runtime: Runtime = runtime(self.spec, await self.chain.block_time())
        self.genesis = await self.chain.block_hash(0)
        self.root = Root(self)
        self.pool = Pool(self.chain, self.runtime, self.genesis, self.root)
        self.state = State(self.chain, self.runtime, self.pool.nonce)

    async def _go_on_in(self, path: Path) -> None:
        """The same blocks and pool, over another file."""
        await self.chain.close()
        self.path, self.root.next_chain = path, None
        self.chain = self.pool.chain = DevChain(path)
        self.state = State(self.chain, self.runtime, self.pool.nonce)

    async def rewind(self, block: int) -> None:
        """A reorganisation: blocks behind `block` and what was written in them are gone."""
        await asyncio.to_thread(rewind, self.path, block)
        for place, extrinsics in self.pool.blocks.content.items():
            if extrinsics[0].block > block and place not in self.pool.blocks.dead:
                self.pool.blocks.dead.add(place)
                for extrinsic in extrinsics:
                    self.pool.used[extrinsic.signer] -= 1
                    del self.pool.taken[extrinsic.signer, extrinsic.nonce]

    async def upgrade(self, spec: int) -> None:
        """Another runtime from the next request on."""
        self.spec = spec
        self.runtime = runtime(spec, await self.chain.block_time())
        self.state = State(self.chain, self.runtime, self.pool.nonce)
        self.pool.runtime = self.runtime

    # --- the wire --------------------------------------------------------------------------------

    async def _connection(self, connection: ServerConnection) -> None:
        watches: dict[str, asyncio.Task[None]] = {}

        async def push(method: str, subscription: str, result: Any) -> None:
            params = {"subscription": subscription, "result": result}
            await connection.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))

        try:
            async for message in connection:
                asked = json.loads(message)
                if isinstance(asked, list):
                    reply: Any = [await self._answer(each, watches, push) for each in asked]
                else:
                    reply = await self._answer(asked, watches, push)
                await connection.send(json.dumps(reply))
        except ConnectionClosed:
            pass
        finally:
            for watch in watches.values():
                watch.cancel()

    async def _answer(
        self, asked: dict[str, Any], watches: dict[str, asyncio.Task[None]], push: Push
    ) -> dict[str, Any]:
        name, params = asked["method"], asked.get("params") or []
        self.asked[name] = self.asked.get(name, 0) + 1
        head = {"jsonrpc": "2.0", "id": asked["id"]}
        try:
            if name in WATCHES:
                number = f"watch-{next(self._numbers)}"
                work = await getattr(self, WATCHES[name])(number, push, *params)
                watches[number] = asyncio.create_task(watch(work))
                return {**head, "result": number}
            if name in UNWATCHES:
                found = watches.pop(str(params[0]), None)
                if found is not None:
                    found.cancel()
                return {**head, "result": found is not None}
            if name not in METHODS:
                raise RpcError(-32601, "Method not found", name)
            return {**head, "result": await getattr(self, METHODS[name])(*params)}
        except RpcError as error:
            return {**head, "error": error.body}
        except Exception as error:  # a fault of this node: loud here, an error there
            traceback.print_exc()
            return {**head, "error": {"code": -32603, "message": f"Internal error: {error!r}"}}

    # --- blocks ----------------------------------------------------------------------------------

    async def head(self) -> int:
        return max(0, await self.chain.block_number() - self.behind)

    async def get_block_hash(self, number: int | None = None) -> str | None:
        head = await self.head()
        wanted = head if number is None else int(number)
        if wanted < 0:
            raise RpcError(-32602, "Invalid params", f"invalid value: integer `{wanted}`, expected u32")
        return await self.chain.block_hash(wanted) if wanted <= head else None

    async def get_finalized_head(self) -> str:
        return await self.chain.block_hash(max(0, await self.head() - FINALITY_BLOCKS))

    async def get_header(self, place: str | None = None) -> dict[str, Any] | None:
        number = await self._height(place)
        if number is None:
            return None
        parent = await self.chain.block_hash(number - 1) if number > 0 else NO_HASH
        roots = {"stateRoot": NO_HASH, "extrinsicsRoot": NO_HASH, "digest": {"logs": []}}
        return {"number": hex(number), "parentHash": parent, **roots}

    async def _height(self, place: str | None) -> int | None:
        """Of a block of the chain, or of one that a reorganisation took off it; None for an unknown hash."""
        if place is None:
            return await self.head()
        if place in self.pool.blocks.content:  # block 1 has writes before the clock starts
            return self.pool.blocks.content[place][0].block
        found = await self.chain.get_block(block_hash=place)
        return None if found is None else int(found["header"]["number"])

    async def get_block(self, place: str | None = None) -> dict[str, Any] | None:
        header = await self.get_header(place)
        if header is None:
            return None
        where = place or await self.chain.block_hash(await self.head())
        extrinsics = ["0x" + extrinsic.raw.hex() for extrinsic in self.pool.blocks.content.get(where, ())]
        return {"block": {"header": header, "extrinsics": extrinsics}, "justifications": None}

    # --- state -----------------------------------------------------------------------------------

    async def _at(self, place: str | None) -> str:
        """The block that is read. Its state may be gone."""
        number = await self._height(place)
        if number is None:
            raise RpcError(4003, f"Client error: UnknownBlock: Header was not found in the database: {place}")
        if self.keep_blocks is not None and number < await self.head() - self.keep_blocks:
            raise RpcError(4003, f"Client error: UnknownBlock: State already discarded for {place}")
        head = await self.chain.block_number()
        return await self.chain.block_hash(min(number, head))

    async def get_runtime_version(self, place: str | None = None) -> dict[str, Any]:
        await self._at(place)
        return self.runtime.version()

    async def get_metadata(self, place: str | None = None) -> str:
        await self._at(place)
        return "0x" + self.runtime.metadata.hex()

    async def get_storage(self, key: str, place: str | None = None) -> str | None:
        at = await self._at(place)
        if self.runtime.items.get(bytes.fromhex(key[2:])) == ("System", "Events"):
            return "0x" + self.pool.blocks.events(place or at, self.runtime.errors).hex()
        value = await self.state.value(bytes.fromhex(key[2:]), at)
        return None if value is None else "0x" + value.hex()

    async def query_storage(self, keys: list[str], place: str | None = None) -> list[dict[str, Any]]:
        return [{"block": place, "changes": [[key, await self.get_storage(key, place)] for key in keys]}]

    async def get_keys(self, prefix: str, count: int, start: str | None = None, place: str | None = None) -> list[str]:
        found = ["0x" + key.hex() for key in await self.state.keys(bytes.fromhex(prefix[2:]), await self._at(place))]
        return [key for key in found if start is None or start == prefix or key > start][:count]

    async def call(self, name: str, data: str, place: str | None = None) -> str:
        answer = await self.state.call(name, bytes.fromhex(data.removeprefix("0x")), await self._at(place))
        if answer is None:
            raise RpcError(4003, f"Client error: Execution failed: Exported method {name} is not found")
        return "0x" + answer.hex()

    # --- writes and watches ----------------------------------------------------------------------

    async def next_index(self, account: str) -> int:
        return self.pool.next_index(account)

    async def submit(self, raw: str) -> str:
        return (await self._taken(raw)).hash

    async def submit_and_watch(self, number: str, push: Push, raw: str) -> Awaitable[None]:
        return self._tell(number, push, await self._taken(raw))

    async def _taken(self, raw: str) -> Extrinsic:
        extrinsic = await self.pool.submit(bytes.fromhex(raw[2:]))
        if self.root.next_chain is not None:
            await self._go_on_in(self.root.next_chain)
        return extrinsic

    async def _tell(self, number: str, push: Push, extrinsic: Extrinsic) -> None:
        """What happens to an extrinsic: in a block, final there, or thrown off the chain with it."""
        await push("author_extrinsicUpdate", number, "ready" if extrinsic.applied.is_set() else "future")
        await extrinsic.applied.wait()
        await self._reach(extrinsic.block)
        await push("author_extrinsicUpdate", number, {"inBlock": extrinsic.place})
        await self._reach(extrinsic.block + FINALITY_BLOCKS)
        fate = "retracted" if extrinsic.place in self.pool.blocks.dead else "finalized"
        await push("author_extrinsicUpdate", number, {fate: extrinsic.place})

    async def new_heads(self, number: str, push: Push) -> Awaitable[None]:
        return self._heads(number, push, 0)

    async def finalized_heads(self, number: str, push: Push) -> Awaitable[None]:
        return self._heads(number, push, FINALITY_BLOCKS)

    async def _heads(self, number: str, push: Push, lag: int) -> None:
        told = -1
        while True:
            height = max(0, await self.head() - lag)
            if height != told and not self.mute:
                told = height
                method = "chain_finalizedHead" if lag else "chain_newHead"
                await push(method, number, await self.get_header(await self.chain.block_hash(height)))
            await asyncio.sleep(min(1.0, await self.chain.block_time() / 5))

    async def _reach(self, block: int) -> None:
        """Until that block is there; while the clock is not started it counts as there, as on the local chain."""
        while self.chain.started and await self.head() < block:  # noqa: ASYNC110 (the clock sends no event)
            await asyncio.sleep(min(1.0, await self.chain.block_time() / 5))


async def watch(work: Awaitable[None]) -> None:
    """A watch ends with its connection."""
    try:
        await work
    except ConnectionClosed:
        pass


METHODS = {
    "chain_getBlockHash": "get_block_hash", "chain_getHead": "get_block_hash", "chain_getFinalizedHead":
    "get_finalized_head", "chain_getHeader": "get_header", "chain_getBlock": "get_block",
    "state_getRuntimeVersion": "get_runtime_version", "state_getMetadata": "get_metadata", "state_getStorageAt":
    "get_storage", "state_getStorage": "get_storage", "state_queryStorageAt": "query_storage",
    "state_getKeysPaged": "get_keys", "state_call": "call", "account_nextIndex": "next_index",
    "author_submitExtrinsic": "submit",
}  # fmt: skip
WATCHES = {
    "author_submitAndWatchExtrinsic": "submit_and_watch",
    "chain_subscribeNewHeads": "new_heads",
    "chain_subscribeFinalizedHeads": "finalized_heads",
}
UNWATCHES = ("author_unwatchExtrinsic", "chain_unsubscribeNewHeads", "chain_unsubscribeFinalizedHeads")
