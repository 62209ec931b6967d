"""Whole subnets whose uplink codec keeps feedback, on a virtual clock: restarts and lost buffers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from test_audits import Stage, play

from distributed_training.protocol.types import NO_ROOT, WorkRecord
from distributed_training.protocol.wire import decode_signed, decode_work
from distributed_training.simulation.options import SimOptions

SPARSE = ("average.uplink=sparse",)
MINERS = tuple(f"miner-{i}" for i in range(4))
Story = Callable[[Stage], Awaitable[None]]


def played(root: Path, story: Story, rounds: int = 4) -> Stage:
    return play(root, SimOptions(len(MINERS), rounds, validators=1, constants=SPARSE), story, snapshot_every=1)


def folder(stage: Stage, name: str) -> Path:
    return stage.world.config(name, stage.uid(name)).node_dir


def records(stage: Stage, name: str) -> dict[int, WorkRecord]:
    """A miner's own, by round, as it kept them."""
    found = dict[int, WorkRecord]()
    for path in sorted((folder(stage, name) / "rounds").glob("*/work-*")):
        record = decode_work(decode_signed(path.read_bytes()).body)
        if record.public_key == stage.players[name].key.public_key:
            found[record.round] = record
    return found


def included(stage: Stage, index: int) -> list[int]:
    (settled,) = stage.told("validator-0", "round", round=index)
    return list(settled["included"])


def follows(stage: Stage, name: str) -> dict[int, WorkRecord]:
    """Every record starts at the end of the last one that was included."""
    made, last = records(stage, name), NO_ROOT
    for index, record in sorted(made.items()):
        assert record.feedback_start == last and record.feedback_end != NO_ROOT, (name, index)
        if stage.uid(name) in included(stage, index):
            last = record.feedback_end
    return made


async def restarted(stage: Stage, name: str, round_index: int, block: int) -> None:
    await stage.until(round_index, block)
    await stage.players[name].kill()
    await asyncio.sleep(1.0)
    stage.players[name].start()


def test_miners_that_are_killed_at_any_point_go_on_from_what_was_included(tmp_path: Path) -> None:
    """While they train, as they commit, in the exchange, with a slice out, and before and after they are asked."""

    async def story(stage: Stage) -> None:
        t = stage.world.manifest.timing
        points = (
            (1, 3, "miner-0"), (1, t.commit + t.finality + 1, "miner-1"), (1, t.map + t.finality + 1, "miner-2"),
            (2, t.commit - t.commit_margin + 1, "miner-1"), (2, t.output + 1, "miner-3"), (2, t.length - 1, "miner-0"),
        )  # fmt: skip
        for round_index, block, name in points:
            await restarted(stage, name, round_index, block)
        await stage.until(4, 1)

    stage = played(tmp_path, story)
    for name in MINERS:
        made = follows(stage, name)
        assert set(made) >= {0, 3} and len(made) >= 3
        assert stage.told(name, "fault", what="feedback") == []
        kept = {path.name for path in (folder(stage, name) / "feedback").iterdir()}
        assert made[3].feedback_end.hex() in kept and len(kept) <= 5
    assert stage.told("validator-0", "audit", verdict="fail") == []
    assert not (folder(stage, "validator-0") / "feedback").exists()


def test_a_buffer_that_is_lost_at_a_restart_costs_what_was_in_it_and_is_said(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(1, stage.world.manifest.timing.length - 1)
        for name in ("miner-0", "miner-1"):
            await stage.players[name].kill()
        shutil.rmtree(folder(stage, "miner-0") / "feedback")
        for path in (folder(stage, "miner-1") / "feedback").iterdir():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        for name in ("miner-0", "miner-1"):
            stage.players[name].start()
        await stage.until(4, 1)

    stage = played(tmp_path, story)
    for name in ("miner-0", "miner-1"):
        made = records(stage, name)
        (lost,) = stage.told(name, "fault", what="feedback")
        assert lost["round"] == 2 and made[2].feedback_start == NO_ROOT
        assert made[3].feedback_start == made[2].feedback_end, "from there on it has one again"
        assert all(stage.uid(name) in included(stage, index) for index in range(4)), "and nothing else is lost"
    assert stage.told("validator-0", "audit", verdict="fail") == []
    for name in ("miner-2", "miner-3"):
        assert sorted(follows(stage, name)) == [0, 1, 2, 3]
    assert stage.told("validator-0", "audit", reason="vector not served", target=stage.uid("miner-2")) == []
