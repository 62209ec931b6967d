"""The Chain protocol: every operation, and what is refused.

    pytest tests/contract/test_chain.py                                              the local chain, in three ways
    pytest tests/contract/test_chain.py --chain ws://HOST:PORT --sudo-uri //Alice    a subtensor development node

The three: the SDK over the chain's file, a chain in memory, and the SDK's own transport to a node over the file, which
answers in a real runtime's bytes. Tests of `any_chain` are also asked of a development node, on a subnet of their own.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from chain_rig import (
    COLDKEY,
    NAMES,
    NETUID,
    SEED,
    VERSION_KEY,
    AnyChain,
    Rig,
    World,
    connect,
    key,
    make_chain,
    memory_rig,
    node_rig,
    reach,
    real_rig,
    rig,
)
from devnode import Proxy
from sudo_rig import RealSubnet

from distributed_training.chain.base import Head
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.local.genesis import resume_clock, start_clock, stop_clock
from distributed_training.chain.local.store import block_hash
from distributed_training.errors import ChainFault, ChainRefused, ChainUnreachable, ConfigError
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment, Field, Role


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, real_subnet: RealSubnet | None) -> World:
    """Makes a chain, by the arguments of `make_chain`, and clients of it; see conftest.py for which."""

    def make(**changes: Any) -> AbstractAsyncContextManager[Rig]:
        if real_subnet is not None:
            return real_rig(real_subnet, tmp_path, **changes)
        if request.param == "memory":
            return memory_rig(**changes)
        path = make_chain(tmp_path / "chain.sqlite", **changes)
        return node_rig(path) if request.param == "node" else rig(path)

    return make


T = TypeVar("T")
MINER = Commitment(Role.MINER, True, b"p" * 32, b"run-tag-", 4, b"w" * 32, 4, b"o" * 32)


async def test_before_the_clock_starts_writes_return_at_once_and_show_in_block_one(world: World) -> None:
    async with world(block_s=0.2) as r:
        miner = await r.client("miner-0")
        assert await miner.head() == Head(0, 0)
        async with asyncio.timeout(10):  # a wait for block 1 would never end
            assert await miner.commit(encode_commitment(MINER)) == 1
            await miner.serve("127.0.0.2", 9000)
            assert await (await r.client("validator-0")).set_weights({3: 1.0}, VERSION_KEY) == 1
        at_genesis = (await miner.roster(0)).by_hotkey(key("miner-0").hotkey)
        assert at_genesis is not None and at_genesis.commitment is None and at_genesis.address is None
        with pytest.raises(ChainFault):
            await miner.roster(1)

        r.start_clock()
        await reach(miner, 1)
        shown = (await miner.roster(1)).by_hotkey(key("miner-0").hotkey)
        assert shown is not None and shown.commitment == MINER and shown.commitment_block == 1
        assert shown.address == ("127.0.0.2", 9000)
        assert await miner.weights(1) == {1: {3: 1.0}}


async def test_starting_a_started_clock_changes_nothing(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite")
    assert start_clock(path) == start_clock(path)


async def test_a_chain_that_was_stopped_stands_until_it_is_started(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.02)
    start_clock(path)
    async with rig(path) as r:
        miner = await r.client("miner-0")
        await reach(miner, 3)
        read = (await miner.roster(3)).block.number
    stop_clock(path)
    await asyncio.sleep(0.1)  # five blocks by the old clock
    async with rig(path) as r:
        miner = await r.client("miner-0")
        stands = (await miner.head()).number
        assert read <= stands <= read + 2
        assert await miner.commit(encode_commitment(MINER)) == stands + 1, "in the next block, and nothing waits"
        assert (await miner.head()).number == stands
        before, genesis = time.time(), start_clock(path)
        assert 0 <= genesis + stands * 0.02 - before < 1.0
        await reach(miner, stands + 1)
        assert (await miner.roster(stands + 1)).neurons[3].commitment == MINER


async def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.02)
    with pytest.raises(ConfigError, match="never started"):
        resume_clock(path)
    async with rig(path) as r:
        miner = await r.client("miner-0")
        start_clock(path)
        written = await miner.commit(encode_commitment(MINER))
        await reach(miner, written + 2)
        read = (await miner.roster(written + 2)).block.number
        last = (await miner.head()).number
    await asyncio.sleep(0.5)  # 25 blocks by the old clock
    before, genesis, after = time.time(), resume_clock(path), time.time()
    assert (before - genesis) / 0.02 <= last + 1 and read <= (after - genesis) / 0.02 + 1e-3
    async with rig(path) as r:
        miner = await r.client("miner-0")
        assert (await miner.roster(written)).neurons[3].commitment == MINER
        assert await miner.commit(encode_commitment(MINER)) > read


async def test_a_cancelled_write_does_not_break_the_close(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite")
    blocker = sqlite3.connect(path, isolation_level=None)
    chain = await connect(path, "miner-0")
    blocker.execute("begin immediate")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await chain.commit([Field("Raw", b"x")])
    closing = asyncio.create_task(chain.close())
    await asyncio.sleep(0.1)
    blocker.execute("rollback")
    blocker.close()
    await asyncio.wait_for(closing, 10)


async def test_blocks_come_by_the_clock_and_two_behind_is_final(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05)
    async with rig(path) as r:
        chain = await r.client("miner-0")
        began, former = start_clock(path), Head(0, 0)
        while former.number < 6:
            head = await chain.head()
            newest = int((time.time() - began) / 0.05)
            assert former.number <= head.number <= newest and former.finalized <= head.finalized <= max(0, newest - 2)
            former = head
            await asyncio.sleep(0.01)
        assert former.finalized >= 1


@pytest.mark.any_chain
async def test_heads_move_on_and_past_blocks_have_one_hash_for_everybody(world: World) -> None:
    async with world(block_s=0.05) as r:
        miner, other = await r.client("miner-0"), await r.client("validator-0")
        r.start_clock()
        await reach(miner, 1)
        first = await miner.head()
        await reach(miner, first.number + 3, r.block_s)
        later = await miner.head()
        assert later.number >= first.number + 3 and first.finalized <= later.finalized <= later.number
        past = first.finalized
        assert await miner.block_hash(past) == await other.block_hash(past) == (await other.roster(past)).block.hash
        assert await miner.block_hash(0) == await other.block_hash(0) != await miner.block_hash(later.number)
        for read in (miner.block_hash, miner.roster, miner.weights):
            with pytest.raises(ChainFault):
                await read(later.number + 1_000_000)
        await miner.head()  # so that no answer is on its way while the connection closes


async def test_block_hashes_depend_on_seed_and_number_only(world: World) -> None:
    async with world(block_s=0.05) as r:
        chain = await r.client("miner-0")
        r.start_clock()
        await reach(chain, 2)
        assert await chain.block_hash(2) == block_hash(SEED, 2) != block_hash(SEED + 1, 2)
        assert len({await chain.block_hash(n) for n in range(3)}) == 3
        for missing in (10_000, -1):
            with pytest.raises(ChainFault):
                await chain.block_hash(missing)
            with pytest.raises(ChainFault):
                await chain.roster(missing)
            with pytest.raises(ChainFault):
                await chain.weights(missing)
        await chain.head()  # so that no answer is on its way while the connection closes


async def test_params_and_roster_tell_what_genesis_said(world: World) -> None:
    async with world(tempo=77, rate_limit=5) as r:
        chain = await r.client("miner-0")
        params = await chain.params()
        assert (params.netuid, params.tempo, params.weights_rate_limit, params.block_s) == (NETUID, 77, 5, 0.1)
        assert (params.owner_hotkey, params.owner_coldkey) == (key("owner").hotkey, COLDKEY.ss58_address)
        roster = await chain.roster(0)
        assert roster.block.number == 0 and roster.block.hash == block_hash(SEED, 0)
        assert [n.hotkey for n in roster.neurons] == [key(name).hotkey for name in NAMES]
        assert [n.uid for n in roster.neurons] == [0, 1, 2, 3, 4]
        assert all(n.public_key == key(name).public_key for n, name in zip(roster.neurons, NAMES, strict=True))
        assert [n.stake for n in roster.neurons] == [0.0, 300.0, 100.0, 0.0, 0.0]
        assert [n.may_validate for n in roster.neurons] == [False, True, True, False, False]
        assert {n.registered_block for n in roster.neurons} == {0}
        assert {n.coldkey for n in roster.neurons} == {bytes(COLDKEY.public_key)}


@pytest.mark.any_chain
async def test_params_and_uids_are_those_that_root_and_the_owner_made(world: World) -> None:
    async with world(tempo=12, rate_limit=5) as r:
        chain = await r.client("miner-0")
        params = await chain.params()
        assert (params.netuid, params.tempo, params.weights_rate_limit) == (r.netuid, 12, 5)
        assert params.block_s > 0 and (r.subnet is None or params.block_s == r.subnet.block_s)
        assert (params.owner_hotkey, params.owner_coldkey) == (key("owner").hotkey, COLDKEY.ss58_address)
        roster = await chain.roster((await chain.head()).number)
        assert {n.coldkey for n in roster.neurons} == {bytes(COLDKEY.public_key)}
        assert [(n.uid, n.hotkey) for n in roster.neurons] == [
            (uid, key(name).hotkey) for uid, name in enumerate(NAMES)
        ]
        stakes = [neuron.stake for neuron in roster.neurons]
        assert stakes[1] > stakes[2] > stakes[3] and roster.neurons[1].may_validate and roster.neurons[2].may_validate


@pytest.mark.any_chain
async def test_a_commitment_is_replaced_and_old_blocks_keep_the_old_one(world: World) -> None:
    roles = [
        MINER,
        Commitment(Role.MINER, False, b"q" * 32, b"run-tag-", None, None, None, None),
        Commitment(Role.VALIDATOR, False, b"v" * 32, b"run-tag-", 5, b"r" * 32, 5, b"m" * 32),
    ]
    async with world(block_s=0.05) as r:
        chain = await r.client("miner-1")
        r.start_clock()
        before = (await chain.roster((await chain.head()).number)).neurons[4].commitment
        blocks = [await chain.commit(encode_commitment(role)) for role in roles]
        assert blocks == sorted(set(blocks)) and (await chain.head()).number >= blocks[-1]
        for block, role in zip(blocks, roles, strict=True):
            neuron = (await chain.roster(block)).neurons[4]
            assert (neuron.commitment, neuron.commitment_block) == (role, block)
        assert (await chain.roster(blocks[0] - 1)).neurons[4].commitment == before


@pytest.mark.any_chain
@pytest.mark.parametrize(
    "fields", [[Field("Raw", b"")], [Field("Raw", b"x" * 42)], [Field("Sha256", b"x" * 32)], [Field("Raw", b"{}")] * 3]
)
async def test_foreign_commitments_are_absent(world: World, fields: list[Field]) -> None:
    async with world(block_s=0.05) as r:
        chain = await r.client("miner-0")
        r.start_clock()
        block = await chain.commit(fields)
        neuron = (await chain.roster(block)).neurons[3]
        assert neuron.commitment is None and neuron.commitment_block == block


@pytest.mark.any_chain
@pytest.mark.parametrize(
    "fields",
    [[Field("Raw", b"x" * 129)], [Field("Raw", b"x")] * 4, [Field("Sha256", b"x" * 31)], [Field("BigRaw", b"x")]],
)
async def test_commitments_the_codec_cannot_hold_are_refused(world: World, fields: list[Field]) -> None:
    async with world() as r:
        with pytest.raises(ChainRefused) as refusal:
            await (await r.client("miner-0")).commit(fields)
        assert refusal.value.code == "invalid_argument"


async def test_commitments_are_paid_from_a_quota_per_hotkey_and_epoch(world: World) -> None:
    async with world(block_s=0.05, tempo=4) as r:
        miner, other = await r.client("miner-0"), await r.client("miner-1")
        for _ in range(27):  # 27 x 114 bytes <= 3100
            await miner.commit(encode_commitment(MINER))
        with pytest.raises(ChainRefused) as refusal:
            await miner.commit(encode_commitment(MINER))
        assert refusal.value.code == "limit_exceeded"
        for _ in range(31):  # small ones cost 100 bytes each
            await other.commit([Field("Raw", b"x")])
        with pytest.raises(ChainRefused):
            await other.commit([Field("Raw", b"x")])
        r.start_clock()
        await reach(miner, 4)
        assert await miner.commit(encode_commitment(MINER)) >= 5


@pytest.mark.any_chain
async def test_a_ninth_commitment_of_full_length_is_beyond_the_quota_of_an_epoch(world: World) -> None:
    full = [Field("Raw", b"x" * 128)] * 3
    async with world(block_s=0.05, tempo=360) as r:  # nothing is written across the end of an epoch
        miner = await r.client("miner-0")
        r.start_clock()
        with pytest.raises(ChainRefused) as refusal:
            for _ in range(9):
                await miner.commit(full)
        assert refusal.value.code == "limit_exceeded"


@pytest.mark.any_chain
async def test_serve_writes_only_a_new_address_and_never_the_unroutable_one(world: World) -> None:
    async with world(block_s=0.05) as r:
        chain = await r.client("miner-0")
        r.start_clock()
        await chain.serve("127.0.0.2", 9000)
        await chain.serve("127.0.0.2", 9000)
        await chain.serve("10.1.2.3", 9001)
        assert (await chain.roster((await chain.head()).number)).neurons[3].address == ("10.1.2.3", 9001)
        if r.path is not None and r.subnet is None:
            with sqlite3.connect(r.path) as connection:
                assert connection.execute("select count(*) from extrinsics").fetchone() == (2,)
        with pytest.raises(ChainRefused) as refusal:
            await chain.serve("127.0.0.1", 9000)
        assert refusal.value.code == "invalid_argument"


@pytest.mark.any_chain
async def test_serving_has_a_rate_limit(world: World) -> None:
    async with world(block_s=0.05, serving_rate_limit=1000) as r:
        chain = await r.client("miner-1")
        r.start_clock()
        await chain.serve("127.0.0.2", 9000)
        with pytest.raises(ChainRefused) as refusal:
            await chain.serve("127.0.0.2", 9001)
        assert refusal.value.code == "rate_limited"


async def due(r: Rig, validator: AnyChain, uid: int, limit: int) -> None:
    """Until a validator may set weights: on a chain that others used its last ones may be young."""
    head = (await validator.head()).number
    last = (await validator.roster(head)).neurons[uid].last_update
    if last:
        await reach(validator, last + limit, r.block_s)


@pytest.mark.any_chain
async def test_weights_are_shares_and_past_ones_stay(world: World) -> None:
    async with world(block_s=0.05) as r:
        validator = await r.client("validator-0")
        r.start_clock()
        await due(r, validator, 1, 3)
        first = await validator.set_weights({3: 1.0, 4: 3.0}, VERSION_KEY)
        await reach(validator, first + 3, r.block_s)
        second = await validator.set_weights({3: 2.0}, VERSION_KEY + 1)
        assert (await validator.weights(second))[1] == {3: 1.0}
        old = (await validator.weights(first))[1]
        assert old[3] == pytest.approx(0.25, abs=1e-4) and sum(old.values()) == pytest.approx(1.0)
        assert (await validator.roster(second)).neurons[1].last_update == second


@pytest.mark.any_chain
async def test_weights_have_a_rate_limit(world: World) -> None:
    async with world(block_s=0.05, rate_limit=20) as r:
        validator = await r.client("validator-0")
        r.start_clock()
        await due(r, validator, 1, 20)
        block = await validator.set_weights({3: 1.0}, VERSION_KEY)
        with pytest.raises(ChainRefused) as refusal:
            await validator.set_weights({4: 1.0}, VERSION_KEY)
        assert refusal.value.code == "rate_limited"
        assert (await validator.weights(block))[1] == {3: 1.0}


@pytest.mark.any_chain
@pytest.mark.parametrize(
    ("name", "weights", "version_key", "code"),
    [
        ("miner-0", {3: 1.0, 4: 1.0}, VERSION_KEY, "not_authorized"),  # no permit
        ("validator-0", {3: 1.0}, VERSION_KEY - 1, "invalid_argument"),  # old version
        ("validator-0", {3: 0.0}, VERSION_KEY, "invalid_argument"),  # nothing to set
        ("validator-0", {99: 1.0}, VERSION_KEY, "invalid_argument"),  # no such uid
        ("stranger", {3: 1.0}, VERSION_KEY, "not_registered"),
    ],
)
async def test_weights_the_chain_refuses(
    world: World, name: str, weights: dict[int, float], version_key: int, code: str
) -> None:
    async with world(block_s=0.05) as r:
        r.start_clock()
        chain = await r.client(name)
        head = (await chain.head()).number
        before = await chain.weights(head)
        if code == "not_authorized" and (await chain.roster(head)).neurons[3].may_validate:
            pytest.skip("miner-0 has earned a permit on this chain")
        if name in NAMES:
            await due(r, chain, NAMES.index(name), 3)
        with pytest.raises(ChainRefused) as refusal:
            await chain.set_weights(weights, version_key)
        assert refusal.value.code == code
        assert await chain.weights((await chain.head()).number) == before


@pytest.mark.any_chain
async def test_a_stranger_may_not_commit_or_serve(world: World) -> None:
    async with world() as r:
        chain = await r.client("stranger")
        with pytest.raises(ChainRefused) as commit:
            await chain.commit([Field("Raw", b"x")])
        with pytest.raises(ChainRefused) as serve:
            await chain.serve("127.0.0.2", 9000)
        assert commit.value.code in ("not_authorized", "not_registered") and serve.value.code == "not_registered"


async def pay_miners(r: Rig) -> AnyChain:
    """Both validators set weights in block 1; the clock is started."""
    await (await r.client("validator-0")).set_weights({3: 1.0, 4: 3.0}, VERSION_KEY)
    await (await r.client("validator-1")).set_weights({3: 1.0, 4: 3.0}, VERSION_KEY)
    r.start_clock()
    return await r.client("miner-0")


async def test_a_mere_reader_runs_the_epoch(world: World) -> None:
    async with world(block_s=0.05, tempo=4) as r:
        reader = await pay_miners(r)
        await reach(reader, 9)
        assert {n.incentive for n in (await reader.roster(3)).neurons} == {0.0}
        after = (await reader.roster(4)).neurons
        assert sum(n.incentive for n in after) == pytest.approx(1.0, abs=1e-3)
        assert after[4].incentive == pytest.approx(0.75, abs=1e-3)
        assert [n.dividends for n in after] == pytest.approx([0, 0.75, 0.25, 0, 0], abs=1e-3)
        assert after[0].may_validate  # the owner's permit is forced by the epoch
        assert (await reader.roster(9)).neurons[4].incentive == after[4].incentive


@pytest.mark.any_chain
async def test_an_epoch_pays_by_the_weights_that_were_set(world: World) -> None:
    async with world(block_s=0.05, tempo=10) as r:
        r.start_clock()
        block = 0
        for uid, name in ((1, "validator-0"), (2, "validator-1")):
            validator = await r.client(name)
            await due(r, validator, uid, 3)
            block = await validator.set_weights({3: 1.0, 4: 3.0}, VERSION_KEY)
        await reach(validator, block + 12, r.block_s)
        neurons = (await validator.roster(block + 12)).neurons
        assert neurons[4].incentive == pytest.approx(0.75, abs=0.05)
        assert neurons[1].dividends > neurons[2].dividends > 0 and neurons[0].may_validate


@pytest.mark.any_chain
async def test_a_broken_connection_is_made_anew(world: World) -> None:
    async with world(block_s=0.05) as r:
        if r.endpoint is None:
            pytest.skip("there is no connection to a chain in this process")
        async with Proxy(r.endpoint) as proxy:
            r.endpoint = proxy.endpoint
            miner = await r.client("miner-0")
            r.start_clock()
            await reach(miner, 1)
            proxy.cut()
            block = await patiently(lambda: miner.commit([Field("Raw", b"x")]), r.block_s)
            proxy.cut()
            assert (await patiently(lambda: miner.roster(block), r.block_s)).neurons[3].commitment_block == block
            await miner.close()
            r.clients.clear()


async def patiently(work: Callable[[], Awaitable[T]], block_s: float) -> T:
    """As a node does: what was not reached is asked again."""
    for _ in range(20):
        try:
            return await work()
        except ChainUnreachable:
            await asyncio.sleep(block_s)
    return await work()


async def test_the_epoch_is_the_same_whoever_runs_it_and_when(tmp_path: Path) -> None:
    early, late = make_chain(tmp_path / "early.sqlite", block_s=0.05, tempo=4), tmp_path / "late.sqlite"
    async with rig(early) as r:
        await pay_miners(r)
        with sqlite3.connect(early) as source, sqlite3.connect(late) as copy:
            source.backup(copy)
        watcher = await r.client("miner-0")
        for block in range(1, 10):  # this one runs each epoch as soon as it can
            await reach(watcher, block)
            await watcher.roster(block)
        async with rig(late) as other:
            await (await other.client("miner-1")).serve("127.0.0.2", 9)  # this one all at once, inside a write

    def epochs(path: Path) -> list[tuple[str, str, int, str]]:
        with sqlite3.connect(path) as connection:
            return connection.execute(
                "select * from state where item in ('epoch', 'bonds') and block <= 8 order by item, key, block"
            ).fetchall()

    assert epochs(early) == epochs(late) and len({row[2] for row in epochs(early)}) == 3  # blocks 0, 4 and 8


async def test_a_slow_writer_does_not_stop_the_event_loop(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05)
    async with rig(path) as r:
        chain = await r.client("miner-0")
        start_clock(path)
        await reach(chain, 1)
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("begin immediate")
        held = asyncio.get_running_loop().time()
        work = [asyncio.create_task(chain.commit([Field("Raw", b"x")])), asyncio.create_task(chain.roster(1))]
        longest, last = 0.0, held
        while last - held < 0.8:
            await asyncio.sleep(0.005)
            now = asyncio.get_running_loop().time()
            longest, last = max(longest, now - last), now
        assert not work[0].done()
        blocker.execute("rollback")
        blocker.close()
        await asyncio.gather(*work)
        assert longest < 0.5


def test_the_sdk_leaves_no_cache_behind(tmp_path: Path) -> None:
    async def use() -> None:
        async with rig(make_chain(tmp_path / "chain.sqlite")) as r:
            await (await r.client("miner-0")).params()

    asyncio.run(use())
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"chain.sqlite"}


async def test_bad_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no local chain at"):
        await connect(tmp_path / "missing.sqlite", "miner-0")
    (tmp_path / "text.sqlite").write_text("hello, this is no database at all, just some text" * 20)
    with pytest.raises(ConfigError, match="is not a local chain"):
        await connect(tmp_path / "text.sqlite", "miner-0")
    make_chain(tmp_path / "chain.sqlite")
    with pytest.raises(ConfigError, match="exists already"):
        make_chain(tmp_path / "chain.sqlite")
    with pytest.raises(ConfigError, match=r"--subtensor\.network"):
        await BittensorChain.connect(
            netuid=1, network="atlantis", endpoint=None, signer=key("miner-0"), cache_dir=tmp_path
        )
