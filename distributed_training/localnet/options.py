"""What `python -m distributed_training.localnet` is told: flags, defaults, and one-line errors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError
from distributed_training.localnet.attacks import ADVERSARIES_DIR, Adversary, chosen, in_demo, listing
from distributed_training.localnet.run.kills import PHASES, KillRequest, parse_kill
from distributed_training.protocol.types import Role
from distributed_training.settings.arguments import (
    Parser,
    assignment,
    constant,
    file_or_folder,
    folder,
    new_folder,
    real,
    whole,
)

STEPS_AT_SPEED_1 = 20
ROUNDS = 6  # by default
SPARSE_ROUNDS = (
    9  # with a sparse uplink: what is left out comes later, so it takes longer to be ahead of one miner alone
)
MIN_BLOCK_S, MAX_BLOCK_S = 0.25, 12.0
BLOCK_SECONDS = real(MIN_BLOCK_S, MAX_BLOCK_S, "seconds")  # also of the benchmarks' --block-seconds
PORT_BASE = whole(1024, 65000, "a port")
MAX_MINERS = 12
MIN_ROUNDS_NEWCOMER = 7
MAX_VALIDATORS = 3

DESCRIPTION = """\
Train one language model with a whole subnet on this machine.

Every node is a process of its own: miners train on different pages of text and average what they learned peer to
peer, validators replay parts of the miners' work and pay them on a chain (one SQLite file), the owner publishes
checkpoints. A live table shows it; at the end the run is checked from the outside and compared with miners that
train alone. Nothing leaves this machine; all connections are on its loopback interface.
"""
EXAMPLES = """\
  4 equal miners, 2 validators, 6 rounds: 3 to 4 minutes
    bash scripts/demo.sh
  miners of different speed: more steps, more pay
    bash scripts/demo.sh --speeds 1,1,2,4
  miners that cheat, and what becomes of them
    bash scripts/demo.sh --adversary free-rider --rounds 8
    bash scripts/demo.sh --adversary omitter --adversary tail:2 --miners 6
  your model, your text
    bash scripts/demo.sh --model my_config.json --text ~/my_texts
"""
EPILOG = """\
Rounds have numbers from 0: --rounds 6 runs rounds 0 to 5. What a miner did in a round is audited and paid during the
next one.

what it leaves in the run directory:
  summary.json  every number and every check
  report.png    loss, scores, weights, incentive
  events.jsonl  all events of all nodes
  nodes/NAME/log.txt  the log of one node

