"""run.json: the page's first document, of what is folded and of what lies beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distributed_training.dashboard.about import About
from distributed_training.dashboard.fold import PERSON_ROUNDS, RunFold
from distributed_training.dashboard.values import TERMS, Node, Part, Person, Row
from distributed_training.protocol.manifest import RunManifest

VERSION = 1
TREND_ROUNDS = 20
VERDICTS = ("pass", "soft", "fail")
OVER = {
    "ended": "its nodes have ended by themselves",
    "crashed": "every node that was followed here was stopped or killed, or has died",
}
NO_VERDICT: dict[str, Any] = {"word": "not known", "reasons": []}


@dataclass(frozen=True, slots=True)
class ChainSeen:
    """A subnet as of one block, in plain JSON values."""

    netuid: int
    name: str  # of the subnet
    block: int
    document: dict[str, Any]  # chain.json
    verdict: dict[str, Any]
    safe: dict[int, dict[str, Any]] = field(default_factory=dict)
    stakes: dict[int, float] = field(default_factory=dict)
    incentive: dict[int, float] = field(default_factory=dict)
    weights: dict[int, dict[int, float]] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)  # as commitments say
    hotkeys: dict[int, str] = field(default_factory=dict)
    read_at: float = field(default=0.0, compare=False)  # Unix time


@dataclass(frozen=True)
class Seen:
    """All that a page is made of, at one moment."""

    fold: RunFold
    about: About
    chain: ChainSeen | None
    state: str  # running, ended, crashed, silent, empty, chain
    now: float  # Unix time
    by_uid: Mapping[int, Node] = field(default_factory=dict)
    chain_trouble: str = ""  # why it cannot be read now
    crashed: frozenset[str] = frozenset()  # nodes whose process is gone
    silent_s: float = math.inf  # without a word for so long: silent

    @cached_property
    def board(self) -> list[dict[str, Any]]:
        return leaderboard(self)

    def name(self, uid: int | None) -> str:
        node = self.node(uid)
        return f"uid {uid}" if node is None else node.name

    def node(self, uid: int | None) -> Node | None:
        return self.by_uid.get(-1 if uid is None else uid)

    def safe(self, uid: int) -> dict[str, Any] | None:
        """What decides whether it stays: by the chain, or by what its own node says."""
        return (self.chain.safe.get(uid) if self.chain else None) or self.fold.standings.get(uid)

    def role(self, uid: int) -> str | None:
        node = self.node(uid)
        return (self.chain.roles.get(uid) if self.chain else None) if node is None else node.role


def run_document(seen: Seen, *, live: bool, sample: bool) -> dict[str, Any]:
    fold = seen.fold
    first = fold.initial_heldout_loss
    return {
        "version": VERSION,
        "run": {**_run(seen.about, seen.chain), "num_slices": fold.num_slices},
        "now": _now(seen),
        "nodes": [_node(seen, node) for node in fold.nodes.values()],
        "rounds": columns(fold.rows),
        "initial_heldout_loss": seen.about.initial_heldout_loss if first is None else first,
        "baselines": seen.about.baselines,
        "leaderboard": seen.board,
        "validators": validators(seen),
        "faults": list(fold.faults),
        "num_faults": fold.num_faults,
        "checkpoints": list(fold.checkpoints),
        "benchmarks": seen.about.benchmarks,
        "features": {"live": live, "sample": sample},
    }


def _run(about: About, chain: ChainSeen | None) -> dict[str, Any]:
    m, subnet = about.manifest, about.manifest or chain
    return {
        "name": None if subnet is None else subnet.name,
        "tag": None if m is None else m.tag.hex(),
        "manifest_sha256": None if m is None else m.sha256,
        "netuid": None if subnet is None else subnet.netuid,
        "model": {"type": None if m is None else str(m.model.config["model_type"]), "num_params": about.num_params},
        "sequence_length": None if m is None else m.data.sequence_length,
        "seed": about.seed,
        "block_s": about.block_s,
        "round_blocks": None if m is None else m.timing.length,
        "phases": [] if m is None else phases(m),
        "baseline_note": None if about.baselines is None else "alone: each miner without the others, shaded from best "
        "to worst; one machine: a worker on all their tokens, which no miner could be",
    }  # fmt: skip


def phases(manifest: RunManifest) -> list[dict[str, Any]]:
    """Where each phase begins, in blocks of the round; with overlap those before the next one begins."""
    t = manifest.timing
    starts = {"train": 0, "commit": t.commit - t.commit_margin, "average": t.commit, "map": t.output, "settle": t.map}
    return [{"name": name, "block": block} for name, block in starts.items() if block < t.length]


def _now(seen: Seen) -> dict[str, Any]:
    fold, chain, m = seen.fold, seen.chain, seen.about.manifest
    newest = fold.ahead()
    block = fold.block if chain is None else chain.block
    inside = None if m is None or block is None or newest is None else block - m.round(newest.round or 0).start_block
    last = max((n.last_seen or 0.0 for n in fold.nodes.values()), default=0.0)
    return {
        "time": last or (None if chain is None else chain.read_at),
        "round": None if newest is None else newest.round,
        "phase": None if newest is None else newest.phase,
        "block": block,
        "round_block": inside if m is not None and inside is not None and 0 <= inside < m.timing.length else None,
        "state": seen.state,
        "verdict": _verdict(seen),
    }


def _verdict(seen: Seen) -> dict[str, Any]:
    if seen.state in OVER:  # the chain may go on, or be a local one that stands still with its nodes
        return NO_VERDICT | {"reasons": [OVER[seen.state]]}
    if seen.chain_trouble:
        return NO_VERDICT | {"reasons": [f"the chain cannot be read: {seen.chain_trouble}"]}
    of_chain = NO_VERDICT if seen.chain is None else seen.chain.verdict  # which needs a manifest; a node has its own
    return seen.fold.verdict or NO_VERDICT if of_chain == NO_VERDICT else of_chain


def _node(seen: Seen, node: Node) -> dict[str, Any]:
    quiet = node.last_seen is None or seen.now - node.last_seen > seen.silent_s
    gone = node.killed or node.name in seen.crashed
    state = "ended" if node.ended else "killed" if gone else "silent" if quiet else "running"
    keys = ("name", "uid", "role", "hotkey", "adversary", "round", "phase", "step", "loss", "tokens_per_s", "trouble")
    return {key: getattr(node, key) for key in keys} | {"state": state, "last_seen": node.last_seen}


def columns(rows: Mapping[int, Row]) -> dict[str, list[Any]]:
    """One list a column, in the order of rounds."""
    settled = [rows[index] for index in sorted(rows) if rows[index].settled]
    names = ("index", "applied", "reason", "heldout_loss", "tokens", "candidates", "included", "backed_up", "lost")
    found = {name: [getattr(row, name) for row in settled] for name in names}
    found["train_loss"] = [row.loss_sum / row.trained if row.trained else None for row in settled]
    found["seconds"] = [None if r.first is None or r.last is None else round(r.last - r.first, 3) for r in settled]
    found["state_root"] = [row.state_root for row in settled]
    found["identical"] = [row.identical if row.settled > 1 else None for row in settled]
    return found


def weighted(values: Iterable[tuple[float, float | None]]) -> float | None:
    """The mean of (weight, value); None where there is no value."""
    known = [(weight, value) for weight, value in values if value is not None]
    total = sum(weight for weight, _ in known)
    return sum(weight * value for weight, value in known) / total if total else None


def leaderboard(seen: Seen) -> list[dict[str, Any]]:
    """Who has or had a weight, the heaviest first."""
    fold, chain = seen.fold, seen.chain
    known = {uid for judge in fold.judges.values() for uid in (*judge.cards, *judge.weights)} | set(fold.people)
    known |= {n.uid for n in fold.nodes.values() if n.role == "miner" and n.uid is not None}
    if chain is not None:
        known |= {uid for uid, role in chain.roles.items() if role == "miner"}
        known |= {uid for row in chain.weights.values() for uid in row}
    found = [_standing(seen, uid) for uid in sorted(known) if seen.role(uid) in (None, "miner", "unknown")]
    found.sort(key=lambda row: (-(row["weight"] or 0.0), -(row["incentive"] or 0.0), row["uid"]))
    known_pay = any(row["weight"] is not None or row["incentive"] is not None for row in found)
    return [{"rank": place if known_pay else None, **row} for place, row in enumerate(found, 1)]


def stake(seen: Seen, validator: int) -> float:
    """What a validator's word weighs; alike where no chain says it."""
    stakes = {} if seen.chain is None else seen.chain.stakes
    return stakes.get(validator, 0.0) if any(stakes.get(v) for v in seen.fold.judges) else 1.0


