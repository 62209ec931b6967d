"""What one round's audits cost all validators together and each of them: drawn by the real rules, reckoned on paper."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import uplink_bytes
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.rules.audit_plan import AuditTask, audit_beacon, plan
from distributed_training.protocol.types import WorkRecord
from distributed_training.recipes.build import draft_manifest
from distributed_training.recipes.reading import Preset, read_preset
from distributed_training.roles.auditing.probe import AT_ONCE
from distributed_training.settings.arguments import whole
from distributed_training.training.model import model_size

DESCRIPTION = """\
Audits of a full subnet, as the audit plan draws them, every miner claiming the preset's nominal steps, with one and
with five validators of equal stake. Steps replayed are all that audits take: the depth, two steps a round for the noise
floor, and of who cheats both replays up to the failing step, at the validator that finds it and at all that it tells.

  share             steps replayed of steps claimed, all validators together; the goal is 12 % of miners that are known
  miner_equivalents the same in miners' rounds of computing
  gpus, gpus_fast   each validator needs so many of the device that the preset expects, or of the fastest one, to be
                    through in one round: the miners train for a part of it, a validator replays all the time
  pages             that a replay touches; `pages_all`: those of the whole claims
  *_mb, down_mbit   what a validator fetches in a round, and as a steady rate of its line

