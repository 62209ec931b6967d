"""One node among peers that are not honest: its real services, a door that plays scripts, and a virtual clock."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import samples
from fuzz_engine import ACCEPTED, stage

from distributed_training.averaging.butterfly import Butterfly, OwnWork
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Head
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import StreamHandler, Traffic
from distributed_training.network.budgets import Budget
from distributed_training.network.frames import EndOfStream
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Candidate, Neuron, Role, Roster
from distributed_training.protocol.wire import encode_work, record_hash
from distributed_training.simulation.loop import VirtualLoop

MANIFEST = samples.SMALL
SENDERS = samples.group(4)
SIGNATURE, BINDING = b"\1" * 64, b"\2" * 64  # what counts as signed here
MAX_SENT = 1 << 20  # bytes a node may answer to one scripted stream
PEER_ERRORS = (PeerFault, NetworkFault)
VALIDATOR = 9
LOOP = VirtualLoop()


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    return signature == SIGNATURE


class Key:
    """A hotkey whose signatures are all the same."""

    hotkey = "5fuzz"

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key

    def sign(self, message: bytes) -> bytes:
        return SIGNATURE


class Script:
    """A stream whose other end says these frames and then closes; `network.base.Stream`, without a connection."""

    def __init__(self, peer_key: bytes, frames: Sequence[bytes]) -> None:
        self.peer_key, self._frames, self._at = peer_key, frames, 0
        self.source: str | None = "203.0.113.7"
        self.sent: list[bytes] = []
        self.closed = False

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        assert 0 <= max_bytes <= MAX_SENT and 0 < timeout_s < 3600, "a read without a sensible bound"
        if self.closed or self._at >= len(self._frames):
            self.closed = True
            raise EndOfStream("the script is over")
        frame = self._frames[self._at]
        self._at += 1
        if len(frame) > max_bytes:
            self.closed = True
            raise WireError(f"a frame of {len(frame)} bytes was announced, at most {max_bytes} are allowed here")
        return frame

    async def write(self, frame: bytes, timeout_s: float) -> None:
        assert 0 < timeout_s < 3600, "a write without a deadline"
        if self.closed:
            raise NetworkFault("closed")
        self.sent.append(frame)
        assert sum(map(len, self.sent)) <= MAX_SENT, "an answer without a bound"

    async def close(self) -> None:
        self.closed = True


class Door:
    """`network.base.Transport`: keeps the handlers, and opens the stream it was given."""

    peer_key = samples.key(0, "peer")

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.handlers: dict[str, StreamHandler] = {}
        self.next: Script | None = None

    def serve(self, method: str, handler: StreamHandler) -> None:
        self.handlers[method] = handler

    def admit(self, peers: Collection[bytes], budget: Budget) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def learn(self, peer_key: bytes, *addresses: tuple[str, int]) -> None: ...

    async def disconnect(self, peer_key: bytes) -> None: ...

    async def answers(self, address: tuple[str, int], timeout_s: float) -> bool:
        return True

    async def open(self, peer_key: bytes, method: str, timeout_s: float) -> Script:
        if self.next is None:
            raise NetworkFault("nobody there")
        stream, self.next = self.next, None
        return stream


class MemoryStore(RoundStore):
    """Kept bytes that are forgotten with the input."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.files: dict[Path, bytes] = {}

    def _read(self, path: Path) -> bytes | None:
        return self.files.get(path)

    def _write(self, path: Path, *parts: bytes) -> None:
        self.files[path] = b"".join(parts)


class Past:
    """`chain.base.Chain`, as far as a handler reads it."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    async def roster(self, block: int) -> Roster:
        return self._roster

    async def block_hash(self, number: int) -> bytes:
        return bytes(32)


def _roster(plan: RoundPlan) -> Roster:
    """The plan's miners, and one validator of the run."""
    said = samples.commitment(VALIDATOR, Role.VALIDATOR, run=MANIFEST.tag)
    judge = samples.neuron(VALIDATOR, Role.VALIDATOR, stake=1.0, commitment=said)
    return replace(plan.roster, neurons=(*plan.roster.neurons, judge))


