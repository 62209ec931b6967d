"""Validators' audits on a virtual clock: whole subnets of real nodes, one of which does something to the others."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distributed_training.engine import Engine
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.audit_plan import audit_beacon, could_find, voter_share
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Accusation, Signed
from distributed_training.protocol.wire import (
    binding_message,
    encode_accusation,
    encode_request,
    encode_signed,
    signing_message,
)
from distributed_training.roles.mining.work import Trainer, Worker, WorkResult, WorkTask
from distributed_training.roles.parts import Parts
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode, TimedTrainer
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import World, make_world

STEPS, STEP_S = 8, 2.0  # of every miner here
Cheat = Callable[[Worker], Worker]
NOBODY: Mapping[str, Cheat] = {}


class Tail:
    """A worker: the first steps are done, and the log of the others is invented."""

    def __init__(self, worker: Worker, honest_steps: int) -> None:
        self._worker, self._honest_steps = worker, honest_steps

    def work(self, task: WorkTask) -> WorkResult:
        done = self._worker.work(task)
        invented = tuple(tuple(-x for x in row) for row in done.steps[0].sketch)
        steps = [s if s.step < self._honest_steps else replace(s, sketch=invented) for s in done.steps]
        return replace(done, steps=tuple(steps))


class Flip:
    """A worker: everything is done, and the vector goes the other way."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def work(self, task: WorkTask) -> WorkResult:
        done = self._worker.work(task)
        return replace(done, delta=-done.delta)


class Player(SimNode):
    """A node of the cast. `cheat`: what a miner makes of its worker."""

    def __init__(self, world: World, name: str, cheat: Cheat | None) -> None:
        super().__init__(world, name)
        self._cheat = cheat

    def _worker(self, engine: Engine, manifest: RunManifest, parts: Parts) -> Worker:
        worker = TimedTrainer(Trainer(engine.loop, engine.source, engine.tokenizer, manifest), parts, STEP_S)
        return worker if self._cheat is None else self._cheat(worker)


@dataclass
class Stage:
    world: World
    players: dict[str, Player]
    out: io.StringIO

    async def until(self, round_index: int, blocks: float) -> None:
        """So many blocks after the start of a round."""
        at_s = self.world.block_time(self.world.manifest.round(round_index).start_block) + blocks
        await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))

    def silent(self, names: Iterable[str]) -> None:
        """From now on no byte passes to or from them; streams to them stay open."""
        for name in names:
            self.world.links.freeze(self.players[name].peer_key)

    def could_find(self, validator: str, miner: str, step: int) -> bool:
        """Could it have come to the step, counted from 1, of round 0 by what the beacon draws?"""
        world, index = self.world, self.world.manifest.round(0)
        beacon = audit_beacon(world.ledger.roster(index.audit_block).block.hash, 0)
        roster, key = world.ledger.roster(index.roster_block), self.players[validator].key.public_key
        share = voter_share(voters(world.manifest, roster), key)
        miner_key = self.players[miner].key.public_key
        return could_find(beacon, key, miner_key, STEPS, world.manifest.audit, share, step, False)

    async def says(self, accuser: str, validator: str, miner: str, steps: int, reason: str = "gradient") -> None:
        """By hand: that a miner's log of round 0 fails at its last of so many steps."""
        world, one = self.world, self.players[accuser]
        block = world.ledger.roster(world.manifest.round(0).roster_block)
        neuron = block.by_public_key(one.key.public_key)
        assert neuron is not None and one._transport is not None
        key, judged = one.key.public_key, self.players[miner].key.public_key
        body = encode_accusation(Accusation(world.manifest.digest, 0, key, judged, steps, reason))
        frame = encode_signed(Signed(body, one.key.sign(signing_message(body))))
        binding = one.identity.sign(binding_message(world.manifest.netuid, key, neuron.registered_block))
        stream = await one._transport.open(self.players[validator].peer_key, "accuse", 5.0)
        await stream.write(encode_request(key, binding, frame), 5.0)
        assert await stream.read(2, 5.0) == b"ok"
        await asyncio.sleep(1.0)

    def told(self, name: str, event: str, **fields: Any) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.out.getvalue().splitlines())
        return [
            e | {"at_s": at}
            for at, who, e in lines
            if who == name and e["event"] == event and fields.items() <= e.items()
        ]

    def uid(self, name: str) -> int:
        return list(self.players).index(name)