exit codes: 0 no check failed, 1 some did, or trouble of this machine, 2 wrong options, 130 stopped by Ctrl-C.
"""


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int  # the last of them is audited by nobody: that happens in the next one
    miners: int
    validators: int
    speeds: tuple[int, ...]  # one per miner
    seed: int
    steps: int | None  # exact inner steps a round at speed 1; None: up to 20, whatever the time allows
    adversaries: tuple[Adversary, ...]  # the last miners, or validators, in this order
    model: Path | None
    text: Path | None
    pages: Path | None  # a folder with pages.bin, from scripts/build_pages.py
    tokenizer: str | None  # gpt2, bytes or a tokenizer.json; None: by the model
    run_dir: Path
    port_base: int  # 0: free ones are found when it starts (run/ports.py)
    plain: bool
    kills: tuple[KillRequest, ...] = ()
    block_s: float | None = None  # None: what this machine can do (run/pace.py)
    hub: bool = False  # pages and checkpoints over a Hub of the run's own
    newcomer: bool = False  # a miner joins in the middle, from an empty directory
    open: bool = False  # a live page beside it
    constants: tuple[str, ...] = ()  # of the run, KEY=VALUE, laid over the local preset's

    @property
    def steps_at_speed_1(self) -> int:
        return self.steps or STEPS_AT_SPEED_1

    @property
    def steps_per_round(self) -> tuple[int, ...]:
        """Inner steps a round of each miner."""
        return tuple(speed * self.steps_at_speed_1 for speed in self.speeds)

    def params(self) -> dict[str, Any]:
        """What makes this run this run: an existing run directory is resumed only if these are the same."""
        return {
            "miners": self.miners,
            "validators": self.validators,
            "speeds": list(self.speeds),
            "seed": self.seed,
            "steps": self.steps,
            "adversary": ",".join(map(str, self.adversaries)) or None,
            "model": None if self.model is None else str(self.model),
            "text": None if self.text is None else str(self.text),
            "pages": None if self.pages is None else str(self.pages),
            "tokenizer": self.tokenizer,
            "kill": [str(kill) for kill in self.kills] or None,
            "hub": "auto" if self.hub else None,
            "newcomer": self.newcomer,
            "block_s": self.block_s,
            "set": list(self.constants),
        }


def parse_options(argv: Sequence[str], *, adversaries_dir: Path = ADVERSARIES_DIR) -> Options:
    """Raises ConfigError with one line for a bad value; `--help` prints and exits 0."""
    args = _parser().parse_args(argv)
    sparse = {"average": {"uplink": "sparse"}} in map(assignment, args.set)
    args.rounds = args.rounds or (SPARSE_ROUNDS if sparse else ROUNDS)
    speeds = _speeds(args.speeds, args.miners)
    miners = len(speeds)
    run_dir = args.run_dir or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    return Options(
        rounds=args.rounds,
        miners=miners,
        validators=args.validators,
        speeds=speeds,
        seed=args.seed,
        steps=args.steps,
        adversaries=in_demo(
            chosen(args.adversary, {Role.MINER: miners, Role.VALIDATOR: args.validators}, adversaries_dir)
        ),
        model=args.model,
        text=args.text,
        pages=_pages(args),
        tokenizer=args.tokenizer,
        run_dir=run_dir.absolute(),
        port_base=args.port_base or 0,
        plain=args.plain,
        kills=_kills(args, miners),
        block_s=args.block_seconds,
        hub=args.hub is not None,
        newcomer=_newcomer(args),
        open=args.open,
        constants=tuple(args.set),
    )


def _newcomer(args: argparse.Namespace) -> bool:
    if args.newcomer and (args.steps is not None or args.hub is not None):
        raise ConfigError("argument --newcomer: not with --steps (it changes the end), nor with --hub (it has one)")
    if args.newcomer and args.rounds < MIN_ROUNDS_NEWCOMER:
        raise ConfigError(f"argument --newcomer: it needs {MIN_ROUNDS_NEWCOMER} rounds to join and be paid: --rounds N")
    return args.newcomer


def _kills(args: argparse.Namespace, miners: int) -> tuple[KillRequest, ...]:
    """Each on its own; whether there is room for all of them is the plan's question."""
    if args.kill and args.steps is not None:
        raise ConfigError("argument --kill: a killed miner cannot do exactly N steps; leave out --steps")
    nodes = {"owner": "owner"} | {f"validator-{i}": "validator" for i in range(args.validators)}
    nodes |= {f"miner-{i}": "miner" for i in range(miners)}
    return tuple(parse_kill(text, nodes) for text in args.kill)


