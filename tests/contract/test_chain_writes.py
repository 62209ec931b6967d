"""Writes that are cut, refused for now, or cancelled: looked up before they are repeated, never written twice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import bittensor as bt
import pytest
from bittensor.result import chain_error_from_substrate_request
from chain_rig import NETUID, key, make_chain

from distributed_training.chain.base import Chain, Head
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.local.genesis import start_clock
from distributed_training.chain.local.substrate import LocalSubstrate
from distributed_training.chain.nonces import Nonces
from distributed_training.errors import ChainRefused, ChainUnreachable, HotkeyTaken
from distributed_training.metrics.told import Words
from distributed_training.protocol.commitments import decode_commitment
from distributed_training.protocol.types import BlockRef, Commitment, Field, Neuron, Role, Roster
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import commit_by

MINER = Commitment(Role.MINER, True, b"p" * 32, b"run-tag-", 3, b"w" * 32, None, None)

BLOCK_S = 0.1
CUT = (
    "Connection dropped while an extrinsic submission was in flight; the transaction may already be in the pool or on "
    "chain. Verify chain state before retrying.",
    "Connection lost while waiting for a subscription response (e.g. extrinsic finalization). The transaction may "
    "already be on chain — verify balances before retrying.",
    "extrinsic watch for 0xab ended without reaching the awaited state",
    "extrinsic 0xab not found in block 0xcd (#7); the serving node may not have imported it yet",
)
BUSY = (
    "Priority is too low: (12 vs 12): The transaction has too low priority to replace another transaction",
    "Invalid Transaction: Transaction is outdated",
    "Invalid Transaction: Transaction has an ancient birth block",
    "Transaction is temporarily banned",
    "Immediately Dropped: The transaction couldn't enter the pool because of the limit",
    "Extrinsic retracted: {'retracted': '0xab'}",
)


def failed(text: str) -> bt.ExtrinsicResult:
    """What the SDK makes of a failure between signing and inclusion."""
    error = chain_error_from_substrate_request(Exception(text))
    return bt.ExtrinsicResult(success=False, message=error.message, error=error)


class Weather(LocalSubstrate):
    """The local chain, on which the next submissions fare as told: "cut TEXT" after they landed, "lost TEXT" or
    "refused TEXT" before."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fates: list[str] = []
        self.periods: list[int | None] = []

    async def submit(self, call: Any, keypair: Any, **options: Any) -> bt.ExtrinsicResult:
        self.periods.append(options.get("period"))
        fate, _, text = (self.fates.pop(0) if self.fates else "").partition(" ")
        if fate in ("", "cut"):
            result = await super().submit(call, keypair, **options)
            return failed(text) if fate else result
        return failed(text)


class Scene:
    def __init__(self, path: Path) -> None:
        self.path, self.substrate, self.events = path, Weather(path), list[Any]()
        self.chain = BittensorChain.over(
            netuid=NETUID,
            network="local",
            endpoint=None,
            signer=key("miner-0"),
            cache_dir=path.parent,
            substrate=cast(bt.Substrate, self.substrate),
        )
        metrics = SimpleNamespace(words=Words("miner", 0), emit=lambda event, **head: self.events.append(event))
        clock = BlockClock(self.chain, BLOCK_S)  # not running: nothing becomes final
        self.parts = cast(Parts, SimpleNamespace(chain=self.chain, signer=key("miner-0"), metrics=metrics, clock=clock))

    async def commit(self, blocks: int = 30) -> int | None:
        last = (await self.chain.head()).number + blocks
        return await asyncio.wait_for(commit_by(self.parts, MINER, 3, last, "work hash"), 10)

    @property
    def written(self) -> int:
        with sqlite3.connect(self.path) as connection:
            return connection.execute("select count(*) from extrinsics").fetchone()[0]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(make_chain(tmp_path / "chain.sqlite", block_s=BLOCK_S))
    await made.chain.head()
    start_clock(made.path)
    yield made
    await made.chain.close()


