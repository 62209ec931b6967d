"""Is everything here that a node needs? python -m distributed_training.doctor --help"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distributed_training.doctor import packages, show
from distributed_training.doctor.base import ALL_LIMIT_S, Finding, run_checks
from distributed_training.doctor.packages import checkout_finding, package_findings, python_finding

if TYPE_CHECKING:  # a missing package is a finding, not the end
    from distributed_training.protocol.types import Role
    from distributed_training.settings.config import NodeConfig

DESCRIPTION = """\
Look whether a node can run here, and say of everything that is wrong what mends it: this machine, the wallet, the
chain, the run, its peers. Changes nothing, and can be asked beside a node that runs.

  python -m distributed_training.doctor --role miner --netuid N --wallet.name cold --wallet.hotkey hot
  python -m distributed_training.doctor --role validator --preset local --run-dir RUN_DIR --json

All flags and variables of the node itself are understood, and have to be the same: python neurons/miner.py --help
Exit code: 0 nothing fails (there may be warnings), 1 something fails, 2 the command line itself is wrong.
"""
Show = Callable[[Finding], None]
ROLES = ("miner", "validator", "owner")
CLOSING_S = 2.0


def parser() -> argparse.ArgumentParser:
    """Of what is the doctor's own; the rest is a node's. Raises ConfigError."""
    from distributed_training.settings.arguments import Parser

    made = Parser(prog="python -m distributed_training.doctor", description=DESCRIPTION)
    made.add_argument("--role", choices=ROLES, required=True, help="whose node this machine is to run")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    return made


async def examine(role: Role, config: NodeConfig, limit_s: float) -> AsyncGenerator[Finding]:
    """Everything that is opened or started for it is closed and ended afterwards, in CLOSING_S at most."""
    from distributed_training.doctor.checks import CHECKS
    from distributed_training.doctor.subject import Subject

    with TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as scratch:
        stack = AsyncExitStack()
        try:
            subject = Subject(role, config, Path(scratch), stack)
            async with aclosing(run_checks(subject, CHECKS, limit_s)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S):
                    await stack.aclose()
            _end_children()


def _end_children() -> None:
    """What hangs was left behind by its check; it ends with us."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()


async def _examined(role: Role, config: NodeConfig, show_one: Show, limit_s: float) -> list[Finding]:
    findings = []
    async with aclosing(examine(role, config, limit_s)) as asked:
        async for finding in asked:
            findings.append(finding)
            show_one(finding)
    return findings


def main(argv: Sequence[str]) -> int:
    began, as_json = time.monotonic(), "--json" in argv
    show_one = _nothing if as_json else show.Printer().show
    first = [] if {"-h", "--help"} & {*argv} else [python_finding(), *package_findings(), checkout_finding()]
    if not packages.loadable(first):
        for finding in first:
            show_one(finding)
        return _told(first, as_json, began)
    from distributed_training.errors import ConfigError, said
    from distributed_training.protocol.types import Role
    from distributed_training.settings.config import load_config

    try:
        options, rest = parser().parse_known_args(argv)
        role = Role[options.role.upper()]
        config = load_config(role, rest)
    except ConfigError as error:
        if as_json:
            found, _, fix = said(error).partition("; ")
            wrong = Finding("command line", "fail", found, fix or "--help lists all options")
            print(show.document([*first, wrong], show.EXIT_WRONG))
        raise
    for finding in first:
        show_one(finding)
    left = ALL_LIMIT_S - (time.monotonic() - began)
    found = _run(_examined(role, config, show_one, left))
    return _told([*first, *found], as_json, began, role=options.role, netuid=config.netuid, run_dir=str(config.run_dir))


def _run(examined: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    """As asyncio.run, which waits for threads that a disk or a driver may never let go."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(examined)
    try:
        return loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        loop.run_until_complete(asyncio.wait({task}, timeout=2 * CLOSING_S))
        raise


def _told(findings: Sequence[Finding], as_json: bool, began: float, **about: object) -> int:
    code, seconds = show.exit_code(findings), time.monotonic() - began
    print(
        show.document(findings, code, **about, seconds=round(seconds, 1))
        if as_json
        else show.verdict(findings, seconds)
    )
    return code


def _nothing(finding: Finding) -> None:
    """The document is printed at the end."""


if __name__ == "__main__":
    from distributed_training.settings.entry import run_main

    code = run_main(lambda: main(sys.argv[1:]))
    os._exit(code)  # past threads that never end; run_main has written all there is to write
