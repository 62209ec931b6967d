"""What telling an event costs the node's loop with every sink there is, and what share of a round that is."""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.metrics import events
from distributed_training.metrics.base import Metrics, Sink
from distributed_training.protocol.types import Neuron, Role
from distributed_training.settings.arguments import whole
from distributed_training.settings.config import MetricsSection
from distributed_training.simulation.options import SimOptions, make_run
from distributed_training.simulation.world import node_config
from distributed_training.sinks import open_sinks

DESCRIPTION = """\
Tell the events of rounds of a run of 256 uids, those of a miner and of a validator together, with no sink, with the
event file and with all sinks that are installed; time each event on the thread that tells it:

  us_median, us_p99   of one event; calm: ten times as many as a node tells, with a sleep after each, so that caches are
                      as cold as a node's; at once: without one
  us_mean             the same; at once it includes what the sinks' threads take of the interpreter. The goal is under
                      20 us with all sinks, calm
  of_round            the events of a round by that mean, as a share of a round of 12 minutes
  lost                events that are not in the event file
"""
GOAL_US = 20.0
ROUND_S = 720.0
PAUSE_S = 0.005
UIDS, SLICES, STEPS = 256, 64, 150
NODE = "validator-0"
EVENTS = f"nodes/{NODE}/events.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=whole(1, 100, "rounds"), default=3, metavar="N", help="default 3")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A mean above the goal is a failure, as is an event that is not in the file."""
    with TemporaryDirectory() as root:
        rows = [
            _measured(Path(root) / f"{calm}-{kept}", args.rounds, kept, calm)
            for calm in (True, False)
            for kept in ("none", "file", "all")
        ]
    calm_mean = rows[2]["us_mean"]  # with all sinks
    failures = [f"{row['sinks']} sinks, {row['pace']}: {row['lost']} events were lost" for row in rows if row["lost"]]
    if calm_mean >= GOAL_US:
        failures.append(f"{calm_mean:.1f} us an event with all sinks, expected less than {GOAL_US:g}")
    return {"name": "metrics", "rows": rows, "failures": failures}


def _measured(root: Path, rounds: int, kept: str, calm: bool) -> dict[str, Any]:
    root.mkdir()
    sinks = [] if kept == "none" else _sinks(root, everything=kept == "all")
    metrics, told = Metrics(sinks, role="validator", uid=3), a_round()
    took = [_emit(metrics, record, index, calm) for index in range(rounds) for record in told]
    metrics.close(60.0)
    us = sorted(ns / 1000 for ns in took)
    return {
        "sinks": kept if kept == "none" else ", ".join(type(sink).__name__ for sink in sinks),
        "pace": "calm" if calm else "at once",
        "events": len(us),
        "us_median": us[len(us) // 2],
        "us_p99": us[len(us) * 99 // 100],
        "us_mean": fmean(us),
        "of_round": fmean(us) / 1e6 * len(told) / ROUND_S,
        "lost": None if kept == "none" else len(us) - (root / EVENTS).read_text().count("\n"),
    }


def _emit(metrics: Metrics, record: events.Record, index: int, calm: bool) -> int:
    """Nanoseconds."""
    began = time.perf_counter_ns()
    metrics.emit(record, round=index)
    took = time.perf_counter_ns() - began
    if calm:
        time.sleep(PAUSE_S)
    return took


def _sinks(root: Path, *, everything: bool) -> list[Sink]:
    """As a node opens them."""
    options = SimOptions(miners=4, rounds=1)
    manifest = make_run(options, root)
    wanted = {"prometheus": "127.0.0.1:0", "wandb": "offline" if find_spec("wandb") else None}
    section = MetricsSection.model_construct(**wanted if everything else {})
    config = node_config(root, manifest, NODE, 3, options).model_copy(update={"metrics": section})
    key = LocalKey(derive_keypair(0, NODE))
    me = Neuron(
        uid=3,
        hotkey=key.hotkey,
        public_key=key.public_key,
        stake=1.0,
        may_validate=True,
        registered_block=0,
        address=None,
        commitment=None,
        commitment_block=None,
        incentive=0.0,
        dividends=0.0,
        last_update=0,
        coldkey=bytes(32),
    )
    return open_sinks(config, manifest, Role.VALIDATOR, me, key)


def a_round() -> list[events.Record]:
    """What a miner and a validator tell of one round, in about the order of their kinds."""
    uids = tuple(range(UIDS))
    card = {"S": 0.31, "G": 0.97, "B": 1.0, "I": 0.99, "weight": 1 / UIDS, "reason": "", "note": "round 7: pass"}
    settled = events.Round(
        applied=True,
        reason="applied",
        state_root="ab" * 32,
        candidates=uids,
        included=uids,
        counted=tuple(range(SLICES)),
        backed_up=(3,),
        num_slices=SLICES,
        reducers=dict(enumerate(uids[:SLICES])),
        credit=dict.fromkeys(uids, 0.984375),
        missing={5: uids[:8]},
        tokens=dict.fromkeys(uids, 4_194_304),
        bytes_sent=140_000_000,
        bytes_received=150_000_000,
        sent_to={"miner": 140_000_000},
        received_from={"miner": 150_000_000},
        up_bytes_per_s=5e6,
        down_bytes_per_s=1e7,
        steps=STEPS,
        own_tokens=4_194_304,
        pay=0.01,
        seconds={"train": 400.1, "average": 90.2, "settle": 60.3},
    )
    audit = events.Audit(
        target=3,
        verdict="pass",
        quality=1.0,
        depth=9,
        failed_step=None,
        error=0.004,
        good=0.02,
        bad=0.1,
        noise=0.003,
        reason="ok",
        goodput_bytes_per_s=2.5e8,
        duty=1.0,
    )
    train = events.Train(steps=STEPS, tokens=4_194_304, loss_first=3.2, loss_last=3.1, seconds=400.1, stall_s=0.5)
    return [
        *(events.Phase(phase=name) for name in ("train", "commit", "average", "map", "settle", "audit")),
        *(events.Step(step=step, loss=3.14159, tokens_per_s=10485.76) for step in range(STEPS)),
        train,
        settled,
        events.Evaluation(heldout_loss=3.2),
        *[audit] * UIDS,
        events.Scores(cards=dict.fromkeys(uids, card)),
        events.Weights(block=78, weights=dict.fromkeys(uids, 1 / UIDS)),
    ]
