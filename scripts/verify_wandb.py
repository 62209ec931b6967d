"""Verify who stands behind Weights & Biases runs of nodes: the hotkey that a run names, and its uid on the chain."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_training.errors import ConfigError, WireError
from distributed_training.paths import typed
from distributed_training.settings.arguments import Parser, chain_arguments, whole
from distributed_training.settings.entry import run_main

if TYPE_CHECKING:  # a wrong flag should not wait for them
    from distributed_training.operator.verdicts import Finding
    from distributed_training.operator.wandb_runs import NodeRun
    from distributed_training.protocol.types import Roster

DESCRIPTION = """\
Verify who stands behind Weights & Biases runs of nodes. Each holds a signature that its hotkey made for this run, in
this project of this account; with --netuid the chain is asked whether the hotkey has the uid that the run says.

That proves who opened a run, not its numbers: what counts is on chain, and validators check it. Exit code 0 when every
run is proven.
"""
EXAMPLES = """\
  python scripts/verify_wandb.py ENTITY/PROJECT --netuid 12
  python scripts/verify_wandb.py runs/mine/nodes/default/wandb
  python scripts/verify_wandb.py runs/local/nodes --netuid 1 \\
      --subtensor.chain_endpoint file:runs/local/chain.sqlite
"""


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES)
    where = "folder with what nodes recorded (run-*.wandb, at any depth), or ENTITY/PROJECT at Weights & Biases"
    made.add_argument("place", metavar="DIR_OR_PROJECT", help=where)
    made.add_argument("--netuid", type=whole(1, 65535, "a subnet"), metavar="N", help="ask its chain for the uids too")
    chain_arguments(made, "finney")
    return made


def find(place: str) -> list[NodeRun]:
    """Raises ConfigError where there is none."""
    from distributed_training.operator.wandb_runs import published

    folder = typed(place)
    if folder.exists():
        files = [folder] if folder.is_file() else sorted(folder.rglob("run-*.wandb"), key=lambda file: file.parent.name)
        runs = [run for file in files if (run := _whole(file))]
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        runs = published(place)
    else:
        raise ConfigError(f"{place}: no such folder, and no ENTITY/PROJECT")
    if not runs:
        raise ConfigError(f"{place}: no run of a node is in it")
    return runs


def _whole(file: Path) -> NodeRun | None:
    from distributed_training.operator.verdicts import on_one_line
    from distributed_training.operator.wandb_runs import recorded

    try:
        return recorded(file)
    except WireError as error:
        print(f"skipped:    {on_one_line(str(error))}")
        return None


async def _roster(options: argparse.Namespace) -> Roster:
    from distributed_training.operator.asking import asked

    async with asked(options.network, options.endpoint, options.netuid) as chain:
        return await chain.roster((await chain.head()).number)


def verify(options: argparse.Namespace) -> bool:
    """Prints what was found. True if all of it is proven."""
    from distributed_training.operator.verdicts import Verdict
    from distributed_training.operator.wandb_runs import signature_of, uid_of

    runs = find(options.place)
    roster = asyncio.run(_roster(options)) if options.netuid else None
    findings: list[Finding] = []
    for run in runs:
        findings.append(signature_of(run))
        if roster is not None and findings[-1].verdict is not Verdict.FAILED:
            findings.append(uid_of(run, roster, options.netuid))
    for finding in findings:
        print(finding)
    return all(finding.verdict is Verdict.PROVEN for finding in findings)


def main(arguments: list[str] | None = None) -> int:
    return 0 if verify(parser().parse_args(arguments)) else 1


if __name__ == "__main__":
    sys.exit(run_main(main))
