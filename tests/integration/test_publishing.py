"""What a run leaves behind: snapshots at the manifest's interval, checkpoints, and what happens if one is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio
from puppets import follower_of
from subnet import EventList, Subnet, finished, make_subnet, running

from distributed_training.assembly import make_exporter
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Chain
from distributed_training.chain.clock import BlockClock
from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.errors import (
    ChainFault,
    ChainRefused,
    ChainUnreachable,
    ConfigError,
    LocalFault,
    WireError,
)
from distributed_training.metrics.base import Metrics
from distributed_training.protocol.commitments import decode_commitment
from distributed_training.protocol.types import Field
from distributed_training.roles.auditing.evaluation import Evaluator
from distributed_training.roles.joining.published import check_published
from distributed_training.roles.owner import Owner
from distributed_training.roles.publishing import Publisher

pytestmark = pytest.mark.alone

shared = pytest.mark.asyncio(loop_scope="session")


async def until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110 (as long as another task needs)
            await asyncio.sleep(0.01)


async def test_snapshots_are_written_at_their_interval_and_after_the_last_round(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=2, validators=1, owner=False, overrides={"keep": {"snapshot_every": 4}})
    async with running(subnet, rounds=2):
        await finished(subnet)
        for node in subnet.nodes.values():
            kept = sorted(path.name for path in (node.config.node_dir / "state").iterdir())
            assert kept == ["000000.safetensors", "000002.safetensors"], node.name
            newest = node.parts.store.newest_state()
            assert newest is not None and newest[1].applied == sum(e["applied"] for e in node.rounds().values())


class Unwilling:
    """A chain that takes no commitment until `fault` is taken away."""

    def __init__(self, chain: Chain, fault: ChainFault | None) -> None:
        self.head, self.roster, self._chain, self.fault = chain.head, chain.roster, chain, fault
        self.taken: list[Sequence[Field]] = []

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        if self.fault is not None:
            raise self.fault
        self.taken.append(fields)
        return 1


class Away:
    """A store that fails while `fault` is set, and counts what it is asked to publish."""

    def __init__(self, store: LocalCheckpoints, fault: Exception | None) -> None:
        self.fault, self._store, self.asked = fault, store, list[int]()
        self.find, self.newest, self.describe, self.fetch = store.find, store.newest, store.describe, store.fetch
        self.check, self.rounds, self.pruned = store.check, store.rounds, list[set[int]]()
        self.gate = threading.Event()
        self.gate.set()

    def publish(self, round_index: int, folder: Path) -> CheckpointRef:
        self.asked.append(round_index)
        self.gate.wait(30)
        if self.fault is not None:
            raise self.fault
        return self._store.publish(round_index, folder)

    def prune(self, named: Collection[int]) -> None:
        self.pruned.append(set(named))


class Stage:
    """An owner of the finished subnet with a chain, a store and a disk of its own, and what it tells."""

    def __init__(self, subnet: Subnet, folder: Path) -> None:
        node, self.events = subnet.nodes["owner"], list[dict[str, Any]]()
        self.chain = Unwilling(node.parts.chain, None)
        self.store = Away(LocalCheckpoints(folder / "checkpoints"), None)
        self.parts = replace(
            node.parts,
            chain=cast(Chain, self.chain),
            checkpoints=self.store,
            store=RoundStore(folder / "node"),
            clock=cast(BlockClock, SimpleNamespace(block_s=0.05)),
            metrics=Metrics([EventList(self.events)], role="owner", uid=0, threads=False),
        )
        self.follower = follower_of(node)
        self.exporter = make_exporter(node.config, node.parts.manifest, node.engine, {-1: 4.0, 0: 3.5}, None)
        self.owner = Owner(self.parts, self.follower, cast(Evaluator, None), self.exporter)

    def told(self) -> list[tuple[str, int]]:
        return [(event["event"], event["round"]) for event in self.events]

    def staged(self) -> list[Path]:
        return list((self.parts.store.root / "staging").iterdir())


@pytest_asyncio.fixture(loop_scope="session")
async def stage(finished_subnet: Subnet, tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(finished_subnet, tmp_path)
    yield made
    await made.owner.cancel()


@shared
async def test_a_state_is_published_announced_and_pruned_and_leaves_no_staging(stage: Stage) -> None:
    await stage.owner.begin()
    await stage.owner.finish(30)
    assert stage.told() == [("checkpoint", 0)]
    ref = stage.store.newest()
    assert ref is not None and stage.events[0]["path"] == ref.location
    assert stage.events[0]["sha256"] == ref.digest.hex()
    said = decode_commitment(stage.chain.taken[0])
    assert said is not None and (said.second_round, said.second) == (0, ref.digest)
    assert stage.store.pruned == [{0}] and stage.staged() == []
    card = (Path(ref.location) / "README.md").read_text()
    assert "| (start) | 4.0000 | 54.60 |" in card and "is byte i of the text" in card


@shared
@pytest.mark.parametrize("fault", [ChainUnreachable("not within 180 s"), ChainRefused("too soon", "rate_limited")])
async def test_a_checkpoint_that_cannot_be_announced_is_said_once_and_tried_again(
    stage: Stage, fault: ChainFault
) -> None:
    stage.chain.fault = fault
    await stage.owner.begin()
    await until(lambda: len(stage.store.asked) >= 3)
    assert [(e["event"], e["what"], e["detail"]) for e in stage.events] == [("fault", "checkpoint", str(fault))]
    stage.chain.fault = None
    await stage.owner.finish(30)
    assert stage.told() == [("fault", 0), ("checkpoint", 0)]


@shared
async def test_while_the_store_is_away_rounds_go_on_and_the_newest_state_wins(stage: Stage) -> None:
    stage.store.fault = LocalFault("the Hub answers 503")
    publisher = Publisher(stage.parts, stage.store, stage.exporter)
    started = asyncio.get_running_loop().time()
    for index in range(5):
        await publisher.offer(index, stage.follower.state, stage.follower.root)
        await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - started < 5
    await publisher.finish(0.3)
    assert len(stage.staged()) == 1, "old ones take no room"
    stage.store.fault = None
    await publisher.finish(30)
    assert stage.told() == [("fault", 0), ("checkpoint", 4)]
    assert stage.store.asked[-1] == 4 and stage.store.find(0, None) is None
    assert stage.staged() == [] and stage.chain.taken == []
    await publisher.cancel()


@shared
async def test_what_is_too_old_to_go_out_is_not_begun_with_while_it_is_deleted(stage: Stage) -> None:
    stage.store.gate.clear()
    publisher = Publisher(stage.parts, stage.store, stage.exporter)
    await publisher.offer(0, stage.follower.state, stage.follower.root)
    await until(lambda: stage.store.asked == [0])
    await publisher.offer(1, stage.follower.state, stage.follower.root)
    (old,) = (path for path in stage.staged() if path.name.startswith("000001"))
    for index in range(10_000):  # so that it takes a while
        (old / f"{index}.json").touch()
    offering = asyncio.create_task(publisher.offer(2, stage.follower.state, stage.follower.root))
    await until(lambda: not (old / "9999.json").exists() or not (old / "0.json").exists())
    stage.store.gate.set()
    await offering
    await publisher.finish(30)
    assert stage.store.asked == [0, 2]
    await publisher.cancel()


@shared
async def test_two_publishers_of_a_node_have_staging_of_their_own(stage: Stage, tmp_path: Path) -> None:
    stage.store.fault = LocalFault("the Hub answers 503")
    first = Publisher(stage.parts, stage.store, stage.exporter)
    other = Publisher(stage.parts, LocalCheckpoints(tmp_path / "own"), stage.exporter, staging="staging-own")
    await first.offer(0, stage.follower.state, stage.follower.root)
    await other.offer(0, stage.follower.state, stage.follower.root)
    await other.finish(30)
    assert len(stage.staged()) == 1, "what the first one still has to publish"
    stage.store.fault = None
    await first.finish(30)
    assert stage.store.find(0, None) is not None
    for publisher in (first, other):
        await publisher.cancel()


@shared
async def test_what_a_person_must_put_right_ends_nothing_once_the_run_goes_on(stage: Stage) -> None:
    stage.store.fault = ConfigError("this token may only read")
    await stage.owner.begin()
    await until(lambda: len(stage.store.asked) >= 2)
    assert [e["detail"] for e in stage.events] == ["this token may only read"]
    stage.store.fault = None
    await stage.owner.finish(30)
    assert stage.told() == [("fault", 0), ("checkpoint", 0)]


@shared
async def test_an_owner_that_comes_back_publishes_the_same_state_once(finished_subnet: Subnet, tmp_path: Path) -> None:
    refs: list[CheckpointRef | None] = []
    for _ in range(2):
        stage = Stage(finished_subnet, tmp_path)
        left = stage.parts.store.root / "staging" / "000009-0"
        left.mkdir(parents=True)
        await stage.owner.begin()
        await stage.owner.finish(30)
        await stage.owner.cancel()
        refs.append(stage.store.newest())
        assert not left.exists(), "what the killed process had staged"
    assert refs[0] == refs[1]


@shared
async def test_a_disk_that_takes_nothing_is_our_own_trouble_and_ends_nothing(stage: Stage) -> None:
    (stage.parts.store.root / "staging").symlink_to("/dev/null/nowhere")
    await stage.owner.begin()
    assert stage.told() == [("fault", 0)]


@shared
async def test_a_published_state_is_known_by_its_root(stage: Stage) -> None:
    manifest, root = stage.parts.manifest, stage.follower.root
    assert check_published(stage.store, 0, root, manifest) is None
    await stage.owner.begin()
    await stage.owner.finish(30)
    assert check_published(stage.store, 0, root, manifest) == stage.store.newest()
    with pytest.raises(WireError, match="state root"):
        check_published(stage.store, 0, bytes(32), manifest)
