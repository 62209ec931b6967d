"""A trouble that lasts is two lines, and a node that has nothing to say says where it is."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from distributed_training.errors import ChainUnreachable
from distributed_training.metrics.base import Metrics
from distributed_training.ongoing import Ongoing, duration, now_s
from distributed_training.roles.heartbeat import QUIET_S, heartbeat
from distributed_training.roles.parts import Parts
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import CURRENT, SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import World, make_world

OURS = "distributed_training"
log = logging.getLogger(f"{OURS}.test")
OUTAGE = (95.0, 125.0)  # virtual seconds, a block is one: the end of round 1's training, and its averaging
ROUNDS = 4


def test_a_thousand_tries_are_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        trouble = Ongoing(log, "the disk is full", "the disk takes files again")
        assert not trouble.end()
        for number in range(1340):
            assert trouble.begin("no space left") is (number == 0)
            await asyncio.sleep(0.1)
        assert trouble.met_since(now_s() - 1) and not trouble.met_since(now_s())
        assert trouble.end() and not trouble.end()
        trouble.begin()

    with caplog.at_level(logging.INFO, logger=log.name):
        run(main())
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "the disk is full: no space left"),
        ("INFO", "the disk takes files again after 2 min, 1340 tries failed"),
        ("WARNING", "the disk is full"),
    ]


def test_durations_are_as_short_as_a_line_wants_them() -> None:
    assert [duration(s) for s in (0.4, 119, 600, 9000, 300_000)] == ["0 s", "119 s", "10 min", "2.5 h", "3.5 days"]


class Told(logging.Handler):
    """What one node of a simulation says at INFO and above, with its round's number in virtual time."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.INFO)
        self.name, self.records = name, list[tuple[float, logging.LogRecord]]()

    def emit(self, record: logging.LogRecord) -> None:
        if CURRENT.get() == self.name:
            self.records.append((now_s(), record))

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for _, record in self.records]


class CutOff(SimNode):
    """miner-0 has no way to the chain for a while."""

    async def _line(self) -> None:
        if self.name == "miner-0" and OUTAGE[0] <= now_s() < OUTAGE[1]:
            raise ChainUnreachable("nobody answers")
        await super()._line()


async def lived(world: World, until_block: int) -> None:
    world.recorder.now = asyncio.get_running_loop().time
    world.ledger.start_clock()
    nodes = [CutOff(world, name) for name in world.options.genesis_names()]
    for node in nodes:
        node.start()
    await asyncio.sleep(world.block_time(until_block))
    for node in nodes:
        await node.kill()


def said_by(name: str, world: World, until_block: int) -> Told:
    told, ours = Told(name), logging.getLogger(OURS)
    level = ours.level
    ours.addHandler(told)
    ours.setLevel(logging.INFO)
    try:
        run(lived(world, until_block))
    finally:
        ours.removeHandler(told)
        ours.setLevel(level)
    return told


def test_a_miners_rounds_are_a_few_short_lines_and_an_outage_is_two(tmp_path: Path) -> None:
    world = make_world(SimOptions(miners=3, rounds=ROUNDS, validators=1), tmp_path)
    told = said_by("miner-0", world, world.manifest.round(ROUNDS).start_block)
    assert all("\n" not in line and len(line) <= 200 for line in told.lines), told.lines
    assert not any(record.exc_info for _, record in told.records)
    for index in range(ROUNDS - 1):
        begins, ends = (world.block_time(world.manifest.round(i).start_block) for i in (index, index + 1))
        assert 1 <= sum(begins <= at < ends for at, _ in told.records) <= 6, told.lines
        (line,) = [line for line in told.lines if line.startswith(f"round {index}: applied; ")]
        assert line.endswith(f"; state {world.recorder.settled[index]['miner-0'].root[:12]}")
    first = next(line for line in told.lines if line.startswith("round 0: applied"))
    assert "steps, " in first and "loss " in first and "; included by uids " in first and "; our slice " in first
    assert sum("the chain cannot be reached" in line for line in told.lines) == 1
    (over,) = [line for line in told.lines if "the chain answers again after" in line]
    assert over.endswith("tries failed")


def test_debug_shows_the_steps_of_the_protocol(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = make_world(SimOptions(miners=2, rounds=2, validators=1), tmp_path)
    with caplog.at_level(logging.DEBUG, logger=OURS):
        run(lived(world, world.manifest.round(1).start_block + 8))
    text = caplog.text
    for step in (
        "round 0: Phase(phase='train')", "round 0: Step(step=0, loss=", "round 0: work encoded in ",
        "round 0: work hash is on chain in block ", "round 0: 2 slices, work of uids ", "chunks, sent to uid ",
        " is in\n", "round 0: reducing slice ", "round 0: output hash is on chain", "slice 0 is here, from ",
        "round 0: slice map is on chain", " are replayed",
        "round 0: Audit(target=",
    ):  # fmt: skip
        assert step in text, step
    assert max(len(record.getMessage()) for record in caplog.records) < 500


def test_who_has_nothing_to_say_says_what_it_waits_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = make_world(SimOptions(miners=2, rounds=2, validators=1), tmp_path).manifest
    metrics = Metrics([], role="miner", uid=3, threads=False)
    clock = SimpleNamespace(head=2, finalized=0, seconds_until=lambda block: 2.0 * block)
    parts = cast(Parts, SimpleNamespace(metrics=metrics, clock=clock, manifest=manifest))

    async def main() -> None:
        beat = asyncio.create_task(heartbeat(parts))
        await asyncio.sleep(QUIET_S + 50)
        metrics.words.where = (1, "average")
        log.info("something else")
        await asyncio.sleep(QUIET_S - 1)
        log.debug("nothing that an operator sees")
        await asyncio.sleep(2)
        clock.head = clock.finalized = manifest.round(1).end_block
        await asyncio.sleep(QUIET_S)
        beat.cancel()

    with caplog.at_level(logging.DEBUG, logger=OURS):
        run(main())
    timing, beats = manifest.round(1), [line for line in caplog.messages if "nothing new" in line]
    assert beats[0].startswith("nothing new for 5 min: looking for a state to begin with; newest block 2")
    begins = (
        f"nothing new for 5 min: round 1, average: the round begins in block {timing.start_block}, in about 2 min ("
    )
    assert beats[1].startswith(begins) and beats[1].endswith(" UTC); newest block 2")
    assert beats[2].startswith("nothing new for 5 min: round 1, average: ") and len(beats) == 3
    assert caplog.messages.index(beats[1]) > caplog.messages.index("nothing that an operator sees")
