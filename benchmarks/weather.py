"""Rounds in bad weather: a subnet of real processes whose way to the chain drops, delays, truncates, refuses, cuts."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from benchmarks.fault_subnet import create
from benchmarks.small_demo import run_folder
from benchmarks.weather_rows import judge, problems
from benchmarks.weather_run import WeatherRun
from distributed_training.errors import ConfigError
from distributed_training.localnet.options import BLOCK_SECONDS, PORT_BASE
from distributed_training.localnet.run.ports import check_ports
from distributed_training.settings.arguments import new_folder, real, whole

HONEST = ("owner", "validator-0", "validator-1", "miner-0", "miner-1", "miner-2")
DESCRIPTION = f"""Rounds of {len(HONEST)} real processes over a chain node that answers in a real runtime's bytes
(tests/devnode), each node behind a proxy of its own. Legs: the endpoint is dead when the nodes start; calm rounds;
a storm of faults by chance (seeded); the endpoint dies for all in mid-training; it dies between commit and output.
Rows by leg: rounds and how many were applied, faults (their kinds are printed, and in the JSON), crashes, doubled
submissions, weight sets due and lost, audits and how many failed, the least duty of a miner, and the least pay: a
miner's share in the weights as a part of its share in the calm rounds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--minutes", type=real(0, 600, "minutes"), default=30.0, metavar="M", help="of storm; default 30")
    add("--outage", type=real(0, 3600, "seconds"), default=180.0, metavar="S", help="seconds; default 180")
    add("--calm", type=whole(1, 100, "rounds"), default=3, metavar="N", help="rounds without faults; default 3")
    add("--every", type=real(0.1, 3600, "seconds"), default=20.0, metavar="S", help="seconds between a node's faults")
    add("--block-seconds", type=BLOCK_SECONDS, default=1.0, metavar="S", help="default 1: rounds of 32 s")
    add("--spec", type=int, default=0, metavar="N", help="the runtime's version; default: the newest one there is")
    add("--seed", type=int, default=1, metavar="N", help="of the weather")
    add("--port-base", type=PORT_BASE, default=9400, metavar="N", help="first of 20 ports")
    add("--run-dir", type=new_folder, metavar="DIR", help="new, kept; default: a temporary one that is removed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    with run_folder(args.run_dir) as root:
        if any(root.iterdir()):
            raise ConfigError(f"--run-dir {root} is not empty; expected a new directory")
        subnet = create(root, [], args.block_seconds, args.port_base, HONEST)
        check_ports({spec.port: spec.name for spec in subnet.honest})
        course = WeatherRun(subnet, args, say)
        asyncio.run(course.run())
        say("all processes ended; recomputing every round")
        rows, offline = judge(course)
        return {
            "name": "weather",
            "rows": rows,
            "failures": problems(rows, offline),
            "faults": {leg.name: dict(leg.faults) for leg in course.legs},
            "ended": course.ended,
            "requests": dict(course.requests),
            "round_nominal_s": subnet.round_s,
        }


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S ") + text, flush=True)
