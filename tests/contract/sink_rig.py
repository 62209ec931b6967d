"""Sinks as the contract sees them: how one is opened, what its far side has received, and how that goes away."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samples import RUN

from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.journal import ToldSink
from distributed_training.metrics import events
from distributed_training.metrics.base import Sink
from distributed_training.metrics.jsonl import JsonlSink
from distributed_training.metrics.prometheus import PrometheusSink
from distributed_training.metrics.wandb import Node, WandbSink
from distributed_training.operator.wandb_runs import records


@dataclass(frozen=True)
class Rig:
    """One kind of sink. `seen` counts, after the sink is closed, the faults that its far side has received."""

    sink: Sink
    seen: Callable[[], int]
    vanish: Callable[[], None]  # the far side is gone from here on
    fails: bool  # does the sink raise then? Else it takes events and nobody sees them


def jsonl(folder: Path) -> Rig:
    path = folder / "events.jsonl"
    sink = JsonlSink(path)

    def vanish() -> None:
        """The descriptor takes no more, as that of a disk that was pulled out."""
        read_only = os.open(path, os.O_RDONLY)
        os.dup2(read_only, sink._file._file)
        os.close(read_only)

    return Rig(sink, lambda: path.read_text().count('"event":"fault"'), vanish, fails=True)


def wandb(folder: Path) -> Rig:
    key = LocalKey(derive_keypair(0, "miner"))
    sink = WandbSink(Node(RUN, "miner", 3, key.hotkey), folder, key.sign, "offline")

    def seen() -> int:
        sink._process.wait(60)
        (file,) = folder.rglob("run-*.wandb")
        return sum(row.get("faults", 0) for row in rows(file))

    def vanish() -> None:
        sink._process.kill()
        sink._process.wait()

    return Rig(sink, seen, vanish, fails=True)


def rows(file: Path) -> list[dict[str, Any]]:
    """What a wandb file holds, row by row."""
    found = (record.history.item for record in records(file) if record.HasField("history"))
    return [{"/".join(item.nested_key): json.loads(item.value_json) for item in items} for items in found]


def prometheus(folder: Path) -> Rig:
    sink = PrometheusSink("127.0.0.1:0", RUN, role="miner", uid=3, hotkey="5GBb", folder=folder)
    labels = {"what": "disk"}
    return Rig(
        sink,
        lambda: int(sink.registry.get_sample_value("dt_faults_total", labels) or 0),
        sink._server.shutdown,  # nobody asks any more
        fails=False,
    )


def journal(folder: Path) -> Rig:
    path = folder / "journal.sqlite"
    sink = ToldSink(path)

    def ask(sql: str) -> int:
        with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as db:
            return (db.execute(sql).fetchone() or [0])[0]

    seen = "SELECT count(*) FROM told WHERE event = 'fault'"

    def vanish() -> None:
        ask("DROP TABLE told")

    return Rig(sink, lambda: ask(seen), vanish, fails=True)


RIGS = {"jsonl": jsonl, "journal": journal, "prometheus": prometheus, "wandb": wandb}


ROUND = events.Round(
    pay=0.25,
    applied=True,
    reason="applied",
    state_root="ab" * 32,
    candidates=(3, 4),
    included=(3, 4),
    counted=(0, 1),
    backed_up=(),
    num_slices=2,
    reducers={0: 3, 1: 4},
    credit={3: 1.0, 4: 0.5},
    missing={1: (4,)},
    tokens={3: 10240, 4: 10240},
    bytes_sent=1_972_161,
    bytes_received=1_320_869,
    sent_to={"miner": 1_900_000, "validator": 72_161},
    received_from={"miner": 1_320_869},
    up_bytes_per_s=2.5e6,
    down_bytes_per_s=None,
    steps=5,
    own_tokens=10240,
    seconds={"train": 3.7, "average": 4.8, "settle": None},
)
CARD = {"S": 0.1, "G": 0.6, "B": 1.0, "I": 1.0, "weight": 0.5, "reason": "", "note": "round 0: pass, 2 steps"}
EACH: tuple[events.Record, ...] = (
    events.Ready(
        hotkey="5GBb", peer_key=b"\1" * 32, state_root=b"\2" * 32, block=0, start_round=0, source="round 0", version="1"
    ),
    events.Phase(phase="train"),
    events.Step(step=0, loss=5.4, tokens_per_s=float("nan")),
    events.Train(steps=5, tokens=10240, loss_first=5.4, loss_last=4.4, seconds=3.7, stall_s=None),
    events.Ahead(steps_lost=2),
    events.Anew(candidates=4, now=3),
    ROUND,
    events.Evaluation(heldout_loss=5.3),
    events.Audit(
        target=3,
        verdict="pass",
        quality=1.0,
        depth=3,
        failed_step=None,
        error=0.0,
        good=0.01,
        bad=0.1,
        noise=0.003,
        reason="ok",
        goodput_bytes_per_s=2.5e8,
        duty=1.0,
    ),
    events.Scores(cards={3: CARD, 4: CARD}),
    events.Weights(block=78, weights={3: 0.5, 4: 0.5}),
    events.Checkpoint(path="org/name@round-0", sha256="cd" * 32),
    events.Shared(target=3, repository="org/name", ok=True, said="round-0"),
    events.Sync(
        share=0.5, bytes=10, total_bytes=20, resumed_bytes=0, bytes_per_s=1.0, seconds=10.0, by_donor={"aa": 10}
    ),
    events.Chain(block=130, finalized=128),
    events.Verdict(block=130, word="all well", reasons=("round 3 was applied",), head_age_s=2.5, spec_version=461),
    events.Standing(
        block=130,
        immune_blocks=1200,
        rank=4,
        of=64,
        earns=True,
        prunable_rank=24,
        prunable=50,
        free_places=0,
        price_tao=0.5,
        collateral=None,
    ),
    events.Fault(what="disk", detail="<script>alert(1)</script> \x00 full"),
    events.Stopped(reason="rounds done"),
)
