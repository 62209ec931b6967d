"""The way to the chain: one connection at a time, to the next endpoint of a list when one breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import bittensor as bt
from bittensor.settings import default_fallback_endpoints, resolve_endpoint

from distributed_training.chain.answers import guarded, refusal_of
from distributed_training.chain.nonces import Nonces
from distributed_training.errors import ChainFault, ChainReplaced, ChainUnreachable, ConfigError, named

T = TypeVar("T")
READ_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 2.0
LAST_WORD_S = 0.1  # for the SDK to say why it could not connect
SEEN_BLOCKS = 3  # an older block than that was seen by whoever looked before it writes
CONNECT_TIMEOUT_S = 30.0  # the runtime's description, a megabyte, comes with the first connection

log = logging.getLogger(__name__)


class Wire(bt.RpcSubstrate):
    """The SDK's connection, with numbers of writes that outlive it."""

    def __init__(self, endpoint: str, fallback: Sequence[str], nonces: Nonces) -> None:
        # Archive nodes are asked by the client, which compares what they say.
        super().__init__(endpoint, fallback_endpoints=list(fallback), archive_endpoints=[])
        self._nonces = nonces

    async def plain_hash(self, number: int) -> str | None:
        """As the node knows it now: not from the SDK's cache, nor by way of the block's content."""
        return await self._read(lambda raw: raw.rpc_request("chain_getBlockHash", [number]))

    async def submit(self, call: Any, keypair: Any, *, nonce: int | None = None, **options: Any) -> bt.ExtrinsicResult:
        address = keypair.ss58_address

        async def used_up() -> int:
            """Some blocks ago: what landed since then, nobody may have seen yet, and its number is refused as old."""
            then = await self.plain_hash(max(0, await self.block_number() - SEEN_BLOCKS))
            asked = ["AccountNonceApi_account_nonce", "0x" + bytes(keypair.public_key).hex(), then]
            answer = await self._read(lambda raw: raw.rpc_request("state_call", asked))
            return int.from_bytes(bytes.fromhex(answer.removeprefix("0x")), "little")

        async def unused() -> int:
            return await self._read(lambda raw: raw.get_account_next_index(address, use_cache=False))

        number = await self._nonces.take(used_up, unused)
        used: bool | None = None
        try:
            result = await super().submit(call, keypair, nonce=number, **options)
            used = uses_up(result)
            return result
        finally:
            self._nonces.done(number, used)


def uses_up(result: bt.ExtrinsicResult) -> bool | None:
    """Did a write use up its number? None: it may have, or an earlier one with that number may."""
    if result.success or result.extrinsic_id is not None:
        return True
    refusal = refusal_of(result.error, result.message)
    return False if not refusal.passes or (result.error is not None and result.error.name == "Future") else None


class Link(bt.Client):
    """One connection, and what it runs over."""

    def __init__(self, network: str, wire: bt.Substrate, policy: bt.Policy | None) -> None:
        super().__init__(network, policy=policy, substrate=wire)
        self._wire = wire
        self.sessions: set[asyncio.Task[None]] = set()  # the SDK's tasks behind it: over when it is

    @property
    def ended(self) -> bool:
        return any(session.done() for session in self.sessions)

    async def hash_of(self, number: int) -> bytes | None:
        """The plain hash of a block, which every node keeps. None (or ChainError): there is none at this node."""
        wire = self._wire
        found = await (wire.plain_hash(number) if isinstance(wire, Wire) else wire.block_hash(number))
        return None if found is None else bytes.fromhex(found.removeprefix("0x"))