@pytest.mark.parametrize("text", CUT)
async def test_a_cut_submission_is_an_outage_and_not_a_refusal(scene: Scene, text: str) -> None:
    scene.substrate.fates = [f"cut {text}"]
    with pytest.raises(ChainUnreachable):
        await scene.chain.commit([Field("Raw", b"x")])


async def test_a_cut_write_that_landed_is_found_and_not_repeated(scene: Scene) -> None:
    scene.substrate.fates = [f"cut {CUT[0]}"]
    block = await scene.commit()
    me = (await scene.chain.roster((await scene.chain.head()).number)).by_hotkey(key("miner-0").hotkey)
    assert me is not None and (me.commitment, me.commitment_block) == (MINER, block)
    assert scene.written == 1 and [e.what for e in scene.events] == ["chain"]


async def test_a_write_that_was_lost_is_written_again(scene: Scene) -> None:
    scene.substrate.fates = [f"lost {CUT[0]}", f"lost {CUT[1]}"]
    assert await scene.commit() is not None
    assert scene.written == 1 and len(scene.substrate.periods) == 3


@pytest.mark.parametrize("text", BUSY)
async def test_what_the_pool_may_take_a_block_later_is_tried_again(scene: Scene, text: str) -> None:
    scene.substrate.fates = [f"refused {text}"] * 2
    assert await scene.commit() is not None
    assert scene.written == 1


async def test_it_is_tried_until_its_block_has_passed(scene: Scene) -> None:
    scene.substrate.fates = [f"refused {BUSY[0]}"] * 99
    assert await scene.commit(blocks=4) is None
    assert scene.written == 0 and 2 <= len(scene.substrate.periods) <= 5
    assert [e.what for e in scene.events] == ["chain", "commit"] and "too late" in scene.events[1].detail


@pytest.mark.parametrize("text", ["Invalid Transaction: Custom error: 2", "Inability to pay some fees"])
async def test_another_refusal_is_final(scene: Scene, text: str) -> None:
    scene.substrate.fates = [f"refused {text}"] * 9
    assert await scene.commit() is None
    assert len(scene.substrate.periods) == 1
    with pytest.raises(ChainRefused) as refusal:
        await scene.chain.commit([Field("Raw", b"x")])
    assert not refusal.value.passes


async def test_a_write_is_valid_not_much_longer_than_it_is_of_use(scene: Scene) -> None:
    head = (await scene.chain.head()).number
    await scene.chain.commit([Field("Raw", b"x")], head + 4)
    await scene.chain.commit([Field("Raw", b"y")])
    await scene.chain.commit([Field("Raw", b"z")], head + 1000)
    assert scene.substrate.periods[0] == 8 and scene.substrate.periods[1] == 16
    assert scene.substrate.periods[2] == 128


# --- reorganisations --------------------------------------------------------------------------------


class Reorganised:
    """A chain that grows by a block at each look, and forgets the first commitments when it is told of their block."""

    def __init__(self, forgets: int) -> None:
        self.number, self.forgets = 10, forgets
        self.commits: list[tuple[int, Commitment | None]] = []

    async def head(self) -> Head:
        self.number += 1
        return Head(self.number, self.number - 3)

    async def roster(self, block: int) -> Roster:
        stands = self.commits[self.forgets :]
        known = [(b, c) for b, c in stands if b <= block] or [(None, None)]
        said, block_of = known[-1][1], known[-1][0]
        me = Neuron(0, "5F", key("miner-0").public_key, 0.0, False, 1, None, said, block_of, 0.0, 0.0, 0, bytes(32))
        return Roster(BlockRef(block, bytes(32)), (me,))

    async def commit(self, fields: list[Field], until: int | None = None) -> int:
        self.commits.append((self.number + 1, decode_commitment(fields)))
        return self.number + 1


