"""What became of each kill: the demo's own notes, what the node said afterwards, and what the chain shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed_training.chain.client import BittensorChain
from distributed_training.errors import ChainFault
from distributed_training.localnet.events import Event, RunView
from distributed_training.localnet.judge.chain_view import with_chain
from distributed_training.localnet.run.create import Run
from distributed_training.localnet.run.kills import RECOVERY_ROUNDS
from distributed_training.protocol.types import Role, Roster, Round

LOOK_ROUNDS = RECOVERY_ROUNDS + 2  # after a kill: a node that comes back too late shall be seen to do so
NOTED = ("name", "role", "phase", "round", "block", "pid", "bytes_in_flight")


@dataclass(frozen=True, slots=True)
class OnChain:
    """One round as the chain shows it."""

    maps: frozenset[int]  # uids that committed a slice map of it
    last_update: dict[int, int]  # uid -> block of its newest weights, at the round's end
    checkpoint: int  # round of the owner's newest one; -1: none


def fault_rows(run: Run, view: RunView, notes: Sequence[Event], last_round: int) -> list[dict[str, Any]]:
    """One row per kill, in the order of the kills. None where something did not happen or was not measured."""
    kills = [e for e in notes if e["event"] == "killed"]
    seen = read_on_chain(run, [e["round"] for e in kills], last_round) if kills else {}
    rows: list[dict[str, Any]] = []
    for event in kills:
        again = next((e for e in notes if e["event"] == "restarted" and _after(e, event)), None)
        ready = None if again is None else _ready_after(view, event["name"], again["time"])
        rows.append(
            {key: event.get(key) for key in NOTED}
            | {
                "helpers": list(event.get("helpers") or []),
                "survivors": None if again is None else list(again.get("survivors") or []),
                "restarted_at": None if again is None else again.get("block"),
                "ready_again_block": ready,
                "rejoined_round": rejoined(run, view, event, again, seen),
            }
        )
    return rows


def _after(event: Event, kill: Event) -> bool:
    return event.get("name") == kill["name"] and event["time"] >= kill["time"]


def _ready_after(view: RunView, name: str, time: float) -> int | None:
    return next((e.get("block") for e in view.nodes[name].readies if e["time"] >= time), None)


def rejoined(run: Run, view: RunView, kill: Event, again: Event | None, seen: Mapping[int, OnChain]) -> int | None:
    """First round after the kill in which the node did its duty again.

    Miner: included in an applied round. Validator: its slice map of the round is on chain, and by its end weights of
    it were set after the restart. Owner: by its end a checkpoint of a state after the kill is on chain.
    """
    if again is None:
        return None
    since = again["block"] if again.get("block") is not None else kill["block"]
    node, index = view.nodes[kill["name"]], int(kill["round"])
    if kill["role"] == "miner":
        applied = {r: e for n in view.nodes.values() for r, e in n.rounds.items() if e.get("applied") and r > index}
        return min((r for r, e in applied.items() if node.uid in e["included"]), default=None)
    later = sorted(r for r in seen if index < r <= index + LOOK_ROUNDS)
    if kill["role"] == "owner":
        return next((r for r in sorted(seen) if index <= r and seen[r].checkpoint > index), None)
    maps = next((r for r in later if node.uid in seen[r].maps), None)
    weights = next((r for r in later if seen[r].last_update.get(node.uid, 0) > since), None)
    return None if maps is None or weights is None else max(maps, weights)


def read_on_chain(run: Run, killed: Sequence[int], last_round: int) -> dict[int, OnChain]:
    """Round -> the chain's word, of the rounds that show what became of kills in rounds `killed`. {} if unreadable."""
    wanted = sorted({r for k in killed for r in range(k, min(last_round, k + LOOK_ROUNDS) + 1)})

    async def work(chain: BittensorChain) -> dict[int, OnChain]:
        final = (await chain.head()).finalized
        found: dict[int, OnChain] = {}
        for index in wanted:
            round_ = run.manifest.round(index)
            at_map = await chain.roster(min(final, round_.map_block))
            found[index] = on_chain(round_, at_map, await chain.roster(min(final, round_.end_block)))
        return found

    try:
        return with_chain(run.paths, run.manifest, work)
    except ChainFault:
        return {}


def on_chain(round_: Round, at_map: Roster, at_end: Roster) -> OnChain:
    owner = next((n.commitment for n in at_end.neurons if n.commitment and n.commitment.role is Role.OWNER), None)
    return OnChain(
        maps=frozenset(
            n.uid
            for n in at_map.neurons
            if n.commitment is not None
            and n.commitment.role is Role.VALIDATOR
            and n.commitment.second_round == round_.index
        ),
        last_update={n.uid: n.last_update for n in at_end.neurons},
        checkpoint=-1 if owner is None or owner.second_round is None else owner.second_round,
    )


def watch_rows(document: Mapping[str, Any] | None, rounds_run: Collection[int]) -> dict[str, Any] | None:
    """The outside watcher's verdicts (watcher.py) by name, of the rounds that were run; None when it left none."""
    if document is None:
        return None
    rounds = {int(i): row["verdicts"] for i, row in document["rounds"].items() if int(i) in rounds_run}
    return {
        "grace_s": document["grace_s"],
        "longest_pause_s": document["longest_pause_s"],
        "interrupted": list(document["interrupted"]),
        "stood_still": list(document["stood_still"]),
        "rounds": [
            {"index": index}
            | {
                v: sorted(n for n, found in verdicts.items() if found == v)
                for v in ("settled", "late", "dead", "unseen")
            }
            for index, verdicts in sorted(rounds.items())
        ],
    }