def _standing(seen: Seen, uid: int) -> dict[str, Any]:
    fold, chain, person = seen.fold, seen.chain, seen.fold.people.get(uid) or Person()
    cards = [(stake(seen, v), judge.cards[uid]) for v, judge in fold.judges.items() if uid in judge.cards]
    terms = {term: weighted((s, card[term]) for s, card in cards) for term in TERMS}
    if not cards and chain is not None:
        terms["weight"] = weighted((chain.stakes.get(v, 0.0), row.get(uid, 0.0)) for v, row in chain.weights.items())
    notes = [card.get("reason") or card.get("note") for _, card in cards]
    parts = [person.rounds[index] for index in sorted(person.rounds)]
    took = _took(fold, person)
    verdicts = [audit["verdict"] for audit in person.audits]
    return {
        "uid": uid,
        "name": seen.name(uid),
        "role": seen.role(uid) or "miner",
        **terms,
        "incentive": None if chain is None else chain.incentive.get(uid),
        "note": next((note for note in notes if note), None),
        "tokens": _tokens(parts),
        "included_share": sum(took) / len(took) if took else None,
        "trend": [part.mean("weight") for part in parts[-TREND_ROUNDS:]],
        "last_audit": verdicts[0] if verdicts and verdicts[0] in VERDICTS else "none",
        "audits": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "safe": seen.safe(uid),
    }


