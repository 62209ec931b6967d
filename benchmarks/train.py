"""What a step costs beside a bare loop: ours with log and sketches, against the same model, optimiser and clipping with
the plain loss and nothing else, in tokens per CPU second of one thread.

Both take their steps in turn in one process; `ratio` is the median over pairs. `peak_mb` is of a process that does two
of our steps and nothing else, `bare_peak_mb` of one that does two bare ones. `round_cpu_s`: what a round costs beside
its steps. With accelerate installed (pip install accelerate) transformers' Trainer stands beside them, not in turn. On
a machine with a GPU there are rows in wall seconds too, with the share of the measured speed of its matrix products
(mfu). Those have not been run yet. The 124 M case takes about a minute for each pair of steps on one core.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.train_loops import CASES, Case, gpu_cases, paired, peak_mb, timed_on_gpu, trainer_tokens_per_cpu_s
from distributed_training.memory import keep_freed
from distributed_training.settings.arguments import whole

DESCRIPTION = __doc__ or ""
LEAST = 0.98


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--case", action="append", choices=sorted(CASES), help="default: all of them")
    add("--pairs", type=whole(2, 1000, "pairs"), metavar="N", help="pairs of steps; default: by case")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row per case. `failures` names those where ours is below 0.98 of the bare loop."""
    torch.set_num_threads(1)
    keep_freed()  # as a node does: for both
    rows = [_row(CASES[name], args.pairs) for name in args.case or CASES]
    if torch.cuda.is_available():
        rows += [{"case": case.name} | asdict(timed_on_gpu(case)) for case in gpu_cases()]
    failures = [
        f"{row['case']}: {row['ratio']:.3f} of the bare loop, {LEAST} expected"
        for row in rows
        if row.get("ratio", 1.0) < LEAST
    ]
    return {"name": "train", "rows": rows, "failures": failures}


def _row(case: Case, pairs: int | None) -> dict[str, Any]:
    found = paired(case, pairs or case.pairs)
    row = {"case": case.name, "optimizer": case.optimizer} | asdict(found)
    row["trainer_tokens_per_cpu_s"] = trainer_tokens_per_cpu_s(case, pairs or case.pairs)
    for name, ours in (("peak_mb", True), ("bare_peak_mb", False)):
        row[name] = _alone(case, ours)
    return row


def _alone(case: Case, ours: bool) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_mb, case, ours).result()
