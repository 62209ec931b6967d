"""What becomes of a submitted extrinsic: checked as a pool checks it, put into a block, told about in its events."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from typing import Any

import bittensor as bt

from devnode.chain import DevChain
from devnode.root import Root
from devnode.runtime import Runtime
from devnode.scale import compact, read_compact
from distributed_training.chain.keys import hotkey_public_key, verify
from distributed_training.chain.local.calls import compose_fields

SIGNED_BYTES = 1 + 33 + 65  # version, address, signature: what stands before an extrinsic's extra
CUSTOM_ERRORS = {
    "RateLimitExceeded": 6, "HotKeyNotRegisteredInNetwork": 10, "InvalidIpAddress": 11,
    "ServingRateLimitExceeded": 12, "InvalidPort": 13, "HotKeyNotRegisteredInSubNet": 19, "SubnetNotExists": 3,
}  # fmt: skip
PALLETS_OF_ERRORS = ("SubtensorModule", "Commitments", "AdminUtils", "System")


class RpcError(Exception):
    """A JSON-RPC error, as the node words it."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, **({} if data is None else {"data": data})}


@dataclass(slots=True)
class Extrinsic:
    raw: bytes
    hash: str
    signer: str
    nonce: int
    call: dict[str, Any]
    block: int = 0  # it got into; 0: none yet
    place: str = ""  # hash of that block
    error: str | None = None  # the pallet's name of its failure
    applied: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Blocks:
    """Extrinsics by block hash, and the blocks that a reorganisation took off the chain."""

    content: dict[str, list[Extrinsic]] = field(default_factory=lambda: defaultdict(list))
    dead: set[str] = field(default_factory=set)

    def events(self, place: str, errors: dict[tuple[str, str], tuple[int, int]]) -> bytes:
        """System.Events: one of success or failure for each extrinsic."""
        found = self.content.get(place, ())
        return compact(len(found)) + b"".join(event(i, extrinsic.error, errors) for i, extrinsic in enumerate(found))


def event(index: int, error: str | None, errors: dict[tuple[str, str], tuple[int, int]]) -> bytes:
    """One record: phase ApplyExtrinsic, System.ExtrinsicSuccess or ExtrinsicFailed with a module's error, no topics."""
    phase, info = b"\0" + index.to_bytes(4, "little"), b"\0\0\0\0"  # weight of two numbers, class, pays
    if error is None:
        return phase + b"\0\0" + info + b"\0"
    pallet, number = next((errors[p, error] for p in PALLETS_OF_ERRORS if (p, error) in errors), (255, 255))
    return phase + b"\0\1" + b"\3" + bytes([pallet, number, 0, 0, 0]) + info + b"\0"


