"""What codecs and overlap cost in learning: four miners of one tiny GPT-2, 200 rounds, beside dense fp32 vectors.

Miners (0.03 M parameters, bytes of Python's standard library) in one process, without chain or sockets: the inner
steps, schedules and fresh moments of the nodes, Muon, H = 12, and between rounds the nodes' own arithmetic with the
codecs named. A row for each exchange and seed:

  uplink, output     codecs of what miners send, and of what reducers publish; fp32: numbers as they are; sparse64: the
                     former spelling of sparse, 64 of 4,096 in two sizes
  feedback           of what encoding left out, the share that is added to the next vector; -: nothing is
  overlap            of a round's steps, the share done before the average of the former round is there; miners begin
                     where the bytes that they sent say they ended (own: where they did end), and move by the
                     difference once the average is there
  outer              learning rate and momentum of the outer step
  heldout_loss       nats per byte at the end, on text that nobody trains on
  behind             how much more that is than dense fp32 of the same seed, as a share of it
  bytes_per_miner    sent in all

It fails where what the recipes say by themselves is more than 0.5 % behind dense fp32, in the mean of the seeds.
About half a CPU minute a row; what stands in --rows is not made again. The seeds of one exchange are made together.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.convergence_runs import Course, Exchange
from benchmarks.learning import inner_of
from benchmarks.learning_runs import TOGETHER, Model, Setting
from benchmarks.learning_text import read_text
from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.data.tokens import load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.recipes.build import draft_manifest
from distributed_training.settings.arguments import whole

DESCRIPTION = __doc__ or ""
TEXT_BYTES, HELDOUT_SEQUENCES = 30_000_000, 256
MODEL = Model(width=32, length=32, batch=4)
STEPS = 12  # a round
TWELFTH = 1 / STEPS
MOST_BEHIND = 0.005
DENSE = Exchange()
# With every seed; then what recipes say of other codecs; then with the first seed alone.
PLAN = (
    DENSE,
    Exchange("int8", "int8"),
    Exchange("int8", "int8", overlap=TWELFTH),
    Exchange("int4", "int8"),
    Exchange("int8", "int8", overlap=0.25),
    Exchange("int8", "int4"),
)
RECIPES = ({"uplink": "sparse"}, {"uplink": "sparse", "output": "int4"}, {"uplink": "int4", "output": "int4"})
MORE = (
    Exchange("int4", "int8", 1.0),
    Exchange("int8", "int8", overlap=0.5),
    Exchange("sparse", "int8"),
    Exchange("sparse", "int8", 1.0),
    Exchange("sparse", "int8", 0.95),
    Exchange("sparse", "int8", 0.95, outer=(1.0, 0.0)),
    Exchange("sparse", "int8", 0.95, outer=(3.0, 0.0), overlap=0.25),
)
QUICK = PLAN[:3]


@dataclass(frozen=True, slots=True)
class Finished:
    exchange: Exchange
    setting: str  # identity of all else
    rounds: int
    seed: int
    loss: float
    cpu_s: float
    bytes_per_miner: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="three exchanges over 12 rounds, one seed: a minute, and no verdict")
    add("--rows", type=Path, metavar="FILE", help="finished runs, a JSON line each: those there are not made again")
    add("--show", action="store_true", help="make none: the table of what stands in --rows")
    add("--rounds", type=whole(1, 10_000, "rounds"), default=200, metavar="N", help="default 200")
    add("--seeds", type=whole(1, 100, "seeds"), default=3, metavar="N", help="default 3")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for each run. `failures`: the recipes' own choice, where it is too far behind dense fp32."""
    torch.set_num_threads(1)  # as nodes do
    rounds, seeds = (12, (1,)) if args.quick else (args.rounds, tuple(range(1, args.seeds + 1)))
    finished = read_finished(args.rows)
    if not args.show:
        plan = [(exchange, seeds) for exchange in (QUICK if args.quick else PLAN)]
        if not args.quick:
            plan += [(recipes_exchange(**codecs), seeds) for codecs in RECIPES]
            plan += [(exchange, seeds[:1]) for exchange in MORE]
        for exchange, own in plan:
            setting = setting_of(rounds)
            if any(not _find(finished, exchange, setting.identity, seed) for seed in own):
                new = _make(exchange, setting, own)
                finished += new
                if args.rows is not None:
                    with args.rows.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(asdict(each)) + "\n" for each in new)
    return {
        "name": "convergence",
        "rows": list(table(finished)),
        "failures": [] if args.quick else failures(finished, setting_of(rounds).identity),
    }