def play(
    root: Path, options: SimOptions, story: Callable[[Stage], Awaitable[None]], cheats: Mapping[str, Cheat] = NOBODY,
    snapshot_every: int = 4,
    **audit: Any,
) -> Stage:  # fmt: skip
    out = io.StringIO()
    world = make_world(replace(options, steps=STEPS), root, out)
    keep = world.manifest.keep.model_copy(update={"snapshot_every": snapshot_every})
    section = world.manifest.audit.model_copy(update=audit)
    world.manifest = world.manifest.model_copy(update={"audit": section, "keep": keep})
    stage = Stage(world, {n: Player(world, n, cheats.get(n)) for n in options.genesis_names()}, out)

    async def lived() -> None:
        world.recorder.now = asyncio.get_running_loop().time
        world.ledger.start_clock()
        for player in stage.players.values():
            player.start()
        await story(stage)
        for player in stage.players.values():
            await player.kill()

    run(lived())
    return stage


def test_miners_that_answer_slowly_delay_nobodys_audit(tmp_path: Path) -> None:
    slow = [f"miner-{i}" for i in range(2, 9)]

    async def story(stage: Stage) -> None:
        await stage.until(0, 45)
        stage.silent(slow)
        await stage.until(1, 40)

    stage = play(tmp_path, SimOptions(9, 2, validators=1), story, full_share=0.0)
    (settled,), (scores,) = (stage.told("validator-0", event, round=0) for event in ("round", "scores"))
    assert scores["at_s"] - settled["at_s"] < 54 / 2 + 1, "all probes of a round together take half a round at most"
    for name in ("miner-0", "miner-1", *slow):
        (audit,) = stage.told("validator-0", "audit", round=0, target=stage.uid(name))
        assert audit["verdict"] == "pass" and (audit["goodput_bytes_per_s"] > 0) == (name not in slow)


