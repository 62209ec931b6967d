"""The holder's side of the slice stream: see `gather`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.store import RoundStore
from distributed_training.averaging.wants import ABSENT, MAX_WANTS, REQUEST, Patience, Wants, frame_bytes
from distributed_training.errors import WireError
from distributed_training.network.base import Stream, deadline
from distributed_training.network.budgets import Repeats
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.wire import decode_signed, output_senders

PEER_SLICES = 4  # served to one peer at a time; its other streams wait for these, nobody else's do


class Giving:
    """Answers who asks for slices: from memory while somebody here holds them there, else from the disk."""

    def __init__(self, manifest: RunManifest, peers: PeerBook, store: RoundStore, patience: Patience) -> None:
        self._peers, self._store, self._patience = peers, store, patience
        self._frame_bytes = frame_bytes(manifest)
        self._held: WeakValueDictionary[bytes, SliceOutput] = WeakValueDictionary()  # by hash of the record
        self._reduced: dict[bytes, int] = {}  # hash of an output record of our own -> its round
        self._serving: dict[bytes, asyncio.Semaphore] = {}  # public key -> its share
        self._repeats = Repeats(forget_s=6 * patience.bulk_s)  # half a round: who joins again asks for all anew

    def have(self, round_index: int, output_hash: bytes, output: SliceOutput) -> None:
        """A slice that the store keeps too."""
        self._held[output_hash] = output
        self._reduced = {key: index for key, index in self._reduced.items() if index >= round_index - 1}
        if output.record.public_key == self._peers.public_key:
            self._reduced[output_hash] = round_index

    def held(self, output_hash: bytes) -> SliceOutput | None:
        """What somebody here holds in memory."""
        return self._held.get(output_hash)

    async def on_slice(self, stream: Stream) -> None:
        """Answer one stream."""
        neuron, payload = await self._peers.accept(stream, self._patience.control_s)
        if len(payload) != REQUEST.size:
            raise WireError("slice: malformed request")
        share = self._serving.setdefault(neuron.public_key, asyncio.Semaphore(PEER_SLICES))
        async with deadline(2 * self._patience.bulk_s, "slice"), share:
            await self._serve(stream, neuron.public_key, *REQUEST.unpack(payload))

    async def _serve(self, stream: Stream, asker: bytes, round_index: int, wanted: bytes) -> None:
        stall_s = self._patience.stall_s
        signed_record = self._store.output_record(round_index, wanted)
        if signed_record is None:
            await stream.write(ABSENT, stall_s)
            return
        await stream.write(signed_record, stall_s)
        senders = output_senders(decode_signed(signed_record).body)
        for _ in range(MAX_WANTS):
            wants = Wants.decode(await stream.read(1 + (len(senders) + 7) // 8, self._patience.bulk_s), len(senders))
            for sender, wanted_here in zip(senders, wants.works, strict=True):
                if wanted_here:
                    await stream.write(self._store.work(round_index, sender) or ABSENT, stall_s)
            if wants.chunks:
                await self._give_chunks(stream, asker, round_index, wanted)

    async def _give_chunks(self, stream: Stream, asker: bytes, round_index: int, wanted: bytes) -> None:
        """At once where the round waits for us: the first time, of what we reduced. Else when it is its turn."""
        first = self._repeats.take(asker, (round_index, wanted)) == 0
        urgent = first and wanted in self._reduced
        async for frame in self._frames(round_index, wanted):
            if urgent:
                await stream.write(frame, self._patience.stall_s)
            else:
                await self._peers.uplink.give(stream, frame, self._patience.stall_s)

    async def _frames(self, round_index: int, wanted: bytes) -> AsyncIterator[bytes]:
        """Looked for anew each time: a slow reader keeps a chunk in memory, not the slice."""
        index = at = 0
        while frame := self._in_memory(wanted, index) or await asyncio.to_thread(
            self._store.output_piece, round_index, wanted, at, self._frame_bytes
        ):
            yield frame
            index, at = index + 1, at + len(frame)

    def _in_memory(self, wanted: bytes, index: int) -> bytes | None:
        held = self._held.get(wanted)
        return held.chunks[index].data if held is not None and index < len(held.chunks) else None