class Pool:
    """`lose` and `withhold` count down: writes that a reorganisation drops, and writes that never get into a block."""

    def __init__(self, chain: DevChain, runtime: Runtime, genesis: str, root: Root) -> None:
        self.chain, self._genesis, self._root = chain, genesis, root
        self.runtime = runtime
        self.blocks = Blocks()
        self.used: dict[str, int] = defaultdict(int)  # account -> its next nonce, with what goes into the next block
        self.taken: dict[tuple[str, int], Extrinsic] = {}  # by account and nonce: in a block, or going into the next
        self.waiting: dict[tuple[str, int], Extrinsic] = {}  # of a future nonce, and those withheld
        self.accepted = 0
        self.lose = 0
        self.withhold = 0

    def next_index(self, account: str) -> int:
        nonce = self.used[account]
        while (account, nonce) in self.waiting:
            nonce += 1
        return nonce

    def nonce(self, account: str, block: int) -> int:
        """What the state of a block says: how many of its numbers are used up there."""
        return sum(who == account and found.block <= block for (who, _), found in self.taken.items())

    async def submit(self, raw: bytes) -> Extrinsic:
        """RpcError when the pool refuses it. It may be in a block when this returns, or wait for an earlier one."""
        extrinsic = await self._read(raw)
        place, head = (extrinsic.signer, extrinsic.nonce), await self.chain.block_number()
        former = self.waiting.get(place) or self.taken.get(place)
        if former is not None and not 0 < former.block <= head:
            if former.hash == extrinsic.hash:
                raise RpcError(1013, "Transaction Already Imported", extrinsic.hash)
            text = "The transaction has too low priority to replace another transaction already in the pool."
            raise RpcError(1014, "Priority is too low: (9 vs 9)", text)
        if extrinsic.nonce < self.used[extrinsic.signer]:
            raise RpcError(1010, "Invalid Transaction", "Transaction is outdated")
        self.accepted += 1
        self.waiting[place] = extrinsic
        if self.withhold > 0:
            self.withhold -= 1
            return extrinsic
        try:
            while (now := self.waiting.get((extrinsic.signer, self.used[extrinsic.signer]))) is not None:
                await self._apply(now)
        except RpcError:
            del self.waiting[place]
            raise
        return extrinsic

    async def _read(self, raw: bytes) -> Extrinsic:
        codec = self.runtime.codec
        try:
            found = codec.decode_extrinsic(raw)
        except Exception as error:
            raise RpcError(1002, "Verification Error: Runtime error: Execution failed", str(error)) from error
        period, phase = found["era"] if isinstance(found["era"], tuple) else (0, 0)
        era: dict[str, int] | str = "00"
        birth, head = self._genesis, await self.chain.block_number()
        if period:
            born = (max(head, phase) - phase) // period * period + phase
            era = {"period": period, "current": born}
            birth = await self.chain.block_hash(born)
        _, extra, more = codec.signature_payload_parts(
            b"", era=era, nonce=found["nonce"], tip=found["tip"], tip_asset_id=None, genesis_hash=self._genesis,
            era_block_hash=birth,
        )  # fmt: skip
        call = raw[read_compact(raw)[1] + SIGNED_BYTES + len(extra) :]
        payload = call + extra + more
        signed = blake2b(payload, digest_size=32).digest() if len(payload) > 256 else payload
        signature = bytes.fromhex(found["signature"]["Sr25519"].removeprefix("0x"))
        if not verify(hotkey_public_key(found["address"]), signed, signature):
            raise RpcError(1010, "Invalid Transaction", "Transaction has a bad signature")
        name = "0x" + blake2b(raw, digest_size=32).hexdigest()
        return Extrinsic(raw, name, found["address"], found["nonce"], codec.decode_call(call))

    async def _apply(self, extrinsic: Extrinsic) -> None:
        if self.lose > 0:
            self.lose -= 1
            await self._include_in_dead_block(extrinsic)
            return
        extrinsic.block, extrinsic.error = await asyncio.to_thread(self._dispatch, extrinsic)
        if extrinsic.block == 0:
            number = CUSTOM_ERRORS.get(extrinsic.error or "", 255)
            raise RpcError(1010, "Invalid Transaction", f"Custom error: {number}")
        extrinsic.place = self.chain.hash_of(extrinsic.block)
        self.used[extrinsic.signer] = extrinsic.nonce + 1
        self.taken[extrinsic.signer, extrinsic.nonce] = extrinsic
        self._included(extrinsic)

    def _dispatch(self, extrinsic: Extrinsic) -> tuple[int, str | None]:
        """Blocking. (block it went to, 0 for none, and the name of its error)."""
        call = plain_call(extrinsic.call)
        special = self._root.known(call.module, call.function)
        if special is not None:
            error = special(extrinsic.signer, call.params)
            return self.chain.next_block(), error
        block, result = self.chain.apply(call, extrinsic.signer)
        return block, result.error.name if result.error else None

    async def _include_in_dead_block(self, extrinsic: Extrinsic) -> None:
        """A block that is told of once and then no part of the chain: the write is lost, its nonce is free again."""
        extrinsic.block = await self.chain.block_number() + 1
        extrinsic.place = "0x" + sha256(f"dead{extrinsic.hash}".encode()).hexdigest()
        self.blocks.dead.add(extrinsic.place)
        self._included(extrinsic)

    def _included(self, extrinsic: Extrinsic) -> None:
        self.waiting.pop((extrinsic.signer, extrinsic.nonce), None)
        self.blocks.content[extrinsic.place].append(extrinsic)
        extrinsic.applied.set()


def plain_call(found: dict[str, Any]) -> bt.calls.Call:
    """The decoded call in the form the local chain takes."""
    args = {arg["name"]: arg["value"] for arg in found["call_args"]}
    function = found["call_function"]
    if function == "set_commitment":
        args["info"] = {"fields": compose_fields(args["info"]["fields"])}
    if function == "set_weights":  # the older name of the same thing, for mechanism 0
        function, args = "set_mechanism_weights", {**args, "mecid": 0}
    return bt.calls.Call(found["call_module"], function, args)
