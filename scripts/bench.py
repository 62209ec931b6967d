"""Run one benchmark: print a readable table and, with --json FILE, write one JSON object.

    python scripts/bench.py                     the benchmarks there are
    python scripts/bench.py NAME --help         what one measures, and its options
    python scripts/bench.py NAME --json FILE    machine facts, every row, what was wrong

Exit code 1 when the benchmark found what must not be (its `failures`), 2 for a wrong option.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ lies beside scripts/

from benchmarks.table import Stopwatch, show
from distributed_training.errors import ConfigError
from distributed_training.settings.arguments import Parser, new_file
from distributed_training.settings.entry import run_main
from distributed_training.settings.words import nearest

BENCHMARKS = {
    "adversaries": "what every cheat earns beside honest work, by the real rules: pay per unit of compute; a picture",
    "faults": "kill, freeze, slow, cut, lie at every point of a round, on real processes: no hang, all identical",
    "churn": "thirty rounds on real processes, a node killed or added in every one",
    "weather": "rounds over a chain node behind a proxy that drops, delays, refuses and cuts in mid-submission",
    "allreduce": "real nodes averaging, from the vector to the next state, beside the bare exchange, hivemind, gloo",
    "requests": "what a node asks of the chain in a block, by kind; the goal is 2 beside the roster's",
    "sync": "fetching a 124 M-parameter state from one and from several donors over shaped links",
    "line": "caps on a node's line: what two libp2p nodes put on the wire over loopback, every byte counted",
    "waiting": "what nodes of real processes burn a block while they wait, the libp2p daemon apart",
    "memory": "peak and processor of a node's round by phase, training, chain and network left out; 124 M parameters",
    "path": "CPU per parameter of each step from the trained vector to the next state, over real libp2p; the wait",
    "nat": "whole rounds with a miner behind NAT and no port open, in network namespaces",
    "train": "a step with log and sketches beside a bare loop: tokens per CPU second, memory; on a GPU its utilisation",
    "data": "reading pages: tokens per second, bytes, requests, waiting; local, over the wire, over a bad line",
    "models": "every causal LM family of transformers, and published configs: right, warned, refused, wrong",
    "metrics": "what telling an event costs the node's loop, with every sink, and the share of a round",
    "page": "the live page of 256 uids and 1,000 rounds in a browser: load, memory, frames when dragged and live",
    "pages": "opening a page manifest of half a million pages: time and memory",
    "audit": "what the audits of a round cost all validators: steps replayed by the real plan, GPUs, pages, bytes",
    "drift": "how far honest replays of a round drift apart by step, the cheapest cheats beside them; or verdicts",
    "fresh": "the README's two commands on fresh Debian systems with other Pythons (debootstrap; needs root)",
    "learning": "how well miners that average learn, beside one alone and all tokens in synchronous steps",
    "codec": "encoding and decoding: bytes a second, bits per parameter, relative error, of every codec",
    "convergence": "what codecs, error feedback and overlap cost in learning, over 200 rounds beside dense fp32",
    "collusion": "what colluding reducers and senders can take, by a search over patterns on the real rules",
    "idle": "what a node that waits burns: CPU for each block, while it trains and while slices are awaited",
    "utilisation": "share of the time in training: rounds at blocks of 12 s over home links, on a virtual clock",
    "simulate": "round time, messages and bytes per node from 4 to 256 nodes on a virtual clock",
}


def names() -> str:
    return "\n".join(f"  {name:<12}{line}" for name, line in BENCHMARKS.items())


def load(name: str) -> ModuleType:
    """The module of one benchmark. Raises ConfigError for a name that is not known or not there."""
    if name not in BENCHMARKS:
        raise ConfigError(f"no benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}{nearest(name, BENCHMARKS)}")
    try:
        return import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"benchmarks.{name}":
            raise
        raise ConfigError(f"benchmark {name!r} is not part of this copy (benchmarks/{name}.py is missing)") from None


def parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    made = Parser(prog=f"scripts/bench.py {name}", description=module.DESCRIPTION)
    made.add_argument(
        "--json", type=new_file, metavar="FILE", help="write the whole result here; replaced if it exists"
    )
    module.add_arguments(made)
    return made


def report(result: dict[str, Any], target: Path | None) -> int:
    """Print the rows and what was wrong; write the JSON. Returns the exit code."""
    machine = result["machine"]
    show(result["rows"], title=f"{result['name']} ({machine['cores']} cores, {machine['seconds']:.0f} s)")
    for failure in result.get("failures", ()):
        print(f"FAILED: {failure}")
    if target is not None:
        partial = target.with_name(target.name + ".part")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(target)
    return 1 if result.get("failures") else 0


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM takes the way of Ctrl-C, so that processes, namespaces and folders are removed then too."""
    former = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("list", "-h", "--help"):
        print(__doc__ if argv and argv[0] != "list" else "benchmarks (python scripts/bench.py NAME --help):")
        print(names())
        return 0
    module = load(argv[0])
    args = parser(argv[0], module).parse_args(argv[1:])
    stopwatch = Stopwatch()
    with ended_as_by_ctrl_c():
        result = module.run(args)
    return report(result | {"machine": stopwatch.machine()}, args.json)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
