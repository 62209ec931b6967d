"""The card of a run: how well miners that average learn, beside one alone and all of their tokens in synchronous steps.

Miners of one GPT-2 (0.12 M parameters, bytes of Python's standard library) in one process, without chain or sockets:
the inner steps, schedules and fresh moments of the nodes, and between rounds the nodes' own arithmetic (int8 vectors,
weights, clipping, one encoding of the average, the outer step). A row for each run and seed:

  step               tokens of one inner step
  heldout_loss       nats per byte at the end, on text that nobody trains on
  single_best        the fastest miner alone, on its own tokens, moments kept
  synchronous        all tokens in synchronous steps, moments kept, same optimiser; beside it with AdamW
  gained             of what synchronous training gains over single_best, the share that averaging keeps
  behind_single      the last round, from the fifth on, that ended no better than single_best; that is a failure
  bytes_per_miner    sent in all

Without settings of your own it makes the plan of docs/learning.md, hours of one core in all, and skips what stands in
--rows. A run of your own, with what it is compared with:

  python scripts/bench.py learning --speeds 1,1,2,4 --steps 20 --rounds 40 --outer 0.7/0.5 --rows mine.jsonl
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning_plan import Finished, failures, missing, read_finished, table
from benchmarks.learning_plot import draw, name
from benchmarks.learning_runs import ALONE, SYNCHRONOUS, TOGETHER, Model, Setting, play
from benchmarks.learning_text import Text, read_text
from distributed_training.settings.arguments import new_file, real, whole

DESCRIPTION = __doc__ or ""
TEXT_BYTES, HELDOUT_SEQUENCES = 30_000_000, 256
MUON: dict[str, Any] = {"learning_rate": 8e-3, "options": {"matrix_rate": 1.25}}
ADAMW: dict[str, Any] = {"learning_rate": 6e-3}
WARMUP = 50  # steps
NO_DECAY = 1_000_000  # steps over which the rate falls: not within any of these runs
OUTER = (0.8, 0.8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="a small plan: 4 miners, 20 rounds of 25 steps, one seed; 2 minutes")
    add("--rows", type=Path, metavar="FILE", help="finished runs, a JSON line each: those there are not made again")
    add("--show", action="store_true", help="make none: table and picture of what stands in --rows")
    add("--plot", type=new_file, metavar="FILE", help="draw the losses here, as PNG")
    add("--seeds", type=_numbers, default=(1, 2, 3), metavar="N,N,...", help="default 1,2,3")
    add("--speeds", type=_numbers, metavar="N,N,...", help="your own run: the speed of each miner")
    add("--steps", type=whole(1, 10_000, "steps"), default=50, metavar="H", help="a round at speed 1; default 50")
    add("--rounds", type=whole(1, 10_000, "rounds"), default=40, metavar="N", help="default 40")
    add("--optimizer", choices=["muon", "adamw"], default="muon")
    add("--rate", type=real(1e-9, 1e3, "a learning rate"), metavar="R", help="inner learning rate")
    add("--outer", type=_pair, metavar="A/B", help="outer learning rate and momentum")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every run that averages. `failures`: those that fell behind their best single miner."""
    finished = read_finished(args.rows)
    if not args.show:
        torch.set_num_threads(1)  # as nodes do
        wanted, seeds = _wanted(args)
        finished += _make(wanted, seeds, finished, args.rows)
    if args.plot is not None:
        draw(args.plot, finished)
    rows = table(finished)
    return {"name": "learning", "rows": rows, "failures": failures(rows)}