class Line:
    """`endpoints`: names of networks or URLs, of one chain; `local`: a substrate of this process instead;
    `policy`: what may be signed.

    known: hashes of final blocks. A connection to a chain where one differs raises ChainReplaced.
    """

    def __init__(
        self, endpoints: Sequence[str], local: bt.Substrate | None = None, policy: bt.Policy | None = None
    ) -> None:
        self._endpoints, self._local, self._policy = tuple(endpoints), local, policy
        try:
            for endpoint in self._endpoints:
                resolve_endpoint(endpoint)
        except ValueError as error:
            raise ConfigError(f"--subtensor.network: {error}") from error
        self._index = self._tries = 0
        self._why = ""
        self._nonces = Nonces()
        self._opening = asyncio.Lock()
        self.link: Link | None = None  # None: not opened yet, or broken
        self.known: dict[int, bytes] = {}

    @property
    def endpoint(self) -> str:
        return self._endpoints[self._index]

    async def ask(self, read: Callable[[Link], Awaitable[T]], timeout_s: float = READ_TIMEOUT_S) -> T:
        """Do something over the present connection, made if need be. One that breaks gives way to the next endpoint."""
        tries = self._tries
        async with self._opening:
            if self.link is not None and self.link.ended:
                await self.broke(self.link)
            if self.link is None and self._tries != tries:
                raise ChainUnreachable(self._why)  # somebody has just tried for us
            link = self.link = self.link or await self._open()
        try:
            return await _while_it_lasts(link, guarded(read(link), timeout_s))
        except ChainUnreachable as fault:
            endpoint = self.endpoint
            if not isinstance(fault.__cause__, bt.RpcPolicyError) or len(self._endpoints) > 1:
                await self.broke(link)  # else the same node would be asked for even more
            raise ChainUnreachable(f"{endpoint}: {fault}") from fault

    async def broke(self, link: Link) -> None:
        """This connection is of no use any more; others' requests over it end with it."""
        if self.link is not link or self._local is not None:
            return
        self.link = None
        self._index = (self._index + 1) % len(self._endpoints)
        await _closed(link)

    async def close(self) -> None:
        if self.link is not None:
            await _closed(self.link)
        self.link = None

    async def _open(self) -> Link:
        endpoint = self.endpoint
        network, url = resolve_endpoint(endpoint)
        wire = Wire(url, default_fallback_endpoints(endpoint), self._nonces)
        # The SDK's own substrate differs from its protocol.
        link = Link(network, self._local or cast(bt.Substrate, wire), self._policy)
        before = _sessions()
        connecting = asyncio.create_task(guarded(link.connect(), CONNECT_TIMEOUT_S))
        try:
            await asyncio.sleep(0)  # the SDK begins its session in the first step
            link.sessions = _sessions() - before
            for session in link.sessions:  # else asyncio prints the trace of an error that nobody asks for
                session.add_done_callback(lambda over: over.cancelled() or over.exception())
            await _while_it_lasts(link, connecting, LAST_WORD_S)
            await _while_it_lasts(link, guarded(self.check(link), READ_TIMEOUT_S))
        except BaseException as error:
            connecting.cancel()
            self._index = (self._index + 1) % len(self._endpoints)
            await _closed(link)
            if isinstance(error, ChainUnreachable):
                self._tries, self._why = self._tries + 1, f"{endpoint}: {error}"
                raise ChainUnreachable(self._why) from error
            raise
        return link

    async def check(self, link: Link) -> None:
        """Is this the chain that we know? A node that does not have a block, or not for final yet, says nothing."""
        final = await link.finalized_block() if self.known else 0
        for number, known in sorted(self.known.items()):
            found = None
            with suppress(bt.ChainError):
                found = await link.hash_of(number)
            if found not in (None, known) and number <= max(1, final):
                raise ChainReplaced(
                    f"{self.endpoint} is not the chain that this node knows: block {number}, final then, had the hash "
                    f"0x{known.hex()[:12]}, here it is 0x{found.hex()[:12]}; the chain began anew (a node of a new one "
                    "needs a new --run-dir), or --subtensor.chain_endpoint or .fallback names another"
                )


async def _closed(link: Link) -> None:
    with suppress(ChainFault):
        await guarded(link.close(), CLOSE_TIMEOUT_S)


def _sessions() -> set[asyncio.Task[None]]:
    return {task for task in asyncio.all_tasks() if task.get_name() == "rpc-session"}


def _ended_with(link: Link) -> str:
    """What the SDK's session of a connection ended with, where it ended with an error."""
    errors = [session.exception() for session in link.sessions if session.done() and not session.cancelled()]
    return "".join(f" ({named(error)})" for error in errors if error is not None)


async def _while_it_lasts(
    link: Link, answer: Coroutine[None, None, T] | asyncio.Task[T], last_word_s: float = 0.0
) -> T:
    """The SDK lets requests wait when a node closes the connection properly, and its task ends with an error."""
    asked = asyncio.ensure_future(answer)
    try:
        await asyncio.wait({asked, *link.sessions}, return_when=asyncio.FIRST_COMPLETED)
        if last_word_s:
            await asyncio.wait({asked}, timeout=last_word_s)
        if not asked.done():  # unsubscribing, the SDK dials anew: before the link is closed, or it stays open
            asked.cancel()
            await asyncio.wait({asked}, timeout=CLOSE_TIMEOUT_S)
        if not asked.done() or asked.cancelled():  # the latter by the SDK
            raise ChainUnreachable(f"the connection ended{_ended_with(link)}")
        return asked.result()
    finally:
        if not asked.cancel() and not asked.cancelled():
            asked.exception()  # ours was cancelled in that moment: nobody else will ask
