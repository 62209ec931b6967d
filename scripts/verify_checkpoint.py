"""Verify a published checkpoint: its files, its numbers, and what the chain says about it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_training.errors import ConfigError, DistributedTrainingError, said
from distributed_training.settings.arguments import Parser, chain, checkpoint_arguments, whole
from distributed_training.settings.entry import run_main

if TYPE_CHECKING:  # a wrong flag should not wait for torch
    from distributed_training.checkpoints.base import CheckpointRef
    from distributed_training.operator.verify import Finding, Opened

DESCRIPTION = """\
Verify a published state of a run, line by line: what was proven, and what was not.

Files against training_state.json, numbers against the state root, and with a chain: the owner's commitment to this run
and this checkpoint, and the state root that validators committed. Exit code 0 when nothing failed
and, if a chain was asked, the owner or the validators named this state there; a line NOT proven says what is open.
"""
EXAMPLES = """\
  python scripts/verify_checkpoint.py ORG/NAME --revision TAG \\
      --netuid 12 --chain finney
  python scripts/verify_checkpoint.py --run-dir runs/local
"""


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES)
    checkpoint_arguments(made)
    add = made.group("which chain")
    add("--netuid", type=whole(0, 65535, "a subnet"), metavar="N", help="its subnet, with --chain")
    add("--chain", type=chain, metavar="NETWORK", help="finney, test, or ws://... of a chain node; needs --netuid")
    return made


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser().parse_args(arguments)
    if (options.netuid is None) != (options.chain is None):
        parser().error("--netuid and --chain go together")
    return options


def verify(options: argparse.Namespace) -> int:
    from distributed_training.operator.published import find, trusted_manifest
    from distributed_training.operator.verify import NO_CHAIN, chain_proves, verify_files, verify_numbers

    store, ref = find(options)
    print(f"checkpoint of round {ref.round}: {ref.location}")
    files, opened = verify_files(store, ref, trusted_manifest(options))
    _show(*files)
    _show(*verify_numbers(opened))
    substrate = None if options.run_dir is None else options.run_dir / "chain.sqlite"
    if options.chain is None and (substrate is None or not substrate.is_file()):
        _show(NO_CHAIN)
        return 0
    words = asyncio.run(_ask_chain(options, substrate, ref, opened))
    _show(*words)
    return 0 if chain_proves(*words) else 1


async def _ask_chain(
    options: argparse.Namespace, file: Path | None, ref: CheckpointRef, opened: Opened
) -> tuple[Finding, Finding, Finding]:
    from distributed_training.addresses import FILE
    from distributed_training.operator.asking import asked
    from distributed_training.operator.published import cache
    from distributed_training.operator.verify import verify_on_chain

    netuid = opened.manifest.netuid if options.netuid is None else options.netuid
    if netuid != opened.manifest.netuid:
        raise ConfigError(f"--netuid {netuid}: this checkpoint is of a run on subnet {opened.manifest.netuid}")
    endpoint = f"{FILE}{file}" if options.chain is None else options.chain if "://" in options.chain else None
    try:
        async with asked(options.chain or "local", endpoint, netuid, cache(options)) as chain:
            return await verify_on_chain(chain, ref, opened)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--subtensor.network", "--chain")) from None


def _show(*findings: Finding) -> None:
    for finding in findings:
        print(finding, flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return verify(options)
    except ConfigError:
        raise
    except DistributedTrainingError as error:
        from distributed_training.operator.verify import Finding, Verdict

        _show(Finding(Verdict.FAILED, said(error)))
        return 1


if __name__ == "__main__":
    sys.exit(run_main(main))
