"""Is all well, or is it you, the run or the chain? `python -m distributed_training.status --help`. Only reads."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_training.chain.keys import local_registration, registration_command
from distributed_training.commands import command, python
from distributed_training.errors import ConfigError
from distributed_training.preflight import run_manifest
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.protocol.types import Role
from distributed_training.settings.arguments import Parser, folder, real
from distributed_training.settings.config import NodeConfig, load_config
from distributed_training.settings.entry import run_main
from distributed_training.settings.flags import nearest
from distributed_training.stillness import clocks

if TYPE_CHECKING:  # what loads bittensor waits until the command line is known to be right
    from distributed_training.doctor.base import Finding
    from distributed_training.operator.node_seen import NodeSeen
    from distributed_training.operator.status import Mend
    from distributed_training.operator.status_show import Status

DESCRIPTION = """\
Say in a word whether all is well, or whether it is you, the run or the chain, and what mends it: a node by its journal
and event file, and beside it what the chain alone shows of the run and of the uid. Only reads, beside a node that runs
or after its end (the manifest of a run that was asked for without a node is kept in the cache); needs no wallet.

  all well    the chain goes on, the newest round was applied, the nodes asked about do their part
  the chain   no answer, late blocks, no finality, or rounds lost under rules that nobody tested
  the run     its newest round was discarded, or its validators hold too little stake
  you         a node that is not running, stuck, out of the rounds, at fault, without permit, registration or weights
  not known   nothing could be asked

Judged in this order: the chain, the run, you; where the run only lacks the stake of your own validator, it is you.
"""
EPILOG = """\
All flags and variables of a node are understood: add --json to its own command line, or ask with less:

examples:
  python -m distributed_training.status --run-dir runs/local                      all nodes of a demo, a line each
  python -m distributed_training.status --run-dir runs/local/nodes/miner-0        one of them
  python -m distributed_training.status --netuid 38 --wallet.hotkey hot           the node of this hotkey
  python -m distributed_training.status --netuid 38                               no node: the run of most stake
  python -m distributed_training.status --netuid 38 --wallet.hotkey hot --json || mail -s "my node" me@example.org

exit code: 0 all well; 1 you, the run, the chain or not known; 2 wrong options.
"""
WAIT_S, FINDING_S = 6.0, 20.0  # for the chain; for chain and peers, where the manifest is to be found first


def parser() -> Parser:
    made = Parser(prog="python -m distributed_training.status", description=DESCRIPTION, epilog=EPILOG)
    add = made.add_argument
    add("--run-dir", type=folder, metavar="DIR", help="folder of a run, or of one node in it")
    add(
        "--role", choices=[role.name.lower() for role in Role], help="whose flags these are (default: whoever has them)"
    )
    add("--json", action="store_true", help="one JSON object")
    help_ = f"time to answer (default {WAIT_S:g}; {FINDING_S:g} while the run's manifest is not on this machine yet)"
    add("--wait", type=real(1, 600, "seconds"), metavar="S", help=help_)
    help_ = "again every S seconds (default 10) until Ctrl-C"
    add("--watch", type=real(1, 86400, "seconds"), nargs="?", const=10.0, metavar="S", help=help_)
    return made


@dataclass(frozen=True, slots=True)
class Subject:
    config: NodeConfig
    folders: tuple[Path, ...]  # of nodes
    manifest: RunManifest | None  # as it lies there


def subject(options: Any, words: Sequence[str]) -> Subject:
    """What is asked about. words: flags of a node. Raises ConfigError."""
    words = list(words)

    def given(flag: str, variable: str) -> bool:
        return any(word.split("=")[0] == flag for word in words) or bool(os.environ.get(variable))

    run_dir = options.run_dir
    if run_dir is not None:
        if run_dir.parent.name == "nodes":
            words += ["--wallet.hotkey", run_dir.name]
            run_dir = run_dir.parent.parent
        if not given("--preset", "DT_PRESET") and (run_dir / "chain.sqlite").is_file():
            words += ["--preset", "local"]
        if not given("--netuid", "DT_NETUID") and (run_dir / "manifest.json").is_file():
            words += ["--netuid", str(load_manifest(run_dir / "manifest.json").netuid)]
        words += ["--run-dir", str(run_dir)]
    config = _config(options.role, words)
    if config.run_is_open:
        config = _where_it_ran(config)
    named = config.wallet.hotkey != "default"
    if config.run_is_open and named:
        where = f"{config.run_dir.parent}; leave the hotkey out to ask of the run alone"
        raise ConfigError(f"no node of hotkey {config.wallet.hotkey!r} has run in {where}")
    folders = () if config.run_is_open else _folders(config, needed=named or run_dir is not None)
    if not config.by_default("manifest") or config.manifest.is_file():
        return Subject(config, folders, run_manifest(config))
    return Subject(config, folders, None)


def _config(role: str | None, words: Sequence[str]) -> NodeConfig:
    """By the role that knows these flags. Raises ConfigError."""
    wrong = list[ConfigError]()
    for tried in [Role[role.upper()]] if role else Role:
        try:
            return load_config(tried, words)
        except ConfigError as error:
            wrong.append(error)
    raise wrong[0]


def _where_it_ran(config: NodeConfig) -> NodeConfig:
    """In the run that this hotkey's node was in last; as it is where there was none."""
    base = config.run_dir.parent
    found = [path for path in base.glob(f"*/nodes/{config.wallet.hotkey}") if (path / "lock").is_file()]
    for path in sorted(found, key=lambda path: (path / "lock").stat().st_mtime, reverse=True):
        tag = path.parent.parent.name
        with suppress(ValueError):
            if config.run is None or config.run.startswith(tag) or tag.startswith(config.run):
                return config.in_run(bytes.fromhex(tag))
    return config


