"""The offline check: recompute every round from the nodes' kept bytes and the chain file, and compare.

    python -m distributed_training.localnet.judge.offline RUN_DIR

A process of its own that talks to nobody. From the initial state on, for every round: candidates and slices from the
chain, every counted slice again from the senders' own kept wire bytes (bit for bit the reducer's output), what feedback
each sender starts from, the average, the outer step, the root; then the roots that validators committed and the state
files of every node against it.
Prints a table, writes RUN_DIR/offline.json; exit code 1 on any difference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distributed_training.averaging.combine import combine
from distributed_training.averaging.plan import RoundPlan, make_plan
from distributed_training.averaging.store import RoundStore
from distributed_training.errors import DistributedTrainingError, WireError
from distributed_training.localnet.judge.chain_view import with_chain
from distributed_training.localnet.judge.feedback_chain import FeedbackChain
from distributed_training.localnet.judge.recompute import counted_outputs
from distributed_training.localnet.layout import RunPaths
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.rules.lost import VOID, Later, Settling, lost_slices, without
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Role, Roster, Round
from distributed_training.settings.arguments import Parser
from distributed_training.settings.entry import run_main
from distributed_training.snapshots.statefile import decode_state
from distributed_training.training.flat import to_flat
from distributed_training.training.model import run_model
from distributed_training.training.outer import RunState, initial_state, outer_step, state_root

RESULT = "offline.json"


@dataclass(frozen=True, slots=True)
class RoundReads:
    """The chain as every node had to read it in one round."""

    round: Round
    block_hash: bytes
    roster: Roster
    at_commit: Roster
    at_output: Roster
    at_map: Roster


@dataclass(slots=True)
class RoundCheck:
    """One round: `root` (hex) is that of the state after it."""

    index: int
    applied: bool = False
    reason: str = ""
    slices: int = 0
    counted: int = 0
    void_to: int = -1  # a slice was lost: the rounds after this one up to that index are discarded
    recomputed: int = 0  # counted slices that came out the same, bit for bit
    root: str = ""
    committed: int = 0  # validators that committed the root of the state this round started from
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class NodeCheck:
    """A node's saved states: round (at whose start it holds) -> root computed from the file."""

    name: str
    states: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    outlived: bool = False  # somebody who joined the run and went on after its end: nothing of it can be compared


def read_rounds(paths: RunPaths, manifest: RunManifest, count: int | None) -> list[RoundReads]:
    """Rounds 0.. whose maps are final; without `count`, up to the last one anybody worked in. Raises ChainFault."""

    async def work(chain: Any) -> list[RoundReads]:
        final = (await chain.head()).finalized
        found: list[RoundReads] = []
        for index in range(count if count is not None else 1 << 20):
            round_ = manifest.round(index)
            if round_.map_block > final:
                break
            roster = await chain.roster(round_.roster_block)
            at_commit, at_output = await chain.roster(round_.commit_block), await chain.roster(round_.output_block)
            at_map = await chain.roster(round_.map_block)
            found.append(RoundReads(round_, roster.block.hash, roster, at_commit, at_output, at_map))
        while (
            count is None
            and found
            and not membership.candidates(found[-1].round, found[-1].roster, found[-1].at_commit, manifest)
        ):
            found.pop()
        return found

    return with_chain(paths, manifest, work)


def plan_of(manifest: RunManifest, reads: RoundReads, state: RunState, root: bytes) -> RoundPlan:
    return make_plan(
        manifest,
        reads.round,
        roster=reads.roster,
        at_commit=reads.at_commit,
        beacon=assignment_beacon(reads.block_hash, manifest.netuid, reads.round.index),
        state_root=root,
        carry=state.carry,
        num_coords=len(state.params),
    )


def check_round(
    manifest: RunManifest,
    reads: RoundReads,
    later: Sequence[RoundReads],
    state: RunState,
    stores: Mapping[str, RoundStore],
    *,
    void: bool,
    chain: FeedbackChain,
) -> tuple[RunState, RoundCheck]:
    """The state after the round, and what was found. A round that cannot be recomputed ends the chain of states.

    later: the rounds after it. void: it is discarded, because a slice of a former round was lost. chain: of what former
    rounds left out.
    """
    average, chunk_coords = manifest.average, manifest.average.chunk_coords
    check = RoundCheck(reads.round.index)
    root = state_root(state, chunk_coords)
    plan = plan_of(manifest, reads, state, root)
    claims = membership.output_claims(plan.round, plan.slices, plan.roster, reads.at_output)
    maps = membership.slice_maps(plan.round, len(plan.slices), plan.voters, reads.at_map)
    counted = membership.counted_slices(len(plan.slices), claims, maps, plan.voters, average)
    if void:
        counted = membership.Counted((), VOID, {})
    else:
        counted, check.void_to = judged(manifest, Settling(plan.round, len(plan.slices), counted), later)
    check.applied, check.reason = bool(counted.slices), counted.reason
    check.slices, check.counted = len(plan.slices), len(counted.slices)
    check_committed(check, reads, root)
    if counted.slices:
        outputs, same, problems = counted_outputs(plan, {j: claims[j] for j in counted.slices}, stores, manifest)
        check.recomputed = same
        check.problems += problems
        if len(outputs) == len(counted.slices):
            combined = combine(plan, counted, outputs, manifest)
            works = {key: work for output in outputs.values() for key, work in output.works.items()}
            check.problems += chain.follow(plan, combined.outcome.included, works)
            state, _ = outer_step(state, combined.averages(plan.layout), combined.carry, manifest.outer)
        else:
            check.problems.append("a counted slice is kept by nobody: the state after this round is unknown")
    check.root = state_root(state, chunk_coords).hex()
    return state, check


