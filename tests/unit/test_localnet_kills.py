"""Which node dies when: one line for every mistake, and a plan that leaves time to recover."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import node_specs
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.run.create import planned
from distributed_training.localnet.run.kills import PHASES, RECOVERY_ROUNDS, KillRequest, parse_kill, plan_kills

NODES = {"owner": "owner", "validator-0": "validator", "validator-1": "validator"}
NODES |= {f"miner-{i}": "miner" for i in range(4)}
ACCEPTANCE = ["miner@train", "miner@average", "validator@average", "owner@train"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kill", "miner"], "'miner': expected ROLE@PHASE or ROLE@PHASE:ROUND, like miner@train"),
        (["--kill", "minor@train"], "not 'minor'; did you mean miner?"),
        (["--kill", "miner-4@train"], "expected miner, validator, owner or one of owner, validator-0"),
        (["--kill", "miner@map"], "the phases of a miner are train, commit, average, settle, not 'map'"),
        (["--kill", "owner@comit"], "the phases of a owner are train, average, settle, not 'comit'"),
        (["--kill", "miner@train:x"], "expected a round, a whole number, not 'x'"),
        (["--kill", "miner@train", "--steps", "5"], "a killed miner cannot do exactly N steps; leave out --steps"),
        (["--block-seconds", "0.1"], "argument --block-seconds: expected seconds from 0.25 to 12, not '0.1'"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["miner@train:0"], "miner@train:0: expected a round from 1 to 5, so that there is time to recover"),
        (["miner@train:7"], "expected a round from 1 to 5"),
        (["miner-1@train:2", "miner-1@settle:4"], "miner-1 would die in round 2 and again in round 4"),
        (["owner@train", "owner@settle", "owner@average"], "before it had 2 rounds to recover"),
        (["miner@train"] * 7, "7 kills, one a round, need at least --rounds 10, not 8"),
    ],
)
def test_kills_without_time_to_recover_are_refused_in_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_kills([parse_kill(text, NODES) for text in flags], NODES, 8, seed=1)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_rounds_say_how_many_are_needed() -> None:
    with pytest.raises(ConfigError, match="need at least --rounds 4, not 3"):
        plan_kills([parse_kill("miner@train", NODES)], NODES, 3, seed=1)
    with pytest.raises(ConfigError, match="expected --rounds 4 or more, not 3"):
        plan_kills([parse_kill("miner@train:1", NODES)], NODES, 3, seed=1)


def test_kills_are_part_of_a_run_and_name_nodes_that_are_there() -> None:
    flags = [part for kill in ACCEPTANCE for part in ("--kill", kill)]
    options = parse_options([*flags, "--rounds", "8"])
    assert options.params()["kill"] == ACCEPTANCE and parse_options([]).params()["kill"] is None
    kills = planned(options, node_specs(options))
    assert sorted((k.role, k.phase) for k in kills) == sorted(tuple(text.split("@")) for text in ACCEPTANCE)
    assert len({k.name for k in kills}) == 4


def test_an_adversary_dies_only_when_it_is_named() -> None:
    flags = ["--adversary", "free-rider:2", "--rounds", "9", "--miners", "3"]
    for seed in range(5):
        options = parse_options([*flags, "--seed", str(seed), "--kill", "miner@train"])
        assert planned(options, node_specs(options))[0].name == "miner-0"
    options = parse_options([*flags, "--kill", "miner-2@train"])
    assert planned(options, node_specs(options))[0].name == "miner-2"


@st.composite
def requests(draw: st.DrawFn) -> KillRequest:
    role = draw(st.sampled_from(sorted(PHASES)))
    named = role != "owner" and draw(st.booleans())
    name = draw(st.sampled_from([n for n, r in NODES.items() if r == role])) if named else None
    return KillRequest(role, name, draw(st.sampled_from(PHASES[role])), draw(st.none() | st.integers(0, 12)))


@given(st.lists(requests(), max_size=6), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_plan_leaves_every_node_time_to_recover(wanted: list[KillRequest], rounds: int, seed: int) -> None:
    try:
        kills = plan_kills(wanted, NODES, rounds, seed)
    except ConfigError:
        return
    assert kills == plan_kills(wanted, NODES, rounds, seed)
    assert sorted((k.role, k.phase) for k in kills) == sorted((r.role, r.phase) for r in wanted)
    assert all(k.round >= 1 and k.round + RECOVERY_ROUNDS < rounds for k in kills)
    assert all(NODES[k.name] == k.role for k in kills)
    for request in wanted:
        assert any(
            (k.name == (request.name or k.name)) and k.phase == request.phase and k.round == (request.round or k.round)
            for k in kills
        )
    for name in NODES:
        own = sorted(k.round for k in kills if k.name == name)
        assert all(b - a > RECOVERY_ROUNDS for a, b in pairwise(own))


@given(st.integers(0, 2**32 - 1), st.integers(7, 40))
def test_kills_without_a_round_never_share_one_and_take_different_miners(seed: int, rounds: int) -> None:
    kills = plan_kills([parse_kill(text, NODES) for text in ACCEPTANCE], NODES, rounds, seed)
    assert len({k.round for k in kills}) == len({k.name for k in kills}) == 4
