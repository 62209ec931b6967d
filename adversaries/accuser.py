"""Validator: accuses every miner of failing, in every round.

It should not harm: what a validator is told it looks at itself, only its own replay lowers a score, and an accuser who
was wrong is not believed for a while.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from attack import Attack, Bent
from stage import run

from distributed_training.assembly import Adapters
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.network.base import Stream, StreamHandler, closing
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Accusation, Role, Signed
from distributed_training.protocol.wire import (
    decode_signed,
    decode_work,
    encode_accusation,
    encode_signed,
    signing_message,
)
from distributed_training.roles.auditing.accusations import METHOD
from distributed_training.roles.service import LOG_METHOD

CLASS = "harm"
EVIDENCE = "none"
TIMEOUT_S = 10.0
TRIES = 20


class _Overheard(Bent):
    """Keeps what a peer says."""

    def __init__(self, inner: Stream) -> None:
        super().__init__(inner)
        self.frames: list[bytes] = []

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        self.frames.append(await self.inner.read(max_bytes, timeout_s))
        return self.frames[-1]


@dataclass(kw_only=True, eq=False)
class Accuser(Attack):
    doors: Adapters | None = None
    lies: set[asyncio.Task[None]] = field(default_factory=set)

    async def beside(self, doors: Adapters) -> None:
        self.doors = doors

    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        if method != LOG_METHOD:
            await honest(stream)
            return
        overheard = _Overheard(stream)
        await honest(cast(Stream, overheard))
        if self.doors is not None and len(overheard.frames) > 1:
            self._begin(self._accuse(self.doors, overheard.frames[1]))

    def _begin(self, lie: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(lie, name="lie")
        self.lies.add(task)
        task.add_done_callback(self.lies.discard)

    async def _accuse(self, doors: Adapters, signed_record: bytes) -> None:
        work, signer = decode_work(decode_signed(signed_record).body), doors.signer
        params = await doors.chain.params()
        peers = PeerBook(doors.transport, params.netuid, signer.public_key, doors.sign_as_peer, doors.verify_peer)
        roster = await doors.chain.roster((await doors.chain.head()).number)
        peers.update(roster)
        said = Accusation(work.manifest, work.round, signer.public_key, work.public_key, work.steps, "gradient")
        body = encode_accusation(said)
        frame = encode_signed(Signed(body, signer.sign(signing_message(body))))
        for neuron in roster.neurons:
            words = neuron.commitment
            if words is not None and words.role is Role.VALIDATOR and neuron.public_key != signer.public_key:
                await self._tell(peers, words.peer_key, frame, params.block_s)

    async def _tell(self, peers: PeerBook, peer_key: bytes, frame: bytes, pause_s: float) -> None:
        """Until it is heard: who listens may not have opened the round yet."""
        for _ in range(TRIES):
            with suppress(NetworkFault, PeerFault):
                async with closing(peers.open(peer_key, METHOD, frame, TIMEOUT_S)) as stream:
                    await stream.read(2, TIMEOUT_S)
                    return
            await asyncio.sleep(pause_s)


if __name__ == "__main__":
    sys.exit(run(Accuser, Role.VALIDATOR))
