"""How far two honest replays of one round drift apart, step by step, and how far the cheapest cheats are."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from benchmarks.drift_runs import AUDITOR, Miner, Rig, State, cheats, honest, rig
from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.audit_plan import Depth, audit_depth
from distributed_training.protocol.rules.fidelity import gradient_error, growth
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.auditing.query import Claim, Enough, train_query
from distributed_training.settings.arguments import assignment, whole
from distributed_training.training.flat import Flat
from distributed_training.training.inner import InnerResult
from distributed_training.training.optimizers import KINDS

DESCRIPTION = """\
One round of a small GPT-2 from the same state, computed by different miners and by an auditor (fp32, whole batch, one
thread), from random weights and after two rounds; bf16 is the CPU's autocast, in the place of a GPU's.

  worst_group_error   of the gradient sketches, as an audit measures it; ok, bad: its bounds at that step
  error               of all groups together
  norm_ratio          of the gradient norms; loss_difference: the median over the sequences

With --audits N: N audits of honest miners of every kind by auditors of every kind, as deep as the audit plan draws for
newcomers, with the noise floor that each auditor measures; then a sixth as many of each cheat by the auditor above. An
honest miner that does not pass is a failure.
"""
AT = (0, 4, 9, 19, 49, 99)
WARM_ROUNDS, WARM_STEPS = 2, 50
CHEATS_SHARE = 6  # for so many audits of honest miners there is one of each cheat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", default="local", metavar="NAME", help="whose rates and bounds; default local")
    add("--optimizer", choices=tuple(KINDS), help="only this one; the audits: default the preset's own")
    add("--set", action="append", type=assignment, default=[], metavar="KEY=VALUE", help="a field of the manifest")
    add("--steps", type=whole(1, 1000, "steps"), default=100, metavar="N", help="of the round; default 100")
    add("--audits", type=whole(1, 10_000, "audits"), metavar="N", help="audits in the place of the table")
    add("--layers", type=whole(2, 48, "layers"), default=2, metavar="N", help="default 2")
    add("--width", type=whole(16, 4096, "numbers"), default=64, metavar="N", help="a multiple of 4; default 64")
    add("--length", type=whole(16, 4096, "tokens"), default=128, metavar="N", help="tokens a sequence; default 128")


def run(args: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    names = (args.optimizer,) if args.optimizer or args.audits else KINDS
    for name in names:
        made = rig(args.preset, name, args.layers, args.width, args.length, args.set)
        states = {"random weights": made.random(), "warm": made.warm(WARM_ROUNDS, WARM_STEPS)}
        rows += _audits(made, states, args) if args.audits else _table(made, states, args.steps)
    failures = [
        f"{row['miner']}: {row['passed']} of {row['audits']} audits passed"
        for row in rows
        if row.get("honest") and row["passed"] < row["audits"]
    ]
    return {"name": "drift", "rows": rows, "failures": failures}


def _table(made: Rig, states: dict[str, State], steps: int) -> Iterator[dict[str, Any]]:
    size = made.manifest.data.batch_size
    for name, state in states.items():
        truth = made.log(AUDITOR, state, steps)
        for miner in [*(one for one in honest(size) if one.tells(size)), *cheats(size)]:
            logged = made.log(miner, state, steps)
            row = {"optimizer": made.manifest.inner.optimizer, "state": name, "case": miner.name}
            for step in (at for at in AT if at < steps):
                yield row | _measured(logged.steps[step], truth.steps[step], made.manifest.audit)
            yield row | {"step": steps, "vector_cosine": _cosine(state[0] - logged.end, state[0] - truth.end)}


def _measured(logged: StepRecord, truth: StepRecord, audit: AuditSection) -> dict[str, Any]:
    ours, theirs = (np.concatenate([np.asarray(row) for row in record.sketch]) for record in (truth, logged))
    grown = growth(audit, truth.step)
    return {
        "step": truth.step,
        "worst_group_error": gradient_error(logged, truth),
        "error": float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)),
        "norm_ratio": logged.grad_norm / truth.grad_norm,
        "loss_difference": float(np.median(np.abs(np.subtract(logged.losses, truth.losses)))),
        "ok": audit.error_ok * grown,
        "bad": audit.error_bad * grown,
    }


def _cosine(one: Flat, other: Flat) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b) / float(np.sqrt((a @ a) * (b @ b)) or 1.0)


def _audits(made: Rig, states: dict[str, State], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every honest kind audited by every other in turn; every cheat by the plain auditor."""
    kinds = honest(made.manifest.data.batch_size)
    drawn: dict[Miner, list[_Audit]] = {}
    for index in range(args.audits):
        miner, auditor = kinds[index % len(kinds)], kinds[(index * 5 + index // len(kinds)) % len(kinds)]
        drawn.setdefault(miner, []).append(_Audit(index, auditor))
    for miner, audits in drawn.items():
        yield {"honest": True} | _verdicts(made, states, miner, audits, args.steps)
    for cheat in cheats(made.manifest.data.batch_size):
        audits = [_Audit(index, AUDITOR) for index in range(math.ceil(args.audits / CHEATS_SHARE))]
        yield {"honest": False} | _verdicts(made, states, cheat, audits, args.steps)


class _Audit(NamedTuple):
    index: int  # also of its data and its draw
    auditor: Miner


def _verdict(made: Rig, state: State, miner: Miner, audit: _Audit, depth: Depth) -> AuditResult:
    logged = made.log(miner, state, depth.length, seed=audit.index)
    whole = slice(None), state[0] - logged.end
    other = replace(audit.auditor, precision="bf16" if audit.auditor.precision == "fp32" else "fp32")
    rounded, usual = (made.log(one, state, 1, seed=audit.index).steps[0] for one in (other, audit.auditor))
    noise = gradient_error(rounded, usual)
    claim = Claim(logged.steps, (lambda: iter([whole])) if depth.full else None, state[0], noise)

    def replayed(otherwise: bool, enough: Enough) -> InnerResult:
        return made.log(other if otherwise else audit.auditor, state, depth.length, seed=audit.index)

    return train_query(claim, replayed, depth.length, made.manifest.audit)


def _verdicts(made: Rig, states: dict[str, State], miner: Miner, audits: list[_Audit], steps: int) -> dict[str, Any]:
    found: list[tuple[int, AuditResult]] = []
    for audit in audits:
        beacon = blake2b(audit.index.to_bytes(4, "little"), digest_size=32).digest()
        depth = audit_depth(beacon, bytes(32), bytes(32), steps, made.manifest.audit, 1.0, proven=False)
        state = list(states.values())[audit.index // len(states) % len(states)]
        found.append((depth.length, _verdict(made, state, miner, audit, depth)))
    verdicts = [result.verdict for _, result in found]
    return {
        "optimizer": made.manifest.inner.optimizer,
        "miner": miner.name,
        "audits": len(found),
        "passed": verdicts.count(Verdict.PASS),
        "soft": verdicts.count(Verdict.SOFT),
        "failed": verdicts.count(Verdict.FAIL),
        "deepest": max(depth for depth, _ in found),
        "noise": max(result.noise for _, result in found),
        "worst_of_ok": max((r.error / r.good for _, r in found if r.error is not None and r.good), default=math.nan),
        "why": sorted({f"{r.reason} at step {r.failed_step}" for _, r in found if r.verdict is not Verdict.PASS})[:2],
    }