@asynccontextmanager
async def reorganised(
    forgets: int, make: type[Reorganised] = Reorganised
) -> AsyncIterator[tuple[Reorganised, Parts, list[str]]]:
    chain, told = make(forgets), list[str]()
    clock = BlockClock(cast(Chain, chain), 0.01)
    metrics = SimpleNamespace(words=Words("miner", 0), emit=lambda event, **head: told.append(event.detail))
    task = asyncio.create_task(clock.run())
    yield chain, cast(Parts, SimpleNamespace(chain=chain, signer=key("miner-0"), metrics=metrics, clock=clock)), told
    task.cancel()


async def test_a_write_that_a_reorganisation_took_back_is_written_again() -> None:
    async with reorganised(2) as (chain, parts, told):
        first = await commit_by(parts, MINER, 3, 100, "work hash")
        await asyncio.wait_for(parts.clock.final(60), 10)
        assert [c for _, c in chain.commits] == [MINER] * 3 and chain.commits[0][0] == first
        assert len(told) == 2 and f"work hash: a reorganisation took it out of block {first}" in told[0]


async def test_it_is_not_written_again_after_its_last_block_or_over_a_newer_one() -> None:
    async with reorganised(9) as (chain, parts, told):
        await commit_by(parts, MINER, 3, chain.number + 3, "work hash")
        await asyncio.wait_for(parts.clock.final(60), 10)
        assert len(chain.commits) == 1 and "too late" in told[-1]
    newer = replace(MINER, second_round=3, second=b"o" * 32)
    async with reorganised(1) as (chain, parts, told):
        await commit_by(parts, MINER, 3, 100, "work hash")
        await commit_by(parts, newer, 3, 100, "output hash")
        await asyncio.wait_for(parts.clock.final(60), 10)
        assert [c for _, c in chain.commits] == [MINER, newer] and told == []


async def test_a_second_look_that_finds_the_hotkey_taken_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Taken(Reorganised):
        async def roster(self, block: int) -> Roster:
            if self.commits and block > self.commits[0][0]:
                raise HotkeyTaken("another process")
            return await super().roster(block)

    async with reorganised(9, Taken) as (chain, parts, told):
        await commit_by(parts, MINER, 3, 100, "work hash")
        await asyncio.wait_for(parts.clock.final(20), 10)
        assert len(told) == len(chain.commits) == 1
    assert "no second look at work hash: another process" in caplog.text


# --- numbers ----------------------------------------------------------------------------------------


class Account:
    """What the chain and its pool say of an account's numbers."""

    def __init__(self, used: int = 5) -> None:
        self.used = self.pool = used

    async def take(self, nonces: Nonces) -> int:
        async def used_up() -> int:
            return self.used

        async def unused() -> int:
            return self.pool

        return await nonces.take(used_up, unused)


async def test_a_lost_write_leaves_its_number_to_the_next() -> None:
    account, nonces = Account(), Nonces()
    first = await account.take(nonces)
    nonces.done(first, None)
    account.pool = 6  # it did get into the pool: a fresh number would be 6, and both would be written
    assert (first, await account.take(nonces)) == (5, 5)
    nonces.done(5, None)
    account.used = account.pool = 6  # and now it is in a block
    assert await account.take(nonces) == 6


async def test_writes_at_the_same_time_have_numbers_of_their_own() -> None:
    account, nonces = Account(), Nonces()
    assert await asyncio.gather(*(account.take(nonces) for _ in range(3))) == [5, 6, 7]
    nonces.done(6, False)  # refused: 7 waits for it, so the next one has to be 6
    assert await account.take(nonces) == 6


async def test_a_refused_write_uses_no_number() -> None:
    account, nonces = Account(), Nonces()
    nonces.done(await account.take(nonces), False)
    assert await account.take(nonces) == 5
    nonces.done(5, True)
    account.used = account.pool = 6
    assert await account.take(nonces) == 6