PLAN = SENDERS.plan
ROSTER = _roster(PLAN)
US = PLAN.slices[0].reducer  # we reduce slice 0
HOSTILE = next(c for c in PLAN.candidates if c.public_key != US)
NUMBER = HOSTILE.public_key[0]
FOLDER = Path(tempfile.mkdtemp(prefix="dt-fuzz-"))


def signed(i: int) -> bytes:
    return SIGNATURE + encode_work(SENDERS.works[samples.key(i)])


class Node:
    """Our side: peer book, store, clock past the cut-off, and the services of a miner and a validator."""

    def __init__(self, plan: RoundPlan = PLAN, store: RoundStore | None = None) -> None:
        self.plan, self.door = plan, Door()
        self.peers = PeerBook(self.door, 1, US, lambda _: BINDING, verify_binding)  # type: ignore[arg-type]
        self.peers.update(ROSTER)
        self.chain: Any = Past(ROSTER)
        self.clock = BlockClock(self.chain, 1.0)
        self.clock._head = Head(plan.round.end_block, plan.round.end_block)  # nothing is waited for
        self.store = store if store is not None else MemoryStore(FOLDER)
        self.butterfly = Butterfly(MANIFEST, self.peers, self.store, self.chain, self.clock, Key(US), verify)

    def forget(self, plan: RoundPlan = PLAN) -> Node:
        """As new, for the next input: nothing proven, nothing kept, nothing received."""
        self.peers._proven.clear()
        self.butterfly._works._rounds.clear()
        self.butterfly.slices._hashes.clear()
        self.butterfly.slices.giving._serving.clear()
        self.butterfly.slices.giving._held.clear()
        if isinstance(self.store, MemoryStore):
            self.store.files.clear()
        reduction: Any = self.butterfly._reduction
        if reduction is not None:
            reduction.plan = plan
            for inbox in filter(None, (reduction.own, reduction.stand_in)):
                inbox.plan, inbox.closed = plan, False
                for taken in (inbox.works, inbox.chunks):
                    for key in [k for k in taken if k != US]:
                        del taken[key]
        return self

    def open_reduction(self) -> Any:
        """Take chunks for our slice; returns what collects them."""
        own = OwnWork(SENDERS.made[US], SIGNATURE + encode_work(SENDERS.works[US]))
        spec = self.plan.slice_of(US)
        assert spec is not None
        return run(self.butterfly._open(self.plan, spec, own))

    def answer(self, method: str, stream: Script) -> str:
        """Run a handler on a scripted stream; where it ended."""
        try:
            run(self.door.handlers[method](stream))
        except PEER_ERRORS as error:
            if "not on the roster" in str(error) or "another peer key" in str(error):
                assert not stream.sent, "a stranger got an answer"
            return stage(error)
        return ACCEPTED


def verify_binding(_: bytes, __: bytes, binding: bytes) -> bool:
    return binding == BINDING


def run(work: Awaitable[Any]) -> Any:
    """In virtual time: a wait of ten seconds takes none, and one that would never end raises Deadlock."""
    return LOOP.run_until_complete(work)  # a coroutine, as all of ours are


def committed(plan: RoundPlan, public_key: bytes, body: bytes) -> RoundPlan:
    """The plan in which this candidate has put the hash of `body` on chain."""

    def said(candidate: Candidate) -> Candidate:
        hashed = record_hash(body)
        return replace(candidate, record_hash=hashed) if candidate.public_key == public_key else candidate

    return replace(plan, candidates=tuple(said(c) for c in plan.candidates))


def speaker(neuron: Neuron | Candidate) -> bytes:
    """The peer key a roster entry names."""
    if isinstance(neuron, Candidate):
        return neuron.peer_key
    assert neuron.commitment is not None
    return neuron.commitment.peer_key