def plan() -> list[Setting]:
    """The runs of docs/learning.md, the most telling first."""
    four, unequal = _together((1,) * 4, 50, 60), _together((1, 1, 2, 4), 25, 60)
    large, noisy = replace(four, model=Model(batch=16)), replace(_together((1,) * 4, 50, 200), model=Model(batch=2))
    two, many = _together((1, 1), 50, 60), [_together((1,) * count, 50, 20) for count in (4, 8, 16)]
    return [
        *with_references(four),
        _fresh(four),
        _together((1,) * 4, 100, 30),
        *with_references(unequal),
        replace(unequal, weights="root"),
        two,
        _together((1,) * 8, 50, 60),
        *with_references(large)[:3],
        _fresh(large),
        *with_references(many[0])[:3],
        *many[1:],
        *with_references(noisy),
        _fresh(noisy),
        replace(_together((1,) * 4, 100, 100), model=noisy.model),
        *(replace(each, inner={**each.inner, "decay_steps": NO_DECAY}) for each in (*with_references(four)[:3], two)),
    ]


def _fresh(together: Setting) -> Setting:
    """One miner alone that forgets its moments as those do who average."""
    return replace(together, who=ALONE, speeds=(max(together.speeds),), outer=None)


def with_references(together: Setting) -> list[Setting]:
    """What a run is compared with: its fastest miner alone, and all of its tokens in synchronous steps."""
    alone = replace(together, who=ALONE, speeds=(max(together.speeds),), outer=None, fresh=False)
    both = replace(together, who=SYNCHRONOUS, outer=None, fresh=False)
    adamw = replace(both, optimizer="adamw", inner=inner_of("adamw", together.steps * together.rounds))
    return [together, both, alone, *([adamw] if together.optimizer != "adamw" else [])]


def inner_of(optimizer: str, all_steps: int) -> dict[str, Any]:
    """Fields of the manifest: rates that were measured, and a schedule that ends with the run."""
    rates = MUON if optimizer == "muon" else ADAMW
    return {**rates, "warmup_steps": WARMUP, "decay_steps": all_steps - WARMUP}


def _together(speeds: tuple[int, ...], steps: int, rounds: int) -> Setting:
    return Setting(TOGETHER, "muon", speeds, steps, rounds, OUTER, inner=inner_of("muon", steps * rounds))


def _wanted(args: argparse.Namespace) -> tuple[list[Setting], tuple[int, ...]]:
    if args.quick:
        return with_references(_together((1, 1, 1, 1), 25, 20)), args.seeds[:1]
    if args.speeds is None:
        return plan(), args.seeds
    inner = inner_of(args.optimizer, args.steps * args.rounds)
    inner |= {} if args.rate is None else {"learning_rate": args.rate}
    outer = args.outer or OUTER
    own = Setting(TOGETHER, args.optimizer, args.speeds, args.steps, args.rounds, outer, inner=inner)
    return with_references(own), args.seeds


def _make(
    wanted: Sequence[Setting], seeds: Sequence[int], finished: Sequence[Finished], rows: Path | None
) -> list[Finished]:
    """Those that are not finished, each written down as soon as it is."""
    made: list[Finished] = []
    texts: dict[int, Text] = {}
    for setting in missing(wanted, seeds, finished):
        length = setting.model.length
        texts[length] = texts.get(length) or read_text(length, HELDOUT_SEQUENCES, TEXT_BYTES)
        began = time.process_time()
        curves = play(setting, seeds, texts[length], told=lambda done, s=setting: _tell(s, done))
        cpu_s = (time.process_time() - began) / len(seeds)
        new = [Finished(setting, seed, curve, cpu_s) for seed, curve in zip(seeds, curves, strict=True)]
        if rows is not None:
            with rows.open("a", encoding="utf-8") as file:
                file.writelines(run.line() + "\n" for run in new)
        made += new
    return made


def _tell(setting: Setting, done: int) -> None:
    if done == setting.rounds or sys.stderr.isatty():
        end = "\n" if done == setting.rounds else ""
        print(f"\r{name(setting)}: {done} of {setting.rounds} rounds", end=end, file=sys.stderr, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    if not all(part.isdigit() and 1 <= int(part) <= 1 << 16 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1 on like 1,1,2,4, not {text!r}")
    return tuple(int(part) for part in text.split(","))


def _pair(text: str) -> tuple[float, float]:
    try:
        rate, momentum = (float(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers like 0.8/0.8, not {text!r}") from None
    return rate, momentum
