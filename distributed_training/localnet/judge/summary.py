"""summary.json: what the run did, by name and never by position; null where nothing was measured.

Its schema is docs/summary.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import derive_keypair
from distributed_training.localnet.events import Event, NodeView, RunView
from distributed_training.localnet.judge.chain_view import Shares, shares_at, with_chain
from distributed_training.localnet.judge.checks import run_checks
from distributed_training.localnet.layout import NEWCOMER
from distributed_training.localnet.run.create import Run
from distributed_training.protocol.rules.assignment import assignment_beacon

TERMS = ("S", "G", "B", "I", "weight")


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """Of each round: the assignment beacon, and the shares when every node had settled it."""

    beacons: dict[int, bytes]
    shares: dict[int, Shares]


@dataclass(frozen=True, slots=True)
class Baselines:
    """Held-out loss by round (-1: the start) of each miner alone, by uid, and of one worker on all tokens."""

    solo: dict[int, dict[int, float]]
    union: dict[int, float]


def rounds_seen(view: RunView) -> list[int]:
    """Rounds that at least one node settled."""
    return sorted({index for node in view.nodes.values() for index in node.rounds})


def read_chain(run: Run, rounds: Sequence[int]) -> ChainFacts:
    """Raises ChainFault."""
    finality, netuid = run.manifest.timing.finality, run.manifest.netuid

    async def work(chain: BittensorChain) -> ChainFacts:
        beacons: dict[int, bytes] = {}
        shares: dict[int, Shares] = {}
        final = (await chain.head()).finalized
        for index in rounds:
            round_ = run.manifest.round(index)
            beacons[index] = assignment_beacon(await chain.block_hash(round_.roster_block), netuid, index)
            shares[index] = await shares_at(chain, min(final, round_.map_block + finality))
        return ChainFacts(beacons, shares)

    return with_chain(run.paths, run.manifest, work)


def build_summary(
    run: Run,
    view: RunView,
    chain: ChainFacts,
    *,
    rounds_wanted: int,
    num_params: int,
    wire_bytes: int,
    baselines: Baselines,
    offline: Mapping[str, Any] | None,
    faults: Sequence[Mapping[str, Any]] = (),
    watch: Mapping[str, Any] | None = None,
    hub: Mapping[str, Any] | None = None,
    joined: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The whole document, checks included."""
    heldout = view.heldout()
    settled = [index for index in rounds_seen(view) if index >= 0]
    own = {*(spec.name for spec in run.specs), NEWCOMER}
    summary: dict[str, Any] = {
        "ok": False,
        "checks": {},
        "details": {},
        "seed": run.seed,
        "params": run.params,
        "manifest_sha256": run.manifest.sha256,
        "model": {"type": run.manifest.model.config["model_type"], "num_params": num_params},
        "minutes": minutes(run, settled),
        "rounds_wanted": rounds_wanted,
        "wire_bytes": wire_bytes,
        "initial_heldout_loss": heldout.get(-1, baselines.union.get(-1)),
        "final_heldout_loss": last(heldout),
        "solo_heldout_loss": {str(uid): last(losses) for uid, losses in sorted(baselines.solo.items())},
        "union_heldout_loss": last(baselines.union),
        "baseline_losses": {
            "solo": {str(uid): text_keys(losses) for uid, losses in sorted(baselines.solo.items())},
            "union": text_keys(baselines.union),
        },
        "nodes": {spec.name: _node(run, view, spec.name) for spec in run.specs},
        "rounds": [_round(index, view, own, chain, heldout, run.manifest.average.token_cap) for index in settled],
        "final": _final(settled, chain),
        **_audits(run, view),
        "checkpoints": [
            {key: event.get(key) for key in ("round", "path", "sha256")}
            for node in view.of_role("owner")
            for event in node.checkpoints
        ],
        "offline": None if offline is None else dict(offline),
        "faults": [dict(fault) for fault in faults],
        "watch": None if watch is None else dict(watch),
        "hub": None if hub is None else dict(hub),
        "joined": {name: dict(facts) for name, facts in (joined or {}).items()},
    }
    found = run_checks(summary)
    summary["checks"] = {check.name: check.ok for check in found}
    summary["details"] = {check.name: check.detail for check in found}
    summary["ok"] = all(check.ok is not False for check in found)
    return summary


def minutes(run: Run, settled: Sequence[int]) -> float | None:
    """From the begin of the first round to the end of the last one, by the chain's clock, which a resumed run's pause
    does not move."""
    if not settled:
        return None
    blocks = run.manifest.round(settled[-1]).end_block - run.manifest.round(settled[0]).start_block
    return blocks * run.block_s / 60


def last(losses: Mapping[int, float]) -> float | None:
    """The loss after the last round; None when only the start, or nothing, was measured."""
    rounds = [index for index in losses if index >= 0]
    return losses[max(rounds)] if rounds else None


def text_keys(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in sorted(values.items())}


def _node(run: Run, view: RunView, name: str) -> dict[str, Any]:
    spec = next(s for s in run.specs if s.name == name)
    return {
        "role": spec.role.name.lower(),
        "uid": spec.uid,
        "hotkey": derive_keypair(run.seed, name).ss58_address,
        "adversary": spec.adversary,
        "steps_per_round": spec.steps,
        "exit_code": view.nodes[name].exit_code,
    }


