"""The chain of the all-reduce benchmark: one for all its processes, and its head moves when everybody is done.

A round's blocks pass at once: the head jumps to s+D when every miner has committed, to s+X when every output is there
and no reducer waits for its senders any more, to s+Y when everybody holds all slices, to the next round when all have
settled. So nobody waits for a block, and what is timed is work. One validator, of which there is no process, has all
stake and says that it holds all.

One JSON line is a question or an answer, over a unix socket: it reaches into every network namespace.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed_training.chain.base import Head
from distributed_training.errors import ChainFault
from distributed_training.network.frames import CHUNK_BYTES
from distributed_training.protocol.commitments import decode_commitment, encode_commitment
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.membership import encode_slice_map
from distributed_training.protocol.types import BlockRef, Commitment, Field, Neuron, Role, Roster, SubnetParams

VOTER = "voter"
STAKE = 1000.0
LONG_POLL_S = 5.0
OF_MINERS = ("trained", "contributed")
MEETINGS = (*OF_MINERS, "gathered", "settled", "bare", "bared")
Said = list[list[str]]  # fields of a commitment: kind, hex


class MeetingChain:
    """What is on the chain, and the thread that answers for it."""

    def __init__(self, manifest: RunManifest, nodes: list[dict[str, Any]], socket: Path) -> None:
        """nodes: by uid; see `allreduce_run.make_nodes`."""
        self._manifest, self._nodes, self._socket = manifest, nodes, socket
        self._miners = {n["name"] for n in nodes if n["kind"] == "miner"}
        self._living = {n["name"] for n in nodes if n["kind"] != VOTER}
        self._head = manifest.timing.first_block
        self._written: dict[int, list[tuple[int, Said]]] = defaultdict(list)  # uid -> block, what
        self._met: dict[str, set[str]] = defaultdict(set)  # a meeting -> who is there
        self._moved = asyncio.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="chain", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> MeetingChain:
        self._thread.start()
        self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(5)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        for node in self._nodes:
            role = Role.VALIDATOR if node["kind"] == VOTER else Role.MINER if node["kind"] == "miner" else Role.OWNER
            self._write(node, Commitment(
                role, role is Role.MINER, bytes.fromhex(node["peer_key"]), self._manifest.tag, None, None, None, None
            ), 1)  # fmt: skip
        server = await asyncio.start_unix_server(self._serve, str(self._socket), limit=CHUNK_BYTES)
        self._listening.set()
        await self._over.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):  # a node that ends may not wait for its answer
            while line := await reader.readline():
                answer = await self._answer(json.loads(line))
                writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    async def _answer(self, asked: dict[str, Any]) -> Any:
        match asked["ask"]:
            case "head":
                await self._until(lambda: self._head > asked["after"], LONG_POLL_S)
                return self._head
            case "roster":
                return {uid: self._as_of(uid, asked["block"]) for uid in range(len(self._nodes))}
            case "commit":
                return await self._commit(asked["name"], asked["fields"])
            case _:
                return await self._meet(asked)

    async def _until(self, done: Any, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(done)
        except TimeoutError:
            pass

    def _as_of(self, uid: int, block: int) -> tuple[int, Said] | None:
        return next((said for said in reversed(self._written[uid]) if said[0] <= block), None)

    def _write(self, node: dict[str, Any], said: Commitment, block: int) -> None:
        fields = [[field.kind, field.data.hex()] for field in encode_commitment(said)]
        self._written[node["uid"]].append((block, fields))

    async def _commit(self, name: str, fields: Said) -> int:
        node = next(n for n in self._nodes if n["name"] == name)
        block = self._head + 1
        self._written[node["uid"]].append((block, fields))
        said = decode_commitment([Field(kind, bytes.fromhex(data)) for kind, data in fields])
        assert said is not None and said.first_round is not None, "a miner commits to its work"
        round_, to = self._manifest.round(said.first_round), block
        if said.second is None:
            self._met[f"work {round_.index}"].add(name)
            to = round_.commit_block if self._met[f"work {round_.index}"] == self._miners else block
        await self._go_to(to)
        return block

    async def _meet(self, asked: dict[str, Any]) -> bool:
        """Wait until all are at this point of the round."""
        where, index = f"{asked['ask']} {asked['round']}", asked["round"]
        self._met[where].add(asked["name"])
        everybody = self._miners if asked["ask"] in OF_MINERS else self._living
        if self._met[where] == everybody and asked["ask"] == "gathered":
            round_, voter = self._manifest.round(index), next(n for n in self._nodes if n["kind"] == VOTER)
            said = Commitment(
                Role.VALIDATOR, False, bytes.fromhex(voter["peer_key"]), self._manifest.tag, index,
                bytes.fromhex(asked["root"]), index, encode_slice_map([True] * 256),
            )  # fmt: skip
            self._write(voter, said, self._head + 1)
            await self._go_to(round_.map_block)
        elif self._met[where] == everybody and asked["ask"] == "contributed":
            await self._go_to(self._manifest.round(index).output_block)
        elif self._met[where] == everybody and asked["ask"] == "settled":
            await self._go_to(self._manifest.round(index + 1).start_block)
        async with self._moved:
            self._moved.notify_all()
            await self._moved.wait_for(lambda: self._met[where] >= everybody)
        return True

    async def _go_to(self, block: int) -> None:
        async with self._moved:
            self._head = max(self._head, block)
            self._moved.notify_all()


class NodeChain:
    """`chain.base.Chain` of one process: questions to the `MeetingChain`. A connection each for the long poll and the
    rest."""

    def __init__(self, plan: dict[str, Any], name: str, block_s: float) -> None:
        self._plan, self._name, self._block_s = plan, name, block_s
        self._lines: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._rosters: dict[int, Roster] = {}
        self._seen = 0
        self.wrote: Any = lambda fields: None  # told of every commitment before it is written

    async def _ask(self, ask: str, **more: Any) -> Any:
        key = ask if ask in MEETINGS or more.get("after", -1) >= 0 else "rest"
        async with self._locks[key]:
            if key not in self._lines:
                self._lines[key] = await asyncio.open_unix_connection(self._plan["socket"], limit=CHUNK_BYTES)
            reader, writer = self._lines[key]
            writer.write(json.dumps({"ask": ask, "name": self._name, **more}).encode() + b"\n")
            line = await reader.readline()
        if not line:
            raise ChainFault("the benchmark's chain has ended")
        return json.loads(line)

    async def meet(self, where: str, index: int, root: bytes = b"") -> None:
        """Until everybody is at this point of the round."""
        await self._ask(where, round=index, root=root.hex())

    async def head(self) -> Head:
        return await self.next_head(-1)

    async def next_head(self, after: int) -> Head:
        """When there is one after this block, or after a while."""
        self._seen = max(self._seen, number := await self._ask("head", after=after))
        return Head(number, number)

    async def block_hash(self, number: int) -> bytes:
        return number.to_bytes(32, "big")

    async def roster(self, block: int) -> Roster:
        if block not in self._rosters:
            if len(self._rosters) > 8:
                self._rosters.clear()
            said = await self._ask("roster", block=block)
            people = tuple(_neuron(node, said[str(node["uid"])]) for node in self._plan["nodes"])
            found = Roster(BlockRef(block, await self.block_hash(block)), people)
            if block >= self._seen:
                return found  # of a block that others may still write into
            self._rosters[block] = found
        return self._rosters[block]

    async def params(self) -> SubnetParams:
        return SubnetParams(self._plan["netuid"], 0, 1, self._block_s, "", "")

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        return {}

    async def commit(self, fields: Any, until: int | None = None) -> int:
        self.wrote(fields)
        return await self._ask("commit", fields=[[field.kind, field.data.hex()] for field in fields])

    async def serve(self, ip: str, port: int) -> None:
        """The plan has it."""

    async def set_weights(self, weights: Any, version_key: int) -> int:
        return 0


class WaitingChain:
    """What a `BlockClock` asks: answered when the head moves."""

    def __init__(self, chain: NodeChain) -> None:
        self._chain, self._seen = chain, 0

    async def head(self) -> Head:
        found = await self._chain.next_head(self._seen)
        self._seen = found.number
        return found


def _neuron(node: dict[str, Any], written: Any) -> Neuron:
    said = None if written is None else decode_commitment([Field(k, bytes.fromhex(d)) for k, d in written[1]])
    return Neuron(
        uid=node["uid"],
        hotkey=node["hotkey"],
        public_key=bytes.fromhex(node["public_key"]),
        stake=STAKE if node["kind"] == VOTER else 0.0,
        may_validate=node["kind"] == VOTER,
        registered_block=1,
        address=(node["ip"], node["port"]) if node["port"] else None,
        commitment=said,
        commitment_block=None if written is None else written[0],
        incentive=0.0,
        dividends=0.0,
        last_update=0,
        coldkey=bytes(32),
    )
