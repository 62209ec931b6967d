"""Confirmed hard fails that validators tell each other. What is told is looked at, not believed: only a validator's own
replay lowers a score of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence

from distributed_training.averaging.butterfly import CONTROL_TIMEOUT_S
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Signer, Verify
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Accusation, Signed
from distributed_training.protocol.wire import (
    decode_accusation,
    decode_signed,
    encode_accusation,
    encode_signed,
    signing_message,
)

log = logging.getLogger(__name__)

METHOD = "accuse"
# Rounds for which a validator whose word our replay did not confirm is not listened to. One lie costs us a replay of at
# most a round's steps, twice; spread over so many rounds that is 3 % of one miner's round for each liar.
UNBELIEVED_ROUNDS = 64
_ROUNDS = 2  # the open one and the one that is audited
_ACK = b"ok"


class Accusations:
    """What this validator says and hears. One accusation for each accuser, miner and round; none of strangers."""

    def __init__(
        self, manifest: RunManifest, peers: PeerBook, clock: BlockClock, signer: Signer, verify: Verify
    ) -> None:
        self._manifest, self._peers, self._clock = manifest, peers, clock
        self._signer, self._verify = signer, verify
        self._plans: OrderedDict[int, RoundPlan] = OrderedDict()
        self._heard: dict[int, dict[tuple[bytes, bytes], Accusation]] = {}  # round -> (accuser, miner) -> its word
        self._open: dict[int, list[Accusation]] = {}  # those nobody has looked at
        self._unbelieved: dict[bytes, int] = {}  # accuser -> first round in which it is listened to again
        self._came = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        peers.transport.serve(METHOD, self._on_accusation)

    def open_round(self, plan: RoundPlan) -> None:
        """From now on words about this round are taken too. Idempotent."""
        self._plans[plan.round.index] = plan
        while len(self._plans) > _ROUNDS:
            old, _ = self._plans.popitem(last=False)
            for kept in (self._heard, self._open):
                kept.pop(old, None)

    def next(self, round_index: int) -> Accusation | None:
        """One that is to be looked at, oldest first."""
        waiting = self._open.get(round_index, [])
        while waiting:
            found = waiting.pop(0)
            if self._believes(found.accuser, round_index):
                return found
        self._came.clear()
        return None

    async def came(self) -> None:
        """Until one has come since `next` knew of none."""
        await self._came.wait()

    def disbelieve(self, accusation: Accusation) -> None:
        """Our own replay passed."""
        self._unbelieved[accusation.accuser] = accusation.round + UNBELIEVED_ROUNDS

    def accuse(self, plan: RoundPlan, miner: bytes, steps: int, reason: str) -> None:
        """Tell the round's other voters, each until it has heard or the next round's maps are made."""
        said = Accusation(self._manifest.digest, plan.round.index, self._signer.public_key, miner, steps, reason)
        body = encode_accusation(said)
        frame = encode_signed(Signed(body, self._signer.sign(signing_message(body))))
        last = self._manifest.round(plan.round.index + 1).map_block
        for peer_key in self._others(plan):
            task = asyncio.create_task(self._tell(peer_key, frame, last), name="accuse")
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def cancel(self) -> None:
        tasks = list(self._sending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _others(self, plan: RoundPlan) -> Sequence[bytes]:
        return [
            n.commitment.peer_key
            for n in plan.voters
            if n.commitment is not None and n.public_key != self._signer.public_key
        ]

    async def _tell(self, peer_key: bytes, frame: bytes, last_block: int) -> None:
        while self._clock.head < last_block:
            try:
                async with (
                    deadline(CONTROL_TIMEOUT_S, "accusation"),
                    closing(self._peers.open(peer_key, METHOD, frame, CONTROL_TIMEOUT_S)) as stream,
                ):
                    await stream.read(len(_ACK), CONTROL_TIMEOUT_S)
                return
            except (NetworkFault, PeerFault) as error:
                log.debug("an accusation to %s: %s", peer_key.hex()[:12], error)
                await asyncio.sleep(self._clock.block_s)

    async def _on_accusation(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        signed = decode_signed(payload)
        said = decode_accusation(signed.body)
        plan = self._plans.get(said.round)
        if plan is None or said.manifest != self._manifest.digest:
            raise PeerFault("an accusation of another run, or of a round that is not audited here")
        if said.accuser != neuron.public_key or all(n.public_key != said.accuser for n in plan.voters):
            raise PeerFault(f"uid {neuron.uid} is no voter of round {said.round}, or speaks for another one")
        if plan.candidate(said.miner) is None or said.steps > self._manifest.inner.max_steps:
            raise PeerFault("an accusation of nobody, or of a step that cannot be")
        if not self._verify(said.accuser, signing_message(signed.body), signed.signature):
            raise WireError("accusation: bad signature")
        heard = self._heard.setdefault(said.round, {})
        if (said.accuser, said.miner) not in heard and self._believes(said.accuser, said.round):
            heard[said.accuser, said.miner] = said
            self._open.setdefault(said.round, []).append(said)
            self._came.set()
        await stream.write(_ACK, CONTROL_TIMEOUT_S)

    def _believes(self, accuser: bytes, round_index: int) -> bool:
        return round_index >= self._unbelieved.get(accuser, 0)
