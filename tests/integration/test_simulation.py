"""Small swarms under every kind of fault: all invariants hold, and a seed says everything."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from distributed_training.simulation import __main__ as command
from distributed_training.simulation import observer
from distributed_training.simulation.faults import Incident, incidents
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import FAULTS, FaultKind, SimOptions, make_run
from distributed_training.simulation.records import Recorder
from distributed_training.simulation.swarm import SimResult, Swarm, simulate
from distributed_training.simulation.world import make_world


def small(faults: FaultKind, seed: int = 7, rounds: int = 4) -> SimResult:
    return simulate(SimOptions(miners=8, rounds=rounds, faults=faults, seed=seed))


@pytest.mark.parametrize("faults", [kind for kind in FAULTS if kind != "churn"])
def test_a_swarm_under_faults_keeps_every_promise(faults: FaultKind) -> None:
    result = small(faults)
    assert result.violations == ()
    assert [row.round for row in result.rows] == [0, 1, 2, 3]
    last = result.rows[-1]  # the last rounds are quiet: everybody is back
    assert last.applied and last.included >= 8 and last.live >= 11
    assert bool(result.incidents) == (faults not in ("none", "loss"))


def test_the_same_seed_gives_the_same_digest_and_another_seed_another_one() -> None:
    written = [io.StringIO(), io.StringIO()]
    one, two = (simulate(SimOptions(8, 3, "churn", 7), events=out) for out in written)
    assert written[0].getvalue() == written[1].getvalue()
    assert one.digest == two.digest and one.events == two.events > 100
    assert one.violations == () and one.incidents
    assert simulate(SimOptions(3, 1, "churn", 8)).digest != simulate(SimOptions(3, 1, "churn", 9)).digest


def test_incidents_follow_from_the_seed_and_leave_the_last_rounds_alone(tmp_path: Path) -> None:
    options = SimOptions(miners=20, rounds=18, faults="all", seed=3)
    manifest = make_run(options, tmp_path)
    drawn = incidents(options, manifest, 1.0)
    assert drawn == incidents(options, manifest, 1.0)
    assert {i.kind for i in drawn} >= {"kill", "cut"}
    assert max(i.begin_s for i in drawn) <= manifest.round(15).end_block
    for one in drawn:
        for other in drawn:
            shared = set(one.nodes) & set(other.nodes)
            assert one is other or not shared or one.end_s <= other.begin_s or other.end_s <= one.begin_s


def recorder(roots: dict[str, str]) -> Recorder:
    made = Recorder("nowhere")
    for name, root in roots.items():
        event = {"event": "round", "round": 0, "state_root": root, "applied": True, "reason": "applied", "included": []}
        made.write(name, event)
    return made


def test_the_observer_finds_who_differs_who_is_late_and_who_changed_its_mind(tmp_path: Path) -> None:
    options = SimOptions(miners=3, rounds=2)
    manifest = make_run(options, tmp_path)
    round_ = manifest.round(0)
    names = ("miner-0", "miner-1", "miner-2", "miner-3")
    seen = recorder({"miner-0": "aa", "miner-1": "bb", "miner-2": "aa"})

    def check(*troubles: Incident) -> list[observer.Violation]:
        since: dict[str, float] = dict.fromkeys(list[str](names), 0.0)
        return observer.check_round(seen, round_, names, since, observer.Troubles(troubles), 1.0, manifest.timing)

    assert [(v.nodes, v.what) for v in check()] == [
        (("miner-3",), "not settled 10 s after the round's end"),
        (("miner-1",), "another state root"),
    ]
    assert [v.nodes for v in check(Incident("freeze", 5.0, 9.0, ("miner-3",)))] == [("miner-1",)]
    seen.write("miner-0", {"event": "round", "round": 0, "state_root": "bb", "applied": True, "reason": "applied",
                           "included": []})  # fmt: skip
    assert [v.nodes for v in observer.contradictions(seen)] == [("miner-0",)]


def test_in_the_end_nobody_is_excused() -> None:
    seen = recorder({"miner-0": "aa", "miner-1": "aa"})
    seen.write("miner-2", {"event": "stopped", "reason": "rounds done"})
    assert observer.never_back(seen, 0, ["miner-0", "miner-1", "miner-2"]) == []
    (violation,) = observer.never_back(seen, 0, ["miner-3", "miner-0"])
    assert violation.nodes == ("miner-3",) and violation.what.startswith("not back")


class Wedged(SimNode):
    """Hangs for ever once it has been cut off."""

    async def _line(self) -> None:
        if self.world.links.blocked(self.peer_key, self.world.identity("owner").public_key):
            await asyncio.Event().wait()
        await super()._line()


def test_a_node_that_hangs_after_a_partition_is_found(tmp_path: Path) -> None:
    world = make_world(SimOptions(miners=3, rounds=1), tmp_path)
    begin = world.block_time(world.manifest.round(0).commit_block)
    swarm = Swarm(world, (Incident("cut", begin, begin + 5.0, ("miner-1",)),))
    swarm.nodes["miner-1"] = Wedged(world, "miner-1")
    run(swarm.run(lambda row: None))
    assert [(v.nodes, v.what[:8]) for v in swarm.violations] == [(("miner-1",), "not back")]


def test_the_command_prints_a_table_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, log = tmp_path / "result.json", tmp_path / "log.txt"
    arguments = ["--miners", "3", "--rounds", "2", "--seed", "4", "--json", str(target), "--log", str(log)]
    assert command.main(arguments) == 0
    shown, written = capsys.readouterr().out, json.loads(target.read_text())
    assert f"digest {written['digest']}" in shown and written["violations"] == []
    assert [row["round"] for row in written["rows"]] == [0, 1]
    assert written["command"].endswith("--miners 3 --rounds 2 --faults none --seed 4")
    assert "miner-2" in log.read_text()


def test_a_violation_names_the_seed_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    result = small("none", rounds=1)
    broken = SimResult(
        **{name: getattr(result, name) for name in SimResult.__dataclass_fields__ if name != "violations"},
        violations=(observer.Violation(0, ("miner-1",), "another state root"),),
    )
    command.show_violations(broken)
    shown = capsys.readouterr().out
    assert "VIOLATION round 0: miner-1: another state root" in shown
    assert "simulation --miners 8 --rounds 1 --faults none --seed 7" in shown