def _parser() -> Parser:
    epilog = f"adversaries, by class:\n\n{listing()}\n\n{EPILOG}"
    parser = Parser(DESCRIPTION, examples=EXAMPLES, epilog=epilog, prog="bash scripts/demo.sh")
    add = parser.group("how much")
    help_ = f"rounds to run; default {ROUNDS}, {SPARSE_ROUNDS} where miners send sparse vectors"
    add("--rounds", metavar="N", type=whole(1, 1000, "rounds"), help=help_)
    help_ = "default 4, or as many as --speeds names"
    add("--miners", metavar="N", type=whole(2, MAX_MINERS, "miners"), help=help_)
    add("--validators", metavar="N", type=whole(1, MAX_VALIDATORS, "validators"), default=2, help="default 2")
    add("--speeds", metavar="S,S,...", help=f"speed of each miner; 1 means {STEPS_AT_SPEED_1} inner steps a round")
    help_ = "exactly N inner steps a round at speed 1, so that the end is the same every time; who misses them fails"
    add("--steps", metavar="N", type=whole(1, 200, "inner steps"), help=help_)
    help_ = "all keys, the model's start and the data order follow from it; default 1"
    add("--seed", metavar="N", type=whole(0, 2**32 - 1, "a seed"), default=1, help=help_)
    help_ = "a constant of the run, as create_run.py takes it: average.uplink=sparse; repeatable"
    add("--set", metavar="KEY=VALUE", type=constant, action="append", default=[], help=help_)
    _add_inputs(parser)
    _add_trouble(parser)
    add = parser.group("what you see")
    add("--open", action="store_true", help="a live page in the browser; at a terminal it stays until Ctrl-C")
    add("--plain", action="store_true", help="one line per event instead of the live table")
    add = parser.group("this machine")
    add("--run-dir", metavar="DIR", type=new_folder, help="default runs/DATE-TIME; a run that is there is resumed")
    help_ = "first of the ports, one for each node; default: the first free ones from 9100 on"
    add("--port-base", metavar="N", type=PORT_BASE, help=help_)
    help_ = "length of a block; default: measured, so that a round has room for all that is computed in it"
    add("--block-seconds", metavar="S", type=BLOCK_SECONDS, help=help_)
    return parser


def _add_inputs(parser: Parser) -> None:
    add = parser.group("what is trained on what")
    add("--model", metavar="FILE", type=file_or_folder, help="config.json of a causal model, as published")
    add("--text", metavar="DIR", type=file_or_folder, help="folder of text, or a file; default: Python's own library")
    add("--tokenizer", metavar="NAME|FILE", help="gpt2, bytes or a tokenizer.json; default: what fits the model")
    add("--pages", metavar="DIR", type=folder, help="pages that scripts/build_pages.py made, of FineWeb for instance")
    help_ = (
        "a Hugging Face Hub on this machine: pages and checkpoints go over it, a validator joins from it alone, and "
        "the end is checked with plain transformers"
    )
    add("--hub", choices=["auto"], help=help_)


def _add_trouble(parser: Parser) -> None:
    add = parser.group("who comes, cheats and dies")
    help_ = (
        "the last COUNT miners (default 1), or validators, run that program of adversaries/; repeatable, for others "
        "before them. The names are below"
    )
    add("--adversary", metavar="NAME[:COUNT]", action="append", default=[], help=help_)
    help_ = "a miner joins in the middle as a stranger would: from an empty directory, told the subnet and no more"
    add("--newcomer", action="store_true", help=help_)
    phases = "; ".join(
        f"{', '.join(names)} of {'an' if role == 'owner' else 'a'} {role}" for role, names in PHASES.items()
    )
    help_ = (
        "kill -9 a node when it says that this phase begins, and start it again 10 s later; repeatable. ROLE: miner, "
        f"validator, owner, or a node like miner-2. PHASE: {phases}. Without ROUND the kills are spread over the "
        "rounds by the seed, each of another node"
    )
    add("--kill", metavar="ROLE@PHASE[:ROUND]", action="append", default=[], help=help_)


def _speeds(text: str | None, miners: int | None) -> tuple[int, ...]:
    if text is None:
        return (1,) * (miners or 4)
    parts = text.split(",")
    if not all(p.strip().isdigit() and 1 <= int(p) <= 16 for p in parts):
        raise ConfigError(f"argument --speeds: expected whole numbers from 1 to 16 like 1,1,2,4, not {text!r}")
    if miners not in (None, len(parts)):
        raise ConfigError(f"argument --speeds: expected one speed for each of the {miners} miners, not {len(parts)}")
    if not 2 <= len(parts) <= MAX_MINERS:
        raise ConfigError(f"argument --speeds: expected 2 to {MAX_MINERS} speeds, not {len(parts)}")
    return tuple(int(p) for p in parts)


def _pages(args: argparse.Namespace) -> Path | None:
    for other in ("text", "hub"):
        if args.pages is not None and getattr(args, other) is not None:
            raise ConfigError(f"argument --pages: not with --{other}, which brings pages of its own")
    return args.pages
