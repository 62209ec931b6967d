"""Share of the time in training: whole rounds of real nodes at blocks of 12 s over home links, on a virtual clock."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, cast
from unittest.mock import patch

from benchmarks.utilisation_where import where_it_goes
from distributed_training.averaging import feedback
from distributed_training.averaging.codecs.base import Layout, wire_bytes
from distributed_training.averaging.codecs.known import codec
from distributed_training.network.links import LinkProfile
from distributed_training.protocol.types import StepRecord
from distributed_training.recipes.timing import ENCODE_S, OUTER_S, Blocks, Expect, Where, Work, overhead
from distributed_training.roles import follower
from distributed_training.roles.mining.work import Worker, WorkResult, WorkTask
from distributed_training.roles.parts import Parts
from distributed_training.settings.arguments import whole
from distributed_training.simulation.loop import VirtualLoop
from distributed_training.simulation.node import TimedTrainer
from distributed_training.simulation.options import SimOptions, model_config
from distributed_training.simulation.setting import Setting
from distributed_training.simulation.swarm import SimResult, simulate
from distributed_training.training.model import model_size

DESCRIPTION = """\
Run rounds of real nodes (roles, averaging, validators, audits) in the simulator, at blocks of 12 s and the finality of
the mainnet, and add up how long each miner trains. What is not real: the model is small, so its vector is, and links
are slower by the same factor; a step takes the virtual time that one of the large model takes, and so do encoding and
the outer step, by docs/measurements.md. Offsets are those that recipes/timing.py gives for these links and codecs.

  utilisation   training of all miners after the first round, as a share of the time
  head_first    exchange begun at the head; false: everything waits until it is final, and offsets have room for that
"""
SIZES = {"124m": 124_475_904, "1.1b": 1_100_048_384}
CODECS = (("int8", "int8"), ("int8", "int4"), ("sparse", "int8"), ("sparse", "int4"))
BLOCK_S, FINALITY, LEAST_LENGTH, FIRST_BLOCK = 12.0, 3, 45, 20
UP_MBIT, DOWN_MBIT, TFLOPS, TOKENS = 20.0, 50.0, 50.0, 131_072
MOST_MINUTES = 25.0
GOALS = {True: 0.95, False: 0.85}  # by overlap
# By size: width of the small model, of one and two million coordinates, and its chunks: one must pass in a stall time.
SMALL = {SIZES["124m"]: (280, 8_192), SIZES["1.1b"]: (400, 4_096)}
STEPS = 2  # real ones of a round; each stands for as many of the large model as fit
SEGMENT_BYTES = 512
_DONE_S = 0.5  # of the two constants: they are about twice what was measured


@dataclass(frozen=True, slots=True)
class Case:
    params: int
    uplink: str
    output: str
    overlap: bool
    head_first: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES), help="parameters (default: both)")
    add(
        "--codecs", nargs="+", default=["/".join(pair) for pair in CODECS], metavar="UPLINK/OUTPUT", help="default: all"
    )
    add("--miners", type=whole(2, 64, "miners"), default=8, metavar="N", help="all of them reduce (default 8)")
    add("--validators", type=whole(1, 16, "validators"), default=2, metavar="N", help="default 2")
    add("--rounds", type=whole(3, 100, "rounds"), default=3, metavar="N", help="the first is not measured (default 3)")
    add("--seed", type=int, default=1, metavar="N", help="decides everything (default 1)")
    add("--overlap", choices=("on", "off", "both"), default="both", help="default both")
    add("--finality-first", action="store_true", help="also each row without overlap that waits for finality")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row a case. Raises ConfigError. A goal that is missed is said with where the rest goes; it is no failure."""
    rows, failures = [], []
    for case in cases(args):
        found, result = measure(case, args)
        rows.append(found)
        failures += [f"{case}: {v.what}: round {v.round}, {', '.join(v.nodes)}" for v in result.violations]
        if found["applied"] < args.rounds:
            failures.append(
                f"{case}: {found['applied']} of {args.rounds} rounds were applied, so its share says nothing"
            )
    return {"name": "utilisation", "rows": rows, "failures": failures}


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for size in args.sizes:
        for pair in args.codecs:
            uplink, output = pair.split("/")
            for overlap in (False, True):
                if args.overlap in ("both", "on" if overlap else "off"):
                    yield Case(SIZES[size], uplink, output, overlap, head_first=True)
            if args.finality_first:
                yield Case(SIZES[size], uplink, output, overlap=False, head_first=False)


