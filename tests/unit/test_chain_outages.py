"""What is an outage of the chain, and that only reads wait for its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import bittensor as bt
import pytest

from distributed_training.chain.answers import guarded
from distributed_training.chain.base import Chain, Head
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.chain.patient import PatientChain
from distributed_training.errors import ChainFault, ChainRefused, ChainUnreachable
from distributed_training.protocol.types import BlockRef, Field, Roster, SubnetParams

T = TypeVar("T")
BLOCK_S = 0.01
PARAMS = SubnetParams(7, 100, 3, BLOCK_S, "5F", "5G")


class FlakyChain:
    """Answers every call after `failures` of them raised `fault`."""

    def __init__(self, failures: int = 0, fault: ChainFault | None = None) -> None:
        self.failures, self.fault, self.asked = failures, fault or ChainUnreachable("nobody there"), 0

    def _answer(self, value: T) -> T:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise self.fault
        return value

    async def head(self) -> Head:
        return self._answer(Head(7, 5))

    async def block_hash(self, number: int) -> bytes:
        return self._answer(bytes(31) + bytes([number]))

    async def roster(self, block: int) -> Roster:
        return self._answer(Roster(BlockRef(block, bytes(32)), ()))

    async def params(self) -> SubnetParams:
        return self._answer(PARAMS)

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        return self._answer({block: {1: 1.0}})

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        return self._answer(8)

    async def serve(self, ip: str, port: int) -> None:
        self._answer(None)

    async def set_weights(self, weights: Mapping[int, float], version_key: int) -> int:
        return self._answer(9)


READS: dict[str, Callable[[Chain], Awaitable[object]]] = {
    "head": lambda chain: chain.head(),
    "block_hash": lambda chain: chain.block_hash(3),
    "roster": lambda chain: chain.roster(3),
    "params": lambda chain: chain.params(),
    "weights": lambda chain: chain.weights(3),
}
WRITES: dict[str, Callable[[Chain], Awaitable[object]]] = {
    "commit": lambda chain: chain.commit([]),
    "serve": lambda chain: chain.serve("10.0.0.1", 1),
    "set_weights": lambda chain: chain.set_weights({1: 1.0}, 0),
}


@pytest.mark.parametrize("name", READS)
async def test_a_read_waits_for_the_end_of_an_outage(name: str) -> None:
    flaky = FlakyChain(failures=4)
    async with asyncio.timeout(5):
        assert await READS[name](PatientChain(flaky, BLOCK_S)) == await READS[name](FlakyChain())
    assert flaky.asked == 5


@pytest.mark.parametrize("name", READS)
async def test_a_fault_that_is_no_outage_goes_up_at_once(name: str) -> None:
    flaky = FlakyChain(1, ChainFault("block 3 does not exist yet"))
    with pytest.raises(ChainFault, match="does not exist"):
        await READS[name](PatientChain(flaky, BLOCK_S))
    assert flaky.asked == 1


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_is_tried_once(name: str) -> None:
    flaky = FlakyChain(failures=1)
    patient = PatientChain(flaky, BLOCK_S)
    with pytest.raises(ChainUnreachable):
        await WRITES[name](patient)
    assert flaky.asked == 1
    assert await WRITES[name](patient) == await WRITES[name](FlakyChain())


async def test_an_outage_is_logged_once_however_many_meet_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    flaky = FlakyChain()
    patient = PatientChain(flaky, BLOCK_S)
    for _ in range(2):
        flaky.failures = 12
        async with asyncio.timeout(5):
            await asyncio.gather(*(read(patient) for read in READS.values()))
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO"] * 2


async def test_a_wait_can_be_cancelled() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5 * BLOCK_S):
            await PatientChain(FlakyChain(failures=10**9), BLOCK_S).head()


async def test_the_block_clock_goes_on_after_an_outage() -> None:
    clock = BlockClock(PatientChain(FlakyChain(failures=5), BLOCK_S), BLOCK_S)
    task = asyncio.create_task(clock.run())
    await asyncio.wait_for(clock.final(5), 5)
    task.cancel()


# --- which errors of the SDK are an outage -------------------------------------------------------


async def outcome(error: Exception) -> ChainFault:
    async def call() -> None:
        raise error

    with pytest.raises(ChainFault) as caught:
        await guarded(call(), 5)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError("reset"),
        bt.RpcConnectionError("could not connect to any endpoint"),
        bt.RpcPolicyError("rate limited", retry_after="10"),
        bt.ChainError("RPC endpoint rejected the WebSocket handshake (HTTP 502)"),
    ],
)
async def test_nobody_answered(error: Exception) -> None:
    assert isinstance(await outcome(error), ChainUnreachable)


@pytest.mark.parametrize("error", [bt.ChainError("no block at height 9"), ValueError("no such API"), ChainFault("odd")])
async def test_somebody_answered(error: Exception) -> None:
    assert not isinstance(await outcome(error), ChainUnreachable)


def test_a_refusal_is_no_outage() -> None:
    assert not issubclass(ChainRefused, ChainUnreachable)


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"])
async def test_starting_without_a_chain_fails_fast(tmp_path: Path, answer: bytes | None) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer or b"")
        writer.close()

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = await asyncio.start_server(accept, "127.0.0.1", port) if answer else None
    async with asyncio.timeout(20):
        with pytest.raises(ChainUnreachable):
            await BittensorChain.connect(
                netuid=7,
                network="local",
                endpoint=f"ws://127.0.0.1:{port}",
                signer=LocalKey(derive_keypair(1, "owner")),
                cache_dir=tmp_path,
            )
    if server is not None:
        server.close()