def _folders(config: NodeConfig, *, needed: bool) -> tuple[Path, ...]:
    """This hotkey's, or all there are where none is named. Raises ConfigError for a run directory without."""
    if config.node_dir.is_dir():
        return (config.node_dir,)
    nodes = config.run_dir / "nodes"
    there = sorted(path for path in nodes.iterdir() if path.is_dir()) if nodes.is_dir() else []
    if config.wallet.hotkey == "default" and there:
        return tuple(there)
    if not needed:
        return ()
    if not there:
        raise ConfigError(f"--run-dir {config.run_dir}: no node has run there, it has no nodes/NAME")
    near = nearest(config.wallet.hotkey, [path.name for path in there])
    raise ConfigError(f"no node of hotkey {config.wallet.hotkey!r} has run in {config.run_dir}{near}")


def look(of: Subject, wait_s: float | None) -> Status:
    """Raises ConfigError."""
    from distributed_training.operator.node_seen import node_seen
    from distributed_training.operator.status import findings, verdict
    from distributed_training.operator.status_asked import ask
    from distributed_training.operator.status_show import Status

    wait_s = wait_s or (FINDING_S if of.manifest is None else WAIT_S)
    asked, trouble = ask(of.config, of.manifest, wait_s)
    nodes: list[tuple[NodeSeen, tuple[Finding, ...]]] = []
    for path in of.folders:
        node = node_seen(path)
        if of.manifest is not None and node.run not in (None, of.manifest.sha256) and not node.problem:
            node = replace(node, problem=f"{path} holds the node of another run, {str(node.run)[:16]}")
        nodes.append((node, tuple(findings(node, asked, _mend(of.config, node), clocks()[0]))))
    return Status(verdict(asked, nodes), asked, trouble, tuple(nodes))


def _mend(config: NodeConfig, node: NodeSeen) -> Mend:
    from distributed_training.operator.status import Mend

    wallet, chain, netuid = config.wallet.name, config.subtensor, config.netuid
    if config.local_chain is not None:
        register = local_registration(wallet, node.name, config.local_chain.parent)
    else:
        register = registration_command(chain.chain_endpoint or chain.network, netuid, wallet, node.name)
    where = (("--preset", config.preset), ("--netuid", netuid), ("--run-dir", config.run_dir))
    whose = (("--role", node.role), ("--wallet.name", wallet), ("--wallet.hotkey", node.name))
    return Mend(register, command(python(), "-m", "distributed_training.doctor", *whose, *where))


def main(argv: Sequence[str]) -> int:
    options, words = parser().parse_known_args(argv)
    of = subject(options, words)
    from distributed_training.operator.status_show import document, in_words

    former = logging.root.manager.disable
    if not of.config.logging.debug:
        logging.disable(logging.CRITICAL)  # what there is to say is the answer
    try:
        while True:
            status = look(of, options.wait)
            print(json.dumps(document(status)) if options.json else "\n".join(in_words(status)), flush=True)
            if options.watch is None:
                return 0 if status.word == "all well" else 1
            time.sleep(options.watch)
            print()
    finally:
        logging.disable(former)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
