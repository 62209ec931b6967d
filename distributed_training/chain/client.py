"""The one implementation of the Chain protocol: the bittensor SDK, over a real network or over the local chain."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import bittensor as bt
from bittensor.settings import default_archive_endpoints

from distributed_training.chain.answers import guarded, included
from distributed_training.chain.base import Head
from distributed_training.chain.fields import check_fields, encode_field, parse_address, parse_fields
from distributed_training.chain.heads import Heads
from distributed_training.chain.keys import LocalKey, hotkey_public_key
from distributed_training.chain.line import READ_TIMEOUT_S, Line, Link
from distributed_training.chain.spending import NodePolicy
from distributed_training.chain.subnet import untested
from distributed_training.chain.weights import WeightCalls
from distributed_training.errors import ChainFault, ChainRefused, ChainUnreachable, ConfigError, StatePruned
from distributed_training.protocol.commitments import decode_commitment
from distributed_training.protocol.types import BlockRef, Field, Neuron, Roster, SubnetParams

T = TypeVar("T")
WRITE_BLOCKS = 8  # that a write may take where nobody says until when
MOST_ERA_BLOCKS = 64
LEAST_WRITE_S = 30.0
LOOK_BLOCKS = 100
RECENT_BLOCKS = 256  # that every node of a chain has, or will have soon
NO_BLOCK = "no block at height"

log = logging.getLogger(__name__)


class BittensorChain:
    """See chain.base.Chain for the contract. Opens at its first call, or with `connect`; end it with `close`."""

    def __init__(self, line: Line, netuid: int, signer: LocalKey, archive: Line | None = None) -> None:
        self._line, self._netuid, self._signer, self._archive = line, netuid, signer, archive
        self._weights = WeightCalls(netuid, signer.keypair)
        self._heads: Heads | None = None
        self._look_at = 1
        self._spec, self._news = 0, ""
        self._tell: Callable[[str], None] = lambda news: None

    @classmethod
    def over(
        cls,
        *,
        netuid: int,
        network: str,
        endpoint: str | None,
        signer: LocalKey,
        cache_dir: Path,
        substrate: bt.Substrate | None = None,
        fallback: Sequence[str] = (),
        archive: str | None = None,
    ) -> BittensorChain:
        """`endpoint` (ws://...) wins over `network`; `substrate` wins over both. Nothing is opened yet.

        fallback: endpoints of the same chain for when one breaks; archive: for what ordinary nodes have dropped. The
        SDK keeps its caches in `cache_dir` instead of the user's home. ConfigError for a network name it does not know.
        """
        os.environ.setdefault("BTCLI_TOKEN_SYMBOLS_CACHE", str(cache_dir / "token_symbols.json"))
        os.environ.setdefault("BITTENSOR_RUNTIME_CACHE_DIR", str(cache_dir / "runtime"))
        first = "local" if substrate else endpoint or network
        old = [archive] if archive is not None else default_archive_endpoints(first)
        return cls(Line([first, *fallback], substrate, NodePolicy(netuid)), netuid, signer, Line(old) if old else None)

    @classmethod
    async def connect(cls, **options: Any) -> BittensorChain:
        """`over` these options, opened. ChainUnreachable when nobody answers."""
        chain = cls.over(**options)
        await chain._opened()
        return chain

    async def ask(self, read: Callable[[bt.Client], Awaitable[T]], timeout_s: float = READ_TIMEOUT_S) -> T:
        """What only people ask (subnet.py), over the SDK's client of the present connection."""
        return await self._line.ask(read, timeout_s)

    async def close(self) -> None:
        for part in (self._heads, self._line, self._archive):
            if part is not None:
                await part.close()

    async def head(self) -> Head:
        head = await (await self._opened()).head()
        if head.finalized >= self._look_at:
            await self._look(head.finalized)
            self._look_at = head.finalized + LOOK_BLOCKS
        return head

    async def _look(self, final: int) -> None:
        """Which chain is this, and do we know its rules? Two hashes tell it from another one, or itself begun anew."""

        async def read(link: Link) -> tuple[dict[int, bytes | None], int]:
            known = (1, min(final, await link.finalized_block()))  # another node may have said what is final
            return {number: await link.hash_of(number) for number in known}, await link.spec_version()

        hashes, spec = await self._line.ask(read)
        self._line.known = {number: known for number, known in hashes.items() if known is not None}
        if (news := untested(spec)) and spec != self._spec:
            self._news = news
            log.warning("%s", self._news)
            self._tell(self._news)
        self._spec = spec

    def tell_news(self, tell: Callable[[str], None]) -> None:
        """What is said of the chain's runtime goes here too, beside the log."""
        self._tell = tell
        if self._news:
            tell(self._news)

    async def _opened(self) -> Heads:
        if self._heads is None:
            block_s = await self._line.ask(lambda link: link.block_time())
            self._heads = self._heads or Heads(self._line, block_s)  # another caller's is there, and followed
        return self._heads

    async def block_hash(self, number: int) -> bytes:
        if number < 0:
            raise ChainFault(f"there is no block {number}")

        async def read(link: Link) -> bytes:
            found = await link.hash_of(number)
            if found is None:
                raise ChainFault(f"{NO_BLOCK} {number}")
            return found

        return await self._read(number, read)

    async def _read(self, block: int, read: Callable[[Link], Awaitable[T]]) -> T:
        """A read of a past block: from an archive node what ours has dropped."""

        async def there(link: Link) -> T:
            try:
                return await guarded(read(link), READ_TIMEOUT_S)
            except ChainFault as fault:
                behind = -1 if self._heads is None else self._heads.number - block
                if NO_BLOCK in str(fault) and 0 <= behind < RECENT_BLOCKS:
                    raise ChainUnreachable(f"it does not have block {block} yet") from fault
                raise

        try:
            return await self._line.ask(there)
        except StatePruned as fault:
            if self._archive is None:
                raise StatePruned(
                    f"the chain node no longer has the state of block {block} (nodes keep 256 blocks); name one that "
                    f"has: --subtensor.archive_endpoint wss://..."
                ) from fault
        known = await self.block_hash(block)

        async def kept(link: Link) -> T:
            if await link.hash_of(block) != known:
                raise ChainFault(
                    f"--subtensor.archive_endpoint: block {block} there is not the block {block} of our chain node; "
                    "it serves another chain, or lies"
                )
            return await read(link)

        return await self._archive.ask(kept)

    async def roster(self, block: int) -> Roster:
        number_hash, graph = await self.block_hash(block), await self._metagraph(block)
        neurons = tuple(self._neuron(neuron) for neuron in graph.neurons)
        return Roster(BlockRef(block, number_hash), neurons)

    async def _metagraph(self, block: int) -> bt.Metagraph:
        async def read(link: Link) -> bt.Metagraph | None:
            snapshot = await link.at(block)
            return await snapshot.subnets.metagraph(self._netuid)

        graph = await self._read(block, read)
        if graph is None:
            where = f"no such subnet on this chain at block {block}"
            raise ConfigError(f"--netuid {self._netuid}: {where}; those with runs: python -m distributed_training.runs")
        return graph

    def _neuron(self, neuron: Any) -> Neuron:
        """One uid. A commitment older than the registration belongs to a former life of the hotkey: absent."""
        written = neuron.commitment
        if written is not None and (written.block < neuron.block_at_registration or not written.fields):
            written = None
        fields = None if written is None else parse_fields(written.fields)
        return Neuron(
            uid=neuron.uid,
            hotkey=neuron.hotkey,
            public_key=hotkey_public_key(neuron.hotkey),
            stake=neuron.total_stake.rao / 1e9,
            may_validate=neuron.validator_permit,
            registered_block=neuron.block_at_registration,
            address=parse_address(neuron.axon),
            commitment=None if fields is None else decode_commitment(fields),
            commitment_block=None if written is None else written.block,
            incentive=neuron.incentive,
            dividends=neuron.dividends,
            last_update=neuron.last_update,
            coldkey=hotkey_public_key(neuron.coldkey),
        )

    async def params(self) -> SubnetParams:
        params = await self._line.ask(self._weights.params)
        if params is None:
            raise ConfigError(f"--netuid {self._netuid}: no such subnet on this chain")
        return params

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        async def read(link: Link) -> dict[int, dict[int, float]]:
            snapshot = await link.at(block)
            return await snapshot.weights.weights(self._netuid)

        return await self._read(block, read)

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        check_fields(fields)
        info = {"fields": [encode_field(field) for field in fields]}
        call = bt.calls.Commitments.set_commitment(netuid=self._netuid, info=info)
        return await self._written(
            lambda link, period: link.submit_call(
                call, self._signer.keypair, signer="hotkey", period=period, wait_for_finalization=False
            ),
            until,
        )

    async def serve(self, ip: str, port: int) -> None:
        """Publish `ip` (a literal address; the chain refuses 127.0.0.1 itself, other loopback ones pass) and `port`."""
        graph = await self._metagraph((await self.head()).number)
        present = graph.by_hotkey(self._signer.hotkey)
        if present is None or parse_address(present.axon) != (ip, port):
            intent = bt.ServeAxon(self._netuid, ip, port)
            how: dict[str, Any] = {"wait_for_finalization": False}
            await self._written(lambda link, period: link.execute(intent, self._signer.keypair, period=period, **how))

    async def set_weights(self, weights: Mapping[int, float], version_key: int) -> int:
        if not any(weight > 0 for weight in weights.values()):
            raise ChainRefused("all weights are zero; nothing to set", "invalid_argument")
        return await self._written(lambda link, period: self._weights.submit(link, weights, version_key, period=period))

    async def _written(
        self, submit: Callable[[Link, int], Awaitable[bt.ExtrinsicResult]], until: int | None = None
    ) -> int:
        """The block a write got into. It is valid, and waited for, not much longer than it is worth anything."""
        heads = await self._opened()
        head = await heads.head()
        left = WRITE_BLOCKS if until is None else min(max(1, until - head.number), MOST_ERA_BLOCKS)
        period = max(4, 1 << (left + head.number - head.finalized).bit_length())  # the SDK's starts at the final block
        limit_s = max(LEAST_WRITE_S, (left + 2) * heads.block_s)
        try:
            return await self._line.ask(lambda link: included(submit(link, period), limit_s), limit_s + READ_TIMEOUT_S)
        finally:
            heads.doubt()  # whatever came of it, the next look is not older
