"""A miner's own published copy of the state, as a validator finds it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from puppets import first_state, make_puppet
from subnet import EventList, Node, make_subnet, running

from distributed_training.assembly import make_exporter
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.clock import BlockClock
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.metrics.base import Metrics
from distributed_training.roles.follower import Follower
from distributed_training.roles.parts import Parts
from distributed_training.roles.sharing import SharedState, SharedStates, ask_shared
from distributed_training.training.outer import RunState, state_root

pytestmark = pytest.mark.alone

ROUND = 1
BEACON = bytes(32)


@dataclass
class Pair:
    """A miner and a validator that know each other; repositories are folders below `root`."""

    root: Path
    miner: Node
    validator: Node
    other: Node  # another miner
    state: RunState  # of ROUND
    events: list[dict[str, Any]]

    def store(self, repo_id: str) -> LocalCheckpoints:
        return LocalCheckpoints(self.root / repo_id)

    async def publish(self, repo_id: str, state: RunState) -> SharedState:
        parts = self.miner.parts
        follower = Follower(parts, ROUND, state, trusted=True)
        exporter = make_exporter(self.miner.config, parts.manifest, self.miner.engine, {}, repo_id)
        shared = SharedState(parts, follower, self.store(repo_id), exporter, repo_id)
        await shared.offer()
        async with asyncio.timeout(20):
            while self.store(repo_id).newest() is None or not shared.rounds:  # noqa: ASYNC110 (another task's work)
                await asyncio.sleep(0.01)
        return shared

    async def look(self) -> list[dict[str, Any]]:
        """What the validator tells about the miner."""
        await SharedStates(self.parts(), self.store).look(self.plan(), BEACON)
        return self.told()

    def parts(self, block_s: float = 12.0) -> Parts:
        metrics = Metrics([EventList(self.events)], role="validator", uid=0, threads=False)
        clock = cast(BlockClock, SimpleNamespace(block_s=block_s))
        return replace(self.validator.parts, metrics=metrics, clock=clock)

    def plan(self) -> RoundPlan:
        candidate = SimpleNamespace(
            uid=self.miner.uid, public_key=self.miner.me.public_key, peer_key=self.miner.parts.peer_key
        )
        root = state_root(self.state, self.miner.parts.manifest.average.chunk_coords)
        known = {"candidates": [candidate], "round": SimpleNamespace(index=ROUND), "state_root": root}
        return cast(RoundPlan, SimpleNamespace(**known))

    def told(self) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == "shared"]


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    subnet = make_subnet(tmp_path / "run", miners=2, validators=1, owner=False)
    names = ("miner-0", "validator-0", "miner-1")

    async def add(_: object) -> None:
        for name in names:
            await make_puppet(subnet, name)

    async with running(subnet, without=names, before_clock=add, rounds=1):
        miner, validator, other = (subnet.nodes[name] for name in names)
        await validator.parts.clock.reached(2)
        roster = await validator.parts.chain.roster(validator.parts.clock.head)
        for node in (miner, validator, other):
            node.parts.peers.update(roster)
        state = replace(first_state(subnet.manifest), applied=1)
        yield Pair(tmp_path, miner, validator, other, state, [])


async def test_what_a_miner_publishes_is_compared_with_the_state_root(pair: Pair) -> None:
    shared = await pair.publish("me/mine", pair.state)
    (told,) = await pair.look()
    assert told["ok"] and (told["round"], told["target"], told["repository"]) == (ROUND, pair.miner.uid, "me/mine")
    assert await ask_shared(pair.validator.parts.peers, pair.miner.parts.peer_key, ROUND + 1) is None
    await shared.cancel()


async def test_another_state_than_the_runs_is_told_and_is_no_fault_of_ours(pair: Pair) -> None:
    params = pair.state.params.copy()
    params[3] += np.float32(1e-3)
    shared = await pair.publish("me/other", replace(pair.state, params=params))
    (told,) = await pair.look()
    assert not told["ok"] and "state root" in told["said"]
    await shared.cancel()


async def test_a_state_that_did_not_change_is_not_published_and_a_silent_miner_is_not_told_about(pair: Pair) -> None:
    parts = pair.miner.parts
    follower = Follower(parts, 0, first_state(parts.manifest), trusted=True)
    exporter = make_exporter(pair.miner.config, parts.manifest, pair.miner.engine, {}, "me/mine")
    shared = SharedState(parts, follower, pair.store("me/mine"), exporter, "me/mine")
    await shared.offer()
    await shared.cancel()
    assert pair.store("me/mine").newest() is None
    assert await pair.look() == []


async def test_only_who_validates_is_told_where(pair: Pair) -> None:
    """A miner asks the miner that publishes: refused, and counted there."""
    shared = await pair.publish("me/mine", pair.state)
    before = pair.miner.refusals
    with pytest.raises((NetworkFault, PeerFault)):
        await ask_shared(pair.other.parts.peers, pair.miner.parts.peer_key, ROUND)
    assert pair.miner.refusals == before + 1
    await shared.cancel()


class Held:
    """Repositories that answer when `gate` is set, however long that takes; counts how many were opened."""

    def __init__(self, pair: Pair) -> None:
        self.gate, self.opened, self._pair = threading.Event(), 0, pair

    def open(self, repo_id: str) -> LocalCheckpoints:
        self.opened += 1
        self.gate.wait(30)
        return self._pair.store(repo_id)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 (another task's work)
            await asyncio.sleep(0.01)


async def test_a_look_holds_nobody_up_and_there_is_one_at_a_time(pair: Pair) -> None:
    shared, held = await pair.publish("me/mine", pair.state), Held(pair)
    looks = SharedStates(pair.parts(), held.open)
    looks.begin(pair.plan(), BEACON)  # returns at once
    await until(lambda: held.opened == 1)
    looks.begin(pair.plan(), BEACON)
    async with asyncio.timeout(5):
        await looks.finish(0.1)
    assert pair.told() == []
    held.gate.set()
    await looks.finish(20)
    assert [told["ok"] for told in pair.told()] == [True] and held.opened == 1
    await looks.cancel()
    await shared.cancel()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_look_ends_with_its_round_or_its_node_and_its_thread_begins_no_second(
    pair: Pair, cancelled: bool
) -> None:
    shared, held = await pair.publish("me/mine", pair.state), Held(pair)
    looks = SharedStates(pair.parts(12.0 if cancelled else 0.005), held.open)
    looks.begin(pair.plan(), BEACON)
    await until(lambda: held.opened == 1)
    async with asyncio.timeout(10):
        await (looks.cancel() if cancelled else looks.finish(10))
    looks.begin(pair.plan(), BEACON)
    await looks.cancel()
    assert held.opened == 1
    held.gate.set()
    await looks.cancel()
    assert pair.told() == [] and not [e for e in pair.events if e["event"] == "fault"]
    await shared.cancel()