def judged(manifest: RunManifest, settling: Settling, later: Sequence[RoundReads]) -> tuple[membership.Counted, int]:
    """What counts in the end, and up to which round nothing does, where slices were lost."""
    for reads in later:
        seen = Later(reads.round, voters(manifest, reads.roster), reads.at_map)
        lost = lost_slices(settling, seen, manifest.average)
        if lost:
            return without(settling.counted, lost, manifest.average), reads.round.index
        if lost is not None:
            break
    return settling.counted, -1


def check_committed(check: RoundCheck, reads: RoundReads, root: bytes) -> None:
    """Roots that validators committed for the start of this round."""
    for neuron in reads.at_map.neurons:
        now = membership.said(neuron, reads.at_map, reads.round.run)
        if now is None or now[0].role is not Role.VALIDATOR or now[0].first_round != check.index:
            continue
        if now[0].first == root:
            check.committed += 1
        else:
            check.problems.append(f"validator uid {neuron.uid} committed another root of the state at its start")


def check_node(name: str, folder: Path, roots: Mapping[int, str], chunk_coords: int, *, joined: bool) -> NodeCheck:
    """Every state file of one node against the recomputed roots (by the round it is the start of).

    joined: by somebody else than the demo, which does not end it.
    """
    check = NodeCheck(name)
    for path in sorted((folder / "state").glob("*.safetensors")):
        try:
            index, state = decode_state(path.read_bytes())
        except (WireError, OSError) as error:
            check.problems.append(f"{path.name}: {error}")
            continue
        found = state_root(state, chunk_coords).hex()
        check.states[index] = found
        if index in roots and found != roots[index]:
            check.problems.append(
                f"its state at the start of round {index} has root {found[:16]}, not {roots[index][:16]}"
            )
    check.outlived = joined and bool(check.states) and min(check.states) > max(roots)
    if not check.outlived and not any(index in roots for index in check.states):
        check.problems.append("no saved state of a round that was recomputed")
    return check


def check_run(paths: RunPaths, count: int | None = None) -> tuple[list[RoundCheck], list[NodeCheck]]:
    """Everything, in round order. Raises ConfigError or ChainFault when the run cannot be read at all."""
    manifest = load_manifest(paths.manifest)
    state = initial_state(to_flat(run_model(manifest.model)), manifest.average)
    first = state_root(state, manifest.average.chunk_coords).hex()
    folders = sorted(p for p in (paths.root / "nodes").iterdir() if p.is_dir())
    stores = {p.name: RoundStore(p) for p in folders}
    roots, rounds, void_to, chain = {0: first}, list[RoundCheck](), -1, FeedbackChain()
    everything = read_rounds(paths, manifest, count)
    for at, reads in enumerate(everything):
        void = reads.round.index <= void_to
        state, check = check_round(manifest, reads, everything[at + 1 :], state, stores, void=void, chain=chain)
        void_to = max(void_to, check.void_to)
        if check.index == 0 and first != manifest.model.initial_root:
            check.problems.append("the initial state is not the manifest's")
        roots[check.index + 1] = check.root
        rounds.append(check)
        if check.applied and check.recomputed < check.counted:
            break
    own = json.loads(paths.run.read_text())["nodes"] if paths.run.exists() else {p.name for p in folders}
    return rounds, [
        check_node(p.name, p, roots, manifest.average.chunk_coords, joined=p.name not in own) for p in folders
    ]


def result(rounds: Sequence[RoundCheck], nodes: Sequence[NodeCheck]) -> dict[str, Any]:
    problems = [f"round {r.index}: {p}" for r in rounds for p in r.problems]
    problems += [f"{n.name}: {p}" for n in nodes for p in n.problems]
    if not rounds:
        problems.append("no round was ever finished")
    return {
        "ok": not problems,
        "problems": problems,
        "rounds": [asdict(r) for r in rounds],
        "nodes": {n.name: {"states": {str(k): v for k, v in n.states.items()}} for n in nodes},
    }


def show(rounds: Sequence[RoundCheck], nodes: Sequence[NodeCheck], console: Console) -> None:
    table = Table("round", "outcome", "slices", "counted", "recomputed", "roots on chain", "root after", "problems")
    for r in rounds:
        outcome = "applied" if r.applied else r.reason
        cells = [r.index, outcome, r.slices, r.counted, r.recomputed, r.committed, r.root[:16], "; ".join(r.problems)]
        table.add_row(*(str(c) for c in cells))
    console.print(table)
    for n in nodes:
        states = ", ".join(f"start of round {k}: {v[:16]}" for k, v in n.states.items())
        fine = "went on after the run: nothing to compare" if n.outlived else "as recomputed"
        console.print(f"{n.name:<12} {states or 'no state'}  {'; '.join(n.problems) or fine}", highlight=False)


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m distributed_training.localnet.judge.offline", description=__doc__ or "")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--rounds", type=int, metavar="N", help="check rounds 0 to N-1; default: all that were run")
    args = parser.parse_args(argv)
    paths = RunPaths(args.run_dir.absolute())
    try:
        rounds, nodes = check_run(paths, args.rounds)
    except DistributedTrainingError as error:
        print(f"error: the run cannot be checked: {error}", file=sys.stderr)
        return 1
    found = result(rounds, nodes)
    (paths.root / RESULT).write_text(json.dumps(found, indent=1) + "\n")
    show(rounds, nodes, Console(width=160))
    print("offline check: every round and every node agrees" if found["ok"] else "\n".join(found["problems"]))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
