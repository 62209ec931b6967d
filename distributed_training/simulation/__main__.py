"""Many nodes in one process, on a virtual clock: `python -m distributed_training.simulation --help`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from distributed_training.errors import ConfigError
from distributed_training.localnet.attacks import chosen
from distributed_training.protocol.types import Role
from distributed_training.settings.arguments import Parser, constant, new_file, whole
from distributed_training.settings.entry import run_main
from distributed_training.simulation.kinds import FAULTS

if TYPE_CHECKING:  # they load torch, and a wrong flag should not wait for that
    from rich.console import Console

    from distributed_training.simulation.observer import RoundRow
    from distributed_training.simulation.swarm import SimResult

EXIT_VIOLATION = 1
DESCRIPTION = """\
Run a whole swarm in this process: the node code of the real network, many nodes, a tiny model, a virtual clock,
modelled links and a chain in memory. Nothing waits for real time, and everything follows from --seed: the same
options give the same digest over all events of all nodes, on the same machine and the same versions.

faults:
  none       nothing goes wrong
  churn      nodes are killed at any moment and started again, new ones join
  loss       two segments in a hundred are lost, connections break
  partition  a part of the nodes is cut off from the others for a while; now
             and then the chain is out
  crash      a tenth of the nodes dies at one moment of the exchange, and is
             back ten seconds later
  freeze     nodes stand still with their connections open
  chain      the block of the commitments, or that of the hashes, is another one
             for some nodes until it is final; some learn of blocks late; or
             none becomes final for a while
  all        another one of these in every round, over lossy links

checked in every round: nodes that settled it have one state root and one outcome; a node that nothing happened to has
settled it by the round's end plus 10 s, one that had trouble two rounds later; no node ends by itself; at the end no
task is left. A deadlock is found at once, since nothing but the nodes moves the clock.
"""
EXAMPLES = """\
  python -m distributed_training.simulation --miners 64 --faults churn --seed 7
  python -m distributed_training.simulation --miners 8 --faults all --rounds 4
  python -m distributed_training.simulation --adversary tail --adversary zeros:2
"""
EPILOG = "exit codes: 0 all held, 1 something did not (printed with the command that replays it), 2 a wrong option."


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="python -m distributed_training.simulation", description=DESCRIPTION, examples=EXAMPLES, epilog=EPILOG
    )
    add = made.group("the swarm")
    add("--miners", type=whole(1, 1023, "miners"), default=16, metavar="N", help="at the start (default 16)")
    add("--rounds", type=whole(1, 100000, "rounds"), default=6, metavar="N", help="rounds to run (default 6)")
    add("--faults", choices=FAULTS, default="none", help="what goes wrong (default none)")
    add("--seed", type=whole(0, 2**63 - 1, "a seed"), default=0, metavar="N", help="decides everything (default 0)")
    add("--validators", type=whole(1, 1000, "validators"), default=2, metavar="N", help="of equal stake (default 2)")
    add("--steps", type=whole(1, 1000, "steps"), default=3, metavar="N", help="inner steps a round at most (default 3)")
    add(
        "--width",
        type=whole(2, 4096, "an even number"),
        default=16,
        metavar="N",
        help="of the model (default 16)",
    )
    help_ = "all nodes wait until commitments and hashes are final, as without it: the same states, later"
    add("--no-act-on-head", dest="act_on_head", action="store_false", help=help_)
    help_ = (
        "the last COUNT miners (default 1), or validators, run that program of adversaries/; repeatable. All nodes are "
        "then equally fast, and what each was paid for what it computed is shown"
    )
    add("--adversary", metavar="NAME[:COUNT]", action="append", default=[], help=help_)
    help_ = "a constant of the run, as create_run.py takes it: average.uplink=sparse; repeatable"
    add("--set", metavar="KEY=VALUE", type=constant, action="append", default=[], help=help_)
    add = made.group("what is written")
    add("--json", type=new_file, metavar="FILE", help="write the result as one JSON object")
    add("--events", type=new_file, metavar="FILE", help="write every event: [virtual time, node, event]")
    add("--log", type=new_file, metavar="FILE", help="write what the nodes log, each line with node and time")
    return made


def show_row(row: RoundRow) -> None:
    """One line of progress."""
    applied = {True: "applied", False: "discarded", None: "not settled"}[row.applied]
    print(f"round {row.round:3d}  {applied}, {row.included} included, {row.live} nodes settled it", flush=True)


def show(result: SimResult, console: Console) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("round", "virtual s", "applied", "live nodes", "included", "messages", "kB sent"):
        table.add_column(name, justify="right")
    for row in result.rows:
        seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
        applied = {True: "yes", False: "no", None: "-"}[row.applied]
        numbers = (str(row.live), str(row.included), f"{row.messages:.0f}", f"{row.sent_bytes / 1e3:.0f}")
        table.add_row(str(row.round), seconds, applied, *numbers)
    console.print(table)
    print("virtual s: from block s+D until a node's last slice had come, median")
    print("messages and kB: sent by a miner, mean")
    happened = Counter(i.kind for i in result.incidents)
    shown = ", ".join(f"{count} x {kind}" for kind, count in sorted(happened.items())) or "none"
    lost = "-" if result.lost_share is None else f"{100 * result.lost_share:.2f} %"
    print(f"incidents: {shown}; trained tokens that are in no state: {lost}")
    show_pay(result)
    print(f"{result.virtual_s:.0f} virtual seconds in {result.real_s:.0f} s; {result.events} events")
    print(f"state root {result.root[:16]}, digest {result.digest}")


def show_pay(result: SimResult) -> None:
    """A line for each that cheats: what it got of an honest miner's pay, and for what it computed."""
    from distributed_training.simulation.pay import earned

    names = result.options.genesis_names()
    for name, attack in result.options.cheats().items():
        if name.startswith("miner"):
            row = earned(result, [names.index(name)])
            print(f"{name} ({attack.name}): {row}")


