"""Starting the processes of an all-reduce and hearing what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from benchmarks.allreduce_chain import VOTER, MeetingChain
from benchmarks.allreduce_nursery import Nursery
from distributed_training.averaging.codecs.base import wire_bytes
from distributed_training.averaging.codecs.known import output_of, uplink_of
from distributed_training.averaging.plan import layout_of
from distributed_training.chain.keys import derive_keypair
from distributed_training.localnet.run.processes import THREAD_VARIABLES
from distributed_training.network.identity import PeerIdentity
from distributed_training.protocol.manifest import RunManifest
from distributed_training.recipes.build import draft_manifest
from distributed_training.recipes.reading import read_preset

ROOT = Path(__file__).parents[1]
READY_S = 120.0
SEED = 21  # of the nodes' keys
RECIPE = "gpt2-124m"
# Blocks of a twentieth of a second: the whole of them is how long anything may take, nobody waits for one.
TIMING = {
    "first_block": 100, "finality": 0, "roster_lead": 2, "commit_margin": 1, "commit": 1000, "reduce_margin": 10,
    "output": 13_000, "map": 26_000, "length": 28_000, "transfer": 2, "overlap": False,
}  # fmt: skip


class Spoken(Protocol):
    """A process that is told lines and prints them."""

    @property
    def stdin(self) -> IO[str] | None: ...

    @property
    def stdout(self) -> IO[str] | None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float) -> object: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node's process runs, and where others dial it."""

    ip: str
    port: int
    listen: str = "127.0.0.1"
    listen_port: int = 0  # 0: as `port`
    netns: str = ""


def make_manifest(params: int, uplink: str, output: str) -> RunManifest:
    """Of the preset that mainnet starts from, without waits; small vectors have small chunks."""
    draft = draft_manifest(RECIPE, read_preset(RECIPE).model, None, {"netuid": 1})
    chunk = draft.average.chunk_coords
    while chunk > 4096 and params < 64 * chunk:
        chunk //= 2
    average = draft.average.model_copy(update={"chunk_coords": chunk, "uplink": uplink, "output": output})
    keep = draft.keep.model_copy(update={"snapshot_every": 1 << 10, "output_rounds": 1 << 11, "work_rounds": 1 << 10})
    timing = draft.timing.model_copy(update=TIMING)
    made = draft.model_copy(update={"average": average, "keep": keep, "timing": timing})
    return RunManifest.model_validate(made.model_dump())


class Group:
    """The processes, in a `with`: all are ended with it."""

    def __init__(self, folder: Path, manifest: RunManifest, params: int, places: dict[str, Place]) -> None:
        """places: by name, `miner...` or `observer...`."""
        self.folder, self.places, self.params, self.layout = folder, places, params, layout_of(manifest, params)
        self._manifest, self._stack = manifest, ExitStack()
        self.up_bytes = wire_bytes(uplink_of(manifest.average), self.layout)
        self.down_bytes = wire_bytes(output_of(manifest.average), self.layout)
        self.miners = [name for name in places if name.startswith("miner")]
        (folder / "manifest.json").write_bytes(manifest.canonical())
        nodes = make_nodes(folder, places)
        plan = {
            "nodes": nodes, "params": params, "seed": SEED, "netuid": manifest.netuid, "folder": str(folder),
            "manifest": str(folder / "manifest.json"), "socket": str(folder / "chain.sock"),
            "slice_bytes": self.up_bytes // len(self.miners),
        }  # fmt: skip
        (folder / "plan.json").write_text(json.dumps(plan))
        self._chain = MeetingChain(manifest, nodes, folder / "chain.sock")
        self._processes: dict[str, Spoken] = {}

    def __enter__(self) -> Group:
        self._stack.enter_context(self._chain)
        nursery = self._stack.enter_context(Nursery(ROOT, environment()))
        for name, place in self.places.items():
            log = self._stack.enter_context(self._log(name).open("w"))
            self._processes[name] = nursery.born([str(self.folder / "plan.json"), name], log, place.netns)
        self._stack.callback(end_all, list(self._processes.values()))
        self.ready = {name: hear(process, READY_S, name, self._log(name)) for name, process in self._processes.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, line: str, limit_s: float) -> dict[str, dict[str, Any]]:
        """Say it to all; what each answers. Raises RuntimeError for one that ends or does not answer in time."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
        try:
            return {name: hear(process, limit_s, name, self._log(name)) for name, process in self._processes.items()}
        except RuntimeError as error:
            others = [line for name in self._processes for line in _last_lines(self._log(name), 1)]
            raise RuntimeError("\n".join([str(error), "the last words of all:", *others])) from None

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def make_nodes(folder: Path, places: dict[str, Place]) -> list[dict[str, Any]]:
    """What all processes know of each other, by uid; the validator that only the chain plays comes last."""
    nodes = []
    for uid, name in enumerate([*places, VOTER]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        key, place = derive_keypair(SEED, name), places.get(name)
        nodes.append({
            "uid": uid, "name": name, "kind": "miner" if name.startswith("miner") else name.rstrip("0123456789"),
            "hotkey": key.ss58_address, "public_key": bytes(key.public_key).hex(),
            "peer_key": PeerIdentity.load_or_create(folder / name / "identity.key").public_key.hex(),
            "ip": place.ip if place else "", "port": place.port if place else 0,
            "listen": place.listen if place else "", "listen_port": (place.listen_port or place.port) if place else 0,
        })  # fmt: skip
    return nodes


def stock(kind: str, count: int, params: int, folder: Path, limit_s: float) -> float:
    """Seconds of the last round of `allreduce_stock`, from when all begin until all have it."""
    place = folder / kind
    place.mkdir()
    with ExitStack() as stack:
        processes = []
        for number in range(count):
            argv = [sys.executable, "-m", "benchmarks.allreduce_stock", kind, str(number), str(count), str(params),
                    str(place)]  # fmt: skip
            log = stack.enter_context((place / f"{number}.log").open("w"))
            processes.append(
                subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env=environment())
            )
            stack.callback(end, processes[-1])
        logs = [place / f"{number}.log" for number in range(count)]
        for process, log in zip(processes, logs, strict=True):
            hear(process, READY_S, kind, log)
        return took([hear(process, limit_s, kind, log) for process, log in zip(processes, logs, strict=True)])


def took(told: Sequence[dict[str, Any]]) -> float:
    return max(line["ended"] for line in told) - min(line["began"] for line in told)


def environment() -> dict[str, str]:
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONWARNINGS": "ignore"}


def hear(process: Spoken, timeout_s: float, name: str, log: Path) -> dict[str, Any]:
    """The next line that a process prints. Raises RuntimeError when it ends or stays silent."""
    assert process.stdout is not None
    watch = threading.Timer(timeout_s, process.kill)
    watch.start()
    try:
        line = process.stdout.readline()
    finally:
        watch.cancel()
    if not line:
        raise RuntimeError("\n".join([f"{name} ended or said nothing for {timeout_s:.0f} s", *_last_lines(log, 12)]))
    return json.loads(line)


def _last_lines(log: Path, count: int) -> list[str]:
    return log.read_text(errors="replace").strip().splitlines()[-count:] if log.exists() else []


def end(process: Spoken) -> None:
    end_all([process])


def end_all(processes: Sequence[Spoken]) -> None:
    for process in processes:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
    for process in processes:
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a busy machine takes its time to give gigabytes back
                process.wait(30.0)