def _took(fold: RunFold, person: Person) -> list[bool]:
    """Was its work in each of the newest applied rounds since it is known? One that stays away is told of by nobody."""
    since = max(min(person.rounds, default=fold.newest + 1), fold.newest - PERSON_ROUNDS + 1)
    applied = (i for i in range(since, fold.newest + 1) if i in fold.rows and fold.rows[i].applied)
    return [bool(person.rounds.get(i, Part()).included) for i in applied]


def _tokens(parts: Iterable[Part]) -> float | None:
    known = [part.tokens * (part.credit or 0) for part in parts if part.tokens is not None]
    return sum(known) if known else None


def validators(seen: Seen) -> list[dict[str, Any]]:
    """agreement: one minus half the sum of absolute differences to the mean of the other rows, by stake."""
    fold, chain = seen.fold, seen.chain
    stakes, rows = ({}, {}) if chain is None else (chain.stakes, chain.weights)
    rows = rows | {v: judge.weights for v, judge in fold.judges.items() if judge.weights}
    named = {n.uid for n in fold.nodes.values() if n.role == "validator" and n.uid is not None}
    known = sorted({*rows, *fold.judges, *named})
    return [
        {
            "uid": uid,
            "name": seen.name(uid),
            "stake": stakes.get(uid),
            "last_round": fold.judges[uid].round if uid in fold.judges and fold.judges[uid].round >= 0 else None,
            "agreement": agreement(uid, rows, stakes),
            "weights": {str(target): share for target, share in sorted(rows.get(uid, {}).items())},
        }
        for uid in known
    ]


def agreement(validator: int, rows: Mapping[int, Mapping[int, float]], stakes: Mapping[int, float]) -> float | None:
    own = rows.get(validator)
    others = [(stakes.get(v, 0.0) or 1e-9, row) for v, row in rows.items() if v != validator and row]
    if not own or not others:
        return None
    uids = {uid for row in (own, *(row for _, row in others)) for uid in row}
    mean = {uid: weighted((s, row.get(uid, 0.0)) for s, row in others) or 0.0 for uid in uids}
    return max(0.0, 1.0 - sum(abs(own.get(uid, 0.0) - mean[uid]) for uid in uids) / 2)