def show_violations(result: SimResult) -> None:
    for violation in result.violations:
        print(f"VIOLATION round {violation.round}: {', '.join(violation.nodes)}: {violation.what}")
    print(f"seed {result.options.seed}; replay with:\n  {result.options.command()}")


def document(result: SimResult) -> dict[str, Any]:
    return asdict(result) | {"lost_share": result.lost_share, "command": result.options.command()}


@contextlib.contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """The nodes' log lines with virtual time and node, or none at all."""
    if path is None:
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
        return
    handler = logging.FileHandler(path, mode="w", encoding="utf-8", errors="backslashreplace")
    handler.addFilter(_stamp)
    handler.setFormatter(logging.Formatter("%(virtual)10.3f %(node)-12s %(levelname)-7s %(message)s"))
    root = logging.getLogger("distributed_training")
    former, root.propagate = root.level, False
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(former)
        root.propagate = True


def _stamp(record: logging.LogRecord) -> bool:
    from distributed_training.simulation.node import CURRENT

    try:
        record.virtual = asyncio.get_running_loop().time()
    except RuntimeError:
        record.virtual = 0.0
    record.node = CURRENT.get()
    return True


def _opened(path: Path | None, stack: contextlib.ExitStack) -> TextIO | None:
    try:
        return None if path is None else stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    from rich.console import Console

    from distributed_training.simulation.options import SimOptions
    from distributed_training.simulation.swarm import simulate

    options = SimOptions(
        miners=args.miners,
        rounds=args.rounds,
        faults=args.faults,
        seed=args.seed,
        validators=args.validators,
        width=args.width,
        steps=args.steps,
        act_on_head=args.act_on_head,
        adversaries=chosen(args.adversary, {Role.MINER: args.miners, Role.VALIDATOR: args.validators}),
        constants=tuple(args.set),
    )
    with contextlib.ExitStack() as stack:
        events, target = _opened(args.events, stack), _opened(args.json, stack)
        with logging_to(args.log):
            result = simulate(options, show_row, events=events)
        if target is not None:
            target.write(json.dumps(document(result), indent=1, default=str) + "\n")
    show(result, Console(width=100))
    if result.violations:
        show_violations(result)
        return EXIT_VIOLATION
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
