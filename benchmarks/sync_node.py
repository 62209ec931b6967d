"""One node of the sync benchmark: real transport and snapshot code, a roster from a file instead of a chain.

    python -m benchmarks.sync_node donor  FOLDER/donor-0 FOLDER/plan.json
    python -m benchmarks.sync_node joiner FOLDER/joiner FOLDER/plan.json

A donor prints one JSON line when it listens, and one with its CPU seconds when its stdin closes; the joiner prints one
line with what it measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil

from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import BlockRef, Commitment, Neuron, Role, Roster
from distributed_training.snapshots.fetching import Wanted, fetch_snapshot
from distributed_training.snapshots.header import Shape
from distributed_training.snapshots.serving import SnapshotService
from distributed_training.snapshots.states import StateFiles
from distributed_training.training.outer import state_root

NETUID, MAX_UIDS, PATIENCE_S = 1, 16, 60.0


def neuron(number: int, peer_key: bytes, address: tuple[str, int]) -> Neuron:
    claim = Commitment(Role.MINER, True, peer_key, bytes(8), None, None, None, None)
    return Neuron(number, str(number), public_key(number), 0.0, False, 1, address, claim, 1, 0.0, 0.0, 0, bytes(32))


def public_key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def make_book(plan: dict[str, Any], folder: Path) -> PeerBook:
    """A node with the identity in its folder, on the roster of the plan."""
    me = next(node for node in plan["nodes"] if node["folder"] == folder.name)
    identity = PeerIdentity.load_or_create(folder / "identity.key")
    transport = Libp2pTransport(
        folder / "identity.key", me["ip"], me["port"], announce=(me["ip"], me["port"]), hints=False
    )
    book = PeerBook(transport, NETUID, public_key(me["number"]), identity.sign, verify_peer)
    people = [neuron(n["number"], bytes.fromhex(n["peer_key"]), (n["ip"], n["port"])) for n in plan["nodes"]]
    book.update(Roster(BlockRef(1, bytes(32)), tuple(people)))
    return book


async def donate(book: PeerBook, files: StateFiles, chunk_coords: int) -> dict[str, Any]:
    """Serve until stdin closes."""

    async def refresh() -> None:
        pass  # the roster of the plan is all there is

    SnapshotService(book, files, chunk_coords, refresh)
    say({"ready": True})
    before = cpu_seconds()
    await asyncio.to_thread(sys.stdin.read)
    return {"cpu_s": cpu_seconds() - before}


async def join(book: PeerBook, files: StateFiles, plan: dict[str, Any], donors: int) -> dict[str, Any]:
    """Fetch the state and load it; what is timed is the fetch, from the first dial to the whole file on disk."""
    shape = Shape(plan["num_coords"], plan["chunk_coords"])
    wanted = Wanted(plan["round"], bytes.fromhex(plan["root"]), shape, shape.max_header_bytes(MAX_UIDS))
    peers = [bytes.fromhex(n["peer_key"]) for n in plan["nodes"] if n["folder"].startswith("donor")][:donors]
    loop = asyncio.get_running_loop()
    began, before = loop.time(), cpu_seconds()
    progress = await fetch_snapshot(book.open, peers, wanted, files, patience_s=PATIENCE_S, retry_s=1.0)
    seconds, cpu_s = loop.time() - began, cpu_seconds() - before
    _, state = files.load(plan["round"])
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "bytes": progress.done_bytes,
        "received": book.transport.traffic.received,
        "by_donor": sorted(progress.by_donor.values(), reverse=True),
        "same_root": state_root(state, plan["chunk_coords"]) == wanted.root,
    }


def cpu_seconds() -> float:
    """Of this process and of its network daemon."""
    me = psutil.Process()
    return sum(p.cpu_times().user + p.cpu_times().system for p in (me, *me.children(recursive=True)))


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


async def main(kind: str, folder: Path, plan_file: Path, donors: int) -> None:
    plan = json.loads(plan_file.read_text())
    book, files = make_book(plan, folder), StateFiles(folder / "state")
    await book.transport.start()
    try:
        if kind == "donor":
            say(await donate(book, files, plan["chunk_coords"]))
        else:
            say(await join(book, files, plan, donors))
    finally:
        await book.transport.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]) if sys.argv[4:] else 0))