def _round(
    index: int, view: RunView, own: Collection[str], chain: ChainFacts, heldout: Mapping[int, float], token_cap: int
) -> dict[str, Any]:
    """own: nodes that the demo started, which are asked for every root; a person's may come and go."""
    events = [n.rounds[index] for n in view.of_role("validator") + view.of_role("owner") + view.of_role("miner")
              if index in n.rounds]  # fmt: skip
    told = events[0]
    tokens = next((e["tokens"] for e in events if e.get("tokens")), {})
    credit = dict(told.get("credit") or {})
    scores = view.scores_of(index)
    shares = chain.shares.get(index)
    return {
        "index": index,
        "applied": bool(told["applied"]),
        "reason": told.get("reason"),
        "heldout_loss": heldout.get(index),
        "tokens": sum(tokens.get(str(uid), 0) for uid in told["included"]) if tokens else None,
        "state_roots": {
            n.name: n.rounds[index]["state_root"] if index in n.rounds else None
            for n in view.nodes.values()
            if index in n.rounds or (n.name in own and index >= n.first_round)
        },
        "included": list(told["included"]),
        "counted": list(told["counted"]),
        "num_slices": told["num_slices"],
        "reducers": dict(told.get("reducers") or {}),
        "backed_up": list(told.get("backed_up") or ()),
        "missing": {j: list(uids) for j, uids in (told.get("missing") or {}).items()},
        "credit": credit,
        "credited_tokens": {uid: min(tokens[uid], token_cap) * share for uid, share in credit.items() if uid in tokens},
        "nodes": {n.name: _work(n.rounds.get(index)) for n in view.nodes.values()},
        "scores": next((_terms(cards) for cards in scores.values()), {}),
        "scores_by_validator": {name: _terms(cards) for name, cards in scores.items()},
        "weights": {} if shares is None else {str(v): text_keys(row) for v, row in shares.weights.items()},
        "incentive": {} if shares is None else text_keys(shares.incentive),
    }


def _work(event: Event | None) -> dict[str, Any] | None:
    if event is None:
        return None
    seconds = event.get("seconds") or {}
    return {
        "steps": event.get("steps"),
        "tokens": event.get("own_tokens"),
        "bytes_sent": event.get("bytes_sent"),
        "bytes_received": event.get("bytes_received"),
        "seconds": {phase: seconds.get(phase) for phase in ("train", "average", "settle")},
    }


def _terms(cards: Mapping[int, Any]) -> dict[str, Any]:
    return {
        str(uid): {**{t: card.get(t) for t in TERMS}, "reason": card.get("reason"), "note": card.get("note")}
        for uid, card in sorted(cards.items())
    }


def _final(settled: Sequence[int], chain: ChainFacts) -> dict[str, Any]:
    """Weights and incentive when the last round was settled."""
    shares = chain.shares.get(settled[-1]) if settled else None
    if shares is None:
        return {"block": None, "weights": {}, "incentive": {}}
    weights = {str(v): text_keys(row) for v, row in shares.weights.items()}
    return {"block": shares.block, "weights": weights, "incentive": text_keys(shares.incentive)}


def _audits(run: Run, view: RunView) -> dict[str, Any]:
    honest = [spec.name for spec in run.specs if spec.adversary is None]
    return {
        "first_common_audit": first_common_audit(view, honest),
        "last_scored_round": max((r for n in view.of_role("validator") for r in n.scores), default=None),
        "failed_audits": failed_audits(view),
        "audited": audited(view, honest),
    }


def first_common_audit(view: RunView, names: Collection[str]) -> int | None:
    """The first round in which every validator among `names` judged every miner among them."""
    miners = {node.uid for node in view.of_role("miner") if node.name in names}
    judged = [by_round(node) for node in view.of_role("validator") if node.name in names]
    common = [r for r in rounds_seen(view) if judged and all(miners <= rounds.get(r, set()) for rounds in judged)]
    return min(common, default=None)


def by_round(node: NodeView) -> dict[int, set[int]]:
    """Round -> uids this validator audited to a verdict."""
    found: dict[int, set[int]] = {}
    for (index, uid), event in node.audits.items():
        if event.get("verdict") is not None:
            found.setdefault(index, set()).add(uid)
    return found


def failed_audits(view: RunView) -> list[dict[str, Any]]:
    keys = ("depth", "failed_step", "error", "reason")
    return [
        {"validator": node.name, "round": index, "uid": uid, **{key: event.get(key) for key in keys}}
        for node in view.of_role("validator")
        for (index, uid), event in sorted(node.audits.items())
        if event.get("verdict") == "fail"
    ]


def audited(view: RunView, honest: Collection[str]) -> dict[str, Any]:
    """uid -> what the honest validators' audits of it said beside the verdict, in the mean over rounds."""
    found: dict[int, list[Event]] = {}
    for node in (n for n in view.of_role("validator") if n.name in honest):
        for (_, uid), event in sorted(node.audits.items()):
            found.setdefault(uid, []).append(event)
    return {
        str(uid): {
            "audits": len(events),
            "duty": _mean([e["duty"] for e in events if e.get("duty") is not None]),
            "unanswered": _mean([float(not e.get("goodput_bytes_per_s")) for e in events]),
        }
        for uid, events in sorted(found.items())
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    partial.replace(path)