def read_finished(path: Path | None) -> list[Finished]:
    """Raises ConfigError for a line that is none of these runs."""
    found = list[Finished]()
    if path is None or not path.exists():
        return found
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            exchange = fields.pop("exchange")
            found.append(Finished(Exchange(**exchange | {"outer": tuple(exchange["outer"])}), **fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number}: expected a finished run of convergence: {error!r}") from None
    return found


def table(finished: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    for each in finished:
        exchange = each.exchange
        yield {
            "uplink": exchange.uplink,
            "output": exchange.output,
            "feedback": "-" if exchange.feedback is None else exchange.feedback,
            "overlap": f"{exchange.overlap:.3g}" + (" own" if exchange.begin == "own" else ""),
            "outer": "{:g}/{:g}".format(*exchange.outer),
            "rounds": each.rounds,
            "seed": each.seed,
            "heldout_loss": each.loss,
            "behind": behind(each, finished),
            "bytes_per_miner": each.bytes_per_miner,
            "cpu_s": each.cpu_s,
        }


def behind(run: Finished, finished: Sequence[Finished]) -> float | None:
    """None: dense fp32 was not run."""
    dense = _find(finished, DENSE, run.setting, run.seed)
    return None if dense is None else round(run.loss / dense.loss - 1, 5)


def failures(finished: Sequence[Finished], setting: str) -> list[str]:
    default = recipes_exchange()
    shares = [behind(each, finished) for each in finished if each.exchange == default and each.setting == setting]
    known = [share for share in shares if share is not None]
    if not known or mean(known) <= MOST_BEHIND:
        return []
    what = f"{default.uplink}/{default.output}, overlap {default.overlap:g}"
    return [f"the default, {what}: {mean(known):.2%} behind dense fp32, at most {MOST_BEHIND:.1%} expected"]


def recipes_exchange(**average: str) -> Exchange:
    """What a recipe says by itself, or of a run with these codecs."""
    manifest = draft_manifest("local", MODEL.config, load_tokenizer("bytes"), {"average": average})
    uplink, outer = uplink_of(manifest.average), manifest.outer
    return Exchange(
        uplink.name,
        manifest.average.output,
        uplink.feedback or None,
        overlap=TWELFTH if manifest.timing.overlap else 0.0,
        outer=(outer.learning_rate, outer.momentum),
    )


def _find(finished: Sequence[Finished], exchange: Exchange, setting: str, seed: int) -> Finished | None:
    same = (each for each in finished if (each.exchange, each.setting, each.seed) == (exchange, setting, seed))
    return next(same, None)


def setting_of(rounds: int) -> Setting:
    inner = inner_of("muon", STEPS * rounds)
    return Setting(TOGETHER, "muon", (1,) * 4, STEPS, rounds, inner=inner, model=MODEL)


def _make(exchange: Exchange, setting: Setting, seeds: Sequence[int]) -> list[Finished]:
    began = time.process_time()
    course = Course(setting, exchange, read_text(MODEL.length, HELDOUT_SEQUENCES, TEXT_BYTES), seeds)
    for index in range(setting.rounds):
        course.round(index)
    losses = [round(loss, 5) for loss in course.losses()]
    cpu_s = round((time.process_time() - began) / len(seeds), 1)
    print(f"{exchange}: {losses}, {cpu_s} CPU s a seed", file=sys.stderr, flush=True)
    return [
        Finished(exchange, setting.identity, setting.rounds, seed, loss, cpu_s, course.bytes_a_round * setting.rounds)
        for seed, loss in zip(seeds, losses, strict=True)
    ]
