"""Whole swarms that act on the head: the same states as without it, sooner; whatever the head turns out to be."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

from distributed_training.chain.forks import Fork
from distributed_training.protocol.rules.clock import stall_timeout_s
from distributed_training.simulation import loop
from distributed_training.simulation.faults import Incident
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.swarm import SimResult, Swarm, simulate
from distributed_training.simulation.world import make_world

FOUR = SimOptions(miners=4, rounds=3, seed=3, equal=True)


def run(options: SimOptions, *planned: Incident) -> tuple[SimResult, list[tuple[str, dict[str, object]]]]:
    """Its result, and (node, event) of all its events."""
    out = io.StringIO()
    result = simulate(options, events=out, planned=planned)
    events = [tuple(json.loads(line)[1:]) for line in out.getvalue().splitlines()]
    return result, events


def test_the_same_root_with_the_head_first_as_with_finality_first_and_sooner() -> None:
    (first, _), (final, _) = run(FOUR), run(replace(FOUR, act_on_head=False))
    assert first.violations == final.violations == ()
    assert first.root == final.root != ""
    for one, other in zip(first.rows, final.rows, strict=True):
        assert one.applied and other.applied and one.included == other.included == 4
        assert one.seconds is not None and other.seconds is not None and one.seconds < other.seconds - 1.0


def test_half_of_the_nodes_see_another_block_with_other_commitments_and_the_root_is_the_same() -> None:
    plain, _ = run(FOUR)
    for block in ("commit_block", "output_block"):
        found, events = run(FOUR, fork(block, ("validator-0", "miner-0", "miner-1", "miner-3")))
        assert found.violations == () and found.root == plain.root
        anew = {node for node, event in events if event["event"] == "anew"}
        assert anew == ({"validator-0", "miner-0", "miner-1", "miner-3"} if block == "commit_block" else set())


def fork(block: str, nodes: tuple[str, ...]) -> Incident:
    from distributed_training.recipes.reading import read_preset

    t = read_preset("local").sections["timing"]
    at = t["first_block"] + t["length"] + {"commit_block": t["commit"], "output_block": t["output"]}[block]
    return Incident("fork", float(at), float(at + t["finality"]), nodes)


def test_nothing_becomes_final_for_a_while_and_no_output_is_put_on_chain_too_late() -> None:
    stuck = fork("commit_block", ())
    found, events = run(replace(FOUR, rounds=4), replace(stuck, kind="unfinal", end_s=stuck.begin_s + 20))
    assert found.violations == ()
    assert [row.applied for row in found.rows] == [True, False, True, True], "that round is discarded for everybody"
    assert not [event for _, event in events if event["event"] == "anew"]


def test_who_learns_of_blocks_late_holds_nobody_up() -> None:
    late = Incident("lag", 70.0, 140.0, ("miner-0", "validator-1"))
    found, _ = run(replace(FOUR, rounds=4), late)
    assert found.violations == () and all(row.applied for row in found.rows)


def test_the_time_in_which_a_peer_must_move_begins_at_s_d() -> None:
    from samples import RUN

    t = RUN.timing
    assert stall_timeout_s(t, 1.0) == (t.output - t.reduce_margin - t.commit) / 3


def test_a_reducer_whose_head_changes_and_changes_back_gets_again_what_it_had(tmp_path: Path) -> None:
    """Its senders saw the chain's own block all the time; what they had given was dropped with the exchange."""
    out = io.StringIO()
    world = make_world(FOUR, tmp_path, out)
    swarm, ledger, round_ = Swarm(world, ()), world.ledger, world.manifest.round(1)

    async def flap() -> None:
        while ledger.head() <= round_.commit_block:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        who, lacks = (frozenset({swarm.nodes[name].key.hotkey}) for name in ("miner-1", "miner-0"))
        until = round_.commit_block + ledger.finality
        ledger.forks.append(Fork(round_.commit_block, until, who, lacks, round_.start_block))

    async def story() -> None:
        flapping = asyncio.create_task(flap())
        await swarm.run(lambda row: None)
        await flapping

    loop.run(story())
    events = [tuple(json.loads(line)[1:]) for line in out.getvalue().splitlines()]
    assert {node for node, event in events if event["event"] == "anew"} == {"miner-1"}
    rounds = {node: event for node, event in events if event["event"] == "round" and event["round"] == 1}
    assert len(rounds) == len(swarm.nodes)
    for event in rounds.values():
        assert event["counted"] == [0, 1, 2, 3] and set(event["credit"].values()) == {1.0}, event