def test_what_one_validator_finds_the_others_find_by_their_own_replay(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(4, 40)

    stage = play(
        tmp_path, SimOptions(3, 5, validators=3), story, {"miner-2": lambda worker: Tail(worker, 2)}, full_share=0.0
    )
    cheat, failed = stage.uid("miner-2"), dict[str, int]()
    for name in ("validator-0", "validator-1", "validator-2"):
        found = stage.told(name, "audit", verdict="fail")
        assert {audit["target"] for audit in found} == {cheat} and found[0]["failed_step"] == 2
        failed[name] = found[0]["round"]
    assert len(set(failed.values())) == 1, failed
    for name, index in failed.items():
        (*_, scores) = stage.told(name, "scores", round=index)
        assert (
            scores["cards"][str(cheat)]["G"] == 0.0
            and "audit failed: gradient" in scores["cards"][str(cheat)]["reason"]
        )


@pytest.mark.parametrize("snapshot_every", [1, 4])  # its newest snapshot is of the start of the next round, or is not
def test_a_validator_that_is_restarted_in_mid_audit_repeats_it(tmp_path: Path, snapshot_every: int) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(0, 45)
        stage.silent(("miner-2", "miner-3"))
        await stage.until(0, 48)  # its probes wait for them
        assert stage.told("validator-0", "round", round=0) and not stage.told("validator-0", "scores", round=0)
        await stage.players["validator-0"].kill()
        await stage.until(0, 53)
        stage.players["validator-0"].start()
        await stage.until(1, 54)

    stage = play(tmp_path, SimOptions(4, 3, validators=2), story, snapshot_every=snapshot_every)
    assert len(stage.told("validator-0", "scores", round=0)) == 1
    for name in stage.players:
        if name.startswith("miner"):
            (audit,) = stage.told("validator-0", "audit", round=0, target=stage.uid(name))
            assert audit["verdict"] == "pass", name


def test_a_vector_that_its_miner_does_not_give_comes_from_the_reducers(tmp_path: Path) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(0, 45)
        stage.silent(("miner-2", "miner-3"))
        await stage.until(1, 40)

    stage = play(tmp_path, SimOptions(5, 2, validators=1), story, {"miner-3": Flip}, full_share=1.0)
    found = {
        name: (audit["verdict"], audit["reason"], audit["goodput_bytes_per_s"] > 0)
        for name in stage.players
        for audit in stage.told("validator-0", "audit", round=0, target=stage.uid(name))
    }
    passed = {f"miner-{i}": ("pass", "ok", i != 2) for i in (0, 1, 2, 4)}
    assert found == passed | {"miner-3": ("fail", "vector", False)}


@pytest.mark.parametrize(("miner", "steps", "drawn"), [("miner-0", 1, True), ("miner-2", 2, False)])
def test_an_accusation_is_looked_into_after_the_fold_and_a_liar_is_not_heard_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, miner: str, steps: int, drawn: bool
) -> None:
    """The second one guesses right, of a step that the beacon did not let it look at."""

    def fails(stage: Stage) -> list[dict[str, Any]]:
        return stage.told("validator-0", "audit", verdict="fail")

    async def story(stage: Stage) -> None:
        await stage.until(0, 46)
        stage.silent(("validator-2",))
        await stage.until(0, 56)
        assert stage.told("validator-0", "scores", round=0) and not fails(stage), "its own looks go less deep"
        assert stage.could_find("validator-2", "miner-2", 2)
        assert stage.could_find("validator-1", miner, steps) is drawn
        await stage.says("validator-1", "validator-0", miner, steps)
        await stage.says("validator-1", "validator-0", "miner-2", 2)
        assert not fails(stage)
        await stage.until(1, 5)
        stage.world.links.thaw(stage.players["validator-2"].peer_key)
        await stage.until(1, 20)

    cheats: Mapping[str, Cheat] = {"miner-2": lambda worker: Tail(worker, 1)}
    options = SimOptions(3, 2, validators=3, seed=1)  # by which only validator-2 comes to step 1 of the cheat
    stage = play(tmp_path, options, story, cheats, full_share=0.0, depth_share=1e-6)
    (found,) = fails(stage)
    assert (found["target"], found["failed_step"], found["depth"]) == (stage.uid("miner-2"), 1, 2)
    before, after = (scores["cards"] for scores in stage.told("validator-0", "scores", round=0))
    honest, cheat = (str(stage.uid(name)) for name in ("miner-0", "miner-2"))
    assert (
        before[cheat]["weight"] > 0.0
        and after[cheat]["weight"] == 0.0
        and "gradient at step 1" in after[cheat]["reason"]
    )
    assert after[honest]["weight"] > before[honest]["weight"]
    said = f"says that the log of uid {stage.uid(miner)} fails (gradient at step {steps - 1}), and it does not"
    assert [said in line for line in caplog.messages if "says that" in line] == [True]


def test_a_word_that_nobody_can_look_into_speaks_neither_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cheat gives its vector to one validator alone, and that one's word must not cost it the others' ear."""
    miners = ("miner-0", "miner-1", "miner-2")

    async def story(stage: Stage) -> None:
        await stage.until(0, 46)
        stage.silent(miners)
        await stage.until(1, 15)
        assert stage.told("validator-0", "scores", round=0)
        await stage.says("validator-1", "validator-0", "miner-2", STEPS, "vector")
        await stage.until(1, 45)

    play(tmp_path, SimOptions(3, 2, validators=2), story, full_share=2.0)
    assert not [line for line in caplog.messages if "says that" in line]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_vector_that_is_turned_round_is_found_by_everybody_at_the_first_look(tmp_path: Path, refuses: bool) -> None:
    """Who answers no probe is judged by what the reducers have of it."""

    async def story(stage: Stage) -> None:
        await stage.until(0, 45)
        stage.silent(("miner-3",) if refuses else ())
        await stage.until(1, 20)

    stage = play(tmp_path, SimOptions(4, 2, validators=2), story, {"miner-3": Flip}, full_share=0.0, depth_share=1e-6)
    for name in ("validator-0", "validator-1"):
        found = {a["target"]: (a["verdict"], a["reason"]) for a in stage.told(name, "audit", round=0)}
        honest = {stage.uid(f"miner-{i}"): ("pass", "ok") for i in range(3)}
        assert found == honest | {stage.uid("miner-3"): ("fail", "direction")}