def measure(case: Case, args: argparse.Namespace) -> tuple[dict[str, Any], SimResult]:
    step_s = 6.0 * case.params * TOKENS / (TFLOPS * 1e12)
    blocks = blocks_of(case, args.miners, args.validators, step_s)
    length = max(blocks.shortest, int(MOST_MINUTES * 60 / BLOCK_S))
    timing = blocks.offsets(length - blocks.total) | {"first_block": FIRST_BLOCK}
    trained: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    width, chunk_coords = SMALL[case.params]
    settle_s = OUTER_S * _DONE_S * case.params + BLOCK_S
    small = model_size(model_config(width))

    def timed(name: str, worker: Worker, parts: Parts) -> Worker:
        return LargeTrainer(worker, parts, step_s, trained[name])

    options = SimOptions(
        miners=args.miners, rounds=args.rounds, seed=args.seed, validators=args.validators, width=width, steps=STEPS,
        act_on_head=case.head_first, equal=True,
        setting=Setting(BLOCK_S, sections(case, timing, chunk_coords), links(case.params / small), timed, settle_s),
    )  # fmt: skip
    seen = Seen()
    with costs(case.params):
        result = simulate(options, events=cast(Any, seen))
    shares = [sum(s for r, s in by.items() if r > 0) for by in trained.values()]
    share = mean(shares) / ((args.rounds - 1) * timing["length"] * BLOCK_S)
    row = {
        "params": case.params, "uplink": case.uplink, "output": case.output, "overlap": case.overlap,
        "head_first": case.head_first, "round_minutes": round(timing["length"] * BLOCK_S / 60, 1),
        "utilisation": round(share, 4), "applied": sum(r.applied is True for r in result.rows), "rounds": args.rounds,
    }  # fmt: skip
    print(" ".join(f"{k}={v}" for k, v in row.items()), f"({result.real_s:.0f} s)", flush=True)
    if row["applied"] < args.rounds:
        print(f"  {args.rounds - row['applied']} round(s) were not applied: what was trained in them is in no state")
    if share < GOALS[case.overlap] or row["round_minutes"] > MOST_MINUTES or row["applied"] < args.rounds:
        print("  " + where_it_goes(timing, blocks.map, BLOCK_S, seen.events, result), flush=True)
    return row, result


def blocks_of(case: Case, miners: int, validators: int, step_s: float) -> Blocks:
    """As recipes/timing.py has them; who waits for finality needs it before scatter and before gather too."""
    layout = Layout(case.params, 262_144, 512)
    sizes = wire_bytes(codec(case.uplink), layout), wire_bytes(codec(case.output), layout)
    work = Work(case.params, *sizes, TOKENS, log_bytes=4096)
    expect = Expect(
        down_mbit=DOWN_MBIT, up_mbit=UP_MBIT, tflops=TFLOPS, fastest_tflops=TFLOPS, miners=miners, reducers=miners,
        validators=validators,
    )  # fmt: skip
    where = Where(BLOCK_S, FINALITY, LEAST_LENGTH)
    blocks = overhead(work, where, expect, step_s, overlap=case.overlap)
    if case.head_first:
        return blocks
    return replace(blocks, scatter=blocks.scatter + FINALITY, transfer=blocks.transfer + FINALITY)


def sections(case: Case, timing: Mapping[str, Any], chunk_coords: int) -> dict[str, Any]:
    return {
        "timing": timing,
        "average": {
            "chunk_coords": chunk_coords, "block_coords": 512, "uplink": case.uplink, "output": case.output,
        },
        "audit": {"probe_chunks": 2},
    }  # fmt: skip


def links(slower: float) -> LinkProfile:
    up, down = UP_MBIT * 1e6 / 8 / slower, DOWN_MBIT * 1e6 / 8 / slower
    window = max(2 * SEGMENT_BYTES, int((1 << 20) / slower))
    return LinkProfile((up, up), (down, down), segment_bytes=SEGMENT_BYTES, window_bytes=window)


class LargeTrainer(TimedTrainer):
    """A few real steps, each as long as whole steps of the large model that together fill the training phase."""

    def __init__(self, trainer: Worker, parts: Parts, step_s: float, trained: dict[int, float]) -> None:
        super().__init__(trainer, parts, step_s)
        self._large_s, self._trained = step_s, trained

    def work(self, task: WorkTask) -> WorkResult:
        # Beside an exchange each step is looked at alone, by what the clock says then: it may be a look behind.
        left_s = self._left_s(task) - (0.0 if task.onward is None else BLOCK_S / 4)
        self._step_s = self._large_s * max(1, math.floor(left_s / STEPS / self._large_s))

        def on_step(record: StepRecord, seconds: float) -> None:
            self._trained[task.round] += seconds
            task.on_step(record, seconds)

        return super().work(replace(task, on_step=on_step))


class Seen:
    """Takes every event's line, as a file would."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def write(self, line: str) -> None:
        self.events.append(line)


@contextmanager
def costs(params: int) -> Iterator[None]:
    """Encoding and the outer step take the virtual time that they take for so many parameters."""

    def spending(work: Any, seconds: float) -> Any:
        def spent(*args: Any, **kwargs: Any) -> Any:
            cast(VirtualLoop, asyncio.get_running_loop()).spend(seconds)
            return work(*args, **kwargs)

        return spent

    encode_s, outer_s = ENCODE_S * _DONE_S * params, OUTER_S * _DONE_S * params
    with (
        patch.object(feedback, "encode_contribution", spending(feedback.encode_contribution, encode_s)),
        patch.object(feedback.FeedbackFiles, "encode", spending(feedback.FeedbackFiles.encode, encode_s)),
        patch.object(follower, "outer_step", spending(follower.outer_step, outer_s)),
    ):
        yield