Speeds, links and steps are the preset's [expect] (argued, not measured); a page is a row group of FineWeb's.
"""
VALIDATORS = (1, 5)
GOAL = 0.12
PAGE_TOKENS, PAGE_MB = 697_000, 2.0  # FineWeb's row groups: 94 for 500 steps of 131,072 tokens
RECORD_BYTES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", default="gpt2-124m", metavar="NAME", help="default gpt2-124m")
    add("--miners", type=whole(1, 4096, "miners"), default=256, metavar="N", help="default 256")
    add("--rounds", type=whole(1, 10_000, "rounds"), default=20, metavar="N", help="that are drawn; default 20")


@dataclass(frozen=True, slots=True)
class Case:
    validators: int
    miners: str  # proven, new, or with cheats among them

    @property
    def known(self) -> bool:
        return self.miners != "all new"


@dataclass(slots=True)
class Cost:
    """Of all validators and rounds together."""

    steps: float = 0.0
    pages: float = 0.0
    full: int = 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """More than the goal for known miners, or more than one round of the fastest device for five validators, fails."""
    preset = read_preset(args.preset)
    manifest = draft_manifest(preset, preset.model, None, {"netuid": 1})
    bench = Bench(preset, manifest, args.miners, args.rounds)
    cases = [Case(v, kind) for v in VALIDATORS for kind in ("all known", "all new", "1 of 10 a tail")]
    rows = [bench.row(case) for case in cases]
    failures = [
        f"{row['validators']} validators: {100 * row['share']:.1f} % is replayed, expected at most {100 * GOAL:.0f}"
        for row in rows
        if row["miners"] == "all known" and row["share"] > GOAL
    ]
    print("\n".join(lines := bench.arithmetic()))
    return {"name": "audit", "rows": rows, "failures": failures, "arithmetic": lines}


class Bench:
    def __init__(self, preset: Preset, manifest: RunManifest, miners: int, rounds: int) -> None:
        self._preset, self._manifest, self._miners, self._rounds = preset, manifest, miners, rounds
        self._coords = model_size(manifest.model.config)
        self._layout: Layout = layout_of(manifest, self._coords)
        self._steps = manifest.inner.nominal_steps
        timing = manifest.timing
        self._round_s = timing.length * preset.block_s
        self._trained = (timing.commit - timing.commit_margin) / timing.length
        self._works = [self._work(uid) for uid in range(miners)]

    def _work(self, uid: int) -> WorkRecord:
        zero, tokens = bytes(32), self._steps * self._manifest.tokens_per_step
        key = uid.to_bytes(32, "little")
        norms = (1.0,) * self._layout.num_chunks
        return WorkRecord(
            zero, 0, uid, key, zero, self._steps, tokens, zero, zero, zero, 1,
            zero, zero, zero, 0, norms,
        )  # fmt: skip

    def row(self, case: Case) -> dict[str, Any]:
        cost, claimed = self._drawn(case), self._rounds * self._miners * self._steps
        share = cost.steps / claimed
        each = share * self._miners / case.validators * self._trained  # devices that replay all of the round
        expect = self._preset.expect
        fetched = self._fetched(case, cost)
        return {
            "validators": case.validators,
            "miners": case.miners,
            "share": share,
            "miner_equivalents": share * self._miners,
            "gpus": each,
            "gpus_fast": each * expect.tflops / expect.fastest_tflops,
            "pages": cost.pages / self._rounds / case.validators,
            "pages_all": self._miners * -(-self._steps * self._manifest.tokens_per_step // PAGE_TOKENS),
            **{f"{name}_mb": size / 1e6 for name, size in fetched.items()},
            "down_mbit": 8 * sum(fetched.values()) / self._round_s / 1e6,
        }

    def _drawn(self, case: Case) -> Cost:
        cost = Cost()
        for index in range(self._rounds):
            beacon = audit_beacon(blake2b(index.to_bytes(4, "little"), digest_size=32).digest(), index)
            tasks = [self._plan(case, beacon, v) for v in range(case.validators)]
            cost.steps += 2 * case.validators  # the noise floor
            for uid in range(self._miners):
                self._add(cost, case, uid, [own[uid] for own in tasks])
        return cost

    def _plan(self, case: Case, beacon: bytes, validator: int) -> dict[int, AuditTask]:
        manifest, key = self._manifest, (1 << 16 | validator).to_bytes(32, "little")
        cards = {w.public_key: _known(w, self._steps) for w in self._works} if case.known else {}
        cap = self._steps * manifest.tokens_per_step
        drawn = plan(beacon, key, self._works, cards, manifest.audit, 1.0 / case.validators, cap)
        return {task.uid: task for task in drawn}

    def _add(self, cost: Cost, case: Case, uid: int, tasks: list[AuditTask]) -> None:
        """One miner's round: cheats do a half of what they claim."""
        cut = self._steps // 2 if case.miners == "1 of 10 a tail" and uid % 10 == 0 else self._steps
        deep = [task.depth.length for task in tasks]
        if max(deep) > cut:  # both replays to the first wrong step, at everybody
            deep = [2 * (cut + 1)] * len(deep)
        cost.steps += sum(deep)
        tokens = self._manifest.tokens_per_step
        cost.pages += sum(-(-min(depth, cut + 1) * tokens // PAGE_TOKENS) for depth in deep)
        cost.full += sum(task.depth.full for task in tasks)

    def _fetched(self, case: Case, cost: Cost) -> dict[str, float]:
        """Bytes that one validator fetches in a round."""
        audit, data = self._manifest.audit, self._manifest.data
        groups = self._manifest.model.config.get("n_layer", self._manifest.model.config.get("num_hidden_layers", 0)) + 2
        step_bytes = 12 + 2 * data.batch_size + 2 * groups * audit.sketch_size
        pages = -(-self._steps * self._manifest.tokens_per_step // PAGE_TOKENS)
        chunks = min(audit.probe_chunks, self._layout.num_chunks)
        full = cost.full / self._rounds / case.validators
        return {
            "logs": self._miners * (RECORD_BYTES + 4 * self._layout.num_chunks + self._steps * step_bytes),
            "page_lists": self._miners * 32 * pages,
            "probes": (self._miners - full) * chunks * uplink_of(self._manifest.average).chunk_bytes(self._layout, 0),
            "vectors": full * uplink_bytes(self._manifest, self._layout),
            "pages": 1e6 * PAGE_MB * cost.pages / self._rounds / case.validators,
        }

    def arithmetic(self) -> list[str]:
        """How the numbers come about, a line each."""
        m, expect = self._manifest, self._preset.expect
        flop = 6.0 * self._coords * m.tokens_per_step
        step_s, fast_s = flop / expect.tflops / 1e12, flop / expect.fastest_tflops / 1e12
        probe_mb = (
            min(m.audit.probe_chunks, self._layout.num_chunks)
            * uplink_of(self._manifest.average).chunk_bytes(self._layout, 0)
            / 1e6
        )
        share_s = min(self._round_s / 12, self._round_s / 2 * AT_ONCE / self._miners)
        return [
            f"a step: 6 x {self._coords:,} parameters x {m.tokens_per_step:,} tokens = {flop:.3g} FLOP: {step_s:.2f} s "
            f"at {expect.tflops:g} TFLOP/s, {fast_s:.2f} s at {expect.fastest_tflops:g}",
            f"a round: {m.timing.length} blocks = {self._round_s:.0f} s, {100 * self._trained:.0f} % of it training; "
            f"a miner claims {self._steps} steps, {self._miners} miners {self._miners * self._steps:,}",
            f"a probe: {probe_mb:.1f} MB; {AT_ONCE} at once, {share_s:.1f} s each at most, "
            f"{self._miners * share_s / AT_ONCE:.0f} s for all of them",
        ]


def _known(work: WorkRecord, steps: int) -> ScoreCard:
    """Of a miner that has earned all that it claims."""
    fields = {
        "hotkey": str(work.uid), "registered_block": 0, "uid": work.uid, "work": (1.0,), "steps": 1.0, "passes": 10.0,
        "fails": 0.0, "integrity": 1.0, "goodput": (), "passed_audit": True, "zero_until_round": 0, "reason": "",
        "note": "",
    }  # fmt: skip
    return ScoreCard(**fields)
