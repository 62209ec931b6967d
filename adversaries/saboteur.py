"""A miner or validator that is honest until one point of one round, and there breaks or lies.

    python adversaries/saboteur.py --fault FAULT --point POINT --fault-round R <flags of neurons/miner.py>
    python adversaries/saboteur.py --role validator --fault FAULT --point before-map ... <flags of neurons/validator.py>

kill: SIGKILL to itself. freeze: SIGSTOP to its process group; who watches it sends SIGCONT. slow: from then on it moves
16 bytes/s. cut: all its streams break and new ones fail, the chain stays. lie: what `--help` lists for each point.
Just before, it appends `fault_injected` to its events.jsonl and waits until that is on disk.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from sabotage import FAULTS, LIES, POINTS, Plan, Sabotage, durable_note
from sabotage_chain import SaboteurChain
from sabotage_transport import SaboteurTransport

from distributed_training.assembly import Adapters, honest_worker
from distributed_training.averaging.codecs.base import Codec, Layout, Vector
from distributed_training.averaging.feedback import Encode, Encoded, FeedbackFiles, encode_vector
from distributed_training.chain.base import Chain
from distributed_training.errors import ConfigError
from distributed_training.network.base import Transport
from distributed_training.node import main
from distributed_training.preflight import prepare
from distributed_training.protocol.types import Role, StepRecord
from distributed_training.roles.mining.work import Worker, WorkResult, WorkTask
from distributed_training.settings.entry import run_main

POLL_S = 0.05


class SaboteurWorker:
    """Worker: the honest one, which strikes after its second inner step."""

    def __init__(self, inner: Worker, sabotage: Sabotage) -> None:
        self._inner, self._sabotage = inner, sabotage

    def work(self, task: WorkTask) -> WorkResult:
        def on_step(record: StepRecord, seconds: float) -> None:
            task.on_step(record, seconds)
            if record.step >= 1:
                self._sabotage.reach("train", task.round)
            while self._sabotage.active("slow") and not task.should_stop():
                time.sleep(POLL_S)

        result = self._inner.work(replace(task, on_step=on_step))
        self._sabotage.worked = task.round
        if self._sabotage.lies("train", task.round):
            result = replace(result, steps=tuple(replace(s, grad_norm=2 * s.grad_norm) for s in result.steps))
        return result


def half_the_norms(sabotage: Sabotage) -> Encode:
    """Declares false norms in the fault's round."""

    def encode(files: FeedbackFiles, delta: Vector, layout: Layout, codec: Codec, start: bytes) -> Encoded:
        made = encode_vector(files, delta, layout, codec, start)
        if not sabotage.reach("before-commit", sabotage.worked):
            return made
        norms = tuple(norm / 2 for norm in made.contribution.norms)
        return replace(made, contribution=replace(made.contribution, norms=norms))

    return encode


def wrapped(adapters: Adapters, sabotage: Sabotage, folder: Path, encode: Encode) -> Adapters:
    return replace(
        adapters,
        encode=encode,
        transport=cast(Transport, SaboteurTransport(adapters.transport, sabotage)),
        chain=cast(Chain, SaboteurChain(adapters.chain, sabotage, adapters.signer, folder)),
    )


def parse(argv: Sequence[str]) -> tuple[Plan, Role, list[str]]:
    """The plan, the role, and the node's own flags. Raises ConfigError for a lie that nobody could tell there."""
    points = "\n".join(f"  {name:<16}{what}" for name, what in POINTS.items())
    lies = "\n".join(f"  {name:<16}{what}" for name, what in LIES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\npoints:\n{points}\n\nlies:\n{lies}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--fault", choices=FAULTS, required=True)
    parser.add_argument("--point", choices=tuple(POINTS), required=True)
    parser.add_argument("--fault-round", type=int, required=True, metavar="R")
    parser.add_argument("--fault-seconds", type=float, default=30.0, metavar="S", help="how long slow and cut last")
    parser.add_argument("--role", choices=("miner", "validator"), default="miner")
    own, rest = parser.parse_known_args(argv)
    if own.fault == "lie" and own.point not in LIES:
        raise ConfigError(f"--fault lie: there is no lie at {own.point}; expected one of {', '.join(LIES)}")
    return Plan(own.fault, own.point, own.fault_round, own.fault_seconds), Role[own.role.upper()], rest


def start() -> int:
    plan, role, rest = parse(sys.argv[1:])
    config = prepare(role, rest)
    sabotage = Sabotage(plan, durable_note(config.node_dir / "events.jsonl", role.name.lower()))
    lies = (plan.fault, plan.point) == ("lie", "before-commit")
    encode = half_the_norms(sabotage) if lies else encode_vector
    return main(
        role,
        config,
        lambda engine, manifest: SaboteurWorker(honest_worker(engine, manifest), sabotage),
        lambda adapters: wrapped(adapters, sabotage, config.node_dir, encode),
    )


if __name__ == "__main__":
    sys.exit(run_main(start))
