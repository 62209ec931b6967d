"""The one implementation of the Chain protocol: the bittensor SDK, over a real network or over the local chain."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import bittensor as bt

from distributed_training.chain.base import Head
from distributed_training.chain.keys import LocalKey, hotkey_public_key
from distributed_training.errors import ChainFault, ChainRefused, ChainUnreachable, ConfigError, named, said
from distributed_training.protocol.types import BlockRef, Field, Neuron, Roster, SubnetParams
from distributed_training.protocol.wire import decode_commitment

T = TypeVar("T")
READ_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 180.0
MAX_FIELDS = 3
MAX_RAW_BYTES = 128
HANDSHAKE_REFUSED = "rejected the WebSocket handshake"
RAW_KIND = re.compile(r"Raw(0|[1-9][0-9]{0,2})")
PORT = re.compile(r"[1-9][0-9]{0,4}")
HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


class BittensorChain:
    """See chain.base.Chain for the contract. Make it with `connect`, end it with `close`."""

    def __init__(self, client: bt.Client, netuid: int, signer: LocalKey) -> None:
        self._client = client
        self._netuid = netuid
        self._signer = signer

    @classmethod
    async def connect(
        cls,
        *,
        netuid: int,
        network: str,
        endpoint: str | None,
        signer: LocalKey,
        cache_dir: Path,
        substrate: bt.Substrate | None = None,
    ) -> BittensorChain:
        """Open the connection. `endpoint` (ws://...) wins over `network`; `substrate` wins over both.

        The SDK keeps its caches in `cache_dir` instead of the user's home. ConfigError for a network name it does not
        know, ChainUnreachable when nobody answers.
        """
        os.environ.setdefault("BTCLI_TOKEN_SYMBOLS_CACHE", str(cache_dir / "token_symbols.json"))
        os.environ.setdefault("BITTENSOR_RUNTIME_CACHE_DIR", str(cache_dir / "runtime"))
        try:
            subtensor = bt.Subtensor("local" if substrate else endpoint or network, substrate=substrate)
        except ValueError as error:
            raise ConfigError(f"--subtensor.network {endpoint or network!r}: {error}") from error

        async def connected() -> bt.Client:
            return await subtensor

        return cls(await guarded(connected(), READ_TIMEOUT_S), netuid, signer)

    async def close(self) -> None:
        await guarded(self._client.close(), READ_TIMEOUT_S)

    async def head(self) -> Head:
        number, finalized = await guarded(
            asyncio.gather(self._client.block(), self._client.finalized_block()), READ_TIMEOUT_S
        )
        return Head(number, min(number, finalized))

    async def block_hash(self, number: int) -> bytes:
        if number < 0:
            raise ChainFault(f"there is no block {number}")
        info = await guarded(self._client.block_info(number), READ_TIMEOUT_S)
        if info is None or info.hash is None:
            raise ChainFault(f"block {number} does not exist yet")
        return bytes.fromhex(info.hash.removeprefix("0x"))

    async def roster(self, block: int) -> Roster:
        number_hash, graph = await asyncio.gather(self.block_hash(block), self._metagraph(block))
        neurons = tuple(self._neuron(neuron) for neuron in graph.neurons)
        return Roster(BlockRef(block, number_hash), neurons)

    async def _metagraph(self, block: int) -> bt.Metagraph:
        async def read() -> bt.Metagraph | None:
            snapshot = await self._client.at(block)
            return await snapshot.subnets.metagraph(self._netuid)

        graph = await guarded(read(), READ_TIMEOUT_S)
        if graph is None:
            raise ChainFault(f"subnet {self._netuid} does not exist on this chain at block {block}")
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
        )

    async def params(self) -> SubnetParams:
        async def read() -> tuple[bt.Metagraph | None, int, float]:
            graph = await self._client.subnets.metagraph(self._netuid, commitments=False)
            limit = await self._client.hyperparameters.weights_rate_limit(netuid=self._netuid)
            return graph, limit, await self._client.block_time()

        graph, limit, block_s = await guarded(read(), READ_TIMEOUT_S)
        if graph is None:
            raise ConfigError(f"--netuid {self._netuid}: no such subnet on this chain")
        return SubnetParams(self._netuid, graph.tempo, limit, block_s, graph.owner_hotkey, graph.owner_coldkey)

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        async def read() -> dict[int, dict[int, float]]:
            snapshot = await self._client.at(block)
            return await snapshot.weights.weights(self._netuid)

        return await guarded(read(), READ_TIMEOUT_S)

    async def commit(self, fields: Sequence[Field]) -> int:
        check_fields(fields)
        info = {"fields": [encode_field(field) for field in fields]}
        call = bt.calls.Commitments.set_commitment(netuid=self._netuid, info=info)
        return await self._included(
            self._client.submit_call(call, self._signer.keypair, signer="hotkey", wait_for_finalization=False)
        )

    async def serve(self, ip: str, port: int) -> None:
        """Publish `ip` (a literal address; the chain refuses 127.0.0.1 itself, other loopback ones pass) and `port`."""
        head = await self.head()
        graph = await self._metagraph(head.number)
        present = graph.by_hotkey(self._signer.hotkey)
        if present is None or parse_address(present.axon) != (ip, port):
            await self._included(
                self._client.execute(
                    bt.ServeAxon(self._netuid, ip, port), self._signer.keypair, wait_for_finalization=False
                )
            )

    async def set_weights(self, weights: Mapping[int, float], version_key: int) -> int:
        if not any(weight > 0 for weight in weights.values()):
            raise ChainRefused("all weights are zero; nothing to set", "invalid_argument")
        intent = bt.SetWeights(self._netuid, weights=dict(sorted(weights.items())), version_key=version_key)
        return await self._included(self._client.execute(intent, self._signer.keypair, wait_for_finalization=False))

    async def _included(self, submission: Awaitable[bt.ExtrinsicResult]) -> int:
        """The block a write got into. The SDK raises what it finds out itself and returns what the chain says."""
        try:
            result = await guarded(submission, WRITE_TIMEOUT_S)
        except ChainUnreachable:
            raise
        except ChainFault as fault:
            cause = fault.__cause__
            if isinstance(cause, bt.ChainError):
                raise ChainRefused(str(fault), cause.code.value) from fault
            raise
        if not result.success:
            code = result.error.code.value if result.error else "unknown"
            raise ChainRefused(result.message, code)
        if result.extrinsic_id is None:
            raise ChainFault("the write was sent, but the chain did not say in which block it is")
        return int(result.extrinsic_id.split("-")[0])


async def guarded(work: Awaitable[T], timeout_s: float) -> T:
    """Await an SDK call and turn whatever it raises into our errors.

    The SDK lets private exceptions and plain ValueErrors through when a runtime differs from what it expects, so this
    boundary catches all of them.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except (ChainFault, ConfigError):
        raise
    except TimeoutError as error:
        raise ChainUnreachable(f"the chain did not answer within {timeout_s:.0f} s") from error
    except (bt.RpcConnectionError, OSError) as error:
        raise ChainUnreachable(named(error)) from error
    except bt.ChainError as error:
        # A proxy whose node is down answers the handshake with HTTP 502; the SDK calls that an error of the chain.
        fault = ChainUnreachable if HANDSHAKE_REFUSED in str(error) else ChainFault
        raise fault(said(error)) from error
    except Exception as error:
        raise ChainFault(named(error)) from error


def check_fields(fields: Sequence[Field]) -> None:
    """Sizes the chain's codec can encode; it would refuse others without saying why."""
    sizes = all(len(f.data) == 32 if f.kind == "Sha256" else len(f.data) <= MAX_RAW_BYTES for f in fields)
    if len(fields) > MAX_FIELDS or not sizes or any(f.kind not in ("Raw", "Sha256") for f in fields):
        raise ChainRefused(
            f"a commitment has at most {MAX_FIELDS} fields: Raw of up to {MAX_RAW_BYTES} bytes or Sha256 of 32",
            "invalid_argument",
        )


def encode_field(field: Field) -> dict[str, str]:
    kind = f"Raw{len(field.data)}" if field.kind == "Raw" else field.kind
    return {kind: "0x" + field.data.hex()}


def parse_fields(stored: Sequence[Any]) -> tuple[Field, ...] | None:
    """On-chain commitment fields as decoded by the SDK; None if one is of a kind we do not write."""
    fields = [parse_field(entry) for entry in stored]
    return None if None in fields else tuple(field for field in fields if field is not None)


def parse_field(entry: Any) -> Field | None:
    if not isinstance(entry, dict) or len(entry) != 1:
        return None
    ((kind, value),) = entry.items()
    raw = RAW_KIND.fullmatch(str(kind))
    size = 32 if kind == "Sha256" else int(raw[1]) if raw else None
    data = None if size is None or size > MAX_RAW_BYTES else payload_bytes(value, size)
    if data is None:
        return None
    return Field("Sha256" if kind == "Sha256" else "Raw", data)


def payload_bytes(value: Any, size: int) -> bytes | None:
    """`size` bytes from hex text, bytes or a list of byte values; None for anything else. Bounded before it is read."""
    if isinstance(value, str):
        return bytes.fromhex(value[2:]) if len(value) == 2 + 2 * size and HEX.fullmatch(value) else None
    if not isinstance(value, bytes | bytearray | list | tuple) or len(value) != size:
        return None
    try:
        return bytes(value)
    except (ValueError, TypeError):
        return None


def parse_address(axon: str | None) -> tuple[str, int] | None:
    """The SDK's "ip:port" or "[ip]:port" -> (ip, port); None when nothing is served or it makes no sense."""
    if axon is None:
        return None
    host, _, port = axon.rpartition(":")
    if PORT.fullmatch(port) is None or "%" in host:  # a scope names an interface of somebody's machine
        return None
    try:
        ip, number = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
    except ValueError:
        return None
    return (ip, number) if number < 65536 else None
