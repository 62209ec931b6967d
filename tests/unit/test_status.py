"""Is it you, the run or the chain: the rules, what a node's folder tells, and the command beside a real local chain."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import RUN, commitment, neuron, roster
from test_standing import FACTS

from distributed_training.chain.keys import derive_keypair
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain, start_clock
from distributed_training.errors import ConfigError
from distributed_training.journal import Journal
from distributed_training.locks import Holder, Lock
from distributed_training.metrics.events import Verdict
from distributed_training.operator.node_seen import NodeSeen, Trouble, fault_of, node_seen
from distributed_training.operator.safety import RoundSeen
from distributed_training.operator.standing import standings
from distributed_training.operator.status import Asked, Mend, decide, findings, verdict
from distributed_training.operator.status_show import Status, document, in_words
from distributed_training.protocol.types import Role
from distributed_training.status import main

NOW = 1e9
ROUND_S = RUN.timing.length * FACTS.block_s
MEND = Mend("btcli tx ...", "doctor ...")
BLOCK = RUN.round(12).map_block


def settled(index: int, **what: Any) -> dict[str, Any]:
    return {"round": index, "applied": True, "reason": "applied", "included": True, "steps": 5, "tokens": 160} | what


def process(pid: int = 1, since_s: float = NOW - 9e5) -> Holder:
    return Holder(pid, "python neurons/miner.py", os.uname().nodename, datetime.fromtimestamp(since_s))


FINE = NodeSeen(
    "hot", process=process(), alive=True, role="miner", uid=3, hotkey="5hot3", round=12, phase="train",
    phase_since_s=NOW - 5, seen_s=NOW - 1, rounds=tuple(settled(n) for n in range(5, 12)),
)  # fmt: skip
VALIDATOR = replace(FINE, role="validator", uid=9, hotkey="5hot9")


def asked(word: str = "all well", stake: float = 10.0, permit: bool = True, **more: Any) -> Asked:
    """A miner of uid 3 and validators of uids 8 and 9 of the run, the chain at round 12."""
    run = more.get("manifest") or RUN
    said = {"commitment": commitment(9, Role.VALIDATOR, run=run.tag), "commitment_block": BLOCK - 1}
    validators = [
        neuron(n, Role.VALIDATOR, stake=s, may_validate=permit, last_update=BLOCK - 50, **said)
        for n, s in ((8, 10.0), (9, stake))
    ]
    seen = roster(neuron(3, incentive=0.25), *validators, block=BLOCK)
    facts = replace(FACTS, block=BLOCK, num_uids=3)
    told = Verdict(BLOCK, word, (f"because of {word}",), 2.0, 461)
    rounds = tuple(RoundSeen(n, True, "applied", 3, 1.0, 3, 0) for n in (10, 11))
    return replace(Asked(facts, seen, told, standings(facts, seen), None, RUN, rounds), **more)


def wrong(node: NodeSeen, seen: Asked | None = None, state: str = "fail") -> list[str]:
    return [f.name for f in findings(node, seen or asked(), MEND, NOW) if f.state == state]


def test_a_node_that_does_its_part_has_nothing_to_mend() -> None:
    assert wrong(FINE) == wrong(VALIDATOR) == wrong(FINE, state="warn") == []
    assert verdict(asked(), [(FINE, findings(FINE, asked(), MEND, NOW))]) == "all well"


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("process", replace(FINE, alive=False)),
        ("process", replace(FINE, alive=False, stopped="rounds done")),
        ("process", NodeSeen("hot")),
        ("phase", replace(FINE, phase_since_s=NOW - 1.6 * ROUND_S - 30)),
        ("phase", replace(FINE, phase=None, seen_s=NOW - 2000)),
        ("phase", replace(FINE, rounds=FINE.rounds[:-2])),
        ("rounds", replace(FINE, rounds=tuple(settled(n, included=n < 9) for n in range(5, 12)))),
        ("rounds", replace(FINE, rounds=tuple(settled(n, included=None) for n in range(5, 12)))),
        ("audit", replace(FINE, audits=(settled(10, verdict="fail", node="v", reason="gradient"),))),
        ("fault", replace(FINE, fault=Trouble("unreachable", "nobody connects", 11, NOW - 60, None))),
        ("registered", replace(FINE, hotkey="5another")),
        ("registered", replace(FINE, hotkey=None, uid=77)),
        ("folder", replace(FINE, problem="it holds the node of another run")),
    ],
)
def test_what_makes_it_you_is_named_with_what_mends_it(name: str, node: NodeSeen) -> None:
    found = findings(node, asked(), MEND, NOW)
    assert [f.name for f in found if f.state == "fail"] == [name] and all(f.fix for f in found if f.state == "fail")
    assert verdict(asked(), [(node, found)]) == "you"


def test_a_validator_needs_a_permit_and_sets_weights() -> None:
    assert wrong(VALIDATOR, asked(permit=False)) == ["permit"]
    late = asked()
    old = [replace(n, last_update=0) for n in late.roster.neurons]
    late = replace(late, roster=roster(*old, block=BLOCK + 9000), facts=replace(late.facts, block=BLOCK + 9000))
    assert wrong(VALIDATOR, late) == ["weights"]
    assert wrong(replace(VALIDATOR, process=process(since_s=NOW - 60)), late, "warn") == ["weights"], "it just began"


def test_what_costs_nothing_is_told_and_does_not_decide() -> None:
    once = replace(FINE, rounds=tuple(settled(n, included=n != 11) for n in range(5, 12)))
    assert wrong(once) == [] and wrong(once, state="warn") == ["rounds"]
    joined = replace(FINE, start_round=11, rounds=tuple(settled(n, included=n > 10) for n in range(5, 12)))
    assert wrong(joined, state="warn") == [], "it was not there before"
    for fault in (Trouble("chain", "x", 11, NOW, None), Trouble("disk", "x", 11, NOW - 9, NOW)):
        assert wrong(replace(FINE, fault=fault)) == []
    old = replace(FINE, audits=(settled(1, verdict="fail", node="v", reason="gradient"),))
    assert wrong(old, asked(manifest=None)) == [], "the penalty is over"
    fetching = replace(FINE, phase=None, fetched=0.4, seen_s=NOW - 20)
    assert "40% of the run's state" in next(f.found for f in findings(fetching, None, MEND, NOW) if f.name == "phase")


def test_the_chain_is_judged_before_the_run_and_the_run_before_you() -> None:
    dead = replace(FINE, alive=False)
    bad = [(dead, findings(dead, asked(), MEND, NOW))]
    assert [verdict(asked(word), bad) for word in ("the chain", "the run", "all well")] == [
        "the chain",
        "the run",
        "you",
    ]
    assert (verdict(None, bad), verdict(None, [])) == ("the chain", "not known")
    assert verdict(asked("not known"), []) == "not known"
    early = asked("not known")
    assert verdict(replace(early, facts=replace(early.facts, block=3)), []) == "all well", "no round is due yet"
    assert verdict(asked("not known"), [(FINE, [])]) == "all well", "its own journal has applied rounds"


def test_who_is_what_the_run_lacks_is_not_told_that_it_is_the_run() -> None:
    gone = replace(VALIDATOR, alive=False)
    needs = RUN.model_copy(update={"average": RUN.average.model_copy(update={"min_map_share": 0.3})})
    whole, part = (asked("the run", stake=stake, manifest=needs) for stake in (1e6, 1.0))
    assert decide(whole, [gone]) and not decide(part, [gone]) and not decide(whole, [FINE])
    assert verdict(whole, [(gone, findings(gone, whole, MEND, NOW))]) == "you"
    assert verdict(part, [(gone, findings(gone, part, MEND, NOW))]) == "the run"


FAULT = {"event": "fault", "what": "disk", "detail": "full\x1b[31m", "round": 3, "time": 10.0}
EVENTS = st.sampled_from(
    [
        {"event": "round", "round": 3, "time": 11.0},
        {"event": "phase", "phase": "average", "round": 4, "time": 12.0},
        {"event": "step", "round": 4, "time": 13.0},
        {"event": "weights", "round": 2, "time": 14.0},
    ]
)


@given(st.lists(EVENTS, max_size=6), st.lists(EVENTS, max_size=6))
def test_a_fault_is_over_with_the_first_round_that_began_after_it(before: list[Any], after: list[Any]) -> None:
    began = {"event": "phase", "phase": "train", "round": 4, "time": 20.0}
    ended = {"event": "round", "round": 4, "time": 30.0}
    lasting, over = fault_of([*before, FAULT, *after, began]), fault_of([*before, FAULT, *after, began, ended])
    assert lasting is not None and lasting.ended_s is None and over is not None and over.ended_s == 30.0
    assert over.detail == "full?[31m"
    weights = fault_of([FAULT | {"what": "weights"}, began, ended])
    assert weights is not None and weights.ended_s is None, "only weights that are set end that"
    assert fault_of(before) is None


@pytest.fixture
def node(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "nodes" / "miner-0"
    journal, doc = Journal(folder / "journal.sqlite"), {"state_root": "ab", "credit": {"3": 1.0}, "tokens": {}}
    for index in range(12):
        journal.save_round(index, doc | settled(index, included=[3], own_tokens=160))
    journal.close()
    head = {"role": "miner", "uid": 3}
    (folder / "events.jsonl").write_text(
        "".join(
            json.dumps(head | event) + "\n"
            for event in (
                {"event": "ready", "round": None, "hotkey": "5hot3", "version": "9", "start_round": 0, "time": 5e9},
                {"event": "phase", "round": 12, "phase": "average", "time": 5e9 + 7},
            )
        )
        + '{"event": "st'
    )
    return folder


def test_a_folder_tells_of_its_node_while_it_is_written(node: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in node.iterdir()}
    seen = node_seen(node)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in node.iterdir()} == before
    assert (seen.role, seen.uid, seen.hotkey, seen.version, seen.round, seen.phase) == (
        "miner", 3, "5hot3", "9", 12, "average",
    )  # fmt: skip
    assert [r["round"] for r in seen.rounds] == list(range(4, 12)) and all(r["included"] for r in seen.rounds)
    assert not seen.alive and seen.process is None
    with Lock(node, "ours"):
        alive = node_seen(node)
    assert alive.alive and alive.process is not None and alive.process.pid == os.getpid()
    (node / "lock").write_text(f"{os.getpid()}\npython another.py\n{os.uname().nodename}\n")
    assert not node_seen(node).alive, "its number is another process's by now"


def test_a_damaged_or_empty_folder_is_told_in_a_line(node: Path) -> None:
    (node / "journal.sqlite").write_bytes(b"no journal" * 500)
    for path in node.glob("journal.sqlite-*"):
        path.unlink()
    assert "cannot be read as a journal" in node_seen(node).problem
    empty = node.with_name("miner-1")
    empty.mkdir()
    assert [f.found for f in findings(node_seen(empty), None, MEND, NOW)] == ["no node has run here"]


def test_a_status_says_the_same_in_words_and_as_json() -> None:
    dead = replace(FINE, alive=False, name="miner-0")
    nodes = tuple((n, tuple(findings(n, asked(), MEND, NOW))) for n in (dead, VALIDATOR))
    whole = Status("you", asked(weights={9: {3: 0.5, 4: 0.5}}), "", nodes)
    lines = list(in_words(whole))
    assert lines[0] == "you: miner-0: not running: it was stopped or killed 1 s ago"
    row = next(line for line in lines if line.startswith("  miner-0"))
    assert row.split()[1:4] == ["3", "miner", "dead"] and "50.0%   25.0%" in row
    one = "\n".join(in_words(replace(whole, nodes=nodes[:1])))
    assert "TO MEND: not running" in one and "rounds    7 in (5 steps, 160 tokens), 8 in" in one
    doc = json.loads(json.dumps(document(whole)))
    assert doc["verdict"] == "you" and doc["run"]["rounds"][-1]["index"] == 11 and doc["chain"]["spec_version"] == 461
    assert doc["nodes"][0]["chain"]["weight"] == 0.5 and doc["nodes"][0]["findings"][0]["state"] == "fail"
    assert document(Status("not known", None, "no answer", ()))["chain"] is None
    assert list(in_words(Status("not known", None, "no answer", ()))) == [
        "not known: no answer", "", "chain\n  answer    no answer",
    ]  # fmt: skip


def test_beside_a_local_chain_of_which_it_only_reads(
    tmp_path: Path, node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run, keys = node.parent.parent, [derive_keypair(1, name).ss58_address for name in ("owner", "v", "w", "miner-0")]
    path, manifest = run / "chain.sqlite", RUN.model_copy(update={"netuid": 7})
    create_chain(
        path, seed=1, block_s=0.5, netuid=7, tempo=360, weights_rate_limit=20, version_key=1, max_uids=8,
        owner_hotkey=keys[0], owner_coldkey=keys[0], neurons=[GenesisNeuron(k, keys[0], 5.0, False) for k in keys],
    )  # fmt: skip
    (run / "manifest.json").write_bytes(manifest.canonical())
    (node / "manifest.sha256").write_text(manifest.sha256)
    events = (node / "events.jsonl").read_text()
    (node / "events.jsonl").write_text(events.replace("5hot3", keys[3]))

    def asks(*argv: str) -> tuple[int, dict[str, Any]]:
        code = main([*argv, "--json"])
        return code, json.loads(capsys.readouterr().out)

    assert "its nodes are starting" in asks("--run-dir", str(node))[1]["trouble"]
    start_clock(path)
    before = path.read_bytes()
    with Lock(node, "ours"):
        code, doc = asks("--run-dir", str(node))
    assert (code, doc["verdict"], doc["run"]["sha256"], doc["chain"]["netuid"]) == (0, "all well", manifest.sha256, 7)
    assert doc["nodes"][0]["chain"]["uid"] == 3 and doc["nodes"][0]["standing"]["free_places"] == 4
    assert path.read_bytes() == before, "blocks of a chain by the clock are not closed by who looks"
    (node / "manifest.sha256").write_text("ab" * 32)
    code, doc = asks("--run-dir", str(run))
    assert (code, doc["verdict"]) == (1, "you") and doc["nodes"][0]["findings"][0]["found"].endswith("ab" * 8)
    code, doc = asks("--netuid", "7", "--subtensor.chain_endpoint", f"file:{path}")
    assert (code, doc["verdict"], doc["nodes"]) == (1, "not known", []) and "nothing is announced" in doc["trouble"]
    path.unlink()
    code, doc = asks("--run-dir", str(run), "--preset", "local")
    assert (code, doc["verdict"], doc["chain"]) == (1, "the chain", None)


def test_wrong_words_are_told_in_a_line(tmp_path: Path, node: Path) -> None:
    run = node.parent.parent
    for argv, said in (
        (["--run-dir", str(tmp_path / "none")], "does not exist"),
        (["--run-dir", str(tmp_path)], r"--netuid is required"),
        (["--run-dir", str(tmp_path), "--netuid", "7"], "no node has run there"),
        (["--run-dir", str(run), "--netuid", "7", "--wallet.hotkey", "miner-7"], "did you mean miner-0"),
        (["--netuid", "7", "--wallet.hotkey", "never"], "no node of hotkey 'never' has run in"),
        (["--netuid", "7", "--jsn"], "unknown option --jsn"),
    ):
        with pytest.raises(ConfigError, match=said):
            main(argv)
